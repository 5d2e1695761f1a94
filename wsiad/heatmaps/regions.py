"""Outline the regions of a heatmap: connected parts above a threshold, as polygons.

The window that represents a region is the strangest one in it. Parts of a slide that were not
assessed are outlined in the same way, because the absence of findings there means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.core.errors import ConfigError, ExportError
from wsiad.core.geometry import Box, Microns, Size, SquareMicrons
from wsiad.heatmaps.score_map import Heatmap, WindowScores

if TYPE_CHECKING:
    from wsiad.pictures.overview import Overview

DEFAULT_LIMIT = 300
"""Maximum number of regions by default; viewers with editable outlines get slow with more."""

ANY_AREA = SquareMicrons(0.0)
"""Minimum area that keeps regions of any size."""

EXACT = Microns(0.0)
"""Tolerance of polygons that run along pixel edges."""

_LEAST_VISIBLE_PX = 0.5

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Region:
    """Connected part of a slide whose scores exceed a threshold.

    Parameters
    ----------
    polygon : shapely.Polygon
        Outline and holes along heatmap pixel edges, level-0 pixels.
    area : SquareMicrons
        Area of the region's heatmap pixels, µm².
    max_score, mean_score : float
        Highest and mean score of the region's heatmap pixels.
    tolerance : Microns
        Maximum distance of the polygon from the pixels' edges, µm; see
        :func:`wsiad.heatmaps.outline_simplification.simplify`.
    rank : int
        Rank among the slide's regions by descending maximum score, from 1; 0 for a single region.
        ``wsiad 1`` in QuPath is the region of rank 1.
    percentile : float
        Percentile of the maximum score among healthy windows, 0 to 100; NaN if these are not
        known.
    p_family_wise, p, q : float or None
        P-values, see :class:`wsiad.conformal.p_values.RegionSignificance`; ``None`` if the
        region was not compared with healthy slides.
    significant : int or None
        1 for a significant region, 0 for another; ``None`` if it was not compared.
    scale_um : float or None
        Radius of the neighbourhood that stands out most in the region, µm; ``None`` for a region
        of single windows.
    pixel_box, pixel_centre : Box and (float, float), or None
        Rectangle around the region's pixels, and centre of their area, level-0 pixels; ``None``
        if they are those of the polygon.
    """

    polygon: shapely.Polygon
    area: SquareMicrons
    max_score: float
    mean_score: float
    tolerance: Microns = EXACT
    rank: int = 0
    percentile: float = math.nan
    p_family_wise: float | None = None
    p: float | None = None
    q: float | None = None
    significant: int | None = None
    scale_um: float | None = None
    pixel_box: Box | None = None
    pixel_centre: tuple[float, float] | None = None

    @property
    def box(self) -> Box:
        """Rectangle around the region's pixels, level-0 pixels; the outline may be smaller."""
        if self.pixel_box is not None:
            return self.pixel_box
        left, top, right, bottom = self.polygon.bounds
        return Box(left, top, right - left, bottom - top)

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the area of the region's pixels; that of a crescent is outside the region."""
        if self.pixel_centre is not None:
            return self.pixel_centre
        point = self.polygon.centroid
        return point.x, point.y

    @property
    def x(self) -> float:
        """Left edge of the rectangle around the region, level-0 pixels."""
        return self.box.x

    @property
    def y(self) -> float:
        """Upper edge of the rectangle around the region, level-0 pixels."""
        return self.box.y

    @property
    def width(self) -> float:
        """Width of the rectangle around the region, level-0 pixels."""
        return self.box.width

    @property
    def height(self) -> float:
        """Height of the rectangle around the region, level-0 pixels."""
        return self.box.height

    @property
    def centre_x(self) -> float:
        """Position of the centre from the left, level-0 pixels."""
        return self.centre[0]

    @property
    def centre_y(self) -> float:
        """Position of the centre from the top, level-0 pixels."""
        return self.centre[1]

    @property
    def area_um2(self) -> float:
        """Area of the region's pixels without its holes, µm²."""
        return float(self.area)


@dataclass(frozen=True, slots=True)
class Regions:
    """Strongest regions of a slide.

    Parameters
    ----------
    kept : tuple of Region
        Regions by descending maximum score; of equal ones the larger, then the upper first.
    left_out : int
        Number of further regions that are large enough.
    """

    kept: tuple[Region, ...]
    left_out: int


