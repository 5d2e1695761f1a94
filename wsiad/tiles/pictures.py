"""One tile out of an image file: decoded only when its header says that it is one."""

from __future__ import annotations

import io
import warnings
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from wsiad.errors import InputError

SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff"})
"""Suffixes of files that are taken for tiles."""

MAX_FILE_BYTES = 64 * 2**20
"""No file of a tile is larger: uncompressed, 4096 × 4096 RGB takes 48 MiB."""

MAX_TILE_PX = 4096
"""Largest edge of a tile, as in a store's preparation."""

_FORMATS = ("JPEG", "PNG", "TIFF")
_MODES = frozenset({"RGB", "RGBA", "P"})


def is_picture(name: str) -> bool:
    """Tell by its name whether a file is to be a tile."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def decode(data: bytes, *, subject: str, tile: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a tile.

    Size and colours are checked before a pixel is decoded, so that a small file cannot
    make a large image.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG or TIFF.
    subject : str
        Name of the file, for errors.
    tile : int, optional
        Edge that it must have, pixels; by default any.

    Returns
    -------
    ndarray of uint8, (tile, tile, 3)
        RGB.

    Raises
    ------
    InputError
        It is no such image, is damaged, transparent, not in colour, not square, or of
        another size.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's warning of large images; the size is checked here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        with image:
            _check(image, subject, tile)
            opaque = image.mode == "RGB" and "transparency" not in image.info
            pixels = np.asarray(image if opaque else image.convert("RGBA"))
    except InputError:
        raise
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,  # Pillow's of a broken PNG
        TypeError,
        EOFError,
    ) as error:
        raise InputError(
            f"cannot be read as a JPEG, PNG or TIFF ({' '.join(str(error).split())})",
            subject=subject,
            remedy="Replace or remove the file.",
        ) from error
    if not opaque and pixels[..., 3].min() < 255:
        raise InputError(
            "has transparent pixels", subject=subject, remedy="Save the tile without alpha."
        )
    return np.ascontiguousarray(pixels[..., :3])


def _check(image: Image.Image, subject: str, tile: int | None) -> None:
    width, height = image.size
    if tile is not None and (width, height) != (tile, tile):
        raise InputError(
            f"has {width} × {height} px, and the tiles here have {tile} × {tile}",
            subject=subject,
            remedy="All tiles of a store have one size.",
        )
    if width != height or not 8 <= width <= MAX_TILE_PX:
        raise InputError(
            f"has {width} × {height} px; a tile is square, of 8 to {MAX_TILE_PX} px",
            subject=subject,
        )
    if image.mode not in _MODES:
        raise InputError(
            f"is not an RGB image of 8 bits (it has mode {image.mode})", subject=subject
        )
    if getattr(image, "n_frames", 1) != 1:
        raise InputError("holds more than one image", subject=subject)
