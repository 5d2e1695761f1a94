"""``wsiad heatmap``: slides, scored by a run's detector.

``wsiad heatmap --healthy``: results that come with p-values.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from wsiad.compute.batch import record_path, run_batch, slides_of_shard, with_staging
from wsiad.compute.compute_options import ComputeOptions
from wsiad.core.config import Paths, verb, write_config
from wsiad.core.errors import InputError
from wsiad.core.files import write_json
from wsiad.core.ownership import clear_leftovers
from wsiad.core.provenance import versions
from wsiad.heatmaps.heatmap_task import HeatmapOptions, HeatmapRow, SlideTask
from wsiad.results.file_names import CALIBRATION, CONFIG, FACTS, SLIDE, SLIDES_TABLE
from wsiad.results.identity import (
    DERIVED,
    FORMATS,
    READING,
    SCORED,
    begin_results,
    check_scores,
    derived_values,
    difference,
    region_differences,
    scored_digest,
    scoring_values,
)
from wsiad.results.scoring_inputs import heatmap_inputs
from wsiad.runs.preparation import run_preparation
from wsiad.slides.inputs import SlideInput
from wsiad.slides.scale import check_mpp
from wsiad.slides.slide_table import (
    OK,
    SlideRow,
    SlideTable,
    backends,
    failures,
    outcome,
    read_table,
    unusable,
)
from wsiad.tissue.tissue_options import QualityThresholds

if TYPE_CHECKING:
    from wsiad.runs.run import RunRecord


def check_healthy(config: HeatmapConfig, asked: dict[str, Any]) -> None:
    """Refuse a reference that would not fit, before hours of scoring.

    Raises
    ------
    InputError
        The folder holds no results, or those of another run or other options.
    """
    from wsiad.results.compared_slides import read_folder

    if config.healthy is None:
        return
    facts = read_folder(config.healthy).facts
    told = region_differences(facts, asked)
    if facts["digest"] != asked["digest"]:
        told.insert(0, difference(config.healthy, facts, config))
    if told:
        raise InputError(
            f"holds results of another run or of other options: {', '.join(told)}",
            subject=str(config.healthy),
            remedy="Score the healthy slides by the same run with the same options.",
        )


def add_significance(
    results: Path, healthy: Path | None, rows: Iterable[HeatmapRow], *, quiet: bool
) -> str:
    """Compare results with those of healthy slides, if there are any; say what was found.

    Raises
    ------
    InputError
        As by :func:`wsiad.significance`.
    """
    from wsiad.results.significance_comparison import SignificanceConfig, compare

    if healthy is None or not any(row.status == OK for row in rows):
        return ""
    found = compare(SignificanceConfig(results=results, healthy=healthy, quiet=quiet))
    return f"\n{found.summary}"


logger = logging.getLogger(__name__)


class HeatmapConfig(ComputeOptions, HeatmapOptions):
    """Score slides with the detector of a run."""

    run: Path
    """Run folder that `wsiad train` made."""
    slides: Annotated[Paths, Field(min_length=1)]
    """Slide files, folders, manifest CSVs; or one tile store."""
    out: Path
    """Folder of the results; slides that are whole in it are not scored again."""
    slide_mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0 for slides that state none."""
    override_mpp: bool = False
    """The µm/px of a manifest, or else of `slide_mpp`, holds for slides that state another, too."""
    allow_upsampling: bool | None = None
    """Accept slides that are coarser than the run's scale by more than 2 %; by default as the
    run's store."""
    quality: QualityThresholds = QualityThresholds()
    """Which windows are too bad to be scored, in place of the thresholds of the run: they are
    shown as not assessed, and counted."""
    damaged_tiles: Literal["fail", "skip"] = "fail"
    """Effect of a damaged part of a slide's file: the slide fails; or the windows that lie in it
    are left out, counted and shown as not assessed."""
    healthy: Path | None = None
    """Results folder of held-out healthy slides, scored by the same run with the same options:
    p-values are added to the results (see `wsiad significance`)."""
    batch: Annotated[int, Field(ge=1)] = 256
    """The most windows scored at once; a CPU takes fewer, to the same scores."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    quiet: bool = False
    """No progress output."""

    @field_validator("slide_mpp")
    @classmethod
    def _is_a_scale_of_slides(cls, value: float | None) -> float | None:
        return None if value is None else check_mpp(value)

    @field_validator("viewers")
    @classmethod
    def _are_formats(cls, viewers: tuple[str, ...]) -> tuple[str, ...]:
        from wsiad.exports.export_format import check_formats

        check_formats(viewers)
        return viewers

    def options(self) -> HeatmapOptions:
        """Return the part that decides the results."""
        return HeatmapOptions(**{key: getattr(self, key) for key in HeatmapOptions.model_fields})


@dataclass(frozen=True, slots=True)
class HeatmapResult:
    """The result of scoring slides.

    Parameters
    ----------
    results : Path
    rows : tuple of HeatmapRow
        The slides of this call, in order of their names.
    summary : str
        For people.
    """

    results: Path
    rows: tuple[HeatmapRow, ...]
    summary: str

    @property
    def failed(self) -> tuple[SlideRow, ...]:
        """Slides without results although they were asked for."""
        return tuple(failures(self.rows))

    @property
    def unusable(self) -> tuple[SlideRow, ...]:
        """Slides without a score that are not without tissue: they could not be looked at."""
        return tuple(unusable(self.rows))


@verb(HeatmapConfig)
def heatmap(config: HeatmapConfig) -> HeatmapResult:
    """Score slides: heatmaps, regions, detections and the report.

    A slide that fails is reported and does not stop the others. Slides that are scored are not
    scored again, if slide, run and the options that decide scores are the same; what is derived
    from their scores is derived anew where it was derived by other options.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged.
    InputError
        No slides were found, or the folder holds results of another run or options; or so
        do those of healthy slides, or they are not held out.
    StoreError
        Slides are given as a store that is damaged or was prepared otherwise.
    ClusterError
        There is no such cluster or scheduler, or it takes no jobs.
    """
    from wsiad.learning.device import choose_device
    from wsiad.results.file_names import LEGEND
    from wsiad.results.overlay import write_legend
    from wsiad.results.qupath_project import MADE
    from wsiad.results.scored_files import colour_scale
    from wsiad.results.significance_files import forget_other_regions
    from wsiad.runs.run import DETECTOR, RunFolder

    start = time.monotonic()
    choose_device(config.device)
    record = RunFolder.open(config.run, beside=config.slides).record()
    preparation, target = run_preparation(config.run)
    quality = preparation.quality.changed_by(config.quality)
    changed = {"quality": quality, "damaged_tiles": config.damaged_tiles}
    preparation = preparation.model_copy(update=changed)
    options = config.options()
    reading = {key: getattr(config, key) for key in READING if key != "quality"}
    digest = scored_digest(config.run, options, reading, quality)
    derived = derived_values(options, config.run)
    check_scores(config.out, digest, config, remedy="Give another --out, or delete this one.")
    check_healthy(config, {"digest": digest, DERIVED: derived})
    slides, from_store = heatmap_inputs(
        config.slides,
        run=config.run,
        preparation=preparation,
        target=target,
        staged=config.stage_dir is not None,
    )
    scale = {key: getattr(config, key) for key in ("slide_mpp", "allow_upsampling")}
    given = {key: value for key, value in scale.items() if value is not None}
    preparation = preparation.model_copy(update=given)
    tasks = [
        SlideTask(
            slide=slide,
            from_store=from_store,
            results=config.out,
            run=config.run,
            options=options,
            preparation=preparation,
            target=target,
            digest=digest,
            derived=derived,
            batch=config.batch,
            device=config.device,
            override_mpp=config.override_mpp,
        )
        for slide in slides_of_shard(slides, config.shard)
    ]
    run = RunFolder.open(config.run)
    facts: dict[str, Any] = {
        "digest": digest,
        SCORED: scoring_values(options),
        DERIVED: derived,
        FORMATS: list(config.viewers),
        "run": str(config.run.absolute()),
        "detector": record.detector,
        # Of the detector, not of the clock: equal results give equal projects.
        MADE: (config.run / DETECTOR).stat().st_mtime_ns // 1_000_000,
    }
    facts["versions"] = versions()
    if note := _no_examples(config, record):
        facts["evidence"] = note
    if gone := forget_other_regions(config.out, begin_results(config.out, facts, config), facts):
        logger.warning("%s: %s", config.out, gone)
    write_config(config.out / CONFIG, config)
    calibration = run.calibration()
    write_json(config.out / CALIBRATION, calibration.to_json())
    write_legend(config.out / LEGEND, colour_scale(calibration))
    table = SlideTable(config.out / SLIDES_TABLE, HeatmapRow)
    folders = {config.out, *(task.folder.parent for task in tasks)}
    clear_leftovers(*folders)
    try:
        rows = run_batch(
            _score_one,
            with_staging(tasks, config, done=lambda task: (task.folder / SLIDE).exists()),
            row=HeatmapRow,
            table=table,
            options=config,
            label="heatmap",
            quiet=config.quiet,
            stored=_stored_row,
        )
    finally:
        clear_leftovers(*folders)  # of workers that were lost
    summary = _finish(config, facts, slides, rows, time.monotonic() - start)
    return HeatmapResult(config.out, tuple(rows), summary)


def _finish(
    config: HeatmapConfig,
    facts: dict[str, Any],
    slides: list[SlideInput],
    rows: list[HeatmapRow],
    seconds: float,
) -> str:
    """Write the report, as soon as every slide of all shards has its row; say what was done."""
    from wsiad.report.report import write_results_report

    scored = outcome(rows, "scored")
    there = read_table(config.out / SLIDES_TABLE, HeatmapRow)
    waiting = {slide.name for slide in slides} - {row.slide for row in there}
    found = ""
    if not waiting:
        write_json(config.out / FACTS, facts | {"backends": backends(there)})
        found = add_significance(config.out, config.healthy, there, quiet=config.quiet)
    if config.shard is None:
        report = write_results_report(config.out, seconds={"heatmap": seconds})
        return f"{scored}; see {report}{_project(config)}{found}"
    record = {
        "versions": versions(),
        "shard": config.shard,
        "seconds": round(seconds, 3),
        "slides": len(rows),
        "failed": len(failures(rows)),
        "unusable": len(unusable(rows)),
        "backends": backends(rows),
    }
    write_json(record_path(config.out, config.shard), record)
    if waiting:
        return f"{scored} in shard {config.shard}; the report waits for {len(waiting)} of others"
    report = write_results_report(config.out)
    return f"{scored} in shard {config.shard}, the last; see {report}{_project(config)}{found}"


def _project(config: HeatmapConfig) -> str:
    """Write the QuPath project, if it is wanted, and say where it is."""
    from wsiad.results.qupath_project import write_results_project

    return f"; {write_results_project(config.out)}" if "qupath" in config.viewers else ""


def _stored_row(task: SlideTask) -> HeatmapRow | None:
    from wsiad.results.scoring import stored_row

    return stored_row(task)


def _score_one(task: SlideTask) -> HeatmapRow:
    from wsiad.results.scoring import score_slide, stored_row

    return stored_row(task) or score_slide(task)


def _no_examples(config: HeatmapConfig, record: RunRecord) -> str:
    """Say why nothing healthy is shown beside the regions, if they are asked for."""
    if not config.evidence_regions or record.healthy_examples:
        return ""
    note = "the run keeps no healthy examples: regions are shown without their nearest ones"
    logger.info("%s: %s", config.run, note)
    return note
