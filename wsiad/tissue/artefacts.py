"""Colours that no stained tissue has: pen marks, and the black around a scan.

Small pieces and holes of a mask are found too, at a few bytes per pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

BLACK_MAX = 20
"""Brightest channel up to which a pixel is scanner padding or the edge of a coverslip."""


STAIN_SHARE = 0.25
"""Share of stained tissue above which the colours of a pen are those of the stain."""


def saturation(rgb: RGB) -> npt.NDArray[np.float32]:
    """Return the HSV saturation, 0 to 1, float32; 0 for black."""
    red, green, blue = _planes(rgb)
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    return np.divide(high - low, np.maximum(high, 1), dtype=np.float32)


def is_black(rgb: RGB) -> Mask:
    """Tell which pixels are too dark to be tissue in transmitted light."""
    return brightest_channel(rgb) <= BLACK_MAX


def darkest_channel(rgb: RGB) -> RGB:
    """Return the lowest of the three channels of each pixel, (...)."""
    red, green, blue = _planes(rgb)
    return np.minimum(np.minimum(red, green), blue)


def brightest_channel(rgb: RGB) -> RGB:
    """Return the highest of the three channels of each pixel, (...)."""
    red, green, blue = _planes(rgb)
    return np.maximum(np.maximum(red, green), blue)


def is_pen(rgb: RGB) -> Mask:
    """Tell which pixels have the colour of a marker pen.

    Haematoxylin is blue-violet (hue 230° to 300°). Eosin and blood are pink to red with a blue
    share (hue 300° to 355°). Green, cyan and azure (70° to 225°) at a saturation that glass
    does not reach are pens; so are pure red, and dark grey without any hue. The rules follow the
    colour regions that HistoQC and histolab exclude (blue, green, red pen), restated as hue and
    saturation.

    Parameters
    ----------
    rgb : ndarray of uint8, (..., 3)

    Returns
    -------
    ndarray of bool, (...)
    """
    found = np.empty(rgb.shape[:-1], np.bool_)
    _mark_pen(np.ascontiguousarray(rgb).reshape(-1), found.reshape(-1))
    return found


def without_ink(patches: Sequence[RGB]) -> list[Mask]:
    """Tell which pixels of tissue patches can be used to estimate stains.

    Parameters
    ----------
    patches : sequence of ndarray of uint8, (H, W, 3)
        Patches of one slide, or of one stain.

    Returns
    -------
    list of ndarray of bool, (H, W)
        False for the colours of a pen, unless more than a quarter of all pixels have them:
        they are then colours of the stain.
    """
    pens = [is_pen(patch) for patch in patches]
    coloured = sum(int(np.count_nonzero(pen)) for pen in pens)
    if coloured > STAIN_SHARE * sum(pen.size for pen in pens):
        return [np.ones_like(pen) for pen in pens]
    return [~pen for pen in pens]


def _planes(rgb: RGB) -> list[RGB]:
    """Split pixels into channels, because reductions over three values are slow."""
    parts = [rgb[..., channel] for channel in range(3)]
    if rgb.size:
        parts = list(cv2.split(np.ascontiguousarray(rgb).reshape(1, -1, 3)))
    return [part.reshape(rgb.shape[:-1]) for part in parts]


@compiled
def has_pen_colour(red: np.int32, green: np.int32, blue: np.int32) -> np.bool_:
    """Apply the rules of :func:`is_pen` to a pixel, in 32 bits, which Numba needs explicitly."""
    high, low = max(max(red, green), blue), min(min(red, green), blue)
    spread = np.int32(high - low)
    strong = np.int32(4 * spread) > high
    # Hue 70° to 150°: green leads and red is not far above blue. Hue up to 225°: blue
    # leads, and green stands at least a quarter of the way from red to blue.
    greenish = (green == high) & (np.int32((red - blue) * 6) <= np.int32(spread * 5))
    azure = (blue == high) & (red == low) & (np.int32((green - red) * 4) >= spread)
    pure_red = (red == high) & (np.int32(spread * 25) > np.int32(18 * high)) & (high > 130)
    pure_red &= np.int32(abs(np.int32(green - blue))) < 40
    grey_ink = (high < 70) & (spread < 18)
    return np.bool_((strong & (greenish | azure)) | pure_red | grey_ink)


@compiled
def _mark_pen(values: RGB, found: Mask) -> None:
    for pixel in range(len(found)):
        red, green, blue = values[3 * pixel], values[3 * pixel + 1], values[3 * pixel + 2]
        found[pixel] = has_pen_colour(np.int32(red), np.int32(green), np.int32(blue))


_BAND_PX = 1 << 20


def bands(height: int, width: int) -> Iterator[slice]:
    """Yield bands of rows of about a million pixels of an image."""
    rows = max(1, _BAND_PX // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def without_small_pieces(mask: Mask, *, min_px: float) -> Mask:
    """Remove pieces of less than ``min_px`` pixels; pixels touch by their edges.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
    min_px : float

    Returns
    -------
    ndarray of bool, (H, W)
    """
    labels, areas = _labelled(mask)
    keep = areas >= min_px
    keep[0] = False  # the background
    return _chosen(keep, labels)


def without_small_holes(mask: Mask, *, min_px: float) -> Mask:
    """Fill areas that a mask encloses and that have less than ``min_px`` pixels.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
        Mask; an area is enclosed if it does not reach the border by edges of pixels.
    min_px : float

    Returns
    -------
    ndarray of bool, (H, W)
    """
    labels, areas = _labelled(~mask)
    fill = areas < min_px
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        fill[border] = False
    fill[0] = True  # the mask itself
    return _chosen(fill, labels)


def pieces_with(mask: Mask, part: Mask) -> Mask:
    """Return the pieces of a mask that hold a pixel of a part of it; they touch by their edges.

    Parameters
    ----------
    mask, part : ndarray of bool, (H, W)

    Returns
    -------
    ndarray of bool, (H, W)
    """
    labels, areas = _labelled(mask)
    keep = np.zeros(len(areas), np.bool_)
    for rows in bands(*mask.shape):
        keep[labels[rows][part[rows]]] = True
    return _chosen(keep, labels)


def _labelled(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return labels of connected pixels, (H, W), and the number of pixels of each label."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    return np.asarray(labels), np.asarray(stats)[:, cv2.CC_STAT_AREA]


def _chosen(chosen: Mask, labels: npt.NDArray[np.int32]) -> Mask:
    """Look up labels; indexing with all of them at a time would need 8 bytes more per pixel."""
    out = np.empty(labels.shape, np.bool_)
    for rows in bands(*labels.shape):
        out[rows] = chosen[labels[rows]]
    return out
