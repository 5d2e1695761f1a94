"""Rings of corners: checked where they enter, and the area that they wind around."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.errors import AnnotationError

Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2) ``x, y`` in level-0 pixels; open, the last joins the first."""

_MAX_COORDINATE = 1e9


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
            x, y = float(corner[0]), float(corner[1])
        except (TypeError, ValueError, OverflowError, IndexError, KeyError):
            x = y = math.nan
        # Not only NaN and infinity: no slide has a billion pixels to a side.
        if not (abs(x) < _MAX_COORDINATE and abs(y) < _MAX_COORDINATE):
            raise AnnotationError(
                f"the coordinate {corner!r} is not a position on a slide",
                subject=where,
                remedy="Write x and y in level-0 pixels, with a decimal point.",
            )
        points.append((x, y))
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def has_area(ring: Ring) -> bool:
    """Tell whether the corners are not all on one line."""
    return len(ring) >= 3 and int(np.linalg.matrix_rank(ring - ring[0])) == 2


def ring_area(ring: Ring) -> BaseGeometry:
    """Return what a ring winds around at least once; rings that cross themselves included."""
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    edges = shapely.node(shapely.LinearRing(ring))
    faces = shapely.get_parts(shapely.polygonize([edges]))
    inside = [face for face in faces if _winding_number(ring, face.representative_point())]
    return shapely.union_all(inside)


def _winding_number(ring: Ring, point: shapely.Point) -> int:
    x, y = point.x, point.y
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
    upward = (y0 <= y) & (y1 > y) & (side > 0)
    downward = (y1 <= y) & (y0 > y) & (side < 0)
    return int(upward.sum() - downward.sum())
