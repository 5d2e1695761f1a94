"""The places that may hide tissue, where the mask is empty or lacks parts beside tissue."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.tissue.artefacts import (
    bands,
    brightest_channel,
    is_black,
    pieces_with,
    saturation,
    without_small_pieces,
)
from wsiad.tissue.tissue_options import TissueOptions

_NEUTRAL = 6
"""Maximum difference of the channels of a grey pixel, grey levels: JPEG changes them a little."""
_COLOURED_SHARE = 0.001
_GLASS_MIN = 128
"""Brightest channel below which a pixel is not glass in transmitted light."""
_DARKER = 0.8
"""Share of the glass's brightness below which something is on it."""
_WHITE = 253
"""Brightest channel of a filling, with the error of JPEG."""
_AS_GLASS = 0.95
"""Share of the glass's brightness from which a pixel may be glass too."""
_EVEN_RANGE = 4
"""Maximum difference of the brightest channel of dim glass within 3 × 3 pixels, grey levels."""
_EVEN_PX = 5
"""Edge of the squares of even pixels that glass is made of, pixels."""
_MATTERS = 0.01
"""Minimum share of a slide for specks with the colour of tissue to be more than dust, for a piece
to count however small it is in µm², and for the lightest part to be glass."""
_LEAST_COLOURLESS = 0.05
"""Share below which parts without colour beside tissue are not stated: twice the most of 171 slides
of which the mask loses little (``docs/quality.md``)."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Places that may hide tissue, as shares of the slide's pixels, 0 to 1.

    Pieces that are too small to be tissue do not count.

    Parameters
    ----------
    missing : float
        Share without pixels in the file.
    pen : float
        Share that was taken for pen, rims included.
    black : float
        Black share, like the border of a scan.
    grey : float
        Share that is darker than glass, without the colour of a stain. On a slide without any
        colour, tissue cannot be distinguished from it; on other slides it does not count below
        1 %, like the edge of a coverslip.
    scattered : float
        Share with the colour of tissue, in pieces smaller than the smallest that is kept.
    """

    missing: float = 0.0
    pen: float = 0.0
    black: float = 0.0
    grey: float = 0.0
    scattered: float = 0.0

    def __bool__(self) -> bool:
        return any(astuple(self))


def find_unseen(
    rgb: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    pen: npt.NDArray[np.bool_],
    *,
    threshold: float,
    mpp: float,
    options: TissueOptions,
) -> Unseen:
    """Measure the places that may hide tissue on a slide whose mask is empty.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
    valid, pen : ndarray of bool, (H, W)
        True where the slide has pixels, and for pen marks with their rims.
    threshold : float
        Saturation from which a pixel counts as tissue.
    mpp : float
        Scale of the image, µm/px.
    options : TissueOptions
        Options, with the area of the smallest piece of tissue.
    """
    if not rgb.size:
        return Unseen()
    smooth = cv2.medianBlur(np.ascontiguousarray(rgb), 3) if min(rgb.shape[:2]) >= 3 else rgb
    black, stained = np.empty(valid.shape, bool), np.empty(valid.shape, bool)
    for rows in bands(*valid.shape[:2]):
        black[rows] = is_black(smooth[rows])
        stained[rows] = saturation(smooth[rows]) > threshold
    black &= valid
    usable = valid & ~black & ~pen
    stained &= usable
    # A slide may be smaller than the smallest piece of tissue that is kept.
    least = min(options.min_area_um2 / mpp**2, _MATTERS * valid.size)

    def share(mask: npt.NDArray[np.bool_]) -> float:
        return float(without_small_pieces(mask, min_px=least).mean())

    scattered, grey = float(stained.mean()), share(darker_than_glass(smooth, usable & ~stained))
    if grey < _MATTERS and not _is_colourless(smooth, usable):
        grey = 0.0
    return Unseen(
        missing=share(~valid),
        pen=share(pen & valid),
        black=share(black),
        grey=grey,
        scattered=scattered if scattered >= _MATTERS else 0.0,
    )


def _is_colourless(rgb: npt.NDArray[np.uint8], usable: npt.NDArray[np.bool_]) -> bool:
    coloured = usable & (rgb.max(axis=2) - rgb.min(axis=2) > _NEUTRAL)
    return bool(coloured.sum() <= _COLOURED_SHARE * usable.sum())


def darker_than_glass(
    rgb: npt.NDArray[np.uint8], usable: npt.NDArray[np.bool_], *, lit: bool = False
) -> npt.NDArray[np.bool_]:
    """Tell which usable pixels are darker than the glass, which is the lightest of them.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
    usable : ndarray of bool, (H, W)
        True for the pixels that count.
    lit : bool
        True where light is known to come through the slide, as colours are seen on it: its lightest
        part is then glass if it is even, however dark the scan.
    """
    if not usable.any():
        return usable
    high = np.empty(usable.shape, np.uint8)
    for rows in bands(*usable.shape):
        high[rows] = brightest_channel(rgb[rows])
    glass = float(np.percentile(high[usable], 99))
    if lit and glass >= _WHITE and (seen := usable & (high < _WHITE)).any():
        # White may be what the scanner filled in beside a dim slide.
        dim = float(np.percentile(high[seen], 99))
        if _DARKER * dim < _GLASS_MIN and _has_glass(high, seen, dim):
            return usable & (high < _DARKER * dim)
    least = _DARKER * glass
    if least < _GLASS_MIN and not (lit and _has_glass(high, usable, glass)):
        least = _GLASS_MIN
    return usable & (high < least)


def _has_glass(
    high: npt.NDArray[np.uint8], usable: npt.NDArray[np.bool_], brightness: float
) -> bool:
    """Tell whether what is about as bright is even, over more than gaps in tissue."""
    kernel = np.ones((3, 3), np.uint8)
    even = cv2.dilate(high, kernel) - cv2.erode(high, kernel) <= _EVEN_RANGE
    even &= usable & (high >= _AS_GLASS * brightness)
    square = np.ones((_EVEN_PX, _EVEN_PX), np.uint8)
    together = cv2.morphologyEx(even.view(np.uint8), cv2.MORPH_OPEN, square)
    return int(np.count_nonzero(together)) >= _MATTERS * int(np.count_nonzero(usable))


def colourless_share(
    dark: npt.NDArray[np.bool_],
    *,
    stained: npt.NDArray[np.bool_],
    tissue: npt.NDArray[np.bool_],
) -> float:
    """Measure what the mask may leave out of the tissue because it lacks the colour of a stain.

    That is darker than glass, has no such colour, and is joined to tissue by what is as dark: the
    edge of a coverslip, bubbles and dust lie apart on the glass.

    Parameters
    ----------
    dark : ndarray of bool, (H, W)
        Usable pixels that are darker than glass.
    stained : ndarray of bool, (H, W)
        Pixels with the colour of a stain.
    tissue : ndarray of bool, (H, W)
        The tissue mask.

    Returns
    -------
    float
        Share of these parts in them and the tissue together, 0 to 1; 0 below 5 %.
    """
    without = dark & ~stained & ~tissue
    found = int(tissue.sum())
    least = _LEAST_COLOURLESS / (1 - _LEAST_COLOURLESS) * found
    if not found or int(without.sum()) < least:
        return 0.0
    beside = int((without & pieces_with(dark | tissue, tissue)).sum())
    return beside / (beside + found) if beside >= least else 0.0
