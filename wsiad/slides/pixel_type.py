"""The type of a slide's pixels; only colours of 8 bits can be used."""

from __future__ import annotations

from pathlib import Path

import tifffile

from wsiad.core.errors import UnusableSlideError
from wsiad.slides.slide import Slide
from wsiad.slides.tiff_tiles import NOT_A_TIFF
from wsiad.slides.tile_inspection import TIFF_FORMATS

_PALETTE, _UNSIGNED = 3, 1
_MOST_CHANNELS = 4
"""Maximum number of channels: colours and opacity, or the inks of print. More is fluorescence."""


def check_pixels(slide: Slide) -> None:
    """Check that a slide's pixels are colours of 8 bits.

    OpenSlide reduces 16 bits to 8 without knowing which values mean black and white, and turns
    grey into colours.

    Raises
    ------
    UnusableSlideError
        The pixels are of another type, which the error names.
    """
    # What is read directly is in colour of 8 bits; other formats have no other pixels.
    if slide.backend != "openslide" or slide.format not in TIFF_FORMATS:
        return
    if found := pixel_type(slide.path):
        raise wrong_pixels(found, slide.name)


def wrong_pixels(found: str, name: str) -> UnusableSlideError:
    """Make the error of a slide whose type of pixels (:func:`pixel_type`) cannot be used."""
    return UnusableSlideError(
        f"its pixel type cannot be used: {found}, not colours of 8 bits",
        subject=name,
        remedy="Convert it to 8-bit RGB from the scanner's own range, if it is a bright-field "
        "scan at all.",
    )


def pixel_type(path: Path) -> str:
    """Return the type of a TIFF's pixels if they are not colours of 8 bits; empty if they are.

    Parameters
    ----------
    path : Path
        Path of a TIFF; any other file has no such pixels.

    Returns
    -------
    str
        Words such as ``"16-bit pixels"`` or ``"grey 8-bit pixels"``.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = next((page for page in tiff.pages if page.is_tiled), None)
            if page is None:
                return ""
            grey = page.samplesperpixel < 3 and page.photometric != _PALETTE
            bits, kind = int(page.bitspersample), int(page.sampleformat)
            channels = int(page.samplesperpixel)
    except NOT_A_TIFF:
        return ""
    name = {_UNSIGNED: "", 2: "signed ", 3: "floating-point "}.get(kind, "unknown ")
    many = f" of {channels} channels" if channels > _MOST_CHANNELS else ""
    if not grey and not many and bits == 8 and kind == _UNSIGNED:
        return ""
    return f"{'grey ' if grey else ''}{name}{bits}-bit pixels{many}"
