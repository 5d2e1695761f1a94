"""``wsiad score-tiles``: score each tile of a store, and compute tile AUROC from labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from wsiad.core.config import CONFIG, QuietOptions, verb, write_config
from wsiad.core.errors import DetectorError, InputError
from wsiad.core.files import write_json, write_text
from wsiad.core.ownership import refuse_foreign
from wsiad.core.packages import versions
from wsiad.core.terminal import Progress, counted
from wsiad.evaluation.groups import (
    NORMAL,
    TUMOUR,
    GroupScores,
    by_type,
    group_facts,
    not_recognised,
    scores_table,
    taught_lines,
    tile_scores,
    truth_of,
    type_line,
    without_its_lessons,
)
from wsiad.learning.devices import DeviceOptions
from wsiad.results.file_names import EVALUATION
from wsiad.runs.claim import SECOND_LOOK
from wsiad.runs.compatibility import check_prepared_alike, run_preparation
from wsiad.runs.healthy_tiles import store_fingerprint
from wsiad.slides.slide_table import SLIDES_TABLE, read_table
from wsiad.store.tile_task import StoreOptions, TileRow, no_tiles, unseen_lines, unseen_slides

if TYPE_CHECKING:
    from wsiad.evaluation.auc import Estimate
    from wsiad.learning.detector import Detector
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_store import TileStore

SCORES = "scores.csv"


class ScoreTilesConfig(QuietOptions, DeviceOptions, StoreOptions):
    """Score each tile of a store with the detector of a run, and compute tile AUROC from labels."""

    ORDER = ("run", "store", ..., "device", "quiet")

    run: Path
    """Run folder that `wsiad train` made."""
    out: Path
    """Folder of the scores; those of an earlier call in it are replaced."""
    normal: tuple[str, ...] = ()
    """Labels that mean normal; by default those that `wsiad train` counts as healthy. Any
    other label means tumour; groups without a label are scored but not evaluated."""
    tumour: tuple[str, ...] = ()
    """Labels of slides of which every tile in the store is tumour, for example because tiles were
    cut inside outlines. By default, tiles of a slide with tumour are not evaluated."""
    batch: Annotated[int, Field(ge=1)] = 256
    """Number of tiles that are scored at a time, whatever chunks they were read in; on a CPU
    fewer, because that is faster there."""
    bootstrap: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Number of resamples of the groups, for the interval."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resamples."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTilesResult:
    """Result of scoring tiles.

    Parameters
    ----------
    scores, evaluation : Path
        Paths of ``scores.csv`` and ``evaluation.json``.
    groups : tuple of GroupScores
        Scores by group, in order of the groups' names.
    tile_auroc : Estimate
        Tile AUROC with its interval by resampling groups.
    summary : str
        Summary for the terminal.
    """

    scores: Path
    evaluation: Path
    groups: tuple[GroupScores, ...]
    tile_auroc: Estimate
    summary: str


@verb(ScoreTilesConfig)
def score_tiles(config: ScoreTilesConfig) -> ScoreTilesResult:
    """Score the tiles of a store; of tiles larger than the detector's input, the centre is scored.

    A slide that taught a second look is scored without what its fold taught. It is recognised by
    its fingerprint; groups that cannot be recognised are named.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged.
    StoreError
        The store is missing, damaged, or was prepared differently from that of the run.
    DetectorError
        A score is not finite; nothing is written then.
    InputError
        The store is empty, or the output folder contains something else.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.evaluation.auc import slide_auc, tile_auroc
    from wsiad.learning.devices import choose_device, windows_at_once
    from wsiad.runs.run import RunFolder
    from wsiad.store.tile_store import TileStore

    start = time.monotonic()
    device = choose_device(config.device)
    folder = RunFolder.open(config.run, beside=[config.store])
    store = TileStore(config.store)
    # The tissue mask chooses tiles; it does not change what a pixel means.
    check_prepared_alike(store, *run_preparation(config.run), keys=("mpp", "stain"))
    refuse_foreign(config.out, InputError, what="scores of tiles", marks=[SCORES])
    detector, calibration = folder.load_detector(device), folder.calibration()
    batch = windows_at_once(config.batch, device, edge=detector.spec.size)
    slides = [slide for slide in store if len(slide)]
    unseen = unseen_slides(store)
    if not slides:
        raise no_tiles(store)
    groups = _scored(config, store, slides, detector, batch=batch)
    write_text(config.out / SCORES, scores_table(store, groups, calibration))
    positive, negative = (
        [g.scores.astype(np.float64) if g.truth == truth else np.zeros(0) for g in groups]
        for truth in (TUMOUR, NORMAL)
    )
    area = tile_auroc(positive, negative, resamples=config.bootstrap, seed=config.seed)
    independent = slide_auc(np.concatenate(positive), np.concatenate(negative))
    record = folder.record()
    taught = record.slides.get(SECOND_LOOK, {})
    unknown = not_recognised(slides, taught)
    types = by_type(groups, record.notes.get("anomalies"))
    facts = {
        "run": str(config.run),
        "detector": record.detector,
        "store": store_fingerprint(store, slides),
        "tile_auroc": area.as_json(),
        "as_if_tiles_were_independent": independent.as_json() if area.value is not None else None,
        "by_type": types,
        "not_scored": unseen,
        **({"may_have_taught": unknown} if unknown else {}),
        "groups": [group_facts(group, calibration) for group in groups],
        "seconds": round(time.monotonic() - start, 3),
        "versions": versions(),
    }
    write_json(config.out / EVALUATION, facts)
    write_config(config.out / CONFIG, config)
    said = unseen_lines(unseen, str(config.store)) + taught_lines(slides, taught, unknown)
    summary = "\n".join(
        [*said, _summary(config, groups, area=area, independent=independent, types=types)]
    )
    return ScoreTilesResult(
        scores=config.out / SCORES,
        evaluation=config.out / EVALUATION,
        groups=tuple(groups),
        tile_auroc=area,
        summary=summary,
    )


