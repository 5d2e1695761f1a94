"""Score one slide and write its complete folder of results."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from wsiad.core.errors import DetectorError, UnusableSlideError
from wsiad.core.files import atomic_folder
from wsiad.exports.export_format import chosen
from wsiad.heatmaps.heatmap_task import HeatmapRow, SlideTask
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.stitch import notes, stitch
from wsiad.heatmaps.window_batches import WindowBatch, score_windows
from wsiad.heatmaps.windows import (
    WindowSource,
    count_stored,
    from_plan,
    from_store,
    slide_windows,
    store_grid,
    stored_windows,
)
from wsiad.learning.detector import Detector, InputSpec, LearnsByFold
from wsiad.learning.devices import choose_device, windows_at_once
from wsiad.learning.feature_source import ComputesIn
from wsiad.results.deriving import (
    Evidence,
    Parts,
    derive_again,
    reason,
    write_derived,
    write_record,
)
from wsiad.results.evidence import Explainer, write_evidence
from wsiad.results.identity import format_names
from wsiad.results.records import GEOMETRY, LACKING, NOTES, scored_record
from wsiad.results.scored_files import ScoredHeatmap, write_scored
from wsiad.runs.calibration import Calibration
from wsiad.runs.run import RunFolder
from wsiad.slides.slide import Slide
from wsiad.slides.slide_files import slide_files
from wsiad.slides.slide_table import OK
from wsiad.stain.profile import StainProfile
from wsiad.store.slide_preview import PreviewRow, Sample, looked_at, middle, sampled
from wsiad.store.tile_store import TileStore
from wsiad.store.writer import check_unchanged
from wsiad.tiling.plan import plan_slide
from wsiad.tissue.quality import LeftOut, Reason


@functools.lru_cache(maxsize=1)
def load_once(
    run: Path, device: str, digest: str, precision: Literal["run", "bf16"]
) -> tuple[Detector, Calibration, Explainer]:
    """Load a run's detector once per process; the digest distinguishes runs of the same path.

    Raises
    ------
    DetectorError
        The precision is not that of the run, and the detector has no other.
    """
    folder = RunFolder.open(run)
    detector, calibration = folder.load_detector(choose_device(device)), folder.calibration()
    if precision != "run":
        if not isinstance(detector, ComputesIn):
            raise DetectorError(
                f"{folder.record().detector} computes in the precision of its run alone",
                subject=str(run),
                remedy="Leave --precision out.",
            )
        detector.compute_in(precision)
    explainer = Explainer(detector, folder.examples())
    return detector, calibration, explainer


def score_slide(task: SlideTask) -> HeatmapRow:
    """Score a slide if it is not scored yet, and derive regions, detections and files.

    A new folder of results is written atomically.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px do not fit the run.
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    start = time.monotonic()
    there = scored_record(task)
    if there is not None and not Parts.differing(there[0], task.derived).evidence:
        # Neither the slide nor the detector is needed.
        calibration = RunFolder.open(task.run).calibration()
        return _derive_again(task, calibration, *there, evidence=lambda _: _none, slide=None)
    detector, calibration, explainer = load_once(
        task.run, task.device, task.digest, task.options.precision
    )
    with window_source(task, detector.spec) as source:
        if there is not None:
            written = functools.partial(_evidence, task, explainer, source)
            return _derive_again(task, calibration, *there, evidence=written, slide=source.slide)
        return _score(task, calibration, explainer=explainer, source=source, start=start)


def _none(folder: Path, regions: Sequence[Region]) -> int:
    del folder, regions
    return 0


def _evidence(
    task: SlideTask, explainer: Explainer, source: WindowSource, scored: ScoredHeatmap
) -> Evidence:
    """Return the function that writes evidence with the detector and the slide's pixels."""

    def write(folder: Path, regions: Sequence[Region]) -> int:
        write_evidence(
            folder,
            explainer,
            regions=regions,
            windows=scored.windows,
            source=source,
            options=task.options,
        )
        return 0

    return write


