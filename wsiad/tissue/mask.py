"""The tissue mask: Otsu's threshold on saturation at a fixed µm/px, with guards.

An integral image of the mask gives the tissue coverage of tiles, exact for fractional edges.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.errors import UnusableSlideError
from wsiad.core.geometry import Mpp, PixelMap, Size
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.slide import Slide
from wsiad.tissue.artefacts import (
    bands,
    darkest_channel,
    is_black,
    is_pen,
    saturation,
    without_small_holes,
    without_small_pieces,
)
from wsiad.tissue.glass import find_glass, without_tint
from wsiad.tissue.ink import find_ink
from wsiad.tissue.tissue_options import TissueOptions
from wsiad.tissue.unseen import Unseen, colourless_share, darker_than_glass, find_unseen

_BAND_PX = 1024 * 4096
"""Pixels of the mask that are read at a time; bounds memory on slides without a pyramid."""

_FINER_PX = 2048
"""Edge of the part that is read at a time of a level finer than the mask's."""

LARGEST_MASK_PX = 100_000_000
"""Largest mask in pixels: 80 × 80 mm at 8 µm/px. Making a mask needs about 18 bytes per pixel. A
file can claim any size, and claims above this limit are refused."""

_WHOLE_FORMATS = frozenset({"aperio", "generic-tiff"})
"""Formats in which no part of a slide is left out; other scanners leave out empty fields."""

