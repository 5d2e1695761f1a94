"""Rings of corners: checked where they enter, and the area that they wind around."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.errors import AnnotationError

Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2) ``x, y`` in level-0 pixels; open, the last joins the first."""

MAX_CROSSINGS = 20_000
"""Most crossings of a ring with itself that are mended: half a second's work."""

_MAX_COORDINATE = 1e9
_PLAIN_AREA = 1e-6
_MAX_NEAR = 10_000_000
_FEW_CORNERS = 2_000  # so few are worked on at once whatever they look like
_EDGES_AT_ONCE = 128
_POINTS_AT_ONCE = 64
_PAIRS_AT_ONCE = 1 << 21  # bounds memory whatever the number of corners


def read_ring(corners: Iterable[Sequence[Any]], where: str) -> Ring:
    """Return corners as numbers, without a repeated first corner at the end.

    Raises
    ------
    AnnotationError
        A coordinate is no position on a slide.
    """
    points: list[tuple[float, float]] = []
    for corner in corners:
        try:
            x, y = _number(corner[0]), _number(corner[1])
        except (TypeError, ValueError, OverflowError, IndexError, KeyError):
            x = y = math.nan
        # Not only NaN and infinity: no slide has a billion pixels to a side.
        if not (abs(x) < _MAX_COORDINATE and abs(y) < _MAX_COORDINATE):
            raise AnnotationError(
                f"the coordinate {reprlib.repr(corner)} is not a position on a slide",
                subject=where,
                remedy="Write x and y in level-0 pixels, with a decimal point.",
            )
        points.append((x, y))
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _number(value: Any) -> float:
    """Return a number as files have it: not True, nor 1_000, which Python takes for one too."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError
    return float(value)


def has_area(ring: Ring) -> bool:
    """Tell whether the corners are not all on one line."""
    if len(ring) < 3:
        return False
    from_first = ring - ring[0]
    # Nearly all rings enclose something by the plainest measure, which is ten times faster.
    x, y = from_first.T
    extent = float(np.abs(from_first).max())
    if abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) > _PLAIN_AREA * extent * extent:
        return True
    return int(np.linalg.matrix_rank(from_first)) == 2


def ring_area(ring: Ring, *, subject: str | None = None) -> BaseGeometry:
    """Return what a ring winds around at least once; rings that cross themselves included.

    Parameters
    ----------
    ring : ndarray of float64, (N, 2)
        Corners.
    subject : str, optional
        Whose ring it is, for the error.

    Raises
    ------
    AnnotationError
        The ring crosses itself more than `MAX_CROSSINGS` times, or so many of its edges
        are as long as itself that it would take minutes to tell: what is drawn by hand
        does neither.
    """
    if len(ring) > _FEW_CORNERS:
        _count_crossings(ring, subject, count=False)
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    _count_crossings(ring, subject, count=True)
    lines = shapely.node(shapely.LinearRing(ring))
    faces = shapely.get_parts(shapely.polygonize([lines]))
    inside = _winding_numbers(ring, shapely.get_coordinates(shapely.point_on_surface(faces))) != 0
    # Faces share their edges to the last bit, which makes their union ten times faster.
    return shapely.coverage_union_all(faces[inside])


def _count_crossings(ring: Ring, subject: str | None, *, count: bool) -> None:
    """Refuse a ring whose edges are near each other, or cross, too often to be worked on.

    Parameters
    ----------
    ring : ndarray of float64, (N, 2)
    subject : str or None
        For the error.
    count : bool
        Whether crossings are counted too, not only edges whose bounding boxes meet.

    Raises
    ------
    AnnotationError
        There are more than `MAX_CROSSINGS`, or than `_MAX_NEAR` near ones.
    """
    corners = np.stack([ring, np.roll(ring, -1, axis=0)], axis=1)
    edges = np.asarray(shapely.linestrings(corners))
    tree = shapely.STRtree(edges)
    near, crossings = 0, -len(edges)  # each touches the next one
    step = max(1, min(_EDGES_AT_ONCE, _PAIRS_AT_ONCE // len(edges)))
    for start in range(0, len(edges), step):
        first, second = tree.query(edges[start : start + step])
        later = second > first + start
        near += int(later.sum())
        if count:
            pairs = edges[first[later] + start], edges[second[later]]
            crossings += int(np.count_nonzero(shapely.intersects(*pairs)))
        if near > _MAX_NEAR or crossings > MAX_CROSSINGS:
            raise AnnotationError(
                f"the outline of {len(edges)} corners crosses itself more than {MAX_CROSSINGS} "
                "times, or nearly does",
                subject=subject,
                remedy="Draw it again along the edge of the area.",
            )


def _winding_numbers(ring: Ring, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How often a ring winds around each of some points, (N, 2), that are not on it."""
    start, end = ring, np.roll(ring, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    order = np.argsort(points[:, 1])
    numbers = np.zeros(len(points), dtype=np.int64)
    # Points of similar height meet the same few edges.
    step = max(1, min(_POINTS_AT_ONCE, _PAIRS_AT_ONCE // len(ring)))
    for begin in range(0, len(points), step):
        some = order[begin : begin + step]
        x, y = points[some, :1], points[some, 1:]
        beside = (low <= y[-1]) & (high >= y[0])
        (x0, y0), (x1, y1) = start[beside].T, end[beside].T
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        upward = (y0 <= y) & (y1 > y) & (side > 0)
        downward = (y1 <= y) & (y0 > y) & (side < 0)
        numbers[some] = upward.sum(axis=1) - downward.sum(axis=1)
    return numbers
