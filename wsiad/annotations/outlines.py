"""Outlines that people drew on a slide: areas with a role, in level-0 pixels.

Rings of corners are checked when they are read, and become the area around which they wind.
Annotation files are read as bytes of a limited size.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.annotations.classes import Role
from wsiad.core.errors import AnnotationError

Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2) ``x, y`` in level-0 pixels; open, the last joins the first."""

MAX_CROSSINGS = 20_000
"""Maximum number of crossings of a ring with itself that are mended: half a second's work."""

_MAX_COORDINATE = 1e9
_PLAIN_AREA = 1e-6
_MAX_NEAR = 10_000_000  # edges whose bounding boxes meet: half a second's work
_FEW_CORNERS = 2_000  # so few are worked on at once whatever they look like
_EDGES_AT_ONCE = 16
_MOST_AT_ONCE = 1 << 15
_POINTS_AT_ONCE = 64
_PAIRS_AT_ONCE = 1 << 18  # bounds memory whatever the number of corners


def read_ring(corners: Iterable[Sequence[Any]], where: str) -> Ring:
    """Return corners as numbers, without a repeated first corner at the end.

    Raises
    ------
    AnnotationError
        A coordinate is not a position on a slide.
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
    """Return a number as files write it; refuse True and 1_000, which Python takes for numbers."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError
    return float(value)


def has_area(ring: Ring) -> bool:
    """Tell whether the corners enclose an area, that is, are not all on one line."""
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
    """Return the area around which a ring winds at least once, even if the ring crosses itself.

    Parameters
    ----------
    ring : ndarray of float64, (N, 2)
        Corners.
    subject : str, optional
        Name of the ring's outline, for the error.

    Raises
    ------
    AnnotationError
        The ring crosses itself more than `MAX_CROSSINGS` times, or so many of its edges are as
        long as the ring itself that the check would take minutes. Rings drawn by hand do
        neither.
    """
    if len(ring) > _FEW_CORNERS and _are_tangled([ring], most=None):
        raise _tangled(f"the outline of {len(ring)} corners crosses itself", subject)
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    if _are_tangled([ring], most=MAX_CROSSINGS):
        raise _tangled(f"the outline of {len(ring)} corners crosses itself", subject)
    lines = shapely.node(shapely.LinearRing(ring))
    faces = shapely.get_parts(shapely.polygonize([lines]))
    inside = _winding_numbers(ring, shapely.get_coordinates(shapely.point_on_surface(faces))) != 0
    # Faces share their edges to the last bit, which makes their union ten times faster.
    return shapely.coverage_union_all(faces[inside])


def check_rings(rings: Sequence[tuple[str, Ring]], source: str) -> None:
    """Refuse rings that cross themselves and each other too often to be processed together.

    Parameters
    ----------
    rings : sequence of (str, ndarray)
        Rings, each with the name of its outline.
    source : str
        Path of the file.

    Raises
    ------
    AnnotationError
        There are more crossings than ten times the sum of `MAX_CROSSINGS` and the number of
        corners. A ring that alone has too many is named.
    """
    corners = sum(len(ring) for _, ring in rings)
    most = 10 * (MAX_CROSSINGS + corners)
    if corners <= _FEW_CORNERS or not _are_tangled([ring for _, ring in rings], most=most):
        return
    for name, ring in rings:
        if len(ring) ** 2 > 2 * MAX_CROSSINGS and _are_tangled([ring], most=MAX_CROSSINGS):
            raise _tangled(
                f"the outline of {len(ring)} corners crosses itself", f"{source}, {name}"
            )
    raise _tangled("its outlines cross themselves and each other", source)


def _tangled(problem: str, subject: str | None) -> AnnotationError:
    return AnnotationError(
        f"{problem} too often to be processed",
        subject=subject,
        remedy="Draw along the edge of the area.",
    )


