"""Images as files: tiles, decoded only if the header states one, and pictures as JPEG and PNG."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import (
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from wsiad.core.errors import InputError
from wsiad.core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff"})
"""Suffixes of files that are taken for tiles."""

MAX_FILE_BYTES = 64 * 2**20
"""Maximum size of a tile's file in bytes: uncompressed, 4096 × 4096 RGB takes 48 MiB."""

MAX_TILE_PX = 4096
"""Maximum edge of a tile, pixels, as in a store's preparation."""

_PNG_LEVEL = 3
"""Level of zlib: a third of the time of its usual 6 for a tenth more bytes."""

_FORMATS = ("JPEG", "PNG", "TIFF")
_PLUGINS = (JpegImagePlugin, PngImagePlugin, TiffImagePlugin)
"""Plug-ins of these formats. Where one is not imported, Pillow imports all of its forty."""
_MODES = frozenset({"RGB", "RGBA", "P"})
GREYS = frozenset({"L", "I;16", "I;16B", "I;16L"})
"""Modes of grey images with 8 or 16 bits."""

# What Pillow raises on damaged files; SyntaxError is its word for a broken PNG.
_BROKEN = (OSError, ValueError, SyntaxError, TypeError, EOFError, struct.error)
_PNG, _PNG_BITS_AT = b"\x89PNG\r\n\x1a\n", 24
_BITS, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1
"""TIFF's tags of the bits and the kind of a sample."""


def is_picture(name: str) -> bool:
    """Tell by its name whether a file is meant as a tile."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def decode(data: bytes, *, subject: str, tile: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a tile, turned by its EXIF orientation.

    Size and colours are checked before a pixel is decoded, so that a small file cannot
    become a large image.

    Parameters
    ----------
    data : bytes
        Bytes of a JPEG, PNG or TIFF.
    subject : str
        Name of the file, for errors.
    tile : int, optional
        Edge that the tile must have, pixels; by default any.

    Returns
    -------
    ndarray of uint8, (tile, tile, 3)
        RGB pixels.

    Raises
    ------
    InputError
        The data are not such an image, are damaged, transparent, not in colours of 8 bits, not
        square, or of another size.
    """
    with opened(data, subject=subject) as image:
        _check(image, subject, tile)
        return colours(image, data, subject=subject)


@contextlib.contextmanager
def opened(data: bytes, *, subject: str) -> Iterator[Image.Image]:
    """Open a JPEG, PNG or TIFF, of any size; what breaks while it is read is one error.

    Raises
    ------
    InputError
        The data are not such an image, or are damaged.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's warning of large images; who reads one checks its size.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        with image:
            yield image
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data, subject) from error
    except (Image.DecompressionBombError, *_BROKEN) as error:
        raise _unreadable(subject, error) from error


def colours(image: Image.Image, data: bytes, *, subject: str) -> npt.NDArray[np.uint8]:
    """Return the pixels, RGB (H, W, 3), of an opened image in colours; see :func:`load`.

    Raises
    ------
    InputError
        Its samples do not have 8 bits, or it is damaged or transparent.
    """
    _check_samples(image, data, subject)
    load(image, data, subject=subject)
    opaque = image.mode == "RGB" and "transparency" not in image.info
    pixels = np.asarray(image if opaque else image.convert("RGBA"))
    if not opaque and pixels[..., 3].min() < 255:
        raise transparent(subject)
    return np.ascontiguousarray(pixels[..., :3])


def load(image: Image.Image, data: bytes, *, subject: str) -> None:
    """Decode an opened image, turned by its EXIF orientation, and refuse a damaged JPEG."""
    if image.format == "JPEG":
        _check_jpeg(data, subject)
    _turn(image)


def transparent(subject: str) -> InputError:
    """Return the error for an image that is transparent somewhere."""
    return InputError("has transparent pixels", subject=subject, remedy="Save it without alpha.")


def _turn(image: Image.Image) -> None:
    """Turn an image by its EXIF orientation, as Pillow itself does only for TIFF.

    Unreadable EXIF data are ignored, because the pixels are complete without them.
    """
    image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with contextlib.suppress(*_BROKEN):
            ImageOps.exif_transpose(image, in_place=True)


def jpeg(picture: npt.NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode a picture, uint8 (H, W, 3), as JPEG; colours are halved below a quality of 90."""
    data = io.BytesIO()
    subsampling = "4:2:0" if quality < 90 else "4:4:4"
    Image.fromarray(picture).save(data, format="JPEG", quality=quality, subsampling=subsampling)
    return data.getvalue()


def save_png(picture: npt.NDArray[np.uint8], path: Path) -> None:
    """Write a picture, uint8 (H, W, 3) or (H, W, 4), to a PNG of any name, as it is."""
    Image.fromarray(picture).save(path, format="PNG", compress_level=_PNG_LEVEL)