Mask = npt.NDArray[np.bool_]
RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TissueMask:
    """The tissue of a slide, and the parts that could not be seen.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
    thumbnail : ndarray of uint8, (H, W, 3)
        Slide at the scale of the mask; 255 where it has no pixels.
    placement : PixelMap
        Map from mask pixels to level-0 pixels.
    threshold : float
        Saturation from which a pixel counts as tissue.
    pen_share : float
        Share of the slide's pixels that are ink of a pen.
    pen : ndarray of bool, (H, W), or None
        Pen marks and their rims, which are left out of the mask whatever is under them; ``None``
        if there are none.
    unseen : Unseen
        Places that may hide tissue, if the mask is empty.
    damaged : ndarray of bool, (H, W), or None
        Parts that are damaged on every level, and thus not in the mask; ``None`` if there are
        none.
    missing_share : float
        Share of the slide without pixels in the file, in formats that leave nothing out; 0 for
        formats whose scanners leave out areas where they see nothing.
    colourless_share : float
        Share of what may be tissue that is not in the mask, because it lacks the colour of a
        stain (:func:`wsiad.tissue.unseen.colourless_share`).
    """

    mask: Mask
    thumbnail: RGB
    placement: PixelMap
    threshold: float
    pen_share: float
    pen: Mask | None = None
    unseen: Unseen = field(default_factory=Unseen)
    damaged: Mask | None = None
    missing_share: float = 0.0
    colourless_share: float = 0.0

    @property
    def tissue_share(self) -> float:
        """Share of the mask that is tissue."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    @property
    def damaged_share(self) -> float:
        """Share of the mask that could not be seen, because the file is damaged there."""
        return float(self.damaged.mean()) if self.damaged is not None else 0.0


def find_tissue(slide: Slide, options: TissueOptions) -> TissueMask:
    """Find the tissue of a slide.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    UnusableSlideError
        The slide is too large by its size and µm/px; no memory was reserved for it.
    """
    # The mask's scale is fixed whatever the slide's: one coarser than it (8 µm/px is
    # coarser than any scanner's overview level) is simply read as it is.
    mpp = max(options.mpp, slide.spacing.x, slide.spacing.y)
    scaled = ScaledSlide(slide, Mpp(mpp))
    size = scaled.size
    _check_size(slide, size, mpp)
    rgb = np.full((size.height, size.width, 3), 255, np.uint8)
    valid = np.zeros((size.height, size.width), bool)
    damaged = np.zeros_like(valid) if slide.skip_damaged else None
    # Without a pyramid a band at 8 µm/px is 16 to 32 times as wide and high in the source.
    step = scaled.pixels.scale_x / slide.levels[scaled.level].downsample_x
    edge = max(1, math.isqrt(int(4 * _BAND_PX / max(1.0, step) ** 2)))
    for top in range(0, size.height, edge):
        for left in range(0, size.width, edge):
            part = Size(min(edge, size.width - left), min(edge, size.height - top))
            window = np.s_[top : top + part.height, left : left + part.width]
            listed = scaled.listed(left, top, part, level=scaled.level)
            if listed is None or listed.any():
                region = scaled.read(left, top, part)
                valid[window] = True if region.valid is None else region.valid
                rgb[window] = np.where(valid[window][..., None], region.rgb, 255)
            if valid[window].all():
                continue
            hidden = _read_finer(scaled, left, top=top, rgb=rgb[window], valid=valid[window])
            if damaged is not None:
                damaged[window] = hidden
    found = segment(rgb, valid, mpp=mpp, options=options)
    pen = found.pen if found.pen.any() else None
    unseen = Unseen()
    if not found.mask.any():
        unseen = find_unseen(
            rgb, valid, found.pen, threshold=found.threshold, mpp=mpp, options=options
        )
    return TissueMask(
        mask=found.mask,
        thumbnail=rgb,
        placement=scaled.pixels,
        threshold=found.threshold,
        pen_share=found.pen_share,
        pen=pen,
        unseen=unseen,
        damaged=damaged if damaged is not None and damaged.any() else None,
        missing_share=_missing_share(slide, valid, damaged),
        colourless_share=found.colourless_share,
    )


def _missing_share(slide: Slide, valid: Mask, damaged: Mask | None) -> float:
    if slide.format not in _WHOLE_FORMATS or not valid.size:
        return 0.0
    return float((~valid if damaged is None else ~valid & ~damaged).mean())


def _read_finer(scaled: ScaledSlide, left: int, top: int, rgb: RGB, valid: Mask) -> Mask:
    """Fill in damaged or missing parts of the mask's level from finer levels.

    Missing parts are only searched for where the file states that a finer level holds them.

    Parameters
    ----------
    scaled : ScaledSlide
        The slide at the mask's scale.
    left, top : int
        Corner of the rectangle, pixels of the mask.
    rgb : ndarray of uint8, (H, W, 3)
        Pixels of the rectangle; changed in place.
    valid : ndarray of bool, (H, W)
        True where it was read; changed in place.

    Returns
    -------
    ndarray of bool, (H, W)
        True where all levels are damaged.
    """
    height, width = valid.shape
    damaged = scaled.damage_mask(left, top, Size(width, height)) & ~valid
    for level in range(scaled.level - 1, -1, -1):
        listed = scaled.listed(left, top, Size(width, height), level=level)
        wanted = damaged if listed is None else damaged | (listed & ~valid)
        # So small that memory is bounded however fine the level is.
        step = scaled.pixels.scale_x / scaled.slide.levels[level].downsample_x
        edge = max(1, int(_FINER_PX / step))
        for y, x in itertools.product(range(0, height, edge), range(0, width, edge)):
            window = np.s_[y : y + edge, x : x + edge]
            if not wanted[window].any():
                continue
            size = Size(min(edge, width - x), min(edge, height - y))
            region = scaled.read(left + x, top + y, size, level=level)
            seen = wanted[window] if region.valid is None else wanted[window] & region.valid
            rgb[window][seen] = region.rgb[seen]
            valid[window] |= seen
            damaged[window] &= ~seen
    return damaged


def _check_size(slide: Slide, size: Size, mpp: float) -> None:
    pixels = size.width * size.height
    if pixels <= LARGEST_MASK_PX:
        return
    width, height = (edge * mpp / 1000 for edge in (size.width, size.height))
    coarser = math.ceil(mpp * math.sqrt(pixels / LARGEST_MASK_PX))
    raise UnusableSlideError(
        f"claims {slide.size.width:,} × {slide.size.height:,} px, which is {width:,.0f} × "
        f"{height:,.0f} mm: its tissue mask would have {pixels:,} pixels, more than the maximum of "
        f"{LARGEST_MASK_PX:,}",
        subject=slide.name,
        remedy=f"If the slide is so large, tile it with --tissue-mpp {coarser} (µm/px of the "
        "mask); else its size or its µm/px is wrong.",
    )


class Segments(NamedTuple):
    """The parts of a slide that :func:`segment` distinguishes."""

    mask: Mask
    threshold: float
    pen_share: float
    pen: Mask
    colourless_share: float = 0.0


def segment(rgb: RGB, valid: Mask, *, mpp: float, options: TissueOptions) -> Segments:
    """Distinguish tissue from glass.

    The threshold is Otsu's (Otsu 1979) on the saturation of HSV, clipped to the range of the
    options. Below that range is the noise of glass, above it every stained tissue, and pale
    tissue is not far above the glass of its own slide. Pen, black borders, missing pixels and
    the filling of a scanner (pure white or black, exactly constant, next to the scanned area)
    take no part, neither in the histogram nor in the mask. If the light tints the glass, colours
    are judged relative to the glass.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
    valid : ndarray of bool, (H, W)
        True where the slide has pixels.
    mpp : float
        Scale of the image, µm/px.
    options : TissueOptions

    Returns
    -------
    mask : ndarray of bool, (H, W)
    threshold : float
        Threshold on saturation, 0 to 1.
    pen_share : float
        Share of valid pixels that are ink (:func:`wsiad.tissue.ink.find_ink`).
    pen : ndarray of bool, (H, W)
        Ink and the rims of the marks; without the border of the scan, whose black and grey
        ink also has.
    colourless_share : float
        See :class:`TissueMask`.
    """
    if rgb.size == 0:
        none = np.zeros(rgb.shape[:2], bool)
        return Segments(none, options.saturation_min, 0.0, none)
    smooth = cv2.medianBlur(np.ascontiguousarray(rgb), 3) if min(rgb.shape[:2]) >= 3 else rgb
    glass = find_glass(rgb, smooth, valid)
    if glass.tint is not None:
        smooth = without_tint(smooth, glass.tint)
    stained = np.empty(valid.shape, np.float32)
    black = np.empty(valid.shape, bool)
    for rows in bands(*valid.shape[:2]):
        stained[rows], black[rows] = saturation(smooth[rows]), is_black(smooth[rows])
    pen = is_pen(smooth) & valid if options.remove_pen else np.zeros_like(valid)
    pen = find_ink(smooth, stained, pen, mpp=mpp)
    pen_share = float((pen & ~black).sum() / max(1, valid.sum()))
    marks = _without_border(pen, black)
    if pen.any():
        # The rim of a mark mixes with glass to pale tints that look like faint tissue.
        pen, marks = _with_rim(pen, mpp), _with_rim(marks, mpp)
    usable = valid & ~pen & ~black
    del pen, black  # a whole slide at once: what follows needs as much again
    if glass.fill is not None:
        usable &= ~glass.fill
    counted = usable if glass.near is None else usable & ~glass.near
    threshold = _threshold(smooth, stained, counted, options)
    mask = usable & (stained > threshold)
    del stained
    dark = darker_than_glass(smooth, usable, lit=True)  # it counts only beside colour
    del smooth
    clean = _cleaned(mask, mpp=mpp, options=options) & usable
    return Segments(
        mask=clean,
        threshold=threshold,
        pen_share=pen_share,
        pen=marks,
        colourless_share=colourless_share(dark, stained=mask, tissue=clean),
    )


def _threshold(
    rgb: RGB, stained: npt.NDArray[np.float32], usable: Mask, options: TissueOptions
) -> float:
    """Return the saturation from which a usable pixel is tissue: Otsu's, within the range."""
    counts, edges = np.zeros(256, np.int64), np.linspace(0, 1, 257)
    for rows in bands(*usable.shape):
        counts += np.histogram(stained[rows][usable[rows]], bins=256, range=(0, 1))[0]
    if np.count_nonzero(counts) <= 1:
        return options.saturation_min
    otsu = otsu_threshold(counts, (edges[:-1] + edges[1:]) / 2)
    highest = min(
        options.saturation_max, _glass_saturation(rgb, stained, usable) + options.glass_margin
    )
    return max(min(otsu, highest), options.saturation_min)


