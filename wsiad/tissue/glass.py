"""The glass of a slide: its tint by the light, and the filling that scanners add next to it."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.tissue.artefacts import bands, darkest_channel

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_JPEG_ERROR = 2
"""Grey levels by which JPEG changes exactly constant areas."""
_FILL_PX = 64
"""Minimum size of a filling, pixels; smaller areas of pure white are bright spots."""
_RECTANGLE = 0.95
"""Minimum share of its bounding box for a filling that does not reach the border."""
_NEAR_PX = 6
"""Distance to a filling within which pixels are mixed with it, or show ringing of JPEG."""
_EVEN_RANGE = 6
"""Maximum difference of the darkest channel of glass within 3 × 3 pixels, grey levels."""
_GLASS_SHARE = 0.01
"""Minimum share of the scanned area that is glass; a smaller one is a gap in the tissue."""
_TINT = 0.04
"""Saturation of the glass from which colours are judged relative to it."""
_MOST_TINT = 0.4
"""Maximum saturation of glass; even and light areas with more are not glass."""
_MOST_PINK = 0.12
"""Maximum saturation of glass with the hue of eosin."""
_LEAST_LIGHT = 150
"""Minimum of the lightest channel of glass."""


class Glass(NamedTuple):
    """The glass of a slide, as it is known before the search for tissue.

    Parameters
    ----------
    fill : ndarray of bool, (H, W), or None
        Pure white that was filled in where nothing was scanned. ``None`` if there is none, or if
        it is all the glass that exists.
    near : ndarray of bool, (H, W), or None
        The filling, pure black, and pixels mixed with either.
    tint : tuple of int, or None
        Colour of the glass, if it is not nearly white or grey.
    """

    fill: Mask | None
    near: Mask | None
    tint: tuple[int, int, int] | None


def find_glass(rgb: RGB, smooth: RGB, valid: Mask) -> Glass:
    """Find the glass and the filling of a slide.

    Glass is the lightest scanned part that is even over more than a few pixels. Filling is
    exactly constant, and tells nothing about the glass.

    Parameters
    ----------
    rgb, smooth : ndarray of uint8, (H, W, 3)
        Slide, and the slide without noise.
    valid : ndarray of bool, (H, W)
        True where the slide has pixels.
    """
    fill = _large(_constant(rgb, 255 - _JPEG_ERROR, 255) & valid)
    black = _large(_constant(rgb, 0, _JPEG_ERROR) & valid)
    near = None
    scanned = valid
    if fill is not None or black is not None:
        both = np.zeros_like(valid)
        for part in (fill, black):
            both = both if part is None else both | part
        edge = 2 * _NEAR_PX + 1
        near = cv2.dilate(both.view(np.uint8), np.ones((edge, edge), np.uint8)).view(np.bool_)
        scanned = valid & ~near
    colour = _glass_colour(smooth, scanned)
    if colour is None:
        return Glass(None, None, None)
    high, low = max(colour), min(colour)
    return Glass(fill, near, colour if high - low > _TINT * high else None)


def without_tint(rgb: RGB, tint: tuple[int, int, int]) -> RGB:
    """Give glass of a colour the same value in all channels, that of its lightest."""
    levels = np.arange(256)[:, None] * (max(tint) / np.maximum(np.array(tint), 1))
    table = np.rint(levels).clip(0, 255).astype(np.uint8).reshape(256, 1, 3)
    out: RGB = cv2.LUT(rgb, table)
    return out


def _constant(rgb: RGB, least: int, most: int) -> Mask:
    return cv2.inRange(rgb, (least,) * 3, (most,) * 3).view(np.bool_)


def _large(exact: Mask) -> Mask | None:
    """Return constant areas that reach the border or are rectangles; ``None`` without any."""
    if int(exact.sum()) < _FILL_PX:
        return None
    height, width = exact.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(exact.view(np.uint8), connectivity=4)
    left, top, wide, high, area = np.asarray(stats).T
    at_border = (left == 0) | (top == 0) | (left + wide == width) | (top + high == height)
    keep = (area >= _FILL_PX) & (at_border | (area >= _RECTANGLE * wide * high))
    keep[0] = False
    if not keep.any():
        return None
    out = np.empty_like(exact)
    for rows in bands(height, width):
        out[rows] = keep[np.asarray(labels)[rows]]
    return out


def _glass_colour(rgb: RGB, scanned: Mask) -> tuple[int, int, int] | None:
    """Return the median colour of the lightest even parts; ``None`` if that is not glass."""
    darkest = np.empty(scanned.shape, np.uint8)
    for rows in bands(*scanned.shape):
        darkest[rows] = darkest_channel(rgb[rows])
    kernel = np.ones((3, 3), np.uint8)
    even = cv2.dilate(darkest, kernel) - cv2.erode(darkest, kernel) <= _EVEN_RANGE
    even &= scanned
    # A strip of filling narrower than this may be too much changed by JPEG to be constant.
    square = np.ones((5, 5), np.uint8)
    even = cv2.morphologyEx(even.view(np.uint8), cv2.MORPH_OPEN, square).view(np.bool_)
    if not even.any():
        return None
    light = even & (darkest >= 0.95 * np.percentile(darkest[even], 99))
    glass = cv2.morphologyEx(light.view(np.uint8), cv2.MORPH_OPEN, square).view(np.bool_)
    if int(glass.sum()) < _GLASS_SHARE * int(scanned.sum()) or not glass.any():
        return None
    red, green, blue = (int(value) for value in np.median(rgb[glass], axis=0))
    high, low = max(red, green, blue), min(red, green, blue)
    pink = green == low and red > green and blue > green
    most = _MOST_PINK if pink else _MOST_TINT
    if high < _LEAST_LIGHT or high - low > most * high:
        return None
    return red, green, blue
