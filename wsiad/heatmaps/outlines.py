"""Outlines for people: a region's polygon with fewer corners, never far from the pixels'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Box
from wsiad.core.units import Microns, Spacing
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import Heatmap

TOLERANCE_PX = 0.75
"""Tolerance by default, heatmap pixels: corners of a slanting outline's steps lie up to
1/√2 of a pixel off the line through their neighbours, so less would leave all steps."""

_MOST_AREA_CHANGE = 0.05
_MOST_CORNERS = 30_000  # the time that GEOS takes grows with their square: a second
_PER_PX = 100  # viewers keep 0.01 px


def default_tolerance(heatmap: Heatmap) -> Microns:
    """Return `TOLERANCE_PX` of a heatmap's pixels, µm."""
    width, height = heatmap.pixel_um
    return Microns(TOLERANCE_PX * float(np.sqrt(width * height)))


def simplify(region: Region, *, tolerance: Microns, spacing: Spacing, bounds: Box) -> Region:
    """Leave out corners of a region's outline and holes that lie within a tolerance.

    By Douglas and Peucker (1973), such that outline and holes stay apart. Where this would
    change the area by more than 5 %, as that of a few pixels, take a small ring further
    away, or give no valid polygon once positions are rounded to 0.01 px, half the
    tolerance is tried, then none. Outlines of more than 30,000 corners stay as they are.

    Parameters
    ----------
    region : Region
        As found: along pixel edges.
    tolerance : Microns
        How far the new outline may lie from the old one.
    spacing : Spacing
        µm per level-0 pixel.
    bounds : Box
        Non-empty part of the slide, level-0 pixels: positions are rounded from its corner.

    Returns
    -------
    Region
        With the tolerance that was used; scores and area are still those of its pixels.

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
            return replace(region, polygon=polygon, tolerance=Microns(used))
    return region


def _distance(new: shapely.Polygon, old: shapely.Polygon) -> float:
    """Return how far corners that were left out lie from the new outline and holes.

    GEOS does not hold a ring's first corner: near it a ring may go further than it was
    told to. (The Hausdorff distance would say so too, in quadratic time.)
    """
    rings = zip((new.exterior, *new.interiors), (old.exterior, *old.interiors), strict=True)
    return max(_ring_distance(*map(_corners, pair)) for pair in rings)


def _corners(ring: shapely.LinearRing) -> npt.NDArray[np.complex128]:
    x, y = shapely.get_coordinates(ring)[:-1].T
    return x + 1j * y


def _ring_distance(new: npt.NDArray[np.complex128], old: npt.NDArray[np.complex128]) -> float:
    """Distance of old corners from the new edge that is drawn in their stead."""
    kept = np.flatnonzero(np.isin(old, new))
    after = np.searchsorted(kept, np.arange(len(old)), side="right")
    start, end = old[kept[after - 1]], old[kept[after % len(kept)]]
    edge = end - start
    share = ((old - start) * edge.conj()).real / np.maximum(np.abs(edge) ** 2, 1e-300)
    return float(np.abs(old - start - np.clip(share, 0, 1) * edge).max())


def _rounded(polygon: shapely.Polygon, bounds: Box) -> shapely.Polygon:
    corner = np.array([bounds.x, bounds.y])
    return shapely.transform(polygon, lambda p: np.rint((p - corner) * _PER_PX) / _PER_PX)
