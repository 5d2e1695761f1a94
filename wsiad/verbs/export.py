"""``wsiad export``: derive files, regions and detections from results, without scoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from wsiad.compute.compute_options import ComputeOptions
from wsiad.core.config import QuietOptions, Texts, verb
from wsiad.core.terminal import counted
from wsiad.heatmaps.heatmap_task import DetectionOptions, HeatmapRow, RegionOptions
from wsiad.results.file_names import SLIDES_TABLE
from wsiad.slides.slide_table import SlideRow, SlideTable, failures, read_table, unusable


class ExportConfig(QuietOptions, DetectionOptions, RegionOptions):
    """Add files to results, or derive other regions and detections; nothing is scored again."""

    ORDER = (..., "quiet")

    kept: ClassVar[frozenset[str]] = frozenset(
        {*RegionOptions.model_fields, *DetectionOptions.model_fields}
    )

    results: Path
    """Results folder of `wsiad heatmap`; it is changed in place, but its scores stay."""
    format: Texts = ()
    """Formats to add: `qupath`, `asap`, `ome-zarr`, or one of another package. Every results
    folder already has `png`, `ome-tiff`, `geojson` and `camelyon`."""
    scales_from: Path | None = None
    """Results folder of healthy slides that took part in nothing, scored by the same run with the
    same options: they standardise `scales_um` in place of the run's own few."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of processes on this machine; each works on one slide at a time."""

    @field_validator("format")
    @classmethod
    def _are_formats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from wsiad.exports.export_format import check_formats

        check_formats(names)
        return tuple(sorted(set(names)))


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Result of an export.

    Parameters
    ----------
    results : Path
        Results folder.
    rows : tuple of HeatmapRow
        Rows of the slides that have results.
    summary : str
        Summary for the terminal.
    """

    results: Path
    rows: tuple[HeatmapRow, ...]
    summary: str

    @property
    def failed(self) -> tuple[SlideRow, ...]:
        """Rows of the slides whose files could not be derived or written."""
        return tuple(failures(self.rows))


@verb(ExportConfig)
def export(config: ExportConfig) -> ExportResult:
    """Derive files, regions and detections from finished results, without the detector.

    Options that are not set stay as they are in the results. Slides are read only to show
    regions that were not shown before. P-values of regions that no longer exist are deleted.

    Raises
    ------
    InputError
        The folder contains no results, or they are damaged or of an earlier version.
    """
    from wsiad.compute.batch import run_batch
    from wsiad.core.ownership import clear_leftovers
    from wsiad.report.report import write_results_report
    from wsiad.results.exporting import begin_export, export_slide
    from wsiad.results.qupath_project import write_results_project

    given = {key: getattr(config, key) for key in config.model_fields_set & config.kept}
    plan = begin_export(config.results, given, config.format, scales_from=config.scales_from)
    folders = {config.results, *(task.folder.parent for task in plan.tasks)}
    clear_leftovers(*folders)
    try:
        rows = run_batch(
            export_slide,
            plan.tasks,
            row=HeatmapRow,
            table=SlideTable(config.results / SLIDES_TABLE, HeatmapRow),
            options=ComputeOptions(workers=config.workers),
            label="export",
            quiet=config.quiet,
        )
    finally:
        clear_leftovers(*folders)
    said = [*plan.said, *_outcome(rows, config.results)]
    if "qupath" in plan.formats:
        said += filter(None, [write_results_project(config.results)])
    report = write_results_report(config.results)
    return ExportResult(config.results, tuple(rows), "; ".join([*said, f"see {report}"]))


def _outcome(rows: list[HeatmapRow], results: Path) -> list[str]:
    from wsiad.results.exporting import lacks_evidence

    others = [row for row in read_table(results / SLIDES_TABLE, HeatmapRow) if row not in rows]
    without = len(unusable(others)) + len(failures(others))
    derived = len(rows) - len(failures(rows))
    told = [f"{derived} of {counted(len(rows), 'slide')} with results exported"]
    if without:
        told.append(f"{without} without results")
    if lacking := [row.slide for row in rows if lacks_evidence(results / row.slide)]:
        told.append(
            f"evidence or views of regions are missing on "
            f"{counted(len(lacking), 'slide')} ({lacking[0]}{', …' * (len(lacking) > 1)}): "
            "run wsiad heatmap with the same region options to add them"
        )
    return told
