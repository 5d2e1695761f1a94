"""Which scored windows show tumour, by the outlines of their slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

Floats = npt.NDArray[np.float64]

MIN_SHARE = 0.5
"""Share of a window that is tumour from which it counts as tumour by share."""

_MAX_CORNERS = 256
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class TileScores:
    """Scores of the windows of one slide by what they show.

    Windows that are neither tumour nor free of it are left out; how many is told.

    Parameters
    ----------
    tumour : ndarray of float64
        Scores of windows whose centre is tumour.
    mostly_tumour : ndarray of float64
        Scores of windows of which at least :data:`MIN_SHARE` is tumour.
    healthy : ndarray of float64
        Scores of windows with no tumour at all.
    windows : int
        Number of all windows.
    """

    tumour: Floats
    mostly_tumour: Floats
    healthy: Floats
    windows: int


def sort_windows(windows: npt.NDArray[Any], tumour: BaseGeometry | None) -> TileScores:
    """Sort the scored windows of a slide into tumour and healthy.

    A window is tumour where its centre is, as in PatchCamelyon (Veeling et al., MICCAI
    2018), whose label looks at the centre of a tile too; a window beside it that merely
    touches tumour is neither.

    Parameters
    ----------
    windows : structured ndarray, (N,)
        Fields ``x``, ``y``, ``width``, ``height`` in level-0 pixels, and ``score``.
    tumour : geometry or None
        Tumour area in level-0 pixels, cut-outs taken off; ``None`` for a normal slide.
    """
    scores = np.asarray(windows["score"], dtype=np.float64)
    none = np.zeros(0)
    if tumour is None or tumour.is_empty:
        return TileScores(none, none, scores, len(scores))
    x, y = (np.asarray(windows[name], dtype=np.float64) for name in ("x", "y"))
    width, height = (np.asarray(windows[name], dtype=np.float64) for name in ("width", "height"))
    pieces = shapely.STRtree(_pieces(tumour))
    share = _area_within(pieces, shapely.box(x, y, x + width, y + height)) / (width * height)
    centres = shapely.points(x + width / 2, y + height / 2)
    central = np.zeros(len(scores), dtype=bool)
    central[pieces.query(centres, predicate="intersects")[0]] = True
    mostly, healthy = share >= MIN_SHARE - _ROUNDING, share <= _ROUNDING
    return TileScores(scores[central], scores[mostly], scores[healthy], len(scores))


def _pieces(area: BaseGeometry) -> list[BaseGeometry]:
    """Cut an area into pieces of few corners: outlines have tens of thousands.

    What is measured on the pieces is measured on the whole, many times sooner.
    """
    pieces: list[BaseGeometry] = []
    waiting = [part for part in shapely.get_parts(area) if part.area > 0]
    while waiting:
        piece = waiting.pop()
        if shapely.get_num_coordinates(piece) <= _MAX_CORNERS:
            pieces.append(piece)
            continue
        left, top, right, bottom = piece.bounds
        if right - left > bottom - top:
            middle = (left + right) / 2
            halves = (left, top, middle, bottom), (middle, top, right, bottom)
        else:
            middle = (top + bottom) / 2
            halves = (left, top, right, middle), (left, middle, right, bottom)
        for half in halves:
            parts = shapely.get_parts(piece.intersection(shapely.box(*half)))
            waiting.extend(part for part in parts if part.area > 0)
    return pieces


def _area_within(pieces: shapely.STRtree, boxes: npt.NDArray[Any]) -> Floats:
    """Area of each box that the pieces, which do not overlap, cover."""
    box, piece = pieces.query(boxes, predicate="intersects")
    areas = shapely.area(shapely.intersection(boxes[box], pieces.geometries[piece]))
    return np.bincount(box, areas, len(boxes)).astype(np.float64)
