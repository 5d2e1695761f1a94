"""``wsiad heatmap``: slides, scored by a run's detector.

``wsiad heatmap --healthy``: results that come with p-values.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from wsiad.compute.batch import run_batch, with_staging
from wsiad.compute.compute_options import ComputeOptions, record_path
from wsiad.core.config import Order, Paths, QuietOptions, verb
from wsiad.core.files import write_json
from wsiad.core.ownership import clear_leftovers
from wsiad.core.packages import versions
from wsiad.heatmaps.heatmap_task import HeatmapOptions, HeatmapRow, ReadingOptions
from wsiad.learning.training_options import DeviceOptions
from wsiad.results.file_names import FACTS, SLIDE, SLIDES_TABLE
from wsiad.slides.slide_table import (
    SlideRow,
    SlideTable,
    backends,
    failures,
    outcome,
    read_table,
    unusable,
)


class HeatmapConfig(QuietOptions, DeviceOptions, ReadingOptions, ComputeOptions, HeatmapOptions):
    """Score slides with the detector of a run."""

    ORDER: ClassVar[Order] = (
        ...,
        *ReadingOptions.model_fields,
        "damaged_tiles",
        "healthy",
        "batch",
        "device",
        "quiet",
    )

    run: Path
    """Run folder that `wsiad train` made."""
    slides: Annotated[Paths, Field(min_length=1)]
    """Slide files, folders, manifest CSVs; or one tile store."""
    out: Path
    """Folder of the results; slides that are whole in it are not scored again."""
    damaged_tiles: Literal["fail", "skip"] = "fail"
    """Effect of a damaged part of a slide's file: the slide fails; or the windows that lie in it
    are left out, counted and shown as not assessed."""
    healthy: Path | None = None
    """Results folder of held-out healthy slides, scored by the same run with the same options:
    p-values are added to the results (see `wsiad significance`)."""
    batch: Annotated[int, Field(ge=1)] = 256
    """The most windows scored at once; a CPU takes fewer, to the same scores."""

    @field_validator("viewers")
    @classmethod
    def _are_formats(cls, viewers: tuple[str, ...]) -> tuple[str, ...]:
        from wsiad.exports.export_format import check_formats

        check_formats(viewers)
        return viewers


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
    # torch takes seconds to import, which `--help` must not.
    from wsiad.learning.devices import choose_device
    from wsiad.results.scoring import scored_row, stored_row
    from wsiad.results.scoring_inputs import plan_scoring

    start = time.monotonic()
    choose_device(config.device)
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
    )
    scoring.begin(config)
    folders = {config.out, *(task.folder.parent for task in scoring.tasks)}
    clear_leftovers(*folders)
    try:
        rows = run_batch(
            scored_row,
            with_staging(scoring.tasks, config, done=lambda task: (task.folder / SLIDE).exists()),
            row=HeatmapRow,
            table=SlideTable(config.out / SLIDES_TABLE, HeatmapRow),
            options=config,
            label="heatmap",
            quiet=config.quiet,
            stored=stored_row,
        )
    finally:
        clear_leftovers(*folders)  # of workers that were lost
    seconds = time.monotonic() - start
    summary = _finish(config, scoring.facts, scoring.slides, rows, seconds=seconds)
    return HeatmapResult(config.out, tuple(rows), summary)


def _finish(
    config: HeatmapConfig,
    facts: dict[str, Any],
    slides: Collection[str],
    rows: list[HeatmapRow],
    *,
    seconds: float,
) -> str:
    """Write the report, as soon as every slide of all shards has its row; say what was done."""
    from wsiad.report.report import write_results_report
    from wsiad.results.significance_comparison import add_significance

    scored = outcome(rows, "scored")
    there = read_table(config.out / SLIDES_TABLE, HeatmapRow)
    waiting = {*slides} - {row.slide for row in there}
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
