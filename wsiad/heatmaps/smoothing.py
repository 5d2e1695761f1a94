"""Local means of a map: averages around each pixel, over assessed pixels alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Microns

FloatArray = npt.NDArray[np.float64]

_FINE_SIGMA_PX = 8


def smoothed(
    values: npt.NDArray[np.floating], *, pixel_um: tuple[float, float], radius: Microns
) -> tuple[FloatArray, FloatArray]:
    """Average values around each pixel, with Gaussian weights.

    Parameters
    ----------
    values : ndarray of float, (H, W)
        NaN marks pixels that were not assessed: they count neither as values nor as area.
    pixel_um : tuple of float
        Width and height of a pixel, µm.
    radius : Microns
        Radius of the disc with as much area as the weights amount to: two standard deviations
        of the Gaussian. 0 leaves the values as they are.

    Returns
    -------
    means : ndarray of float64, (H, W)
        NaN where `values` is: nothing is said of pixels that were not assessed.
    counts : ndarray of float64, (H, W)
        Effective number of pixels in each mean, ``(sum of weights)² / sum of weights²``; NaN
        where `values` is.

    Notes
    -----
    Weights end at four standard deviations. Where one standard deviation is many pixels long,
    sums are taken over blocks of pixels first and interpolated, which changes a mean by less
    than 1 % of the range of the values.
    """
    seen = np.isfinite(values)
    sigma = (radius / 2 / pixel_um[1], radius / 2 / pixel_um[0])
    if float(radius) == 0:
        return np.where(seen, values, np.nan).astype(np.float64), np.where(seen, 1.0, np.nan)
    # A block that is longer than the map would need memory for what is beyond the border.
    factors = tuple(
        max(1, min(int(length / _FINE_SIGMA_PX), side))
        for length, side in zip(sigma, values.shape, strict=True)
    )
    area = _blocks(seen.astype(np.float64), factors)
    sums = _blocks(np.where(seen, values, 0.0).astype(np.float64), factors)
    kernels = [_gaussian(length / factor) for length, factor in zip(sigma, factors, strict=True)]
    size = values.shape
    total = _expand(_separable(area, kernels), factors, size)
    squares = _expand(_separable(area, [kernel**2 for kernel in kernels]), factors, size)
    with np.errstate(invalid="ignore", divide="ignore"):  # where no tissue is near
        means = _expand(_separable(sums, kernels), factors, size) / total
        counts = math.prod(factors) * total**2 / squares
    return np.where(seen, means, np.nan), np.where(seen, counts, np.nan)


def _gaussian(sigma: float) -> FloatArray:
    """Weights of a Gaussian at whole distances, (2 n + 1,), highest 1."""
    reach = max(1, math.ceil(4 * sigma))
    steps = np.arange(-reach, reach + 1, dtype=np.float64)
    return np.exp(-((steps / sigma) ** 2) / 2)


def _separable(values: FloatArray, kernels: Sequence[FloatArray]) -> FloatArray:
    """Weighted sums around each pixel; there is nothing beyond the border."""
    from scipy import ndimage

    for axis, kernel in enumerate(kernels):
        values = ndimage.correlate1d(values, kernel, axis=axis, mode="constant")
    return values


def _blocks(values: FloatArray, factors: tuple[int, ...]) -> FloatArray:
    """Mean of blocks of pixels; what is beyond the border counts as 0."""
    if max(factors) == 1:
        return values
    padded = np.pad(
        values, [(0, -size % factor) for size, factor in zip(values.shape, factors, strict=True)]
    )
    rows, columns = (size // factor for size, factor in zip(padded.shape, factors, strict=True))
    return padded.reshape(rows, factors[0], columns, factors[1]).mean(axis=(1, 3))


def _expand(values: FloatArray, factors: tuple[int, ...], size: tuple[int, ...]) -> FloatArray:
    """Interpolate the values of blocks, linearly, at the centres of their pixels."""
    for axis, (factor, length) in enumerate(zip(factors, size, strict=True)):
        if factor == 1:
            continue
        at = (np.arange(length) + 0.5) / factor - 0.5
        low = np.clip(np.floor(at).astype(int), 0, max(0, values.shape[axis] - 2))
        high = np.minimum(low + 1, values.shape[axis] - 1)
        share = np.clip(at - low, 0, 1)
        shape = [-1 if number == axis else 1 for number in range(2)]
        share = share.reshape(shape)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values
