"""Decoding one tile of a TIFF, refusing what OpenSlide might see otherwise."""

from __future__ import annotations

import re
import struct

import imagecodecs
import numpy as np
import numpy.typing as npt

from wsiad.errors import DirectReadError
from wsiad.slides.jpeg_tiff_layout import TiledLevel

_PADDING_BYTES = 8
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOI, _SOS, _EOI = b"\xff\xd8", 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame, which say the process that the stream was coded by."""
_BASELINE = frozenset({0xC0, 0xC1})
_PROGRESSIVE = 0xC2

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
    DirectReadError
        The stream is damaged or of a kind that is not known here.
    """
    jpeg2000 = tiles.codec == "jpeg2000"
    problem = jpeg2000_problem(data, tiles) if jpeg2000 else jpeg_problem(data)
    if problem:
        raise DirectReadError(problem)
    try:
        if jpeg2000:
            tile: _RGB = imagecodecs.jpeg2k_decode(data, out=out)
        else:
            tile = imagecodecs.jpeg8_decode(
                data,
                tables=tiles.tables,
                colorspace=tiles.colour_space,
                outcolorspace="RGB",
                out=out,
            )
    except (imagecodecs.Jpeg8Error, imagecodecs.Jpeg2kError, ValueError) as error:
        raise DirectReadError(f"a tile cannot be decoded ({error})") from error
    if tile.dtype != np.uint8 or tile.shape != (tiles.tile.height, tiles.tile.width, 3):
        raise DirectReadError(f"a tile decodes to {tile.dtype} of {tile.shape}")
    return tile


def jpeg_problem(data: bytes) -> str:
    """Say why a JPEG stream is not a single baseline scan that ends in an end marker.

    Decoders fill up what a cut or overwritten stream lacks with grey, and only warn.

    Parameters
    ----------
    data : bytes
        A JPEG stream, with or without its tables.

    Returns
    -------
    str
        Empty where it is one.
    """
    at = len(_SOI)
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if kind in _FRAMES - _BASELINE:
            return "progressive JPEG" if kind == _PROGRESSIVE else f"JPEG of process {kind:#x}"
        at += 2 + length
        if kind == _SOS:
            end = _MARKER.search(data, at)
            if end is None or data[end.start() + 1] != _EOI:
                return "JPEG that breaks off, or of several scans"
            extra = len(data) - end.end()
            return "" if extra <= _PADDING_BYTES else "JPEG with more data after its end"
    return "not a JPEG stream"


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
