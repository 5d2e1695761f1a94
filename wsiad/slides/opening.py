"""The opening of a slide, with the choice of the backend that reads it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from wsiad.core.errors import DirectReadError, InputError
from wsiad.slides.openslide_backend import OpenSlideBackend
from wsiad.slides.slide import Slide
from wsiad.slides.tiff import open_jpeg_tiff

logger = logging.getLogger(__name__)


def open_slide(
    path: Path,
    *,
    name: str | None = None,
    manifest_mpp: float | None = None,
    fallback_mpp: float | None = None,
    override_mpp: bool = False,
    backend: Literal["auto", "openslide", "jpeg-tiff"] = "auto",
    skip_damaged: bool = False,
) -> Slide:
    """Open a slide of any format that OpenSlide reads.

    Parameters
    ----------
    path : Path
        Path of the slide's file.
    name : str, optional
        Name in outputs; by default the file's stem.
    manifest_mpp, fallback_mpp : float, optional
        µm/px for a slide that states none; see :func:`wsiad.slides.scale.find_scale`.
    override_mpp : bool
        True to use these µm/px even if the slide states others.
    backend : {"auto", "openslide", "jpeg-tiff"}
        ``"jpeg-tiff"`` decodes the tiles of JPEG- (or JPEG 2000-) coded TIFF and SVS directly,
        faster than OpenSlide and to the same pixels. ``"auto"`` does so wherever it can; where it
        cannot, :attr:`Slide.fallback` states the reason.
    skip_damaged : bool
        True to skip and note damaged parts; see :attr:`Slide.skip_damaged`.

    Raises
    ------
    InputError
        ``"jpeg-tiff"`` was requested, and cannot read the slide.
    SlideOpenError
        The file does not exist, is not a slide, or is damaged.
    ScaleError
        The slide's µm/px is stated nowhere.
    """
    slide = OpenSlideBackend(
        path,
        name=name or path.stem,
        manifest_mpp=manifest_mpp,
        fallback_mpp=fallback_mpp,
        override_mpp=override_mpp,
    )
    if backend == "openslide":
        slide.skip_damaged = skip_damaged
        return slide
    try:
        direct = open_jpeg_tiff(slide)
        direct.skip_damaged = skip_damaged
        return direct
    except DirectReadError as error:
        if backend == "auto":
            slide.fallback, slide.skip_damaged = error.problem, skip_damaged
            logger.debug("%s: read by OpenSlide: %s", slide.name, slide.fallback)
            return slide
        slide.close()
        raise InputError(
            f"its tiles cannot be decoded directly: {error.problem}",
            subject=slide.name,
            remedy="Leave the choice of the backend to `auto`.",
        ) from error
    except BaseException:
        slide.close()
        raise
