"""Where a tiled JPEG TIFF keeps the tiles of each level: its directories, read and checked."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from wsiad.geometry import Size

logger = logging.getLogger(__name__)

_JPEG = 7
_COLOUR_SPACES = {2: "RGB", 6: "YCBCR"}
"""Of TIFF's photometric interpretation; it, not the stream's own markers, is believed."""
_MAX_TILE_PX = 4096 * 4096
_NOT_A_TIFF = (
    tifffile.TiffFileError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)
_PADDING_BYTES = 8
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True, slots=True)
class TiledLevel:
    """The tiles of a level, row by row, as a TIFF directory lists them.

    Parameters
    ----------
    size, tile : Size
        Of the level and of a tile, pixels; edge tiles are whole and padded.
    columns, rows : int
        Number of tiles.
    offsets, counts : ndarray of int64, (rows · columns,)
        Position and length of each tile in the file, bytes; a length of 0 means that
        the slide has no pixels there.
    tables : bytes or None
        Quantisation and Huffman tables that the tiles share (``JPEGTables``).
    colour_space : str
        ``"RGB"`` or ``"YCBCR"``: what the JPEG streams are coded in.
    """

    size: Size
    tile: Size
    columns: int
    rows: int
    offsets: npt.NDArray[np.int64] = field(repr=False)
    counts: npt.NDArray[np.int64] = field(repr=False)
    tables: bytes | None = field(repr=False)
    colour_space: str


def read_layout(path: Path, sizes: Sequence[Size]) -> tuple[TiledLevel, ...] | None:
    """Find the directory of each level.

    Parameters
    ----------
    path : Path
        A TIFF or BigTIFF.
    sizes : sequence of Size
        Of all levels, pixels.

    Returns
    -------
    tuple of TiledLevel, or None
        ``None`` where a level is not held by exactly one tiled directory with baseline
        8-bit RGB or YCbCr JPEG tiles, or where the file cannot be read as TIFF.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            return _levels(tiff, sizes)
    except _NOT_A_TIFF as error:
        logger.debug("%s: its TIFF directories cannot be read: %s", path, error)
        return None


def _levels(tiff: tifffile.TiffFile, sizes: Sequence[Size]) -> tuple[TiledLevel, ...] | None:
    tiled = [page for page in tiff.pages if page.is_tiled]
    levels = []
    for size in sizes:
        pages = [page for page in tiled if Size(page.imagewidth, page.imagelength) == size]
        if len(pages) != 1:
            logger.debug("%d tiled directories have a level's size, %s", len(pages), size)
            return None
        level = _level(pages[0], size)
        if level is None:
            logger.debug("the directory of %s is of a kind that is not known here", size)
            return None
        levels.append(level)
    return tuple(levels)


def _level(page: tifffile.TiffPage, size: Size) -> TiledLevel | None:
    known = (
        page.compression == _JPEG
        and page.photometric in _COLOUR_SPACES
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and not page.extrasamples
        and (page.imagedepth, page.tiledepth) == (1, 1)
        and 0 < page.tilewidth * page.tilelength <= _MAX_TILE_PX
        and page.fillorder == 1
    )
    if not known:
        return None
    columns, rows = -(-size.width // page.tilewidth), -(-size.height // page.tilelength)
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    if not len(offsets) == len(counts) == columns * rows or (counts < 0).any():
        return None
    return TiledLevel(
        size,
        Size(page.tilewidth, page.tilelength),
        columns,
        rows,
        offsets,
        counts,
        page.jpegtables,
        _COLOUR_SPACES[page.photometric],
    )


def is_whole_stream(data: bytes) -> bool:
    """Whether a JPEG stream is one scan that ends in an end marker and has no other in it.

    Decoders fill up what a cut or overwritten stream lacks with grey, and only warn.

    Parameters
    ----------
    data : bytes
        A JPEG stream, with or without its tables.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        at += 2 + length
        if kind == 0xDA:
            end = _MARKER.search(data, at)
            return (
                end is not None
                and data[end.start() + 1] == 0xD9
                and len(data) - end.end() <= _PADDING_BYTES
            )
    return False
