"""Simplified outlines of regions: fewer corners, never far from the heatmap's pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Box, Microns, Spacing
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import Heatmap

TOLERANCE_PX = 0.75
"""Default tolerance, heatmap pixels. The corners of the steps of a slanting outline are up to
1/√2 of a pixel away from the line through their neighbours; a smaller tolerance would leave them
all."""


_MOST_AREA_CHANGE = 0.05
_MOST_CORNERS = 30_000  # the time that GEOS takes grows with their square: a second
_PER_PX = 100  # viewers keep 0.01 px


def default_tolerance(heatmap: Heatmap) -> Microns:
    """Return the default tolerance of outlines, `TOLERANCE_PX` heatmap pixels, in µm."""
    width, height = heatmap.pixel_um
    return Microns(TOLERANCE_PX * float(np.sqrt(width * height)))


def simplify(region: Region, *, tolerance: Microns, spacing: Spacing, bounds: Box) -> Region:
    """Remove corners of a region's outline and holes that are within a tolerance.

    The method is that of Douglas and Peucker (1973); outline and holes stay apart. Half the
    tolerance is tried, then none, in three cases: the area would change by more than 5 %, as for
    a region of a few pixels; a ring would move further away than the tolerance; or the polygon
    would not be valid after positions are rounded to 0.01 px. Outlines of more than 30,000
    corners are returned unchanged.

    Parameters
    ----------
    region : Region
        Region whose outline runs along pixel edges.
    tolerance : Microns
        Maximum distance of the new outline from the old one, µm.
    spacing : Spacing
        µm per level-0 pixel.
    bounds : Box
        Non-empty part of the slide, level-0 pixels; positions are rounded relative to its corner.

    Returns
    -------
    Region
        Region with the tolerance that was used; scores and area are still those of its pixels.

    Raises
    ------
    ConfigError
        The tolerance is negative or not finite.
    """
    if not np.isfinite(tolerance) or tolerance < 0:
        raise ConfigError(f"an outline cannot be simplified to {tolerance} µm")
    if shapely.get_num_coordinates(region.polygon) > _MOST_CORNERS:
        return region
    scale = np.array([spacing.x, spacing.y])
    in_um = shapely.transform(region.polygon, lambda points: points * scale)
    for used in (tolerance, tolerance / 2):
        if not used:
            break
        smaller = shapely.simplify(in_um, used, preserve_topology=True)
        if shapely.get_num_coordinates(smaller) == shapely.get_num_coordinates(in_um):
            return region
        if abs(smaller.area - in_um.area) > _MOST_AREA_CHANGE * in_um.area:
            continue
        if _distance(smaller, in_um) > used:
            continue
        polygon = shapely.transform(smaller, lambda points: points / scale)
        if _rounded(polygon, bounds).is_valid:
            return replace(
                region,
                polygon=polygon,
                tolerance=Microns(used),
                pixel_box=region.box,
                pixel_centre=region.centre,
            )
    return region


def _distance(new: shapely.Polygon, old: shapely.Polygon) -> float:
    """Return the maximum distance of removed corners from the new outline and holes.

    GEOS does not keep the first corner of a ring: near it a ring can move further than the
    tolerance. (The Hausdorff distance would show this too, in quadratic time.)
    """
    rings = zip((new.exterior, *new.interiors), (old.exterior, *old.interiors), strict=True)
    return max(_ring_distance(*map(_corners, pair)) for pair in rings)


def _corners(ring: shapely.LinearRing) -> npt.NDArray[np.complex128]:
    x, y = shapely.get_coordinates(ring)[:-1].T
    return x + 1j * y


def _ring_distance(new: npt.NDArray[np.complex128], old: npt.NDArray[np.complex128]) -> float:
    """Return the maximum distance of old corners from the new edge that replaces them."""
    kept = np.flatnonzero(np.isin(old, new))
    after = np.searchsorted(kept, np.arange(len(old)), side="right")
    start, end = old[kept[after - 1]], old[kept[after % len(kept)]]
    edge = end - start
    share = ((old - start) * edge.conj()).real / np.maximum(np.abs(edge) ** 2, 1e-300)
    return float(np.abs(old - start - np.clip(share, 0, 1) * edge).max())


def _rounded(polygon: shapely.Polygon, bounds: Box) -> shapely.Polygon:
    corner = np.array([bounds.x, bounds.y])
    return shapely.transform(polygon, lambda p: np.rint((p - corner) * _PER_PX) / _PER_PX)