def save_figure(figure: Figure, path: Path, *, dpi: float | None = None) -> None:
    """Write a figure of matplotlib as PNG, complete or not at all.

    The file does not name the program's version, so that equal figures are equal files.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : Path
        File to write.
    dpi : float, optional
        Pixels an inch; by default the figure's own.
    """
    with atomic_file(path) as partial:
        figure.savefig(
            partial,
            format="png",
            dpi="figure" if dpi is None else dpi,
            metadata={"Software": None},
            pil_kwargs={"compress_level": _PNG_LEVEL},
        )


def _check(image: Image.Image, subject: str, tile: int | None) -> None:
    width, height = image.size
    if tile is not None and (width, height) != (tile, tile):
        raise InputError(
            f"has {width} × {height} px, but the tiles here have {tile} × {tile}",
            subject=subject,
            remedy="Use tiles of one size.",
        )
    if width != height or not 8 <= width <= MAX_TILE_PX:
        raise InputError(
            f"has {width} × {height} px; a tile is square, of 8 to {MAX_TILE_PX} px",
            subject=subject,
            remedy="Other pictures become tiles by --resize and --crop.",
        )
    if image.mode not in _MODES:
        raise InputError(
            f"is not an RGB image of 8 bits (it has mode {image.mode})",
            subject=subject,
            remedy="Grey pictures are imported with --grey-values."
            if image.mode in GREYS
            else "Convert it to RGB.",
        )
    if getattr(image, "n_frames", 1) != 1:
        raise InputError("holds more than one image", subject=subject)


def _check_samples(image: Image.Image, data: bytes, subject: str) -> None:
    """Refuse samples of more than 8 bits: Pillow keeps the upper 8, whatever range is used."""
    bits: set[int] = {8}
    if image.format == "PNG":
        bits = {data[_PNG_BITS_AT]}
    elif image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits = set(np.ravel(tags.get(_BITS, 8)).tolist())
        if set(np.ravel(tags.get(_SAMPLE_FORMAT, _UNSIGNED)).tolist()) != {_UNSIGNED}:
            raise _other_samples("samples that are not unsigned integers", subject)
    if max(bits) > 8:
        raise _other_samples(f"samples of {max(bits)} bits", subject)


def _other_samples(what: str, subject: str) -> InputError:
    return InputError(
        f"has {what}, not of 8, and does not state which values mean black and white",
        subject=subject,
        remedy="Convert its values from the scanner's range to 0 to 255, 8 bits.",
    )


def _check_jpeg(data: bytes, subject: str) -> None:
    """Refuse a JPEG of which decoders warn, and which they fill with pixels of their own."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as warning:
        try:
            simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)
        except ValueError:
            return  # of a kind that it does not know: Pillow's to judge
        raise _unreadable(subject, warning) from warning


def _unidentified(data: bytes, subject: str) -> InputError:
    """Return the error for a file that Pillow does not recognise."""
    import tifffile

    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _unreadable(subject, ValueError("it is a WebP"))
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                page = tiff.pages[0]
                if page.dtype is not None and page.dtype != np.uint8:
                    return _other_samples(f"samples of type {page.dtype}", subject)
        except Exception as error:
            return _unreadable(subject, error)
    return _unreadable(subject, ValueError("it is none of them" if data else "it is empty"))


def cut_window(path: Path, size: int, *, seed: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Cut a random window out of a picture of any shape, even a grey one.

    Parameters
    ----------
    path : Path
        Path of a JPEG, PNG or TIFF.
    size : int
        Edge of the window, pixels.
    seed : sequence of int
        Numbers that decide the position.

    Returns
    -------
    ndarray of uint8, (size, size, 3)
        RGB pixels.

    Raises
    ------
    InputError
        The file is not such a picture, is damaged, too large to decode, or smaller than the window.
    """
    subject = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                _check_holds(width, height, size, subject)
                rng = np.random.default_rng(list(seed))
                left = int(rng.integers(0, width - size + 1))
                top = int(rng.integers(0, height - size + 1))
                window = image.convert("RGB").crop((left, top, left + size, top + size))
                return np.array(window)
    except InputError:
        raise
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        *_BROKEN,
    ) as error:
        raise _unreadable(subject, error) from error


def _check_holds(width: int, height: int, size: int, subject: str) -> None:
    if min(width, height) < size:
        raise InputError(
            f"has {width} × {height} px; a window needs {size} × {size}",
            subject=subject,
            remedy="Remove it from the folder.",
        )


def _unreadable(subject: str, error: BaseException) -> InputError:
    return InputError(
        f"cannot be read as a JPEG, PNG or TIFF ({' '.join(str(error).split())})",
        subject=subject,
        remedy="Replace or remove the file.",
    )