def _scored(
    config: ScoreTilesConfig,
    store: TileStore,
    slides: list[StoredSlide],
    detector: Detector,
    *,
    batch: int,
) -> list[GroupScores]:
    labels = {row.slide: row.label for row in read_table(store.path / SLIDES_TABLE, TileRow)}
    groups = []
    total = sum(len(slide) for slide in slides)
    with Progress("score", total=total, unit="tile", quiet=config.quiet) as progress:
        for slide in slides:
            parts = []
            own = without_its_lessons(detector, slide)
            for scores in tile_scores(own, slide, batch=batch):
                parts.append(scores)
                progress.update(len(scores), note=slide.name)
            label = labels.get(slide.name, "")
            truth = truth_of(slide, label, normal=config.normal, tumour=config.tumour)
            scores = np.concatenate(parts)
            if not np.isfinite(scores).all():
                raise DetectorError(
                    f"the run gives scores of {slide.name} that are not finite",
                    subject=str(config.run),
                    remedy="Copy the run again, or train again: its weights are damaged.",
                )
            groups.append(GroupScores(slide.name, label, truth, scores))
    return groups


def _summary(
    config: ScoreTilesConfig,
    groups: list[GroupScores],
    area: Estimate,
    independent: Estimate,
    types: list[dict[str, Any]],
) -> str:
    counts = {
        truth: sum(len(g.scores) for g in groups if g.truth == truth) for truth in (NORMAL, TUMOUR)
    }
    total = sum(len(group.scores) for group in groups)
    lines = [f"{config.out}: {counted(total, 'tile')} of {counted(len(groups), 'group')} scored"]
    if area.value is None:
        return "\n".join([*lines, f"tile AUROC {area}"])
    seen = f"{counts[TUMOUR]} tumour and {counted(counts[NORMAL], 'normal tile')}"
    lines.append(f"tile AUROC {area}: {seen}")
    if area.low is None:
        lines.append(f"  {area.interval_undefined}")
        lines.append(f"  if tiles were independent, which they are not: {independent}")
    if any(kind["learnt_from"] or kind["left_out"] for kind in types):
        lines += [type_line(kind) for kind in types]
    return "\n".join(lines)
