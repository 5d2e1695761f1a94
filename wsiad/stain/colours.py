"""The colours of a slide, counted block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled
from wsiad.core.errors import StainError
from wsiad.stain.density import Weights

_BITS: Final = 6
_BINS: Final = 1 << 3 * _BITS


@dataclass(frozen=True, slots=True)
class ColourSample:
    """Colours and how many pixels have each.

    Parameters
    ----------
    rgb : ndarray of float64, (n, 3)
        Colours, 0 to 255.
    weights : ndarray of float64, (n,)
        Pixels of each colour.
    """

    rgb: npt.NDArray[np.float64]
    weights: Weights

    @property
    def pixels(self) -> int:
        """How many pixels there are."""
        return int(self.weights.sum())

    def where(self, chosen: npt.NDArray[np.bool_]) -> ColourSample:
        """Return the chosen colours only."""
        return ColourSample(self.rgb[chosen], self.weights[chosen])


class ColourHistogram:
    """Counts of the colours of a slide, 6 bits a channel, with each bin's mean colour.

    Counts and sums are integers, so that neither the order nor the size of the blocks
    that a slide is read in changes anything. A histogram takes 16 MB.

    Examples
    --------
    >>> histogram = ColourHistogram()
    >>> histogram.add(np.full((256, 256, 3), 200, np.uint8))
    >>> histogram.pixels
    65536
    """

    def __init__(self) -> None:
        # Row 0 of the first axis: pixels outside of the mask, row 1: within.
        self._counts = np.zeros(2 * _BINS, np.int64)
        self._sums = np.zeros((3, 2 * _BINS), np.int64)

    def add(self, rgb: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Count the pixels of a block.

        Parameters
        ----------
        rgb : ndarray of uint8, (..., 3)
            Pixels.
        mask : ndarray of bool, (...), optional
            Which are tissue; by default all may be. The others serve only to find the
            colour of the glass.

        Raises
        ------
        StainError
            These are no RGB pixels, or the mask does not fit them.
        """
        if rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
            raise StainError(f"expected uint8 (..., 3) pixels, got {rgb.dtype} {rgb.shape}")
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != rgb.shape[:-1]):
            raise StainError(
                f"expected a bool mask of shape {rgb.shape[:-1]}, got {mask.dtype} {mask.shape}"
            )
        within = np.ones(1, np.bool_) if mask is None else mask.reshape(-1)
        _count(np.ascontiguousarray(rgb).reshape(-1), within, self._counts, self._sums)

    @property
    def pixels(self) -> int:
        """How many pixels were counted, within and outside of the masks."""
        return int(self._counts.sum())

    def tissue(self) -> ColourSample:
        """Return the colours within the masks."""
        return self._sample(self._counts[_BINS:], self._sums[:, _BINS:])

    def all(self) -> ColourSample:
        """Return all colours, within and outside of the masks."""
        return self._sample(
            self._counts.reshape(2, -1).sum(axis=0), self._sums.reshape(3, 2, -1).sum(axis=1)
        )

    @staticmethod
    def _sample(counts: npt.NDArray[np.int64], sums: npt.NDArray[np.int64]) -> ColourSample:
        filled = np.flatnonzero(counts)
        weights = counts[filled].astype(np.float64)
        return ColourSample((sums[:, filled] / weights).T, weights)


@compiled
def _count(
    values: npt.NDArray[np.uint8],
    within: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
    sums: npt.NDArray[np.int64],
) -> None:
    """Count pixels; a single element of ``within`` is that of all."""
    drop, alike = 8 - _BITS, len(within) == 1
    for pixel in range(len(values) // 3):
        red, green = np.int64(values[3 * pixel]), np.int64(values[3 * pixel + 1])
        blue = np.int64(values[3 * pixel + 2])
        found = ((red >> drop) << 2 * _BITS) + ((green >> drop) << _BITS) + (blue >> drop)
        if within[0 if alike else pixel]:
            found += _BINS
        counts[found] += 1
        sums[0, found] += red
        sums[1, found] += green
        sums[2, found] += blue
