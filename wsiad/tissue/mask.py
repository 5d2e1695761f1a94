"""The tissue mask: Otsu on saturation at a fixed µm/px, with guards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_objects

from wsiad.geometry import PixelMap, Size
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.slide import Slide
from wsiad.tissue.artefacts import is_black, is_pen, saturation
from wsiad.tissue.options import TissueOptions
from wsiad.units import Mpp

_BAND_PX = 1024 * 4096
"""Pixels of the mask that are read at once: bounds memory on slides without a pyramid."""

Mask = npt.NDArray[np.bool_]
RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TissueMask:
    """Where a slide has tissue.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
    thumbnail : ndarray of uint8, (H, W, 3)
        The slide at the same scale; 255 where it has no pixels.
    placement : PixelMap
        From mask pixels to level-0 pixels.
    threshold : float
        Saturation from which a pixel counts as tissue.
    pen_share : float
        Share of the slide's pixels with the colour of a pen.
    """

    mask: Mask
    thumbnail: RGB
    placement: PixelMap
    threshold: float
    pen_share: float

    @property
    def tissue_share(self) -> float:
        """Share of the mask that is tissue."""
        return float(self.mask.mean()) if self.mask.size else 0.0


def find_tissue(slide: Slide, options: TissueOptions) -> TissueMask:
    """Find the tissue of a slide.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    # The mask's scale is fixed whatever the slide's: one coarser than it (8 µm/px is
    # coarser than any scanner's overview level) is simply read as it is.
    mpp = max(options.mpp, slide.spacing.x, slide.spacing.y)
    scaled = ScaledSlide(slide, Mpp(mpp))
    size = scaled.size
    rgb = np.full((size.height, size.width, 3), 255, np.uint8)
    valid = np.zeros((size.height, size.width), bool)
    # Without a pyramid a band at 8 µm/px is 16 to 32 times as wide and high in the source.
    step = scaled.pixels.scale_x / slide.levels[scaled.level].downsample_x
    edge = max(1, math.isqrt(int(4 * _BAND_PX / max(1.0, step) ** 2)))
    for top in range(0, size.height, edge):
        for left in range(0, size.width, edge):
            part = Size(min(edge, size.width - left), min(edge, size.height - top))
            region = scaled.read(left, top, part)
            window = np.s_[top : top + part.height, left : left + part.width]
            valid[window] = True if region.valid is None else region.valid
            rgb[window] = np.where(valid[window][..., None], region.rgb, 255)
    mask, threshold, pen_share = segment(rgb, valid, mpp=mpp, options=options)
    return TissueMask(mask, rgb, scaled.pixels, threshold, pen_share)


def segment(
    rgb: RGB, valid: Mask, *, mpp: float, options: TissueOptions
) -> tuple[Mask, float, float]:
    """Tell tissue from glass.

    Otsu's threshold (Otsu 1979) on the saturation of HSV, clipped to the range of the
    options: below it lies the noise of glass, above it every stained tissue, and pale
    tissue is not far above the glass of its own slide. Pen, black
    borders and missing pixels take no part, neither in the histogram nor in the mask.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
    valid : ndarray of bool, (H, W)
        Where the slide has pixels.
    mpp : float
        Scale of the image, µm/px.
    options : TissueOptions

    Returns
    -------
    mask : ndarray of bool, (H, W)
    threshold : float
        On saturation, 0 to 1.
    pen_share : float
        Share of valid pixels with the colour of a pen.
    """
    if rgb.size == 0:
        return np.zeros(rgb.shape[:2], bool), options.saturation_min, 0.0
    smooth = cv2.medianBlur(np.ascontiguousarray(rgb), 3) if min(rgb.shape[:2]) >= 3 else rgb
    pen = is_pen(smooth) & valid if options.remove_pen else np.zeros_like(valid)
    pen_share = float(pen.sum() / max(1, valid.sum()))
    if pen.any():
        # The rim of a mark mixes with glass to pale tints that look like faint tissue.
        pen = cv2.dilate(pen.astype(np.uint8), _disc(48 / mpp)).astype(bool)
    usable = valid & ~pen & ~is_black(smooth)
    stained = saturation(smooth)
    threshold = options.saturation_min
    if usable.any():
        counts, edges = np.histogram(stained[usable], bins=256, range=(0, 1))
        if np.count_nonzero(counts) > 1:
            otsu = threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2))
            glass = _glass_saturation(smooth[usable], stained[usable])
            highest = min(options.saturation_max, glass + options.glass_margin)
            threshold = max(min(float(otsu), highest), options.saturation_min)
    mask = usable & (stained > threshold)
    kernel = _disc(options.smooth_um / mpp)
    clean = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    clean = cv2.morphologyEx(clean, cv2.MORPH_CLOSE, kernel)
    result = clean.astype(bool)
    # max_size counts pieces up to and including it; the options say "smaller than".
    area = mpp**2
    result = remove_small_objects(result, max_size=math.ceil(options.min_area_um2 / area) - 1)
    # Only what tissue encloses is a hole: the glass of a small slide is not.
    holes = ndimage.binary_fill_holes(result) & ~result
    large = remove_small_objects(holes, max_size=math.ceil(options.max_hole_um2 / area) - 1)
    return (result | (holes & ~large)) & usable, threshold, pen_share


def _glass_saturation(rgb: RGB, stained: npt.NDArray[np.float32]) -> float:
    """Median saturation of the lightest pixels, (N, 3), which are glass if any is."""
    darkest = rgb.min(axis=-1)
    return float(np.median(stained[darkest >= 0.95 * np.percentile(darkest, 99)]))


def _disc(diameter_px: float) -> npt.NDArray[np.uint8]:
    edge = max(1, 2 * round((diameter_px - 1) / 2) + 1)
    kernel: npt.NDArray[np.uint8] = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
    return kernel
