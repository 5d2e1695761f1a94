"""The search for ink on the glass: pixels with the colour, shape and place of pen marks.

Blood, trichrome, alcian blue and strong eosin have the colours of red and blue pens. Tissue with
these stains is textured at the scale of the mask, where cells and fibres differ from pixel to
pixel. Ink is even, and forms strokes and dots on the glass.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.tissue.artefacts import STAIN_SHARE, bands

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_EVEN_RANGE = 6
"""Maximum difference of the channels of even ink within 3 × 3 pixels of the mask, grey levels; in
tissue it is 10 or more in 19 of 20 places."""
_EVEN_SHARE = 0.3
"""Minimum even share of a mark, even if it crosses tissue that shows through."""
_SPECK_UM2 = 2_500.0
_SPECKS_SHARE, _DARK_SPECKS_SHARE = 0.005, 0.02
"""Maximum shares of the stained area that specks of odd colours can have as debris; if they have
more, they are the stain. Black specks can have more, since no stain but DAB is black."""
_STROKE = 3.0
"""Area of a stroke in squares as wide as the mark; a dot has less than one."""
_OPEN_SHARE = 0.25
"""Minimum share of glass around a mark: marks are made on glass, or reach it."""
_STAINED = 0.12
"""Saturation from which the surroundings of a mark are not glass."""
_MOST_MARKS = 2_000


def find_ink(rgb: RGB, saturation: npt.NDArray[np.float32], coloured: Mask, *, mpp: float) -> Mask:
    """Distinguish ink from stained tissue of the same colours.

    Green is ink by its colour, unless it is textured and a large part of the stained area. Black
    is ink where it is even. Red and blue are ink where a connected mark is even, and is a stroke
    or borders on glass.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
    saturation : ndarray of float32, (H, W)
        Saturation of HSV, 0 to 1.
    coloured : ndarray of bool, (H, W)
        Pixels with the colour of a pen (:func:`wsiad.tissue.artefacts.is_pen`).
    mpp : float
        Scale, µm/px.

    Returns
    -------
    ndarray of bool, (H, W)
        Ink, a part of ``coloured``.
    """
    if not coloured.any():
        return coloured
    even = _even(rgb)
    usual, dark = _green_and_dark(rgb, coloured)
    stained = coloured | (saturation > _STAINED)
    everything = int(stained.sum())
    if int((usual & ~even).sum()) > STAIN_SHARE * everything:
        usual[:] = False
    doubtful = coloured & ~usual
    _, labels, stats, _ = cv2.connectedComponentsWithStats(doubtful.view(np.uint8))
    areas = np.asarray(stats)[:, cv2.CC_STAT_AREA].astype(np.int64)
    areas[0] = 0
    small = areas * mpp**2 < _SPECK_UM2
    black = 2 * np.bincount(np.asarray(labels)[dark & doubtful], minlength=len(areas)) > areas
    ink = np.zeros(len(areas), np.bool_)
    for kind, share in ((small & ~black, _SPECKS_SHARE), (small & black, _DARK_SPECKS_SHARE)):
        ink |= kind & (int(areas[kind].sum()) <= share * everything)
    ink[0] = False
    found = usual | ink[labels]
    large = np.flatnonzero(~small)
    for label in large[np.argsort(-areas[large], kind="stable")][:_MOST_MARKS]:
        x, y, width, height = (int(value) for value in np.asarray(stats)[label, :4])
        reach = 8
        part = np.s_[max(0, y - reach) : y + height + reach, max(0, x - reach) : x + width + reach]
        mark = np.asarray(labels)[part] == label
        found[part] |= _ink_of(
            mark, even[part], dark=dark[part], stained=stained[part], rgb=rgb[part]
        )
    return found


def _green_and_dark(rgb: RGB, coloured: Mask) -> tuple[Mask, Mask]:
    """Return green up to a hue of 165°, and black: pen colours that stains seldom have."""
    red, green, blue = (rgb[coloured][:, channel].astype(np.int32) for channel in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    # Green leads, and blue is at most three quarters of the way from red to green.
    greenish, dark = coloured.copy(), coloured.copy()
    greenish[coloured] = (green == high) & (4 * (blue - red) <= 3 * (high - low))
    dark[coloured] = (high < 70) & (high - low < 18)
    return greenish, dark


def _even(rgb: RGB) -> Mask:
    """Tell which pixels have neighbours of nearly the same value, in each channel."""
    out = np.empty(rgb.shape[:2], np.bool_)
    kernel = np.ones((3, 3), np.uint8)
    for rows in bands(*rgb.shape[:2]):
        top = max(0, rows.start - 1)
        part = rgb[top : rows.stop + 1]
        spread = (cv2.dilate(part, kernel) - cv2.erode(part, kernel)).max(axis=-1)
        first = rows.start - top
        out[rows] = spread[first : first + rows.stop - rows.start] <= _EVEN_RANGE
    return out


def _ink_of(mark: Mask, even: Mask, dark: Mask, stained: Mask, rgb: RGB) -> Mask:
    """Return the ink of one connected mark: all of it, its even parts, or nothing."""
    inner = cv2.erode(mark.view(np.uint8), np.ones((3, 3), np.uint8)).view(np.bool_)
    flat = inner & even
    if int(flat.sum()) >= max(6.0, _EVEN_SHARE * float(inner.sum())):
        black = 2 * int((dark & mark).sum()) > int(mark.sum())
        ink = black or _is_shaped_like_ink(mark, stained, rgb)
        return mark if ink else np.zeros_like(mark)
    # Ink that touches tissue of its own colour.
    kernel = np.ones((3, 3), np.uint8)
    parts = cv2.morphologyEx(flat.view(np.uint8), cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(parts)
    found = np.zeros_like(mark)
    for label in range(1, min(count, 100)):
        if int(np.asarray(stats)[label, cv2.CC_STAT_AREA]) >= 64:
            part = cv2.dilate((labels == label).view(np.uint8), np.ones((5, 5), np.uint8))
            whole = part.view(np.bool_) & mark
            if _is_shaped_like_ink(whole, stained, rgb):
                found |= whole
    return found


def _is_shaped_like_ink(mark: Mask, stained: Mask, rgb: RGB) -> bool:
    """Tell whether an even mark is a stroke, or a dot on the glass."""
    inside = np.pad(mark, 1).view(np.uint8)
    widest = 2 * float(cv2.distanceTransform(inside, cv2.DIST_L2, 5).max())
    if int(mark.sum()) >= _STROKE * widest**2:
        return True
    near, far = (
        cv2.dilate(mark.view(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge)))
        for edge in (7, 13)
    )
    around = far.view(np.bool_) & ~near.view(np.bool_)
    if not around.any() or float((~stained[around]).mean()) < _OPEN_SHARE:
        return False
    red, _, _ = middle = np.median(rgb[mark], axis=0)
    # A pool of blood on the glass is as even as a dot of ink, but less red.
    return bool(red < middle.max() or red - middle.min() > 0.78 * red)
