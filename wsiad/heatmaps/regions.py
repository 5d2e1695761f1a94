"""Regions: connected parts of a heatmap above a threshold, as polygons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage

from wsiad.core.errors import ConfigError
from wsiad.core.units import Microns, SquareMicrons
from wsiad.heatmaps.score_map import Heatmap

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
        :func:`wsiad.heatmaps.outlines.simplify`.
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