def _are_tangled(rings: Sequence[Ring], *, most: int | None) -> bool:
    """Tell whether edges of rings are near each other, or cross, too often to be processed.

    Parameters
    ----------
    rings : sequence of ndarray of float64, (N, 2)
    most : int or None
        Maximum number of crossings; ``None`` to look only at bounding boxes.
    """
    ends = [np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
    edges = np.asarray(shapely.linestrings(np.concatenate(ends)))
    # In no order, the first ones tell how many are near the next ones.
    edges = edges[np.random.default_rng(0).permutation(len(edges))]
    tree = shapely.STRtree(edges)
    near, crossings = 0, -len(edges)  # each touches the next one of its ring
    start, step = 0, _EDGES_AT_ONCE
    while start < len(edges):
        first, second = tree.query(edges[start : start + step])
        later = second > first + start
        near += int(later.sum())
        if most is not None:
            pairs = edges[first[later] + start], edges[second[later]]
            crossings += int(np.count_nonzero(shapely.intersects(*pairs)))
        if near > _MAX_NEAR or (most is not None and crossings > most):
            return True
        start += step
        step = int(np.clip(_PAIRS_AT_ONCE * step // (len(first) + 1), 1, _MOST_AT_ONCE))
    return False


def _winding_numbers(ring: Ring, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Count how often a ring winds around each of some points, (N, 2), that are not on it."""
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


LEVEL_0 = "the slide's corner"
"""Origin of a file's positions in words: the corner of OpenSlide's level 0."""

BOUNDS = "the corner of its bounds"
"""Origin of a file's positions in words: the corner of the slide's bounds, as in QuPath."""


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """An outlined area.

    Parameters
    ----------
    name, group : str
        Name and group as in the file.
    role : Role
        Meaning: tumour, or cut out of it.
    shell : ndarray of float64, (N, 2)
        Outer ring, level-0 pixels. It can cross itself: the points around which it winds at
        least once are inside.
    holes : tuple of ndarray
        Inner rings; only GeoJSON has them.
    """

    name: str
    group: str
    role: Role
    shell: Ring
    holes: tuple[Ring, ...] = ()

    def polygon(self, source: str = "") -> BaseGeometry:
        """Return the outlined area as a valid geometry.

        Raises
        ------
        AnnotationError
            The outline crosses itself too often; the error names ``source``, the file.
        """
        subject = f"{source}, {self.name}" if source else self.name
        area = ring_area(self.shell, subject=subject)
        if not self.holes:
            return area
        holes = [ring_area(hole, subject=subject) for hole in self.holes]
        return area.difference(shapely.union_all(holes))

    def moved(self, dx: float, dy: float) -> Outline:
        """Return the outline moved by ``dx`` and ``dy``, pixels."""
        by = np.array([dx, dy])
        holes = tuple(hole + by for hole in self.holes)
        return dataclasses.replace(self, shell=self.shell + by, holes=holes)


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """All outlines of a slide that have a role, and counts of the rest of the file.

    Parameters
    ----------
    source : str
        Path of the file.
    outlines : tuple of Outline
        Outlines in the order of the file.
    ignored : Mapping of str to int
        Number of ignored annotations for each reason.
    classes : frozenset of str
        Every class or group of the file's objects, ``""`` for none.
    origin : (float, float)
        Origin of the file's positions, level-0 pixels; the outlines are already moved by it.
    counted_from : str
        The origin in words.
    """

    source: str
    outlines: tuple[Outline, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()
    origin: tuple[float, float] = (0.0, 0.0)
    counted_from: str = LEVEL_0

    def with_role(self, role: Role) -> tuple[Outline, ...]:
        """Return the outlines of one role."""
        return tuple(outline for outline in self.outlines if outline.role is role)

    def tumour(self) -> BaseGeometry:
        """Return the tumour area: all tumour outlines without all cut-outs, level-0 pixels.

        A cut-out prevails over every tumour outline under it, as in the CAMELYON masks, where
        cut-outs are painted last.

        Raises
        ------
        AnnotationError
            Outlines cross themselves or each other too often.
        """
        check_rings(
            [(o.name, ring) for o in self.outlines for ring in (o.shell, *o.holes)],
            self.source,
        )
        tumour, cut_out = (
            shapely.union_all([o.polygon(self.source) for o in self.with_role(role)])
            for role in (Role.TUMOUR, Role.CUT_OUT)
        )
        return tumour.difference(cut_out)

    def moved_to(self, origin: tuple[float, float], counted_from: str) -> Annotations:
        """Return the outlines at their positions if the file counts from another origin."""
        dx, dy = origin[0] - self.origin[0], origin[1] - self.origin[1]
        outlines = self.outlines
        if (dx, dy) != (0.0, 0.0):
            outlines = tuple(outline.moved(dx, dy) for outline in outlines)
        return dataclasses.replace(
            self, outlines=outlines, origin=origin, counted_from=counted_from
        )


MAX_BYTES = 1 << 27
"""Maximum size of an annotation file in bytes: half a million objects."""

MAX_DEPTH = 32
"""Maximum depth of groups, collections and objects within each other."""


def read_bytes(path: Path) -> bytes:
    """Read the bytes of an annotation file.

    Raises
    ------
    AnnotationError
        The file is missing, cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise AnnotationError(f"cannot be read ({error})", subject=str(path)) from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"is larger than {MAX_BYTES >> 20} MiB",
            subject=str(path),
            remedy="Export the annotations alone, without detections, cells and tiles.",
        )
    return data