@contextlib.contextmanager
def window_source(task: SlideTask, spec: InputSpec) -> Iterator[WindowSource]:
    """Open the slide of a task, or its tiles in a store, and plan its windows.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px do not fit the run.
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    if task.from_store:
        yield stored_windows(task, spec)
        return
    with task.opened() as slide:
        yield slide_windows(task, slide, spec)


def look_to_score(task: SlideTask, row: PreviewRow, sample: bool) -> tuple[PreviewRow, Sample]:
    """Plan a slide's windows as :func:`score_slide` does, and score some if a sample is wanted.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px do not fit the run.
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    start = time.monotonic()
    detector, _, _ = load_once(task.run, task.device, task.digest, task.options.precision)
    device = choose_device(task.device)
    at_once = windows_at_once(task.batch, device, edge=detector.spec.size)
    with contextlib.nullcontext() if task.from_store else task.opened() as slide:
        if slide is None:
            found, windows = _look_at_stored(task, row, detector.spec)
        else:
            target = StainProfile.from_dict(task.target)
            plan = plan_slide(
                slide,
                task.preparation,
                target=target,
                tile=detector.spec.size,
                stride=task.options.stride or detector.spec.size,
                stain=None if sample else target,  # no pixel is used
            )
            size = sum(path.stat().st_size for path in slide_files(task.slide.path))
            found = replace(looked_at(slide, plan, row, noun="window"), bytes=size)
            windows = from_plan(plan, first=middle(len(plan)))
        if not sample or not found.tiles:
            return found, Sample()
        seconds = time.monotonic() - start
        with contextlib.closing(score_windows(detector, windows, batch=at_once)) as batches:
            return found, sampled(((len(b.rows), 0) for b in batches), plan_seconds=seconds)


def _look_at_stored(
    task: SlideTask, row: PreviewRow, spec: InputSpec
) -> tuple[PreviewRow, Iterator[WindowBatch]]:
    """Return the row of a stored slide, and its windows."""
    stored = TileStore(task.slide.path).slide(task.slide.name)
    grid, thresholds = store_grid(stored, spec, task.options.stride), task.preparation.quality
    found = replace(
        row,
        status=OK if len(stored) else stored.status,
        reason=stored.reason,
        format="store",
        backend="store",
        mpp_x=float(stored.spacing.x),
        mpp_y=float(stored.spacing.y),
        mpp_source=stored.facts["slide"]["spacing_source"],
        width=stored.size.width,
        height=stored.size.height,
        tissue_share=float(stored.facts["tissue"]["share"]),
        tiles=count_stored(stored, grid, thresholds=thresholds),
    )
    return found, from_store(stored, grid, thresholds=thresholds)


def _score(
    task: SlideTask,
    calibration: Calibration,
    explainer: Explainer,
    source: WindowSource,
    start: float,
) -> HeatmapRow:
    detector = explainer.detector
    if isinstance(detector, LearnsByFold):  # no slide is scored with what it taught
        detector = detector.held_out(source.identity["fingerprint"])
    if not source.mask.size and (why := source.why_unusable(LeftOut())):
        # It is so small that no picture can be made of it.
        raise UnusableSlideError(why, subject=task.slide.name)
    device = choose_device(task.device)
    batch = windows_at_once(task.batch, device, edge=detector.spec.size)
    batches = source.scored(detector, batch=batch, pinned=device.type == "cuda")
    with contextlib.closing(batches):  # the thread that reads ahead ends before the slide does
        scored = stitch(task, calibration, source, batches)
    if source.slide:
        source.slide.forget()  # the pictures of a large slide take as much
    with atomic_folder(task.folder) as folder:
        geometry, written = write_scored(
            folder, task, calibration=calibration, source=source, scored=scored
        )
        figures: dict[str, Any] = {}
        if written:
            figures = write_derived(
                folder,
                written,
                options=task.options,
                calibration=calibration,
                formats=chosen(task.options.viewers),
                evidence=_evidence(task, explainer, source, written),
                slide=source.slide,  # a store has no surroundings to show
                spatial=task.spatial,
            )
            del figures[LACKING]
        said = list(notes(source, scored))
        row = HeatmapRow(
            task.slide.name,
            scored.status,
            reason(said, figures),
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
        record = {**source.identity, GEOMETRY: geometry, NOTES: said}
        write_record(folder, record, row, derived=task.derived, formats=format_names(task))
    return row


def _derive_again(
    task: SlideTask,
    calibration: Calibration,
    record: dict[str, Any],
    row: HeatmapRow,
    *,
    evidence: Callable[[ScoredHeatmap], Evidence],
    slide: Slide | None,
) -> HeatmapRow:
    return derive_again(
        task.folder,
        record,
        row,
        options=task.options,
        derived=task.derived,
        calibration=calibration,
        formats=task.options.viewers,
        evidence=evidence,
        slide=slide,
        spatial=task.spatial,
    )
