"""Decoding one tile of a TIFF, refusing what OpenSlide might see otherwise."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from wsiad.core.errors import DamagedTileError, DirectReadError
from wsiad.core.geometry import Size
from wsiad.slides.tiff_tiles import TiledLevel

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame, which say the process that the stream was coded by."""
_BASELINE = frozenset({0xC0, 0xC1})
_PROGRESSIVE = 0xC2
_FRAME = struct.Struct(">BHHB")
"""Start of a frame: bits of a sample, height and width in pixels, components."""
_ADOBE = {
    "RGB": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00",
    "YCBCR": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01",
}
"""The segment by which a stream states its colour space."""
_HOLE_BYTES = 3
"""So many zeros at the end of a tile that has no end marker are a hole in the file; fewer may
stand in the place of the marker alone."""
_PADDING_BYTES = 8
"""The most bytes after the end of a tile's data that say nothing of it."""

_J2K_HEAD = struct.Struct(">4s4x8I")
"""Start of a JPEG 2000 codestream: markers, then ends and origins of image and tiles."""
_J2K_MARKERS = b"\xff\x4f\xff\x51"
_J2K_COMPONENTS = struct.pack(">H9B", 3, *[7, 1, 1] * 3)
"""Three components of unsigned 8 bits, none of them subsampled."""

_RGB = npt.NDArray[np.uint8]


def decode_tile(data: bytes, tiles: TiledLevel, *, out: _RGB | None = None) -> _RGB:
    """Decode a tile's stream.

    Parameters
    ----------
    data : bytes
        The stream, as the file holds it.
    tiles : TiledLevel
        The level that the tile is of.
    out : ndarray of uint8, (H, W, 3), optional
        Memory to decode into.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB; of the size of the level's tiles.

    Raises
    ------
    DamagedTileError
        The stream ends in a hole, or the decoder warns of it.
    DirectReadError
        The stream cannot be decoded, or is of a kind that is not known here.
    """
    check_whole(data, tiles.codec)
    try:
        if tiles.codec == "jpeg2000":
            if problem := jpeg2000_problem(data, tiles):
                raise DirectReadError(problem)
            tile: _RGB = imagecodecs.jpeg2k_decode(data, out=out)
        else:
            tile = _decode_jpeg(data, tiles, out)
    except (imagecodecs.Jpeg2kError, ValueError) as error:
        raise DirectReadError(f"a tile cannot be decoded ({error})") from error
    if tile.dtype != np.uint8 or tile.shape != (tiles.tile.height, tiles.tile.width, 3):
        raise DirectReadError(f"a tile decodes to {tile.dtype} of {tile.shape}")
    return tile


def _decode_jpeg(data: bytes, tiles: TiledLevel, out: _RGB | None) -> _RGB:
    stream = whole_jpeg(data, tiles)
    try:
        # What libjpeg only warns of (codes that do not exist, data that ends early or is
        # left over) it fills up with invented pixels: strictly, a warning is an error.
        tile: _RGB = simplejpeg.decode_jpeg(stream, colorspace="RGB", buffer=out, strict=True)
    except ValueError as error:
        simplejpeg.decode_jpeg(stream, colorspace="RGB", strict=False)  # no warning: another kind
        if _EOI in data[-_PADDING_BYTES - len(_EOI) :]:
            raise DamagedTileError(f"its JPEG data are damaged ({error})") from error
        # That the end marker is missing is no damage where all pixels are there.
        stream = whole_jpeg(data.rstrip(b"\0") + _EOI, tiles)
        try:
            simplejpeg.decode_jpeg(stream, colorspace="RGB", strict=True)
        except ValueError:
            raise DamagedTileError(f"its JPEG data are damaged ({error})") from error
        raise DirectReadError("JPEG without its end marker") from error
    return tile


def check_whole(data: bytes, codec: str) -> None:
    """Check that a tile's data do not end in a hole, as a broken copy leaves one.

    Zeros are valid codes: decoders make pixels of them, and OpenSlide does not refuse it. A
    JPEG or JPEG 2000 stream ends in a marker, streams of the other codecs in something that
    is not so many zeros; only where pixels are not coded may they all be zeros.

    Parameters
    ----------
    data : bytes
        The data, as the file holds them.
    codec : str
        That of :class:`wsiad.slides.tiff_tiles.TiledLevel`.

    Raises
    ------
    DamagedTileError
        They do.
    """
    if codec == "none" or data[-1:] != b"\0":
        return
    zeros = len(data) - len(data.rstrip(b"\0"))
    marked = codec in ("jpeg", "jpeg2000")
    hole = ends_in_hole(data) if marked else zeros > _PADDING_BYTES
    if hole or zeros == len(data):
        raise DamagedTileError(
            f"its data end in {zeros:,} zero bytes, as a broken copy leaves them"
        )


