"""Heatmap of a slide: an array of anomaly scores with an affine map to level 0.

The scores are read back from ``heatmap.ome.tif``, and the tables of scored and of left-out windows
from ``.npy`` files. Files are checked first, since they may be damaged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import WsiadError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Anomaly scores of a slide, as an image with its position on the slide.

    Parameters
    ----------
    slide : str
        Name of the slide.
    scores : ndarray of float32, (H, W)
        Mean anomaly score of the windows over each pixel; NaN where none was scored.
    placement : PixelMap
        Map from heatmap pixel edges to level-0 pixels.
    slide_size : Size
        Size of level 0, pixels.
    bounds : Box
        Non-empty part of the slide in level-0 pixels; the complete slide where the
        format states no bounds. QuPath's coordinates start at its corner.
    spacing : Spacing
        µm per level-0 pixel.
    """

    slide: str
    scores: npt.NDArray[np.float32]
    placement: PixelMap
    slide_size: Size
    bounds: Box
    spacing: Spacing

    @property
    def size(self) -> Size:
        """Width and height of the heatmap, pixels."""
        return Size(self.scores.shape[1], self.scores.shape[0])

    @property
    def box(self) -> Box:
        """Level-0 rectangle that the heatmap covers."""
        return self.placement.box(self.size)

    @property
    def pixel_um(self) -> tuple[float, float]:
        """Physical width and height of a heatmap pixel, µm."""
        return self.placement.scale_x * self.spacing.x, self.placement.scale_y * self.spacing.y

    def at_centres(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the scores at the centres of boxes, float64 (N,); NaN beyond the heatmap.

        Parameters
        ----------
        boxes : ndarray of float64, (N, 4)
            ``x, y, width, height``, level-0 pixels.
        """
        x, y = (boxes[:, :2] + boxes[:, 2:] / 2).T
        column, row = (
            np.floor(place).astype(np.int64) for place in self.placement.from_level0(x, y)
        )
        inside = (column >= 0) & (column < self.size.width)
        inside &= (row >= 0) & (row < self.size.height)
        values = np.full(len(boxes), np.nan)
        values[inside] = self.scores[row[inside], column[inside]]
        return values


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Scored windows of a slide.

    Parameters
    ----------
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height`` of each window in level-0 pixels.
    scores : ndarray of float32, (N,)
        Anomaly score of each window.
    percentiles : ndarray of float32, (N,)
        Share of healthy windows with a lower score, 0 to 100.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    percentiles: npt.NDArray[np.float32]


def boxes_of(windows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``x, y, width, height`` of a table of windows, float64 (N, 4), level-0 pixels."""
    columns = ("x", "y", "width", "height")
    return np.stack([np.asarray(windows[name], np.float64) for name in columns], axis=1)


_MOST_PX = 1 << 28
_MOST_EXPANSION = 1100
"""Maximum expansion of a compressed file that is believed; deflate can expand by 1032."""

_MOST_DESCRIPTION = 1 << 20


def read_scores(
    path: Path, error: type[WsiadError], *, remedy: str, few: int | None = None
) -> npt.NDArray[np.float32]:
    """Read the scores of a heatmap.

    Parameters
    ----------
    path : Path
        ``heatmap.ome.tif`` of a slide.
    error : type
        Class of the error to raise.
    remedy : str
        Remedy that the error states.
    few : int, optional
        Maximum number of pixels: the finest level with at most this many is read, or else the
        coarsest. By default the full resolution is read.

    Returns
    -------
    ndarray of float32, (H, W)
        Scores; NaN where nothing was scored.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, not a heatmap, too large, or damaged.
    """
    try:
        return _read(path, few)
    except Exception as cause:  # what decoders make of a damaged file has no end
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise error(
            f"is damaged or cannot be read: {words}", subject=str(path), remedy=remedy
        ) from cause


def read_description(path: Path, error: type[WsiadError], *, remedy: str) -> str:
    """Read the description (OME-XML) in the image of a heatmap; empty if there is none.

    Raises
    ------
    WsiadError
        An `error`: the file is missing or damaged.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            text = file.pages.first.description[:_MOST_DESCRIPTION]
    except Exception as cause:  # what decoders make of a damaged file has no end
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise error(
            f"is damaged or cannot be read: {words}", subject=str(path), remedy=remedy
        ) from cause
    return text


def _read(path: Path, few: int | None) -> npt.NDArray[np.float32]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        level = levels[0]
        if few is not None:
            level = next((one for one in levels if one.size <= few), levels[-1])
        if level.ndim != 2 or level.dtype != np.float32:
            raise ValueError("it is not a heatmap of float32")
        most = max(1 << 20, _MOST_EXPANSION * path.stat().st_size)
        if not 0 < level.size <= _MOST_PX or level.nbytes > most:
            raise ValueError(f"it claims {' x '.join(map(str, level.shape))} pixels")
        scores: npt.NDArray[np.float32] = np.ascontiguousarray(level.asarray(), np.float32)
    if scores.shape != level.shape or np.isinf(scores).any():
        raise ValueError("its scores are not what it claims")
    return scores


_MOST_HEADER = 10_000
_MOST_PLACE = 1e30
_WINDOW_COLUMNS = ("x", "y", "width", "height", "score")


def read_windows(
    path: Path, slide: str, error: type[WsiadError], *, remedy: str
) -> npt.NDArray[Any]:
    """Open the scored windows of a slide, memory-mapped, and check their numbers.

    Parameters
    ----------
    path : Path
        ``windows.npy`` of a slide.
    slide : str
        Name of the slide, for errors.
    error : type
        Class of the error to raise.
    remedy : str
        Remedy that the error states.

    Returns
    -------
    structured ndarray, (N,)
        At least the fields ``x``, ``y``, ``width``, ``height`` (level-0 pixels) and ``score``.

    Raises
    ------
    WsiadError
        An `error`: the file is missing or damaged, or a number of a window is not valid.
    """
    windows = read_window_table(path, _WINDOW_COLUMNS, error, remedy=remedy)
    for name in _WINDOW_COLUMNS:
        column = windows[name]
        if column.dtype.kind not in "iuf":
            raise error(f"{name} of its windows is not a number", subject=str(path), remedy=remedy)
        # A slide is smaller than 2**31 px; what is farther off is damage, and breaks sums.
        sound = np.isfinite(column) & (np.abs(column) < _MOST_PLACE)
        if name in ("width", "height"):
            sound &= column > 0
        wrong = np.flatnonzero(~sound)
        if len(wrong):
            raise error(
                f"window {wrong[0]} of {path} has no finite {name}"
                if not np.isfinite(column[wrong[0]])
                else f"window {wrong[0]} of {path} has the {name} {column[wrong[0]]:g}",
                subject=slide,
                remedy=remedy,
            )
    return windows


def read_window_table(
    path: Path, fields: Sequence[str], error: type[WsiadError], *, remedy: str | None = None
) -> npt.NDArray[Any]:
    """Open a ``.npy`` file that contains a table of numbers, memory-mapped.

    The claims of its header are checked against the file first.

    Parameters
    ----------
    path : Path
        File of the table.
    fields : sequence of str
        Columns that the table must have.
    error : type
        Class of the error to raise.
    remedy : str, optional
        Remedy that the error states.

    Returns
    -------
    structured ndarray, (N,)
        Rows of the table, read-only.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, truncated, or not such a table.
    """
    try:
        return _read_rows(path, fields)
    except Exception as cause:  # what numpy makes of a damaged header has no end
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise error(
            f"is damaged or cannot be read: {words}", subject=str(path), remedy=remedy
        ) from cause


def _read_rows(path: Path, fields: Sequence[str]) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = headers[version](file, max_header_size=_MOST_HEADER)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    kinds = [dtype[name] for name in dtype.names or ()]
    if len(shape) != 1 or not set(fields) <= set(dtype.names or ()):
        raise ValueError(f"it is not a table of {', '.join(fields)}")
    if any(kind.kind not in "biufU" or kind.shape for kind in kinds):
        raise ValueError("its columns are not numbers")
    if start + shape[0] * dtype.itemsize != size:
        raise ValueError(f"it has {size} bytes, but its header states {shape[0]} rows")
    if not shape[0]:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", start, shape)
