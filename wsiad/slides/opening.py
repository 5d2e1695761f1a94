"""Opening a slide: which backend reads it."""

from __future__ import annotations

from pathlib import Path

from wsiad.slides.openslide_backend import OpenSlideBackend
from wsiad.slides.slide import Slide


def open_slide(
    path: Path,
    *,
    name: str | None = None,
    manifest_mpp: float | None = None,
    fallback_mpp: float | None = None,
) -> Slide:
    """Open a slide of any format that OpenSlide reads.

    Parameters
    ----------
    path : Path
        The slide's file.
    name : str, optional
        Name in outputs; by default the file's stem.
    manifest_mpp, fallback_mpp : float, optional
        µm/px where the slide states none; see :func:`wsiad.slides.scale.find_scale`.

    Raises
    ------
    SlideOpenError
        No such file, not a slide, or damaged.
    ScaleError
        Its µm/px is stated nowhere.
    """
    return OpenSlideBackend(
        path, name=name or path.stem, manifest_mpp=manifest_mpp, fallback_mpp=fallback_mpp
    )
