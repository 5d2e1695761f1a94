"""The heatmap: an array of anomaly scores with one affine map to level 0.

The scores of ``heatmap.ome.tif``, read back by whom they are judged or shown.

Tables of windows as ``.npy`` files: those that were scored, and those that were left out.
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
    """Anomaly scores over a slide.

    Parameters
    ----------
    slide : str
        Name of the slide.
    scores : ndarray of float32, (H, W)
        Mean anomaly score of the windows over each pixel; NaN where none was scored.
    placement : PixelMap
        From heatmap pixel edges to level-0 pixels.
    slide_size : Size
        Of level 0, pixels.
    bounds : Box
        Non-empty part of the slide in level-0 pixels; the whole slide where the
        format states none. QuPath's coordinates start at its corner.
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


@dataclass(frozen=True, slots=True)
class WindowScores:
    """The scored windows of a slide, as they were read.

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


_MOST_PX = 1 << 28
_MOST_EXPANSION = 1100
"""Bytes that deflate can make of one at the most are 1032."""

_MOST_DESCRIPTION = 1 << 20


def read_scores(
    path: Path, error: type[WsiadError], *, remedy: str, few: int | None = None
) -> npt.NDArray[np.float32]:
    """Read the scores of a heatmap.

    Parameters
    ----------
    path : Path
    error : type
        Of the error where they cannot be read.
    remedy : str
    few : int, optional
        Take the finest level of at most so many pixels, or the coarsest; by default the
        full resolution is read.

    Returns
    -------
    ndarray of float32, (H, W)
        NaN where nothing was scored.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, no such image, too large, or damaged.
    """
    try:
        return _read(path, few)
    except Exception as cause:  # what decoders make of a damaged file has no end
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise error(
            f"is damaged or cannot be read: {words}", subject=str(path), remedy=remedy
        ) from cause


def read_description(path: Path, error: type[WsiadError], *, remedy: str) -> str:
    """Read what the image of a heatmap says of itself, OME-XML; empty where it says nothing.

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
            raise ValueError("it is no heatmap of float32")
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
    slide : str
        Name of the slide, for errors.
    error : type
        Class of the error where they cannot be read.
    remedy : str

    Returns
    -------
    structured ndarray, (N,)
        At least the fields ``x``, ``y``, ``width``, ``height`` (level-0 pixels) and ``score``.

    Raises
    ------
    WsiadError
        An `error`: the file is missing or damaged, or a number of a window makes no sense.
    """
    windows = read_window_table(path, _WINDOW_COLUMNS, error, remedy=remedy)
    for name in _WINDOW_COLUMNS:
        column = windows[name]
        if column.dtype.kind not in "iuf":
            raise error(f"{name} of its windows is no number", subject=str(path), remedy=remedy)
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
    """Open a ``.npy`` file that holds a table of numbers, memory-mapped.

    Nothing of what its header claims is believed before it fits the file.

    Parameters
    ----------
    path : Path
    fields : sequence of str
        Columns that it has to have.
    error : type
        Of the error where it cannot be read.
    remedy : str, optional

    Returns
    -------
    structured ndarray, (N,)
        Read-only.

    Raises
    ------
    WsiadError
        An `error`: there is no such file, or it is not such a table, or cut short.
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
        raise ValueError(f"it is no table of {', '.join(fields)}")
    if any(kind.kind not in "biufU" or kind.shape for kind in kinds):
        raise ValueError("its columns are not numbers")
    if start + shape[0] * dtype.itemsize != size:
        raise ValueError(f"it has {size} bytes, and its header says {shape[0]} rows")
    if not shape[0]:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", start, shape)
