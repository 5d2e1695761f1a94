"""Colours that no stained tissue has: pen marks, and the black around a scan."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

BLACK_MAX = 20
"""Brightest channel up to which a pixel is scanner padding or coverslip edge."""


class Planes(NamedTuple):
    """The channels of pixels, the highest and the lowest of them; each uint8 (...)."""

    red: RGB
    green: RGB
    blue: RGB
    high: RGB
    low: RGB


def planes_of(rgb: RGB) -> Planes:
    """Part pixels, uint8 (..., 3), into planes: reductions over three values are slow."""
    parts = [rgb[..., channel] for channel in range(3)]
    if rgb.size:
        parts = list(cv2.split(np.ascontiguousarray(rgb).reshape(1, -1, 3)))
    red, green, blue = (part.reshape(rgb.shape[:-1]) for part in parts)
    high = np.maximum(np.maximum(red, green), blue)
    return Planes(red, green, blue, high, np.minimum(np.minimum(red, green), blue))


def saturation(rgb: RGB, planes: Planes | None = None) -> npt.NDArray[np.float32]:
    """HSV saturation, 0 to 1, float32; 0 for black."""
    *_, high, low = planes or planes_of(rgb)
    return np.divide(high - low, np.maximum(high, 1), dtype=np.float32)


def is_black(rgb: RGB, planes: Planes | None = None) -> Mask:
    """Pixels too dark to be tissue in transmitted light."""
    return (planes or planes_of(rgb)).high <= BLACK_MAX


def is_pen(rgb: RGB, planes: Planes | None = None) -> Mask:
    """Pixels with the colour of a marker pen.

    Haematoxylin is blue-violet (hue 230° to 300°), eosin and blood are pink to red
    with a blue share (hue 300° to 355°). Green, cyan and azure (70° to 225°) at
    a saturation that glass does not reach are pens; so are pure red, and dark grey
    without any hue. The rules follow the colour regions that HistoQC and histolab
    exclude (blue, green, red pen), restated as hue and saturation.

    Parameters
    ----------
    rgb : ndarray of uint8, (..., 3)
    planes : Planes, optional
        Of these pixels, where several measures share them.

    Returns
    -------
    ndarray of bool, (...)
    """
    red, green, blue, high, low = planes or planes_of(rgb)
    spread = high - low
    # In 8 bits, several times as fast: a little more than the rules let through, which
    # in stained tissue is next to nothing.
    lead = (green == high) | ((blue == high) & (red == low))
    maybe = lead & (spread > high >> 2)
    maybe |= (red == high) & (spread > (high >> 1) + (high >> 3)) & (high > 130)
    maybe |= (high < 70) & (spread < 18)
    found = np.array(maybe)
    candidates = np.flatnonzero(found)
    if len(candidates):
        found.flat[candidates] = _has_pen_colour(rgb.reshape(-1, 3)[candidates])
    return found


def _has_pen_colour(rgb: RGB) -> Mask:
    """Apply the rules of :func:`is_pen` to pixels, uint8 (N, 3)."""
    channels = rgb.astype(np.int16)
    red, green, blue = channels[:, 0], channels[:, 1], channels[:, 2]
    high, low = channels.max(axis=-1), channels.min(axis=-1)
    spread = high - low
    strong = spread * 100 > 25 * high
    # Hue 70° to 150°: green leads and red is not far above blue. Hue up to 225°: blue
    # leads, and green stands at least a quarter of the way from red to blue.
    greenish = (green == high) & ((red - blue) * 6 <= spread * 5)
    azure = (blue == high) & (red == low) & ((green - red) * 4 >= spread)
    pure_red = (red == high) & (spread * 100 > 72 * high) & (high > 130) & (abs(green - blue) < 40)
    grey_ink = (high < 70) & (spread < 18)
    return (strong & (greenish | azure)) | pure_red | grey_ink