def whole_jpeg(data: bytes, tiles: TiledLevel) -> bytes:
    """Make a tile's JPEG stream one that can be decoded alone.

    It gets the tables that the level's tiles share, and the colour space that the TIFF
    states, which is believed before the stream's own markers. The frame is checked, so that
    no more memory is taken than a tile needs.

    Parameters
    ----------
    data : bytes
        The stream, with or without its tables.
    tiles : TiledLevel
        The level that the tile is of.

    Returns
    -------
    bytes

    Raises
    ------
    DirectReadError
        It is not a baseline JPEG stream of three components and of the tile's size.
    """
    if tiles.colour_space not in _ADOBE:
        raise DirectReadError("JPEG that is neither RGB nor YCbCr")
    if not data.startswith(_SOI):
        raise DirectReadError("not a JPEG stream")
    parts = [_SOI, _ADOBE[tiles.colour_space]]
    if tiles.tables is not None:
        parts.append(tiles.tables.removeprefix(_SOI).removesuffix(_EOI))
    at = len(_SOI)
    while data.startswith(b"\xff", at) and at + 4 <= len(data):
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if kind == _SOS:
            parts.append(data[at:])
            return b"".join(parts)
        if kind in _FRAMES:
            if kind not in _BASELINE:
                process = "progressive JPEG" if kind == _PROGRESSIVE else f"JPEG of {kind:#x}"
                raise DirectReadError(process)
            frame = data[at + 4 : at + 4 + _FRAME.size]
            if frame != _FRAME.pack(8, tiles.tile.height, tiles.tile.width, 3):
                raise DirectReadError("JPEG of another size or kind of pixel than its tile")
        if kind not in (_APP0, _APP14):
            parts.append(data[at:end])
        elif _is_warned_of(kind, data[at + 4 : end]):
            raise DirectReadError("JPEG of an unknown version or colour transform")
        at = end
    raise DirectReadError("not a JPEG stream")


def _is_warned_of(kind: int, segment: bytes) -> bool:
    """Whether decoders warn of a segment that is left out of the stream here."""
    if kind == _APP0:
        return segment[:5] == b"JFIF\0" and len(segment) >= 14 and segment[5] != 1
    return segment[:5] == b"Adobe" and len(segment) >= 12 and segment[11] not in (0, 1)


def ends_in_hole(data: bytes) -> bool:
    """Say whether a JPEG stream ends in zeros in place of its end marker.

    A copy that broke off leaves a hole in the file, and zeros are valid codes: decoders make
    grey of them, and OpenSlide does not refuse it.
    """
    return data.endswith(bytes(_HOLE_BYTES)) and not data.rstrip(b"\0").endswith(_EOI)


def check_jpeg2000_size(data: bytes, tile: Size) -> None:
    """Check that a JPEG 2000 codestream fills its tile: OpenSlide fills up what is left of it.

    Raises
    ------
    DamagedTileError
        It has another size, or begins elsewhere.
    """
    if len(data) >= _J2K_HEAD.size:
        markers, width, height, left, top, *_ = _J2K_HEAD.unpack_from(data)
        if markers == _J2K_MARKERS and (width, height, left, top) != (
            tile.width,
            tile.height,
            0,
            0,
        ):
            raise DamagedTileError("its JPEG 2000 data are of another size than the tile")


def jpeg2000_problem(data: bytes, tiles: TiledLevel) -> str:
    """Say why a stream is not a JPEG 2000 codestream of RGB as OpenSlide takes it.

    Aperio's YCbCr (compression 33003) has its colours at half the width, which decoders
    enlarge and convert each in its own way.

    Parameters
    ----------
    data : bytes
    tiles : TiledLevel
        The level that the tile is of.

    Returns
    -------
    str
        Empty where it is one.
    """
    head = _J2K_HEAD.size
    if len(data) < head + len(_J2K_COMPONENTS):
        return "not a JPEG 2000 stream"
    markers, width, height, left, top, *_ = _J2K_HEAD.unpack_from(data)
    if markers != _J2K_MARKERS:
        return "not a JPEG 2000 stream"
    if (width, height, left, top) != (tiles.tile.width, tiles.tile.height, 0, 0):
        return "JPEG 2000 of another size than its tile"
    if data[head : head + len(_J2K_COMPONENTS)] != _J2K_COMPONENTS:
        return "JPEG 2000 with subsampled colours or other than 3 × 8 bits"
    return ""
