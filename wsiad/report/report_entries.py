"""A slide's part of the report, from its row and its folder of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.errors import InputError
from wsiad.core.files import checked_slide_name
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.heatmaps.window_table import read_window_table
from wsiad.report.report_model import RegionEntry, SlideEntry
from wsiad.results.evidence_files import (
    RegionEvidence,
    RegionField,
    read_evidence,
    read_fields,
    read_p_values,
)

if TYPE_CHECKING:
    from wsiad.runs.calibration import Calibration

_PICTURES = (
    ("tissue.png", "Slide, tissue outlined"),
    ("overlay.png", "Heatmap over the tissue; regions outlined, what was left out hatched"),
)
_OVERVIEW = "overview.jpg"
_THUMBNAIL = "thumbnail.jpg"
_LEFT_OUT = "left_out.npy"


def slide_entry(row: HeatmapRow, results: Path, calibration: Calibration | None) -> SlideEntry:
    """Gather what the report says and shows of a slide.

    Results of older versions have fewer files: what is not there is not shown.

    Raises
    ------
    ExportError, InputError
        A file of its folder is damaged, or its name leads out of the results.
    """
    folder = results / checked_slide_name(row.slide)
    pictures = [(text, folder / name) for name, text in _PICTURES if (folder / name).exists()]
    return SlideEntry(
        row.slide,
        row.status,
        row.reason,
        label=row.label or None,
        score_max=row.score_max,
        score_top_k_mean=row.score_top_k_mean,
        percentile=_percentile(row.score_max, calibration),
        windows=row.tiles,
        seconds=row.seconds,
        images=pictures,
        overview=_if_there(folder / _OVERVIEW),
        not_assessed=row.unusable > 0 or "not assessed" in row.reason,
        detections=row.detections,
        thumbnail=_if_there(folder / _THUMBNAIL),
        regions=_regions(folder),
        regions_found=row.regions,
        left_out=_left_out(folder / _LEFT_OUT),
    )


def with_findings(
    entry: SlideEntry, *, evaluated: Mapping[str, Any] | None, compared: Mapping[str, Any] | None
) -> SlideEntry:
    """Add what ``wsiad evaluate`` and ``wsiad significance`` have found of a slide.

    Parameters
    ----------
    entry : SlideEntry
    evaluated : mapping, optional
        The slide's entry in ``evaluation.json``: its label goes before the manifest's, its
        lesions are those of the first protocol.
    compared : mapping, optional
        The slide's entry in ``significance.json``.
    """
    known, sure = evaluated or {}, compared or {}
    found: Mapping[str, Any] = next(iter((known.get("froc") or {}).values()), {})
    return replace(
        entry,
        label=known.get("label") or entry.label,
        lesions=found.get("lesions"),
        lesions_hit=found.get("lesions_hit"),
        p=sure.get("p_slide"),
        q=sure.get("q_slide"),
    )


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _percentile(score: float | None, calibration: Calibration | None) -> float | None:
    if score is None or calibration is None:
        return None
    return float(calibration.percentile(score))


def _left_out(path: Path) -> dict[str, int]:
    """Count the windows that were not scored, by the reason, most frequent first."""
    if not path.exists():
        return {}
    remedy = f"Delete {path.parent} and run wsiad heatmap again."
    reasons = read_window_table(path, ["reason"], InputError, remedy=remedy)["reason"]
    return dict(Counter(map(str, reasons)).most_common())


def _regions(folder: Path) -> list[RegionEntry]:
    fields = {field.rank: field for field in read_fields(folder)}
    evidence = {found.rank: found for found in read_evidence(folder)}
    p_values = read_p_values(folder)
    known = {rank: (f.max_score, f.percentile, f.area_um2) for rank, f in fields.items()}
    if not known:  # scored from a store: there is nothing of the slide to show
        known = {rank: (e.score, e.percentile, e.area_um2) for rank, e in evidence.items()}
    return [
        RegionEntry(
            rank,
            *measures,
            *p_values.get(rank, (None, None)),
            images=[_field(fields[rank])] if rank in fields else [],
            tiles=list(_tiles(evidence[rank])) if rank in evidence else [],
        )
        for rank, measures in sorted(known.items())
    ]


def _field(field: RegionField) -> tuple[str, Path]:
    across, bar = f"{field.across_um:.0f} µm", f"{field.bar_um:g} µm"
    return f"Outlined in the slide, {across} across; the bar is {bar}", field.image


def _tiles(evidence: RegionEvidence) -> Iterator[tuple[str, Path]]:
    """Yield what a region's strongest window is compared with."""
    yield f"Its strangest window, {evidence.mpp:g} µm/px", evidence.tile
    for place, healthy in enumerate(evidence.nearest, start=1):
        yield (
            f"Healthy no. {place}: {healthy.slide}, distance {healthy.distance:.3g}",
            healthy.tile,
        )
    if evidence.reconstruction is not None:
        yield "Reconstructed by the detector", evidence.reconstruction
    if evidence.difference is not None:
        yield "Difference from it", evidence.difference
