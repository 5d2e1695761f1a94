"""Regions: connected parts of a heatmap above a threshold, as polygons.

Outlines for people: a region's polygon with fewer corners, never far from the pixels'.

The window that stands for a region: the strangest one within it.

What of a slide was not assessed, as outlines: no finding there means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage

from wsiad.core.errors import ConfigError, ExportError
from wsiad.core.geometry import Box, Microns, Size, Spacing, SquareMicrons
from wsiad.heatmaps.score_map import Heatmap, WindowScores
from wsiad.pictures.overview import Overview, left_out_areas

DEFAULT_LIMIT = 300
"""The most regions: viewers that let people edit outlines grow slow with more."""

ANY_AREA = SquareMicrons(0.0)
"""No region is too small."""

EXACT = Microns(0.0)
"""A polygon runs along pixel edges."""

_LEAST_VISIBLE_PX = 0.5

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of a slide whose scores exceed a threshold.

    Parameters
    ----------
    polygon : shapely.Polygon
        Outline and holes along heatmap pixel edges, level-0 pixels.
    area : SquareMicrons
        Area of the heatmap pixels within, µm².
    max_score, mean_score : float
        Of the heatmap pixels within.
    tolerance : Microns
        How far the polygon may lie from the pixels' edges, µm; see
        :func:`wsiad.heatmaps.regions.simplify`.
    """

    polygon: shapely.Polygon
    area: SquareMicrons
    max_score: float
    mean_score: float
    tolerance: Microns = EXACT


@dataclass(frozen=True, slots=True)
class Regions:
    """The strongest regions of a slide.

    Parameters
    ----------
    kept : tuple of Region
        By falling maximum score; of equal ones the larger, then the upper first.
    left_out : int
        How many large enough ones there were besides.
    """

    kept: tuple[Region, ...]
    left_out: int


def find_regions(
    heatmap: Heatmap,
    *,
    threshold: float,
    min_area: SquareMicrons = ANY_AREA,
    limit: int = DEFAULT_LIMIT,
) -> Regions:
    """Outline the connected regions whose scores exceed a threshold.

    Parameters
    ----------
    heatmap : Heatmap
        Anomaly scores; NaN exceeds nothing.
    threshold : float
        Only scores above it, not those equal to it, count.
    min_area : SquareMicrons
        Smaller regions are noise: neither kept nor counted as left out.
    limit : int
        How many of the strongest to keep.

    Returns
    -------
    Regions
        Pixels that share an edge are connected (4-connectivity). Polygons are valid,
        follow pixel edges exactly and are cut off at the slide's bounds. Pixels that
        show less than half a level-0 pixel within the bounds are left aside.

    Raises
    ------
    ConfigError
        A threshold or area that is not a number, or a limit below 1.
    """
    if not np.isfinite(threshold) or not np.isfinite(min_area) or limit < 1:
        raise ConfigError(
            f"regions above {threshold} of at least {min_area} µm², at most {limit}, make no sense"
        )
    x, y = _visible_edges(heatmap)
    widths, heights = np.diff(x), np.diff(y)
    above = heatmap.scores > threshold
    above &= (heights >= _LEAST_VISIBLE_PX)[:, None] & (widths >= _LEAST_VISIBLE_PX)
    labels, count = ndimage.label(above)
    rows, columns = np.nonzero(above)
    pixel_areas = heights[rows] * widths[columns] * (heatmap.spacing.x * heatmap.spacing.y)
    areas, maxima, means = _measure(
        labels[rows, columns], heatmap.scores[rows, columns], pixel_areas, count=count
    )
    large = np.flatnonzero(areas >= min_area)
    # Labels run in row-major order: a stable sort leaves the upper first.
    ranked = large[np.lexsort((-areas[large], -maxima[large]))]
    boxes = ndimage.find_objects(labels)
    kept = tuple(
        Region(
            polygon=_polygon(
                labels[boxes[i]] == i + 1, x[boxes[i][1].start :], y[boxes[i][0].start :]
            ),
            area=SquareMicrons(float(areas[i])),
            max_score=float(maxima[i]),
            mean_score=float(means[i]),
        )
        for i in ranked[:limit].tolist()
    )
    return Regions(kept=kept, left_out=max(0, len(ranked) - limit))


def _visible_edges(heatmap: Heatmap) -> tuple[FloatArray, FloatArray]:
    """Edges of columns and rows, cut to the slide's bounds, level-0 pixels."""
    x, y = heatmap.placement.to_level0(
        np.arange(heatmap.size.width + 1.0), np.arange(heatmap.size.height + 1.0)
    )
    bounds = heatmap.bounds
    return np.clip(x, bounds.x, bounds.right), np.clip(y, bounds.y, bounds.bottom)


