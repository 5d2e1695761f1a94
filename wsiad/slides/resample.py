"""Area resampling with fractional edges: pure arithmetic."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy import sparse

_STRIP_VALUES = 1 << 20


def area_weights(first: float, step: float, count: int, length: int) -> sparse.csr_array:
    """Weights that average source pixels over ``count`` equal intervals.

    Output pixel ``i`` covers ``[first + i·step, first + (i + 1)·step)`` in source pixels
    and is the mean of the source weighted by the length of overlap.

    Parameters
    ----------
    first, step : float
        In source pixels; all intervals lie within ``[0, length]``.
    count, length : int
        Number of output and of source pixels.

    Returns
    -------
    scipy.sparse.csr_array of float32, (count, length)
        Rows sum to one.
    """
    starts = first + step * np.arange(count, dtype=np.float64)
    ends = starts + step
    taps = int(np.ceil(step)) + 1
    # A rounding error of the edges must not reach for a pixel beyond the source.
    index = np.floor(starts + 1e-9).astype(np.int64)[:, None] + np.arange(taps)
    overlap = np.minimum(ends[:, None], index + 1) - np.maximum(starts[:, None], index)
    overlap = np.where(index < length, overlap.clip(0), 0)
    overlap /= overlap.sum(axis=1, keepdims=True)
    rows = np.arange(count + 1) * taps
    matrix = sparse.csr_array(
        (
            overlap.astype(np.float32).ravel(),
            np.minimum(index, length - 1).astype(np.int32).ravel(),
            rows.astype(np.int32),
        ),
        shape=(count, length),
    )
    matrix.eliminate_zeros()
    return matrix


def area_resample(
    image: npt.NDArray[np.uint8], rows: sparse.csr_array, columns: sparse.csr_array
) -> npt.NDArray[np.float32]:
    """Apply separable area weights.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, C)
    rows : sparse array, (h, H)
    columns : sparse array, (w, W)

    Returns
    -------
    ndarray of float32, (h, w, C)
    """
    height, width, channels = image.shape
    out = np.empty((rows.shape[0], columns.shape[0], channels), np.float32)
    # In strips that stay in a core's own cache: weighting is cheap, moving pixels is not.
    count = max(1, rows.shape[0] * _STRIP_VALUES // max(1, height * width * channels))
    for first in range(0, rows.shape[0], count):
        strip = rows[first : first + count]
        begin, end = (
            (int(strip.indices.min()), int(strip.indices.max()) + 1) if strip.nnz else (0, 0)
        )
        source = image[begin:end].reshape(end - begin, width * channels).astype(np.float32)
        tall = (strip[:, begin:end] @ source).reshape(-1, width, channels)
        across = _transposed(tall).reshape(width, -1)
        wide = (columns @ across).reshape(columns.shape[0], -1, channels)
        out[first : first + count] = _transposed(wide)
    return out


def _transposed(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Swap height and width, by tiles of memory as NumPy does not."""
    return np.asarray(cv2.transpose(image)).reshape(image.shape[1], image.shape[0], -1)
