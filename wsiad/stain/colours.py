"""Colours of a slide: counted block by block, as optical density and as CIE L*a*b*.

Optical density decides which colours can show how a slide is stained. sRGB is converted to
L*a*b* (illuminant D65, 2° observer) and back, on arrays of any shape. Sources: IEC 61966-2-1
(sRGB); CIE 15:2004, section 8.2.1 (L*a*b*).

The conversions are written out because a colour table needs 16.7 million of them each way:
scikit-image, with which the tests compare, takes three times as long, and OpenCV's are off by
up to 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled
from wsiad.core.errors import StainError
from wsiad.stain.profile import WHITE

Real = TypeVar("Real", np.float32, np.float64)

_XYZ_OF_RGB: Final = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE_XYZ: Final = np.array([0.95047, 1.0, 1.08883])
_RGB_OF_XYZ: Final = np.linalg.inv(_XYZ_OF_RGB)
# The cube root is continued by a straight line below this.
_LINEAR_BELOW: Final = 6 / 29
_SLOPE: Final = 1 / (3 * _LINEAR_BELOW**2)


def to_lab(rgb: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Convert sRGB, 0 to 255, (..., 3), to L*a*b*."""
    share = rgb / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    xyz = linear @ (_XYZ_OF_RGB / _WHITE_XYZ[:, None]).T.astype(rgb.dtype)
    root = np.where(xyz > _LINEAR_BELOW**3, np.cbrt(xyz), xyz * _SLOPE + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Convert L*a*b*, (..., 3), to sRGB; colours that sRGB cannot show are clipped to 0 and 255."""
    y = (lab[..., 0] + 16) / 116
    root = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(root > _LINEAR_BELOW, root * root * root, (root - 4 / 29) / _SLOPE)
    linear = xyz @ (_RGB_OF_XYZ * _WHITE_XYZ).T.astype(lab.dtype)
    np.clip(linear, 0, 1, out=linear)
    share = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, linear * 12.92)
    return np.clip(share * 255, 0, 255)


Colours = npt.NDArray[np.uint8] | npt.NDArray[np.float64]
"""RGB colours on the scale 0 to 255, (..., 3)."""

Densities = npt.NDArray[np.float64]
"""Optical densities (natural logarithm) of R, G and B, (n, 3)."""

Weights = npt.NDArray[np.float64]
"""Number of pixels of each colour, (n,)."""

MAX_LIGHTNESS: Final = 80.0
"""CIE L* from which a colour is glass, or too pale to distinguish its stains."""
MIN_CHANNEL: Final = 24.0
"""Darkest value of a channel that is used. Darker ones were clipped by the scanner or by JPEG.
Their density does not measure stain, and being large it would attract a stain vector."""
MIN_GREY_ANGLE_DEG: Final = 6.0
"""Angle to the grey axis below which a colour is a scan border, black ink or dust."""
BLUE_INK: Final = (0.8, 0.4)
"""Ratios of red and of blue to green density: a colour above the first and below the second is
blue ink."""
RED_INK: Final = (1.2, 0.2, 0.6)
"""Green density, and ratios of red and of blue to green density: a colour above the first, below
the second and above the third is red ink (or blood)."""

GLASS_MIN_CHANNEL: Final = 200.0
"""Smallest value of the darkest channel of glass."""
GLASS_MAX_CHROMA: Final = 12.0
"""Largest difference between the channels of glass; pale tissue has a larger one."""


_GREY_AXIS: Final = np.full(3, 1 / np.sqrt(3))


def optical_density(rgb: Colours, white: tuple[float, float, float] = WHITE) -> Densities:
    """Return the optical density −ln(I / I₀), never negative.

    Black is taken as 1 of 255, because 0 has no logarithm. Colours brighter than the glass
    absorb nothing.

    Parameters
    ----------
    rgb : ndarray, (..., 3)
        Colours, 0 to 255.
    white : tuple of float
        I₀, the colour of empty glass.

    Returns
    -------
    ndarray of float64, (..., 3)
    """
    return np.maximum(np.log(white) - np.log(np.maximum(rgb, 1.0)), 0.0)


def is_stained(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which colours are tissue stained with haematoxylin and eosin.

    Both stains absorb green most. A colour that absorbs more red (green and most blue ink) or
    more blue (yellow ink, brown pigment) is therefore neither.

    Parameters
    ----------
    rgb : ndarray of float64, (n, 3)
        Colours relative to white glass, 0 to 255.

    Returns
    -------
    ndarray of bool, (n,)
    """
    density = optical_density(rgb)
    red, green, blue = np.moveaxis(density, -1, 0)
    foreign = (red > green) | (blue > green)
    foreign |= (red > BLUE_INK[0] * green) & (blue < BLUE_INK[1] * green)
    foreign |= (green > RED_INK[0]) & (red < RED_INK[1] * green) & (blue > RED_INK[2] * green)
    length = np.linalg.norm(density, axis=-1)
    grey = density @ _GREY_AXIS > length * np.cos(np.radians(MIN_GREY_ANGLE_DEG))
    clipped = np.min(rgb, axis=-1) < MIN_CHANNEL
    pale = to_lab(rgb)[..., 0] >= MAX_LIGHTNESS
    return ~(grey | foreign | clipped | pale)


def is_glass(rgb: Colours) -> npt.NDArray[np.bool_]:
    """Tell which colours are empty glass: bright and nearly grey, (n,).

    Pure white is not counted as glass: readers fill areas that were not scanned with it.
    """
    darkest, brightest = np.min(rgb, axis=-1), np.max(rgb, axis=-1)
    bright_grey = (darkest >= GLASS_MIN_CHANNEL) & (brightest - darkest <= GLASS_MAX_CHROMA)
    return bright_grey & (darkest < 255)


def weighted_quantile(
    values: npt.NDArray[np.float64], weights: Weights, share: float
) -> npt.NDArray[np.float64]:
    """Return the smallest value of each column that ``share`` of the weight does not exceed.

    Parameters
    ----------
    values : ndarray of float64, (n, k)
        Columns of values.
    weights : ndarray of float64, (n,)
        Weight of each row.
    share : float
        Share of the weight, 0 to 1.

    Returns
    -------
    ndarray of float64, (k,)
    """
    order = np.argsort(values, axis=0, kind="stable")
    below = np.cumsum(weights[order], axis=0)
    rank = [np.searchsorted(column, share * column[-1]) for column in below.T]
    rows = np.minimum(rank, len(values) - 1)
    return np.take_along_axis(values, order, axis=0)[rows, np.arange(values.shape[1])]


_BITS: Final = 6
_BINS: Final = 1 << 3 * _BITS


@dataclass(frozen=True, slots=True)
class ColourSample:
    """Colours and the number of pixels of each.

    Parameters
    ----------
    rgb : ndarray of float64, (n, 3)
        Colours, 0 to 255.
    weights : ndarray of float64, (n,)
        Number of pixels of each colour.
    """

    rgb: npt.NDArray[np.float64]
    weights: Weights

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.weights.sum())

    def where(self, chosen: npt.NDArray[np.bool_]) -> ColourSample:
        """Return only the chosen colours."""
        return ColourSample(self.rgb[chosen], self.weights[chosen])


class ColourHistogram:
    """Counts of the colours of a slide, 6 bits per channel, with the mean colour of each bin.

    Counts and sums are integers, so neither the order nor the size of the blocks in which a
    slide is read changes the result. A histogram takes 16 MB.

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
            True where pixels can be tissue; by default everywhere. The other pixels serve only
            to find the colour of the glass.

        Raises
        ------
        StainError
            The array does not hold RGB pixels, or the mask has another shape or type.
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
        """Number of pixels counted, inside and outside of the masks."""
        return int(self._counts.sum())

    def tissue(self) -> ColourSample:
        """Return the colours inside the masks."""
        return self._sample(self._counts[_BINS:], self._sums[:, _BINS:])

    def all(self) -> ColourSample:
        """Return all colours, inside and outside of the masks."""
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
    """Count pixels; a single element of ``within`` holds for all of them."""
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
