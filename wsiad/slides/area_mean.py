"""Averages over areas with fractional edges: pure arithmetic, in float32."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled, mean_of_3, mean_of_4, mean_of_5

_1, _2, _3, _4, _5 = (np.uintp(number) for number in range(1, 6))
_TOUCHED = 1e-4
"""Weights below this value are rounding errors of an interval's edge."""


class AreaWeights(NamedTuple):
    """The source pixels that each output pixel averages along an axis, with their weights.

    Parameters
    ----------
    first : ndarray of int64, (count,)
        First source pixel of each output pixel.
    weights : ndarray of float32, (count, taps)
        Weights of that pixel and the following ones; each row sums to one. A weight of 0 can
        belong to a pixel beyond the source.
    """

    first: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def part(self, begin: int, end: int) -> AreaWeights:
        """Return the weights of some of the output pixels."""
        return AreaWeights(self.first[begin:end], self.weights[begin:end])


def area_weights(first: float, step: float, count: int, length: int) -> AreaWeights:
    """Return weights that average source pixels over ``count`` equal intervals.

    Output pixel ``i`` covers ``[first + i·step, first + (i + 1)·step)`` in source pixels
    and is the mean of the source weighted by the length of overlap.

    Parameters
    ----------
    first, step : float
        Start and length of the intervals in source pixels; all are within ``[0, length]``.
    count, length : int
        Number of output and of source pixels.
    """
    index = np.empty(count, np.int64)
    weights = np.empty((count, int(np.ceil(step)) + 1), np.float32)
    _set_weights(float(first), float(step), length, index, weights)
    return AreaWeights(index, weights)


@compiled
def _set_weights(
    first: float,
    step: float,
    length: int,
    index: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32],
) -> None:
    """Set the first source pixel and the weights of each output pixel, computed in float64."""
    count, taps = weights.shape
    overlap = np.empty(taps, np.float64)
    for i in range(count):
        start = first + step * i
        end = start + step
        # A rounding error of the edges must not reach for a pixel beyond the source.
        at = int(np.floor(start + 1e-9))
        total = 0.0
        for tap in range(taps):
            pixel = at + tap
            part = 0.0
            if pixel < length:
                part = max(min(end, pixel + 1.0) - max(start, float(pixel)), 0.0)
            overlap[tap] = part
            total += part
        for tap in range(taps):
            weights[i, tap] = overlap[tap] / total
        index[i] = at


def area_mean(
    image: npt.NDArray[np.uint8],
    rows: AreaWeights,
    columns: AreaWeights,
    *,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Average along both axes, in float32, and round to the nearest integer.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, 3)
    rows, columns : AreaWeights
        Weights of h and w output pixels.
    out : ndarray of uint8, (h, w, 3), optional
        C-contiguous array to fill.

    Returns
    -------
    ndarray of uint8, (h, w, 3)
    """
    if out is None:
        out = np.empty((len(rows.first), len(columns.first), 3), np.uint8)
    flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    if out.size:
        _mean(flat, *rows, *columns, out)
    return out


def all_valid(
    valid: npt.NDArray[np.bool_], rows: AreaWeights, columns: AreaWeights
) -> npt.NDArray[np.bool_]:
    """Tell which output pixels average only valid pixels.

    Parameters
    ----------
    valid : ndarray of bool, (H, W)
    rows, columns : AreaWeights
        Weights of h and w output pixels.

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
    """Return the first and one past the last pixel that each output pixel touches."""
    touched = axis.weights > _TOUCHED
    taps = touched.shape[1]
    begin = axis.first + touched.argmax(axis=1)
    return begin, axis.first + taps - touched[:, ::-1].argmax(axis=1)


@compiled
def _add_rows(
    image: npt.NDArray[np.uint8],
    first: int,
    weights: npt.NDArray[np.float32],
    left: int,
    right: int,
    sums: npt.NDArray[np.float32],
) -> None:
    """Set sums to those of weighted rows, two at a time; rows without a weight are not read."""
    touched = len(weights)
    while weights[touched - 1] == 0:
        touched -= 1
    source, weight = image[first][left:right], weights[0]
    if touched == 1:
        for value in range(len(source)):
            sums[value] = weight * np.float32(source[value])
    else:
        second, other = image[first + 1][left:right], weights[1]
        for value in range(len(source)):
            part = weight * np.float32(source[value])
            sums[value] = part + other * np.float32(second[value])
    for tap in range(2, touched - 1, 2):
        source, weight = image[first + tap][left:right], weights[tap]
        second, other = image[first + tap + 1][left:right], weights[tap + 1]
        for value in range(len(source)):
            part = sums[value] + weight * np.float32(source[value])
            sums[value] = part + other * np.float32(second[value])
    if touched > 2 and touched % 2:
        source, weight = image[first + touched - 1][left:right], weights[touched - 1]
        for value in range(len(source)):
            sums[value] += weight * np.float32(source[value])


@compiled
def _mean(
    image: npt.NDArray[np.uint8],
    first_row: npt.NDArray[np.int64],
    row_weights: npt.NDArray[np.float32],
    first_column: npt.NDArray[np.int64],
    column_weights: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint8],
) -> None:
    """Average (H, 3 W) row by row, so that the sums of a row stay in a core's own cache.

    Steps of up to 4 pixels, which most slides need, average 3 to 5 along a row: all channels of a
    pixel at once. The terms of a sum are added in the same order either way.
    """
    height, width, _ = out.shape
    taps = column_weights.shape[1]
    left = 3 * first_column[0]
    right = min(3 * (first_column[-1] + taps), image.shape[1])
    # What lies beyond the image has no weight, but is multiplied by it.
    sums = np.zeros(3 * (first_column[-1] + taps) - left + 1, np.float32)
    means = np.empty(3 * width + 1, np.float32)
    flat = column_weights.reshape(-1)
    for y in range(height):
        _add_rows(image, first_row[y], row_weights[y], left, right, sums)
        # Unsigned: a signed index could count from the end, which costs a test.
        if taps == 3:
            for x in range(width):
                at = np.uintp(x) * _3
                mean_of_3(sums, np.uintp(3 * first_column[x] - left), flat, at, means, at)
        elif taps == 4:
            for x in range(width):
                at = np.uintp(x) * _3
                mean_of_4(
                    sums, np.uintp(3 * first_column[x] - left), flat, np.uintp(x) * _4, means, at
                )
        elif taps == 5:
            for x in range(width):
                at = np.uintp(x) * _3
                mean_of_5(
                    sums, np.uintp(3 * first_column[x] - left), flat, np.uintp(x) * _5, means, at
                )
        else:
            for x in range(width):
                red = green = blue = np.float32(0)
                i: np.uintp = np.uintp(3 * first_column[x] - left)
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
