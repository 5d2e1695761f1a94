"""The stains that slides are given: the documented default, or those of an image or slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsiad.core.errors import SlideOpenError, StainError
from wsiad.core.units import Mpp
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.stain.colours import ColourHistogram
from wsiad.stain.fit import fit_stains
from wsiad.stain.profile import StainProfile
from wsiad.stain.reference import reference_profile
from wsiad.tiling.plan import estimate_stains
from wsiad.tiling.preparation import Preparation
from wsiad.tissue.mask import find_tissue


def stain_target(options: Preparation) -> StainProfile:
    """Return the stain profile that the options ask slides to be given.

    Raises
    ------
    StainError
        The target file is neither a slide nor an image, or has no usable stains.
    SlideError
        The target is a slide that cannot be read at the tiles' scale.
    """
    method, path = options.stain.method, options.stain.target
    if path is None or method == "none":
        return reference_profile(method)
    try:
        slide = open_slide(path, fallback_mpp=options.slide_mpp)
    except SlideOpenError:
        profile = fit_stains(_image_histogram(path), method=method)
    else:
        with slide:
            scaled = ScaledSlide(slide, Mpp(options.mpp), allow_upsampling=options.allow_upsampling)
            profile = estimate_stains(scaled, find_tissue(slide, options.tissue), options.stain)
    if profile.fallback:
        raise StainError(
            f"cannot serve as the stain target: {profile.fallback}",
            subject=str(path),
            remedy="Choose an H&E image or slide with well-stained tissue.",
        )
    return profile


def _image_histogram(path: Path) -> ColourHistogram:
    try:
        with Image.open(path) as image:
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise StainError(
            f"cannot be read as a slide or an image: {error}",
            subject=str(path),
            remedy="Give --stain-target a slide, PNG, JPEG or TIFF.",
        ) from error
    histogram = ColourHistogram()
    histogram.add(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3] == 255)
    return histogram
