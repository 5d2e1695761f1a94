"""Area resampling with fractional edges: pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled

_1, _2, _3 = np.uintp(1), np.uintp(2), np.uintp(3)
_TOUCHED = 1e-4
"""Weights below it are rounding errors of an interval's edge."""


class AreaWeights(NamedTuple):
    """Which source pixels each output pixel averages along an axis, and how much of each.

    Parameters
    ----------
    first : ndarray of int64, (count,)
        The first of them.
    weights : ndarray of float32, (count, taps)
        Of that one and those that follow; each row sums to one. A weight of 0 may belong
        to a pixel beyond the source.
    """

    first: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


def area_weights(first: float, step: float, count: int, length: int) -> AreaWeights:
    """Weights that average source pixels over ``count`` equal intervals.

    Output pixel ``i`` covers ``[first + i·step, first + (i + 1)·step)`` in source pixels
    and is the mean of the source weighted by the length of overlap.

    Parameters
    ----------
    first, step : float
        In source pixels; all intervals lie within ``[0, length]``.
    count, length : int
        Number of output and of source pixels.
    """
    starts = first + step * np.arange(count, dtype=np.float64)
    ends = starts + step
    taps = int(np.ceil(step)) + 1
    # A rounding error of the edges must not reach for a pixel beyond the source.
    index = np.floor(starts + 1e-9).astype(np.int64)[:, None] + np.arange(taps)
    overlap = np.minimum(ends[:, None], index + 1) - np.maximum(starts[:, None], index)
    overlap = np.where(index < length, overlap.clip(0), 0)
    overlap /= overlap.sum(axis=1, keepdims=True)
    return AreaWeights(index[:, 0].copy(), overlap.astype(np.float32))


def area_mean(
    image: npt.NDArray[np.uint8], rows: AreaWeights, columns: AreaWeights
) -> npt.NDArray[np.uint8]:
    """Average along both axes, in float32, and round to the nearest integer.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, 3)
    rows, columns : AreaWeights
        Of h and w output pixels.

    Returns
    -------
    ndarray of uint8, (h, w, 3)
    """
    out = np.empty((len(rows.first), len(columns.first), 3), np.uint8)
    flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    _mean(flat, *rows, *columns, out)
    return out


def all_valid(
    valid: npt.NDArray[np.bool_], rows: AreaWeights, columns: AreaWeights
) -> npt.NDArray[np.bool_]:
    """Tell which output pixels average valid pixels only.

    Parameters
    ----------
    valid : ndarray of bool, (H, W)
    rows, columns : AreaWeights
        Of h and w output pixels.

    Returns
    -------
    ndarray of bool, (h, w)
    """
    # Each column's and each row's count of what is missing, as differences of sums.
    missing = np.asarray(cv2.integral((~valid).view(np.uint8), sdepth=cv2.CV_32S))
    (top, bottom), (left, right) = _spans(rows), _spans(columns)
    found = missing[bottom][:, right] - missing[top][:, right]
    found -= missing[bottom][:, left] - missing[top][:, left]
    nothing: npt.NDArray[np.bool_] = found == 0
    return nothing


def _spans(axis: AreaWeights) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and one past the last pixel that each output pixel touches."""
    touched = axis.weights > _TOUCHED
    taps = touched.shape[1]
    begin = axis.first + touched.argmax(axis=1)
    return begin, axis.first + taps - touched[:, ::-1].argmax(axis=1)


@compiled
def _mean(
    image: npt.NDArray[np.uint8],
    first_row: npt.NDArray[np.int64],
    row_weights: npt.NDArray[np.float32],
    first_column: npt.NDArray[np.int64],
    column_weights: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint8],
) -> None:
    """Average (H, 3 W) row by row: one row's sums stay in a core's own cache."""
    height, width, _ = out.shape
    values, taps = image.shape[1], column_weights.shape[1]
    # What lies beyond the image has no weight, but is multiplied by it.
    sums = np.zeros(values + 3 * taps, np.float32)
    means = np.empty(3 * width, np.float32)
    for y in range(height):
        source, weight = image[first_row[y]], row_weights[y, 0]
        for value in range(values):
            sums[value] = weight * np.float32(source[value])
        for tap in range(1, row_weights.shape[1]):
            weight = row_weights[y, tap]
            if weight > 0:
                source = image[first_row[y] + tap]
                for value in range(values):
                    sums[value] += weight * np.float32(source[value])
        for x in range(width):
            red = green = blue = np.float32(0)
            # Unsigned: a signed index could count from the end, which costs a test.
            i: np.uintp = np.uintp(first_column[x]) * _3
            for tap in range(taps):
                weight = column_weights[x, tap]
                red += weight * sums[i]
                green += weight * sums[i + _1]
                blue += weight * sums[i + _2]
                i += _3
            means[3 * x], means[3 * x + 1], means[3 * x + 2] = red, green, blue
        row = out[y].reshape(-1)
        for value in range(3 * width):
            row[value] = np.uint8(np.rint(means[value]))
