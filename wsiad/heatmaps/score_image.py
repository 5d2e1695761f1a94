"""The scores of ``heatmap.ome.tif``, read back by whom they are judged or shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import WsiadError

_MOST_PX = 1 << 28
_MOST_EXPANSION = 1100
"""Bytes that deflate can make of one at the most are 1032."""


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