def _measure(
    labels: npt.NDArray[np.integer],
    scores: npt.NDArray[np.float32],
    pixel_areas: FloatArray,
    *,
    count: int,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Area (µm²), maximum and mean score of each label, (count,)."""
    index = labels - 1
    areas = np.bincount(index, weights=pixel_areas, minlength=count)
    means = np.bincount(index, weights=scores, minlength=count) / np.bincount(
        index, minlength=count
    )
    maxima = np.full(count, -np.inf)
    np.maximum.at(maxima, index, scores.astype(np.float64))
    return areas.astype(np.float64), maxima, means.astype(np.float64)


def _polygon(mask: npt.NDArray[np.bool_], x: FloatArray, y: FloatArray) -> shapely.Polygon:
    """Outline a 4-connected mask whose pixel edges lie at ``x`` and ``y``."""
    rings = [np.column_stack((x[columns], y[rows])) for rows, columns in _rings(mask)]
    return shapely.Polygon(rings[0], rings[1:])


def _rings(
    mask: npt.NDArray[np.bool_],
) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Corners (rows, columns) of a 4-connected mask's outline, then of its holes.

    Along each grid line the corners pair up, first with second, third with fourth, and
    so on: those pairs are the outline's edges, and walking from horizontal to vertical
    edges gives the rings. (A union of boxes gives the same polygon, but takes a minute
    where this takes seconds: a noisy map of four million pixels.)

    Where two pixels touch in a corner only, two rings meet. They are told apart there
    by the gap that each of them surrounds, so no ring touches itself and the polygon
    is valid: as the mask is 4-connected, the two gaps are different ones.
    """
    padded = np.pad(mask, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    crossing = (a == d) & (b == c) & (a != b)
    rows, columns = np.nonzero((a ^ b ^ c ^ d) | crossing)
    twice = crossing[rows, columns]
    falling = twice & a[rows, columns]  # pixels at the upper left and the lower right
    repeats = 1 + twice
    second = np.zeros(int(repeats.sum()), np.bool_)
    second[np.cumsum(repeats)[twice] - 1] = True
    rows, columns, falling = (np.repeat(values, repeats) for values in (rows, columns, falling))
    # In row-major order a crossing's first entry ends the edge from its left, the second
    # begins that to its right. In column order first and second are above and below;
    # across a falling crossing left belongs with below, else with above.
    by_column = np.lexsort((second ^ falling, rows, columns))
    vertical = np.empty(len(rows), np.int64)
    vertical[by_column[0::2]], vertical[by_column[1::2]] = by_column[1::2], by_column[0::2]
    return [(rows[ring], columns[ring]) for ring in _walk(vertical.tolist())]


def _walk(vertical: list[int]) -> list[list[int]]:
    """Follow horizontal (``k ^ 1``) and vertical partners in turn into rings of corners."""
    visited = bytearray(len(vertical))
    rings = []
    # Corner 0 is the topmost leftmost: its ring, the first, is the outline.
    for start in range(0, len(vertical), 2):
        ring = []
        corner = start
        while not visited[corner]:
            partner = corner ^ 1
            visited[corner] = visited[partner] = 1
            ring += [corner, partner]
            corner = vertical[partner]
        if ring:
            rings.append(ring)
    return rings


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


def strongest_windows(regions: Sequence[Region], windows: WindowScores) -> npt.NDArray[np.int64]:
    """Return the strangest window within each region.

    Within a region is a window whose centre is; where there is none (regions smaller than
    windows), one that shares some area with it. Of equally strange ones it is the upper,
    then the left one, in whichever order they were scored.

    Parameters
    ----------
    regions : sequence of Region
        Of a heatmap that these windows made.
    windows : WindowScores

    Returns
    -------
    ndarray of int64, (len(regions),)
        Indices of windows.

    Raises
    ------
    ExportError
        A region shares nothing with any window.
    """
    x, y, width, height = windows.boxes.T
    found = np.empty(len(regions), np.int64)
    for number, region in enumerate(regions):
        left, top, right, bottom = region.polygon.bounds
        near = np.flatnonzero((x < right) & (x + width > left) & (y < bottom) & (y + height > top))
        within = _within(region.polygon, windows.boxes[near])
        if not within.any():
            raise ExportError(f"no window lies in region {number + 1} of the heatmap")
        near = near[within]
        order = np.lexsort((x[near], y[near], -windows.scores[near]))
        found[number] = near[order[0]]
    return found


def _within(polygon: shapely.Polygon, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which boxes (N, 4) have their centre in a polygon, or if none, share area with it."""
    x, y, width, height = boxes.T
    centred = np.asarray(shapely.contains_xy(polygon, x + width / 2, y + height / 2), bool)
    if centred.any():
        return centred
    squares = shapely.box(x, y, x + width, y + height)
    return np.asarray(shapely.area(shapely.intersection(squares, polygon)) > 0, bool)


_LIMIT = 10_000


def unassessed_regions(
    overview: Overview, *, slide_size: Size, bounds: Box, nothing: bool = False
) -> Iterator[tuple[str, Region]]:
    """Outline what was left out of a slide, reason by reason.

    Parameters
    ----------
    overview : Overview
        What was scored and what was not; windows that overlap scored ones are assessed.
    slide_size : Size
        Of level 0, pixels.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.
    nothing : bool
        Whether nothing of the slide could be looked at: all of it is outlined.

    Yields
    ------
    reason : str
        ``"missing"``, or the quality column that tells; pen marks that are left out of
        the tissue are ``"pen"`` too; ``"all"`` of the whole slide.
    region : Region
        Its outline runs along the pixels of the overview's thumbnail (about 8 µm); its
        scores mean nothing.
    """
    shape = (overview.mask.shape[0], overview.mask.shape[1])
    areas = [
        (reason.word, area)
        for reason, area in left_out_areas(overview, shape, overview.placement, overview.pen)
    ]
    if nothing and overview.mask.size:
        areas.append(("all", np.ones(shape, bool)))
    for reason, area in areas:
        marked = Heatmap(
            overview.slide,
            area.astype(np.float32),
            overview.placement,
            slide_size,
            bounds,
            overview.spacing,
        )
        for region in find_regions(marked, threshold=0.5, limit=_LIMIT).kept:
            yield reason, region