def otsu_threshold(counts: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> float:
    """Return the value of a histogram that best parts it into two classes, by Otsu.

    It is scikit-image's, to the last bit: importing that takes a quarter of a second of each
    worker's start.

    Parameters
    ----------
    counts : ndarray of int64, (N,)
        Number of pixels of each value; not all of one value.
    values : ndarray of float64, (N,)
    """
    there = np.flatnonzero(counts)
    part = slice(int(there[0]), int(there[-1]) + 1)
    weights, values = counts[part].astype(np.float32), values[part]
    below, above = np.cumsum(weights), np.cumsum(weights[::-1])[::-1]
    moments = weights * values
    mean_below = np.cumsum(moments) / below
    mean_above = np.cumsum(moments[::-1])[::-1] / above
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(values[np.argmax(between)])


def _cleaned(mask: Mask, *, mpp: float, options: TissueOptions) -> Mask:
    """Smooth a mask, remove small pieces and fill small holes."""
    kernel = _disc(options.smooth_um / mpp)
    clean = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, kernel)
    clean = cv2.morphologyEx(clean, cv2.MORPH_CLOSE, kernel)
    pieces = without_small_pieces(clean.view(np.bool_), min_px=options.min_area_um2 / mpp**2)
    # Only what tissue encloses is a hole: the glass of a small slide is not.
    return without_small_holes(pieces, min_px=options.max_hole_um2 / mpp**2)


