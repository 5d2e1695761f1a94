"""The window that stands for a region: the strangest one within it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.core.errors import ExportError
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import WindowScores


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
