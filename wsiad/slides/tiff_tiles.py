"""Where a tiled JPEG TIFF keeps the tiles of each level: its directories, read and checked."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from wsiad.core.errors import DirectReadError, SlideOpenError
from wsiad.core.geometry import Size
from wsiad.slides.slide import Edges

_NONE, _JPEG = 1, 7
_ANY_JPEG2000 = frozenset({33003, 33004, 33005, 34712})
_JPEG2000_RGB = 33005
"""Aperio's; its YCbCr (33003) is subsampled, and enlarged by each decoder in its own way."""
_COLOUR_SPACES = {2: "RGB", 6: "YCBCR"}
"""Of TIFF's photometric interpretation; it, not the stream's own markers, is believed."""
_MAX_TILE_PX = 4096 * 4096
NOT_A_TIFF = (
    tifffile.TiffFileError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What is raised for a file that is no whole TIFF."""


@dataclass(frozen=True, slots=True)
class TiledLevel:
    """The tiles of a level, row by row, as a TIFF directory lists them.

    Parameters
    ----------
    size, tile : Size
        Of the level and of a tile, pixels; edge tiles are whole and padded.
    columns, rows : int
        Number of tiles that the directory lists; more than the level needs where its size
        is rounded up.
    offsets, counts : ndarray of int64, (rows · columns,)
        Position and length of each tile in the file, bytes; a length of 0 means that
        the slide has no pixels there.
    tables : bytes or None
        Quantisation and Huffman tables that the tiles share (``JPEGTables``).
    colour_space : str
        ``"RGB"`` or ``"YCBCR"``: what the JPEG streams are coded in.
    codec : str
        ``"jpeg"`` or ``"jpeg2000"``; where tiles are only inspected, also ``"none"``, or
        ``"packed"`` for deflate, LZW and others.
    """

    size: Size
    tile: Size
    columns: int
    rows: int
    offsets: npt.NDArray[np.int64] = field(repr=False)
    counts: npt.NDArray[np.int64] = field(repr=False)
    tables: bytes | None = field(repr=False)
    colour_space: str
    codec: str = "jpeg"

    def largest(self, count: int) -> list[int]:
        """Return the tiles within the level of the most bytes, most first; none that is missing."""
        inside = np.zeros((self.rows, self.columns), bool)
        inside[
            : -(-self.size.height // self.tile.height), : -(-self.size.width // self.tile.width)
        ] = 1
        counts = np.where(inside.ravel(), self.counts, 0)
        order = np.argsort(-counts, kind="stable")[:count]
        return [int(index) for index in order if counts[index]]

    def listed(self, x: Edges, y: Edges) -> npt.NDArray[np.bool_]:
        """Tell for which cells of a lattice no tile is missing.

        Parameters
        ----------
        x, y : ndarray of float64, (W + 1,) and (H + 1,)
            Edges of the columns and rows of cells, pixels of the level, rising.

        Returns
        -------
        ndarray of bool, (H, W)
            False for cells that reach beyond the level's tiles.
        """
        left, right = _first_last(x, self.tile.width)
        top, bottom = _first_last(y, self.tile.height)
        # Number of tiles above and left of each corner of a tile.
        there = np.zeros((self.rows + 1, self.columns + 1), np.int64)
        there[1:, 1:] = (self.counts > 0).reshape(self.rows, self.columns).cumsum(0).cumsum(1)
        columns = (left >= 0) & (right <= self.columns)
        rows = (top >= 0) & (bottom <= self.rows)
        left, right = left.clip(0, self.columns), right.clip(0, self.columns)
        top, bottom = (edge.clip(0, self.rows)[:, None] for edge in (top, bottom))
        found = there[bottom, right] - there[top, right] - there[bottom, left] + there[top, left]
        whole = found == (bottom - top) * (right - left)
        return np.asarray(whole & rows[:, None] & columns, bool)


def _first_last(edges: Edges, tile: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First tile that each cell lies in, and the one after its last."""
    first = np.floor((edges[:-1] + 1e-6) / tile).astype(np.int64)
    return first, np.ceil((edges[1:] - 1e-6) / tile).astype(np.int64)


def read_layout(
    path: Path, sizes: Sequence[Size], *, name: str, padded: bool = False, any_pixels: bool = False
) -> tuple[TiledLevel, ...]:
    """Find the directory of each level.

    Parameters
    ----------
    path : Path
        A TIFF or BigTIFF.
    sizes : sequence of Size
        Of all levels, pixels.
    name : str
        The slide's, for errors.
    padded : bool
        Whether directories state their levels' sizes rounded up, as Philips' do: each
        tiled one is then a level, in the file's order.
    any_pixels : bool
        Whether tiles may be of any kind: they are inspected, not decoded.

    Returns
    -------
    tuple of TiledLevel

    Raises
    ------
    DirectReadError
        A level is not held by exactly one tiled directory with 8-bit RGB or YCbCr JPEG,
        or RGB JPEG 2000 tiles; or the file cannot be read as TIFF.
    SlideOpenError
        A level's directory lists fewer tiles than its size needs.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            tiled = [page for page in tiff.pages if page.is_tiled]
            pages = _in_order(tiled, sizes) if padded else _by_size(tiled, sizes)
            return tuple(
                _level(page, size, name=name, any_pixels=any_pixels)
                for page, size in zip(pages, sizes, strict=True)
            )
    except SlideOpenError:
        raise
    except NOT_A_TIFF as error:
        raise DirectReadError(f"its TIFF directories cannot be read ({error})") from error


def _by_size(tiled: list[tifffile.TiffPage], sizes: Sequence[Size]) -> list[tifffile.TiffPage]:
    chosen = []
    for size in sizes:
        pages = [page for page in tiled if Size(page.imagewidth, page.imagelength) == size]
        if len(pages) != 1:
            raise DirectReadError(f"{len(pages)} tiled directories have a level's size, {size}")
        chosen += pages
    return chosen


def _in_order(tiled: list[tifffile.TiffPage], sizes: Sequence[Size]) -> list[tifffile.TiffPage]:
    if len(tiled) != len(sizes):
        raise DirectReadError(f"{len(tiled)} tiled directories for {len(sizes)} levels")
    for page, size in zip(tiled, sizes, strict=True):
        if page.imagewidth < size.width or page.imagelength < size.height:
            raise DirectReadError(f"a directory is smaller than its level, {size}")
    return tiled


def _level(page: tifffile.TiffPage, size: Size, *, name: str, any_pixels: bool) -> TiledLevel:
    codec, colour_space = _inspected(page) if any_pixels else _coding(page)
    plain = (
        page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and not page.extrasamples
        and (page.imagedepth, page.tiledepth) == (1, 1)
        and 0 < page.tilewidth * page.tilelength <= _MAX_TILE_PX
        and page.fillorder == 1
    )
    if not plain and not any_pixels:
        raise DirectReadError("a directory is not of plain 8-bit RGB tiles")
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    if (listed := min(len(offsets), len(counts))) < columns * rows:
        raise SlideOpenError(
            f"claims {page.imagewidth:,} × {page.imagelength:,} px in {columns * rows:,} tiles, "
            f"of which it lists {listed:,}",
            subject=name,
            remedy="Copy the slide again from its source; it is damaged.",
        )
    if not len(offsets) == len(counts) == columns * rows or (counts < 0).any():
        raise DirectReadError("a directory does not list each of its tiles")
    tables = page.jpegtables
    if not isinstance(tables, bytes | None):
        raise DirectReadError("the JPEG tables of a directory are no bytes")
    tile = Size(page.tilewidth, page.tilelength)
    return TiledLevel(size, tile, columns, rows, offsets, counts, tables, colour_space, codec)


def _coding(page: tifffile.TiffPage) -> tuple[str, str]:
    """Codec and colour space of a directory's tiles."""
    if page.compression == _JPEG2000_RGB:
        return "jpeg2000", "RGB"
    if page.compression != _JPEG:
        raise DirectReadError(f"compression {_named(page.compression)}")
    if page.photometric not in _COLOUR_SPACES:
        raise DirectReadError(f"JPEG of photometric interpretation {_named(page.photometric)}")
    return "jpeg", _COLOUR_SPACES[page.photometric]


def _inspected(page: tifffile.TiffPage) -> tuple[str, str]:
    """Codec of a directory's tiles, whatever it is, and colour space if it is JPEG's."""
    codec = "none" if page.compression == _NONE else "packed"
    codec = "jpeg2000" if page.compression in _ANY_JPEG2000 else codec
    codec = "jpeg" if page.compression == _JPEG else codec
    return codec, _COLOUR_SPACES.get(page.photometric, "")


def _named(value: int) -> str:
    """Name of a TIFF tag's value, where it has one."""
    return str(getattr(value, "name", value))


def compression_name(number: int) -> str:
    """Name a TIFF compression by its number, such as ``"WEBP"``; else return the number."""
    known = number in set(tifffile.COMPRESSION)
    return tifffile.COMPRESSION(number).name if known else str(number)
