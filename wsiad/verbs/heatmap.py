"""``wsiad heatmap``: score slides with the detector of a run."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from wsiad.compute.batch import run_batch, with_staging
from wsiad.compute.compute_options import (
    ComputeOptions,
    PreviewOptions,
    write_call_record,
)
from wsiad.compute.tasks import workers_of
from wsiad.core.config import Order, Paths, QuietOptions, verb
from wsiad.core.errors import InputError
from wsiad.core.files import read_json, write_json
from wsiad.core.ownership import clear_leftovers
from wsiad.core.packages import versions
from wsiad.heatmaps.heatmap_task import HeatmapOptions, HeatmapRow, ReadingOptions
from wsiad.learning.devices import DeviceOptions
from wsiad.results.file_names import FACTS, SLIDE, SLIDES_TABLE
from wsiad.slides.slide_table import (
    OK,
    SlideTable,
    backends,
    failures,
    outcome,
    read_table,
    unusable,
)
from wsiad.store.batch_result import BatchResult

if TYPE_CHECKING:
    from wsiad.heatmaps.heatmap_task import SlideTask
    from wsiad.store.slide_preview import Preview


class HeatmapConfig(
    QuietOptions, PreviewOptions, DeviceOptions, ReadingOptions, ComputeOptions, HeatmapOptions
):
    """Score slides with the detector of a run: heatmaps, regions, detections and a report."""

    ORDER: ClassVar[Order] = (
        ...,
        *ReadingOptions.model_fields,
        "damaged_tiles",
        "healthy",
        "batch",
        "device",
        *PreviewOptions.model_fields,
        "quiet",
    )

    run: Path
    """Run folder that `wsiad train` made."""
    slides: Annotated[Paths, Field(min_length=1)]
    """Slide files, folders of slides and manifest CSVs; or one tile store."""
    out: Path
    """Folder of the results; slides that are complete in it are not scored again."""
    damaged_tiles: Literal["fail", "skip"] = "fail"
    """Effect of a damaged part of a slide's file. `fail`: the slide fails; `skip`: the windows in
    that part are left out, counted and shown as not assessed."""
    healthy: Path | None = None
    """Results folder of held-out healthy slides, scored by the same run with the same options,
    to add p-values to the results (see `wsiad significance`)."""
    batch: Annotated[int, Field(ge=1)] = 256
    """Number of windows that are scored at a time, whatever blocks they were read in; on a CPU
    fewer, because that is faster there."""

    @field_validator("viewers")
    @classmethod
    def _are_formats(cls, viewers: tuple[str, ...]) -> tuple[str, ...]:
        from wsiad.exports.export_format import check_formats

        check_formats(viewers)
        return viewers


@dataclass(frozen=True, slots=True)
class HeatmapResult(BatchResult[HeatmapRow]):
    """Result of scoring slides.

    Parameters
    ----------
    results : Path
        Results folder.
    summary : str
        Summary for the terminal.
    rows, preview
        See :class:`BatchResult`.
    """

    results: Path
    summary: str

    @property
    def following(self) -> str | None:
        """Command in place of the verb's own: empty if nothing was scored, else ``None``."""
        return None if any(row.status == OK for row in self.rows) else ""


