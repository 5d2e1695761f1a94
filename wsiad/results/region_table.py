"""Write and read ``regions.csv``, the table of a slide's outlined regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.csv_file import table_text
from wsiad.core.errors import ExportError
from wsiad.core.files import write_text
from wsiad.core.geometry import Box, Microns, SquareMicrons
from wsiad.core.typed_files import TableKind, columns

if TYPE_CHECKING:
    from wsiad.heatmaps.regions import Region
    from wsiad.results.outline_shapes import OutlinedShape


@dataclass(frozen=True, slots=True)
class RegionRow:
    """Row of a region in ``regions.csv``.

    Parameters
    ----------
    rank : int
        Rank by descending maximum score, from 1; ``wsiad 1`` in QuPath is the region of rank 1.
    x, y, width, height : float
        Rectangle around the region, level-0 pixels.
    centre_x, centre_y : float
        Centre of the region's area, level-0 pixels; that of a crescent is outside the region.
    area_um2 : float
        Area without holes, µm².
    max_score, mean_score : float
        Highest and mean score of the region's heatmap pixels.
    percentile : float
        Percentile of the maximum score among healthy windows, 0 to 100.
    p_family_wise, p, q : float or None
        P-values, see :class:`wsiad.conformal.p_values.RegionSignificance`; ``None`` if the
        region was not compared with healthy slides.
    significant : int or None
        1 for a significant region, 0 for another; ``None`` if it was not compared.
    scale_um : float or None
        Radius of the neighbourhood that stands out most, µm; ``None`` without neighbourhoods.
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
    scale_um: float | None = None


def region_row(region: Region) -> RegionRow:
    """Return the row of a region; positions and areas are rounded to 0.01, scores are not."""
    return RegionRow(
        region.rank,
        x=round(region.x, 2),
        y=round(region.y, 2),
        width=round(region.width, 2),
        height=round(region.height, 2),
        centre_x=round(region.centre_x, 2),
        centre_y=round(region.centre_y, 2),
        area_um2=round(region.area_um2, 2),
        max_score=region.max_score,
        mean_score=region.mean_score,
        percentile=region.percentile,
        p_family_wise=region.p_family_wise,
        p=region.p,
        q=region.q,
        significant=region.significant,
        scale_um=region.scale_um,
    )


def outlined(row: RegionRow, shape: OutlinedShape) -> Region:
    """Return the region of a row, with its outline as it was written."""
    import shapely

    from wsiad.exports.qupath.objects import TOLERANCE
    from wsiad.heatmaps.regions import Region

    return Region(
        polygon=shapely.Polygon(shape.rings[0], shape.rings[1:]),
        area=SquareMicrons(row.area_um2),
        max_score=row.max_score,
        mean_score=row.mean_score,
        tolerance=Microns(shape.measurements.get(TOLERANCE, 0.0)),
        rank=row.rank,
        percentile=row.percentile,
        p_family_wise=row.p_family_wise,
        p=row.p,
        q=row.q,
        significant=row.significant,
        scale_um=row.scale_um,
        pixel_box=Box(row.x, row.y, row.width, row.height),
        pixel_centre=(row.centre_x, row.centre_y),
    )


_TABLE = TableKind(
    RegionRow,
    "regions",
    "Delete the slide's folder and run wsiad heatmap again.",
    ExportError,
)


def write_regions(path: Path, regions: Sequence[Region]) -> None:
    """Write the table atomically; scores read back as the same float64."""
    write_text(path, _TABLE.text(map(region_row, regions)))


def read_regions(path: Path) -> list[RegionRow]:
    """Read the table back, strongest region first.

    Raises
    ------
    ExportError
        The table is missing or damaged, or states a p or q that is not a probability.
    """
    rows = _TABLE.read(path)
    for row in rows:
        for name in ("p_family_wise", "p", "q"):
            value = getattr(row, name)
            if value is not None and not 0 <= value <= 1:
                raise ExportError(
                    f"is damaged: {name} of region {row.rank} is {value:g}, not a probability",
                    subject=str(path),
                    remedy=_TABLE.remedy,
                )
    return rows


def write_all_regions(path: Path, regions: Iterable[tuple[str, RegionRow]]) -> None:
    """Write the regions of all slides as one table, atomically.

    Parameters
    ----------
    path : Path
        CSV to write. Its columns are ``slide`` and those of the slides' own tables.
    regions : iterable of (str, RegionRow)
        Slide and row of each region, in the order of the table.
    """
    rows = ([slide, *(getattr(row, name) for name in columns(RegionRow))] for slide, row in regions)
    write_text(path, table_text(["slide", *columns(RegionRow)], rows))
