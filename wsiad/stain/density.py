"""Optical density, and which colours may say how a slide is stained."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from wsiad.stain.lab import to_lab

Colours = npt.NDArray[np.uint8] | npt.NDArray[np.float64]
"""RGB colours on the scale 0 to 255, (..., 3)."""

Densities = npt.NDArray[np.float64]
"""Optical densities (natural logarithm) of R, G and B, (n, 3)."""

Weights = npt.NDArray[np.float64]
"""How many pixels have each colour, (n,)."""

WHITE: Final = (255.0, 255.0, 255.0)
"""The colour of empty glass where a slide does not show any."""

MAX_LIGHTNESS: Final = 80.0
"""CIE L* from which on a colour is glass, or too pale to tell its stains."""
MIN_CHANNEL: Final = 24.0
"""A channel that is darker was clipped by the scanner or by JPEG: its density is no measure
of stain, and being large it would draw a stain vector to itself."""
MIN_GREY_ANGLE_DEG: Final = 6.0
"""Angle to the grey axis below which a colour is a scan border, black ink or dust."""
BLUE_INK: Final = (0.8, 0.4)
"""Red and blue density over green density, more and less than which a colour is blue ink."""
RED_INK: Final = (1.2, 0.2, 0.6)
"""Green density, and red and blue density over it, more, less and more than which a colour
is red ink (or blood)."""

GLASS_MIN_CHANNEL: Final = 200.0
"""Glass is at least as bright in every channel,"""
GLASS_MAX_CHROMA: Final = 12.0
"""and its channels differ by no more; pale tissue's do."""

_GREY_AXIS: Final = np.full(3, 1 / np.sqrt(3))


def optical_density(rgb: Colours, white: tuple[float, float, float] = WHITE) -> Densities:
    """Return the optical density −ln(I / I₀), never negative.

    Black is taken as 1 of 255 for want of a logarithm of 0; what is brighter than the
    glass absorbs nothing.

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

    Both stains absorb green most, so a colour that absorbs more red (green and most
    blue ink) or more blue (yellow ink, brown pigment) is neither.

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

    Pure white is left out: readers fill in with it what was not scanned.
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
        0 to 1.

    Returns
    -------
    ndarray of float64, (k,)
    """
    order = np.argsort(values, axis=0, kind="stable")
    below = np.cumsum(weights[order], axis=0)
    rank = [np.searchsorted(column, share * column[-1]) for column in below.T]
    rows = np.minimum(rank, len(values) - 1)
    return np.take_along_axis(values, order, axis=0)[rows, np.arange(values.shape[1])]