@verb(HeatmapConfig)
def heatmap(config: HeatmapConfig) -> HeatmapResult:
    """Score slides: heatmaps, regions, detections and the report.

    A slide that fails is reported and does not stop the others. Slides that were scored are not
    scored again if slide, run and the options that decide scores are the same. Parts that were
    derived from the scores with other options are derived again. With ``dry_run`` the slides are
    looked at, and nothing is written.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged, or the weights that it needs are missing.
    InputError
        No slides were found; or the results folder, or that of the healthy slides, contains
        results of another run or options; or the healthy slides are not held out.
    StoreError
        The slides are a store that is damaged or was prepared differently.
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs.
    """
    # These take a while to import, which `--help` must not.
    from wsiad.learning.devices import check_device
    from wsiad.results.scoring_inputs import check_loads, plan_scoring, scored_row, stored_row

    start = time.monotonic()
    check_device(config.device)
    scoring = plan_scoring(
        config.slides,
        run=config.run,
        results=config.out,
        options=config.part(HeatmapOptions),
        reading=config.part(ReadingOptions),
        damaged_tiles=config.damaged_tiles,
        healthy=config.healthy,
        batch=config.batch,
        device=config.device,
        compute=config,
        limit=config.limit,
    )
    if not config.distant:  # other machines may keep their weights elsewhere
        check_loads(scoring.tasks, apart=config.workers > 1 and not config.dry_run)
    if config.dry_run:
        seen = _preview(config, scoring.tasks)
        return HeatmapResult(config.out, seen.summary, rows=(), preview=seen)
    scoring.begin(config)
    table = SlideTable(config.out / SLIDES_TABLE, HeatmapRow)
    folders = {config.out, *(task.folder.parent for task in scoring.tasks)}
    clear_leftovers(*folders)
    try:
        rows = run_batch(
            scored_row,
            with_staging(scoring.tasks, config, done=lambda task: (task.folder / SLIDE).exists()),
            row=HeatmapRow,
            table=table,
            options=config,
            label="heatmap",
            quiet=config.quiet,
            stored=stored_row,
        )
    finally:
        clear_leftovers(*folders)  # of workers that were lost
    seconds = time.monotonic() - start
    worked = seconds if table.changed(rows) else None
    summary = _finish(config, scoring.slides, rows, seconds=seconds, worked=worked)
    return HeatmapResult(config.out, summary, rows=tuple(rows))


def _preview(config: HeatmapConfig, tasks: Sequence[SlideTask]) -> Preview:
    """Look at the slides."""
    from wsiad.results.scoring import look_to_score
    from wsiad.results.scoring_inputs import stored_row
    from wsiad.store.slide_preview import preview_slides

    return preview_slides(
        tasks,
        done=lambda task: stored_row(task) is not None,
        look=look_to_score,
        noun="window",
        workers=workers_of(config),
        out=config.out,
        as_json=config.as_json,
        quiet=config.quiet,
    )


def _finish(
    config: HeatmapConfig,
    slides: Collection[str],
    rows: list[HeatmapRow],
    *,
    seconds: float,
    worked: float | None,
) -> str:
    """Write the report when every slide of all calls has its row, and return the summary."""
    from wsiad.report.report import write_results_report

    scored = outcome(rows, "scored")
    there = read_table(config.out / SLIDES_TABLE, HeatmapRow)
    waiting = {*slides} - {row.slide for row in there}
    found = ""
    if not waiting:
        # With the formats of all calls.
        facts = read_json(config.out / FACTS, InputError, remedy="Run the same command again.")
        write_json(config.out / FACTS, facts | {"backends": backends(there)})
        if config.healthy is not None:
            from wsiad.results.significance_comparison import add_significance

            found = add_significance(config.out, config.healthy, there, quiet=config.quiet)
    part = f" in shard {config.shard}" if config.shard else ""
    said = f"{scored}{part}"
    if config.partial and waiting:
        others = "slides of other shards" if config.shard else "other slides"
        said = f"{said}; the report waits for {len(waiting)} {others}"
    else:
        spent = None
        if worked is not None and not config.partial:  # of all calls that scored something
            from wsiad.results.evaluated_truth import read_timings

            spent = {"heatmap": worked + read_timings(config.out).seconds.get("heatmap", 0.0)}
        report = write_results_report(config.out, seconds=spent)
        last = ", the last" if config.partial else ""
        said = "; ".join([f"{said}{last}", f"see {report}", *_project(config)]) + found
    if config.partial or config.record:
        counts = {"slides": len(rows), "failed": len(failures(rows))}
        record = {"versions": versions(), "seconds": round(seconds, 3), **counts}
        record |= {"unusable": len(unusable(rows)), "backends": backends(rows)}
        write_call_record(config.out, config, rows, record, worked=worked is not None)
    return said


def _project(config: HeatmapConfig) -> list[str]:
    """Write the QuPath project if it is requested, and return a text with its path, if any."""
    from wsiad.results.qupath_project import write_results_project

    said = write_results_project(config.out) if "qupath" in config.viewers else ""
    return [said] if said else []