def find_regions(
    heatmap: Heatmap,
    *,
    threshold: float,
    min_area: SquareMicrons = ANY_AREA,
    limit: int = DEFAULT_LIMIT,
    scale_um: npt.NDArray[np.floating] | None = None,
) -> Regions:
    """Outline the connected regions whose scores exceed a threshold.

    Parameters
    ----------
    heatmap : Heatmap
        Anomaly scores; NaN pixels are in no region.
    threshold : float
        Lower limit of the score; only pixels above it, not equal to it, count.
    min_area : SquareMicrons
        Minimum area, µm². Smaller regions are noise: neither kept nor counted as left out.
    limit : int
        Maximum number of regions to keep; the strongest are kept.
    scale_um : ndarray of float, (H, W), optional
        Radius of the neighbourhood that each pixel's score comes from, µm.

    Returns
    -------
    Regions
        Regions of pixels that share an edge (4-connectivity). Polygons are valid, follow pixel
        edges exactly and end at the slide's bounds. Pixels with less than half a level-0 pixel
        inside the bounds are ignored.

    Raises
    ------
    ConfigError
        The threshold or the area is not a finite number, or the limit is below 1.
    """
    from scipy import ndimage

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
            rank=rank,
            scale_um=None
            if scale_um is None
            else float(
                scale_um[boxes[i]][_highest(heatmap.scores[boxes[i]], labels[boxes[i]] == i + 1)]
            ),
        )
        for rank, i in enumerate(ranked[:limit].tolist(), start=1)
    )
    return Regions(kept=kept, left_out=max(0, len(ranked) - limit))


def _highest(scores: npt.NDArray[np.float32], within: npt.NDArray[np.bool_]) -> tuple[np.intp, ...]:
    """Return the place of the highest score of a region; of equal ones the first."""
    return np.unravel_index(np.where(within, scores, -np.inf).argmax(), scores.shape)


def _visible_edges(heatmap: Heatmap) -> tuple[FloatArray, FloatArray]:
    """Return the edges of columns and rows, limited to the slide's bounds, level-0 pixels."""
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
    """Return the area (µm²), the maximum and the mean score of each label, (count,)."""
    index = labels - 1
    areas = np.bincount(index, weights=pixel_areas, minlength=count)
    means = np.bincount(index, weights=scores, minlength=count) / np.bincount(
        index, minlength=count
    )
    maxima = np.full(count, -np.inf)
    np.maximum.at(maxima, index, scores.astype(np.float64))
    return areas.astype(np.float64), maxima, means.astype(np.float64)


def _polygon(mask: npt.NDArray[np.bool_], x: FloatArray, y: FloatArray) -> shapely.Polygon:
    """Outline a 4-connected mask whose pixel edges are at ``x`` and ``y``."""
    rings = [np.column_stack((x[columns], y[rows])) for rows, columns in _rings(mask)]
    return shapely.Polygon(rings[0], rings[1:])


def _rings(
    mask: npt.NDArray[np.bool_],
) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Return the corners (rows, columns) of a 4-connected mask's outline, then of its holes.

    Along each grid line the corners form pairs: first with second, third with fourth, and
    so on. These pairs are the edges of the outline, and walking from horizontal to vertical
    edges gives the rings. (A union of boxes gives the same polygon, but for a noisy map of four
    million pixels it takes a minute where this takes seconds.)

    Where two pixels touch only in a corner, two rings meet. They are distinguished there
    by the gap that each of them surrounds, so that no ring touches itself and the polygon
    is valid: because the mask is 4-connected, the two gaps are different.
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
    """Return rings of corners, following horizontal (``k ^ 1``) and vertical partners in turn."""
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


def strongest_windows(regions: Sequence[Region], windows: WindowScores) -> npt.NDArray[np.int64]:
    """Return the strangest window in each region.

    A window is in a region if its centre is. If a region contains no centre (because it is
    smaller than a window), the windows that share some area with it count. Of equally strange
    windows, the upper, then the left one is chosen, independently of the order of scoring.

    Parameters
    ----------
    regions : sequence of Region
        Regions of the heatmap that was made from these windows.
    windows : WindowScores
        Scored windows of the slide.

    Returns
    -------
    ndarray of int64, (len(regions),)
        Index of a window for each region.

    Raises
    ------
    ExportError
        A region shares no area with any window.
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
    """Tell which boxes (N, 4) have their centre in a polygon or, if none, share area with it."""
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
    """Outline the parts of a slide that were left out, reason by reason.

    Parameters
    ----------
    overview : Overview
        Overview of scored and left-out windows; windows that overlap scored ones are assessed.
    slide_size : Size
        Size of level 0, pixels.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.
    nothing : bool
        True where nothing of the slide could be looked at; the complete slide is then outlined.

    Yields
    ------
    reason : str
        ``"missing"``, or the name of the failed quality column; ``"pen"`` also for pen marks
        that are left out of the tissue; ``"all"`` for the complete slide.
    region : Region
        Part of the slide, outlined along the pixels of the overview's thumbnail (about 8 µm);
        its scores have no meaning.
    """
    from wsiad.pictures.overview import left_out_areas

    shape = (overview.mask.shape[0], overview.mask.shape[1])
    areas = [
        (reason.word, area)
        for reason, area in left_out_areas(overview, shape, overview.placement, overview.pen)
    ]
    if nothing and overview.mask.size:
        areas.append(("all", np.ones(shape, bool)))
    for reason, area in areas:
        marked = Heatmap(
            slide=overview.slide,
            scores=area.astype(np.float32),
            placement=overview.placement,
            slide_size=slide_size,
            bounds=bounds,
            spacing=overview.spacing,
        )
        for region in find_regions(marked, threshold=0.5, limit=_LIMIT).kept:
            yield reason, region