def _without_border(pen: Mask, black: Mask) -> Mask:
    """Remove pen marks that touch black, because a scan's border has the colour of ink."""
    near = cv2.dilate(black.view(np.uint8), _disc(5)).view(np.bool_)
    return pen & ~near


def _with_rim(marks: Mask, mpp: float) -> Mask:
    return cv2.dilate(marks.view(np.uint8), _disc(48 / mpp)).astype(bool)


def _glass_saturation(rgb: RGB, stained: npt.NDArray[np.float32], usable: Mask) -> float:
    """Return the median saturation of the lightest usable pixels, which are glass if any are."""
    darkest = np.empty(usable.shape, np.uint8)
    for rows in bands(*usable.shape):
        darkest[rows] = darkest_channel(rgb[rows])
    light = usable & (darkest >= 0.95 * np.percentile(darkest[usable], 99))
    return float(np.median(stained[light]))


def _disc(diameter_px: float) -> npt.NDArray[np.uint8]:
    edge = max(1, 2 * round((diameter_px - 1) / 2) + 1)
    kernel: npt.NDArray[np.uint8] = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
    return kernel


def coverage(
    mask: npt.NDArray[np.bool_], placement: PixelMap, boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Return the share of each box that is tissue.

    The integral of a mask over ``[0, x) × [0, y)`` is bilinear within each pixel, so
    interpolating the integral image (Crow 1984) gives the exact area for any edges.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
    placement : PixelMap
        Map from mask pixels to level-0 pixels.
    boxes : ndarray of float64, (N, 4)
        Boxes ``x, y, width, height`` in level-0 pixels; parts beyond the mask are not tissue.

    Returns
    -------
    ndarray of float32, (N,)
        Shares, 0 to 1.
    """
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    if mask.size:
        cv2.integral(mask.view(np.uint8), sum=integral, sdepth=cv2.CV_64F)
    left, top = placement.from_level0(boxes[:, 0], boxes[:, 1])
    right, bottom = placement.from_level0(boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3])

    def at(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = x.clip(0, mask.shape[1]), y.clip(0, mask.shape[0])
        column = np.minimum(x.astype(np.int64), max(0, mask.shape[1] - 1))
        row = np.minimum(y.astype(np.int64), max(0, mask.shape[0] - 1))
        dx, dy = x - column, y - row
        right_, below = np.minimum(column + 1, mask.shape[1]), np.minimum(row + 1, mask.shape[0])
        upper = integral[row, column] * (1 - dx) + integral[row, right_] * dx
        lower = integral[below, column] * (1 - dx) + integral[below, right_] * dx
        return upper * (1 - dy) + lower * dy

    tissue = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    share = tissue / ((right - left) * (bottom - top))
    return share.clip(0, 1).astype(np.float32)
