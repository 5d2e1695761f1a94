"""Outlines as masks, by the rule of the program that made the CAMELYON masks.

ASAP paints level 0 and takes the top-left pixel of each block for the next level, so a
mask pixel is inside where its top-left corner is. A corner is inside where the outline
winds around it at least once (Sunday's winding number, in ``AnnotationToMask``: of two
areas that share an edge exactly one has the corners on it). ASAP besides leaves out
corners that lie exactly on the left or upper side of an outline's bounding box; that is
not done here, since it makes a rectangle smaller than it is, and no outline drawn by
hand has such corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsiad.annotations import Annotations, Ring, Role
from wsiad.core.geometry import Size

Mask = npt.NDArray[np.bool_]
"""Tumour pixels, bool (H, W)."""

_BAND_PX = 1 << 22
"""Pixels that are worked on at once: bounds memory whatever the size of an outline."""


def rasterise(
    annotations: Annotations,
    size: Size,
    *,
    scale: float,
    sample: Literal["corner", "centre"] = "corner",
) -> Mask:
    """Paint tumour outlines, then cut-outs over them.

    Parameters
    ----------
    annotations : Annotations
        Outlines in level-0 pixels.
    size : Size
        Of the mask.
    scale : float
        Level-0 pixels per mask pixel; the mask starts at the slide's corner.
    sample : str
        Which point of a mask pixel decides: its top-left ``"corner"`` as in the CAMELYON
        masks, or its ``"centre"``, which is nearer to the outline on average.

    Returns
    -------
    ndarray of bool, (H, W)
        True where the pixel is tumour.
    """
    mask = np.zeros((size.height, size.width), dtype=np.bool_)
    for role, value in ((Role.TUMOUR, True), (Role.CUT_OUT, False)):
        for outline in annotations.with_role(role):
            # To move the outline is to move the points that decide.
            shift = scale / 2 if sample == "centre" else 0.0
            shell, holes = outline.shell - shift, [hole - shift for hole in outline.holes]
            _paint(mask, shell, holes, value=value, scale=scale)
    return mask


def _paint(mask: Mask, shell: Ring, holes: Sequence[Ring], *, value: bool, scale: float) -> None:
    top, bottom, left, right = _bounds(shell, mask.shape, scale)
    if top >= bottom or left >= right:
        return
    # An edge may cross every row, so that their number bounds the rows as well.
    edges = max(len(ring) for ring in (shell, *holes))
    step = max(1, _BAND_PX // max(right - left, edges))
    for start in range(top, bottom, step):
        stop = min(start + step, bottom)
        inside = _wound(shell, (start, stop), (left, right), scale)
        for hole in holes:
            inside &= ~_wound(hole, (start, stop), (left, right), scale)
        mask[start:stop, left:right][inside] = value


def _bounds(ring: Ring, shape: tuple[int, ...], scale: float) -> tuple[int, int, int, int]:
    """Rows and columns of the mask that an outline may touch."""
    low = np.floor(ring.min(axis=0) / scale).astype(int)
    high = np.floor(ring.max(axis=0) / scale).astype(int) + 2
    (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, shape[1::-1])
    return int(top), int(bottom), int(left), int(right)


def _wound(ring: Ring, rows: tuple[int, int], columns: tuple[int, int], scale: float) -> Mask:
    """Which pixel corners a ring winds around, within a range of rows and columns."""
    start, end = ring, np.roll(ring, -1, axis=0)
    low = _first_row(np.minimum(start[:, 1], end[:, 1]), scale).clip(*rows)
    high = _first_row(np.maximum(start[:, 1], end[:, 1]), scale).clip(*rows)
    crossings = high - low
    edge = np.repeat(np.arange(len(ring)), crossings)
    before = np.repeat(np.cumsum(crossings) - crossings, crossings)
    row = np.arange(len(edge)) - before + low[edge]
    column = _crossing_column(start[edge], end[edge], row, scale)
    direction = np.where(end[edge, 1] > start[edge, 1], 1, -1)
    winding = np.zeros((rows[1] - rows[0], columns[1] - columns[0] + 1), dtype=np.int32)
    # An edge counts for every corner to the left of it.
    np.add.at(winding, (row - rows[0], 0), direction)
    np.add.at(winding, (row - rows[0], column.clip(*columns) - columns[0]), -direction)
    return np.asarray(np.cumsum(winding, axis=1)[:, :-1] != 0)


def _first_row(y: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.int64]:
    """Return the first row whose corner is not above y."""
    row = np.ceil(y / scale)
    # The quotient is rounded; the product decides, as it does for the corner itself.
    row = np.where((row - 1) * scale >= y, row - 1, row)
    return np.where(row * scale < y, row + 1, row).astype(np.int64)


def _crossing_column(
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
    row: npt.NDArray[np.int64],
    scale: float,
) -> npt.NDArray[np.int64]:
    """Return the first column whose corner is not to the left of the edge at this row."""
    (x0, y0), (dx, dy) = start.T, (end - start).T
    y = row * scale
    column = np.ceil((x0 + (y - y0) * dx / dy) / scale)

    def is_left(candidate: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return np.sign(dy) * (dx * (y - y0) - (candidate * scale - x0) * dy) > 0

    column = np.where(is_left(column - 1), column, column - 1)
    return np.where(is_left(column), column + 1, column).astype(np.int64)
