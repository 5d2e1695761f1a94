"""Tiles made of pictures of any kind: grey ones of 8 or 16 bits, resized, cropped, equalised.

Nothing is guessed: a grey picture is read only if the values that mean black and white are
stated, and a value beyond them is an error, never a clipped or darkened pixel.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsiad.core.errors import InputError
from wsiad.core.images import GREYS, MAX_TILE_PX, colours, load, opened, transparent

MAX_EDGE_PX, MAX_PX = 16_384, 2**26
"""Maximum edge, and number of pixels, of a picture."""

_MIN_EDGE_PX = 8
_COLOURS = frozenset({"RGB", "RGBA", "P"})
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_PARTS = (8, 8)

Pixels = npt.NDArray[np.uint8]


def tile_of_picture(
    data: bytes,
    *,
    subject: str,
    grey_values: tuple[float, float] | None = None,
    resize: int | None = None,
    crop: int | None = None,
    clahe: float | None = None,
) -> Pixels:
    """Make a tile of a picture, turned by its EXIF orientation.

    Parameters
    ----------
    data : bytes
        Bytes of a JPEG, PNG or TIFF.
    subject : str
        Name of the file, for errors.
    grey_values : tuple of float, optional
        Sample values of a grey picture that mean black and white; grey pictures are refused
        without them. Coloured pictures are read as they are.
    resize : int, optional
        Edge, pixels, to which the shorter edge is scaled: by area averages when smaller,
        bilinearly when larger.
    crop : int, optional
        Edge, pixels, of the central square that is cut out afterwards.
    clahe : float, optional
        Limit of the contrast of an equalisation in 8 × 8 parts: of grey values, or of the
        lightness of coloured pictures.

    Returns
    -------
    ndarray of uint8, (S, S, 3)
        RGB pixels.

    Raises
    ------
    InputError
        The data are not such a picture, are damaged, transparent or too large, have values
        beyond the stated ones, or are not square in the end.
    """
    values, grey = _read(data, subject, grey_values)
    if resize is not None:
        values = _resized(values, resize)
    values = _square(values, crop, subject)
    pixels: Pixels = np.rint(values).astype(np.uint8)
    if clahe is not None:
        pixels = _equalised(pixels, clahe)
    return np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2) if grey else pixels)


def check_edge(pixels: Pixels, tile: int | None, *, subject: str) -> None:
    """Check that a tile has the edge of the others.

    Raises
    ------
    InputError
        It has another.
    """
    if tile is not None and len(pixels) != tile:
        raise InputError(
            f"becomes {len(pixels)} × {len(pixels)} px, but the tiles here have {tile} × {tile}",
            subject=subject,
            remedy="Set --crop, or --resize for square pictures.",
        )


def _read(
    data: bytes, subject: str, grey_values: tuple[float, float] | None
) -> tuple[npt.NDArray[np.float32], bool]:
    """Return values from 0 to 255, float32 (H, W) if grey, else (H, W, 3); and whether grey."""
    with opened(data, subject=subject) as image:
        _check(image, subject)
        if image.mode not in GREYS:
            return colours(image, data, subject=subject).astype(np.float32), False
        black, white = _checked_grey(image, subject, grey_values)
        load(image, data, subject=subject)
        found = np.asarray(image)
    return _scaled(found, subject, black, white), True


def _check(image: Image.Image, subject: str) -> None:
    width, height = image.size
    if min(width, height) < _MIN_EDGE_PX or max(width, height) > MAX_EDGE_PX:
        raise InputError(
            f"has {width} × {height} px; a picture has edges of {_MIN_EDGE_PX} to {MAX_EDGE_PX} px",
            subject=subject,
        )
    if width * height > MAX_PX:
        raise InputError(
            f"has {width} × {height} px, more than {MAX_PX >> 20} million", subject=subject
        )
    if image.mode not in _COLOURS | GREYS:
        raise InputError(
            f"is neither in colours of 8 bits nor grey with 8 or 16 (it has mode {image.mode})",
            subject=subject,
            remedy="Convert it.",
        )
    if getattr(image, "n_frames", 1) != 1:
        raise InputError("holds more than one image", subject=subject)


def _checked_grey(
    image: Image.Image, subject: str, grey_values: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the values that mean black and white, of a grey image that can be read."""
    if grey_values is None:
        raise InputError(
            "is grey, and nobody stated which of its values mean black and white",
            subject=subject,
            remedy="State them: --grey-values 0 255 for 8 bits, 0 65535 for all of 16.",
        )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise InputError(
            "is a TIFF whose lowest value is white", subject=subject, remedy="Convert it."
        )
    if "transparency" in image.info:
        raise transparent(subject)
    return grey_values


def _scaled(
    found: npt.NDArray[np.generic], subject: str, black: float, white: float
) -> npt.NDArray[np.float32]:
    """Return grey values from 0 to 255."""
    values = found.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low < min(black, white) or high > max(black, white):
        raise InputError(
            f"has values from {low:g} to {high:g}, beyond the stated {black:g} and {white:g}",
            subject=subject,
            remedy="State the values that mean black and white for all pictures of the source.",
        )
    return ((values - black) * (255 / (white - black))).astype(np.float32)


def _resized(values: npt.NDArray[np.float32], edge: int) -> npt.NDArray[np.float32]:
    height, width = values.shape[:2]
    shorter = min(height, width)
    size = (max(edge, round(width * edge / shorter)), max(edge, round(height * edge / shorter)))
    how = cv2.INTER_AREA if edge < shorter else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, size, interpolation=how), np.float32)


def _square(
    values: npt.NDArray[np.float32], crop: int | None, subject: str
) -> npt.NDArray[np.float32]:
    height, width = values.shape[:2]
    edge = crop or height
    if crop is None and height != width:
        raise InputError(
            f"has {width} × {height} px and is not square",
            subject=subject,
            remedy="Set --crop, the edge of the central square.",
        )
    if edge > min(height, width):
        raise InputError(
            f"has {width} × {height} px, which {edge} × {edge} cannot be cut out of",
            subject=subject,
            remedy="Set a smaller --crop, or --resize.",
        )
    if edge > MAX_TILE_PX:
        raise InputError(
            f"becomes {edge} × {edge} px; a tile has at most {MAX_TILE_PX}",
            subject=subject,
            remedy="Set --resize or --crop.",
        )
    top, left = (height - edge) // 2, (width - edge) // 2
    return values[top : top + edge, left : left + edge]


def _equalised(pixels: Pixels, limit: float) -> Pixels:
    equalise = cv2.createCLAHE(clipLimit=limit, tileGridSize=_PARTS)
    if pixels.ndim == 2:
        return np.asarray(equalise.apply(np.ascontiguousarray(pixels)), np.uint8)
    lab = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2LAB)
    lab[..., 0] = equalise.apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
