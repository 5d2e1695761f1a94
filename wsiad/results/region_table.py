"""``regions.csv``: the outlined regions of a slide as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.errors import ExportError
from wsiad.core.files import write_text
from wsiad.core.typed_files import TableKind

if TYPE_CHECKING:
    from wsiad.heatmaps.regions import Region


@dataclass(frozen=True, slots=True)
class RegionRow:
    """A region in ``regions.csv``.

    Parameters
    ----------
    rank : int
        From 1, by falling maximum score; ``wsiad 1`` in QuPath is the region of rank 1.
    x, y, width, height : float
        Rectangle around it, level-0 pixels.
    centre_x, centre_y : float
        Centre of its area, level-0 pixels; that of a crescent lies beside it.
    area_um2 : float
        Without its holes, µm².
    max_score, mean_score : float
        Of the heatmap pixels within.
    percentile : float
        Of the maximum score among healthy windows, 0 to 100.
    p_family_wise, p, q : float or None
        See :class:`wsiad.conformal.p_values.RegionSignificance`; ``None`` where nothing
        was compared with healthy slides.
    significant : int or None
        1 or 0.
    """

    rank: int
    x: float
    y: float
    width: float
    height: float
    centre_x: float
    centre_y: float
    area_um2: float
    max_score: float
    mean_score: float
    percentile: float
    p_family_wise: float | None = None
    p: float | None = None
    q: float | None = None
    significant: int | None = None


def region_rows(regions: Sequence[Region], percentiles: Sequence[float]) -> list[RegionRow]:
    """Describe regions, strongest first, with the percentiles of their maximum scores."""
    rows = []
    for rank, (region, percentile) in enumerate(zip(regions, percentiles, strict=True), start=1):
        left, top, right, bottom = region.polygon.bounds
        centre = region.polygon.centroid
        rows.append(
            RegionRow(
                rank,
                x=round(left, 2),
                y=round(top, 2),
                width=round(right - left, 2),
                height=round(bottom - top, 2),
                centre_x=round(centre.x, 2),
                centre_y=round(centre.y, 2),
                area_um2=round(float(region.area), 2),
                max_score=region.max_score,
                mean_score=region.mean_score,
                percentile=percentile,
            )
        )
    return rows


_TABLE = TableKind(
    RegionRow,
    "regions",
    "Delete the slide's folder and run wsiad heatmap again.",
    ExportError,
)


def write_regions(path: Path, rows: Sequence[RegionRow]) -> None:
    """Write the table, whole or not at all; scores read back as the same float64."""
    write_text(path, _TABLE.text(rows))


def read_regions(path: Path) -> list[RegionRow]:
    """Read the table back, strongest region first.

    Raises
    ------
    ExportError
        It is missing, is not such a table, or states a p or q that is not a probability.
    """
    rows = _TABLE.read(path)
    for row in rows:
        for name in ("p_family_wise", "p", "q"):
            value = getattr(row, name)
            if value is not None and not 0 <= value <= 1:
                raise ExportError(
                    f"is damaged: {name} of region {row.rank} is {value:g}, no probability",
                    subject=str(path),
                    remedy=_TABLE.remedy,
                )
    return rows
