"""One slide scored: from its windows to its folder of results."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, replace
from pathlib import Path

from wsiad.core.errors import InputError, UnusableSlideError
from wsiad.core.files import atomic_folder, read_json, write_json
from wsiad.heatmaps.heatmap_task import SLIDE, HeatmapRow, SlideTask
from wsiad.heatmaps.stitch import notes, stitch
from wsiad.heatmaps.windows import (
    WindowSource,
    identity_of,
    score_windows,
    slide_windows,
    stored_windows,
)
from wsiad.learning.detector import Detector
from wsiad.learning.device import choose_device, windows_at_once
from wsiad.results.evidence import Explainer
from wsiad.results.writing import write_results
from wsiad.runs.calibration import Calibration
from wsiad.runs.run import RunFolder
from wsiad.slides.opening import open_slide
from wsiad.slides.slide_table import DAMAGED_THERE
from wsiad.slides.staging import staged
from wsiad.store.writer import check_unchanged
from wsiad.tiling.left_out import LeftOut
from wsiad.tissue.quality import Reason


@functools.lru_cache(maxsize=1)
def _loaded(run: Path, device: str, digest: str) -> tuple[Detector, Calibration, Explainer]:
    """Load a run's detector once a process; the digest tells runs of one path apart."""
    folder = RunFolder.open(run)
    detector, calibration = folder.load_detector(choose_device(device)), folder.calibration()
    explainer = Explainer(detector, folder.examples())
    return detector, calibration, explainer


def stored_row(task: SlideTask) -> HeatmapRow | None:
    """Row of a slide whose results are whole and of the same slide, run and options."""
    path = task.folder / SLIDE
    if not path.exists():
        return None
    try:
        facts = read_json(path, InputError)
        identity = identity_of(task)
        same = {key: facts[key] for key in identity} == identity
        row = HeatmapRow(**facts["row"])
    except (InputError, KeyError, TypeError):
        return None  # not whole: it is made again
    if not same:
        raise InputError(
            "has results from another file of this name, or at another µm/px",
            subject=task.slide.name,
            remedy=f"Rename the slide, or delete {task.folder} to score it again.",
        )
    skipped = row.damaged or DAMAGED_THERE in row.reason
    if skipped and task.preparation.damaged_tiles == "fail" and not task.from_store:
        raise InputError(
            "has results without its damaged parts, which --damaged-tiles skip left out",
            subject=task.slide.name,
            remedy=f"Give that option again, or delete {task.folder} to score a better copy.",
        )
    return replace(row, label=task.slide.label, split=task.slide.split)


def score_slide(task: SlideTask) -> HeatmapRow:
    """Score a slide and write its folder of results, whole or not at all.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px does not fit the run.
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    start = time.monotonic()
    detector, calibration, explainer = _loaded(task.run, task.device, task.digest)
    if task.from_store:
        source = stored_windows(task, detector.spec)
        return _finish(task, calibration, explainer, source, start)
    with (
        staged(task.slide.path, task.staging, name=task.slide.name) as local,
        open_slide(
            local,
            name=task.slide.name,
            manifest_mpp=task.slide.mpp,
            fallback_mpp=task.preparation.slide_mpp,
            skip_damaged=task.preparation.damaged_tiles == "skip",
            override_mpp=task.override_mpp,
        ) as slide,
    ):
        source = slide_windows(task, slide, detector.spec)
        return _finish(task, calibration, explainer, source, start)


def _finish(
    task: SlideTask,
    calibration: Calibration,
    explainer: Explainer,
    source: WindowSource,
    start: float,
) -> HeatmapRow:
    detector = explainer.detector
    if not source.mask.size and (why := source.why_unusable(LeftOut())):
        # It is so small that no picture can be made of it.
        raise UnusableSlideError(why, subject=task.slide.name)
    batch = windows_at_once(task.batch, choose_device(task.device), edge=detector.spec.size)
    scored = stitch(task, calibration, source, score_windows(detector, source.batches, batch=batch))
    if source.slide:
        source.slide.forget()  # the pictures of a large slide take as much
    with atomic_folder(task.folder) as folder:
        figures = write_results(folder, task, calibration, source, scored, explainer)
        row = HeatmapRow(
            task.slide.name,
            scored.status,
            "; ".join(notes(source, scored, regions_left_out=figures.get("regions_left_out", 0))),
            tiles=len(scored.windows.scores),
            unusable=sum(scored.left_out.by_quality().values()),
            damaged=scored.left_out.count(Reason.DAMAGED),
            mpp_x=float(source.spacing.x),
            mpp_y=float(source.spacing.y),
            width=source.size.width,
            height=source.size.height,
            label=task.slide.label,
            split=task.slide.split,
            file=str(task.slide.path.absolute()),
            backend=source.backend,
            seconds=round(time.monotonic() - start, 3),
            **figures,
        )
        if source.slide:
            check_unchanged(source.slide, source.identity["fingerprint"])
        write_json(folder / SLIDE, source.identity | {"row": asdict(row)})
    return row
