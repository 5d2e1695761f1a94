"""The tiles of each level of a TIFF: its directories, read and checked, and the decoding of a tile.

A tile is refused if OpenSlide might decode it differently.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile

from wsiad.core.errors import DamagedTileError, DirectReadError, SlideOpenError
from wsiad.core.geometry import Size
from wsiad.slides.slide import Edges

_NONE, _JPEG = 1, 7
_ANY_JPEG2000 = frozenset({33003, 33004, 33005, 34712})
_JPEG2000_RGB = 33005
"""Aperio's RGB; decoders enlarge its subsampled YCbCr (33003) in different ways."""
_COLOUR_SPACES = {2: "RGB", 6: "YCBCR"}
"""Colour spaces by TIFF's photometric interpretation; the stream's own markers are ignored."""
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
"""Errors that are raised for a file that is not a complete TIFF."""


@dataclass(frozen=True, slots=True)
class TiledLevel:
    """The tiles of a level, row by row, as a TIFF directory lists them.

    Parameters
    ----------
    size, tile : Size
        Sizes of the level and of a tile, pixels; edge tiles are complete and padded.
    columns, rows : int
        Number of tiles that the directory lists; more than the level needs if its size is
        rounded up.
    offsets, counts : ndarray of int64, (rows · columns,)
        Position and length of each tile in the file, bytes; a length of 0 means that
        the slide has no pixels there.
    tables : bytes or None
        Quantisation and Huffman tables that the tiles share (``JPEGTables``).
    colour_space : str
        Colour space of the JPEG streams: ``"RGB"`` or ``"YCBCR"``.
    codec : str
        ``"jpeg"`` or ``"jpeg2000"``; if tiles are only inspected, also ``"none"``, or
        ``"packed"`` for deflate, LZW and others.
    reduced_by : int
        Pixels of the JPEG data along a pixel of the tiles, 1, 2 or 4: the decoder leaves out the
        higher frequencies.
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
    reduced_by: int = 1

    def largest(self, count: int) -> list[int]:
        """Return the level's tiles with the most bytes, the largest first, without missing ones."""
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
            True for cells without missing tiles that do not reach beyond the level's tiles.
        """
        left, right = _first_last(x, self.tile.width)
        top, bottom = _first_last(y, self.tile.height)
        rows = ((top >= 0) & (bottom <= self.rows))[:, None]
        inside: npt.NDArray[np.bool_] = rows & (left >= 0) & (right <= self.columns)
        if self.counts.all():
            return inside
        # Number of tiles above and left of each corner of a tile.
        there = np.zeros((self.rows + 1, self.columns + 1), np.int64)
        there[1:, 1:] = (self.counts > 0).reshape(self.rows, self.columns).cumsum(0).cumsum(1)
        left, right = left.clip(0, self.columns), right.clip(0, self.columns)
        top, bottom = (edge.clip(0, self.rows)[:, None] for edge in (top, bottom))
        found = there[bottom, right] - there[top, right] - there[bottom, left] + there[top, left]
        return inside & (found == (bottom - top) * (right - left))


def _first_last(edges: Edges, tile: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first tile that each cell touches, and one past its last."""
    first = np.floor((edges[:-1] + 1e-6) / tile).astype(np.int64)
    return first, np.ceil((edges[1:] - 1e-6) / tile).astype(np.int64)


def read_layout(
    path: Path, sizes: Sequence[Size], *, name: str, padded: bool = False, any_pixels: bool = False
) -> tuple[TiledLevel, ...]:
    """Find the directory of each level.

    Parameters
    ----------
    path : Path
        Path of a TIFF or BigTIFF.
    sizes : sequence of Size
        Sizes of all levels, pixels.
    name : str
        Name of the slide, for errors.
    padded : bool
        True if directories state their levels' sizes rounded up, as Philips' do. Each tiled
        directory is then a level, in the file's order.
    any_pixels : bool
        True if tiles can be of any kind, because they are inspected and not decoded.

    Returns
    -------
    tuple of TiledLevel

    Raises
    ------
    DirectReadError
        A level is not in exactly one tiled directory with 8-bit RGB or YCbCr JPEG, or RGB
        JPEG 2000 tiles; or the file cannot be read as TIFF.
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
    return TiledLevel(
        size=size,
        tile=tile,
        columns=columns,
        rows=rows,
        offsets=offsets,
        counts=counts,
        tables=tables,
        colour_space=colour_space,
        codec=codec,
    )


def _coding(page: tifffile.TiffPage) -> tuple[str, str]:
    """Return codec and colour space of a directory's tiles."""
    if page.compression == _JPEG2000_RGB:
        return "jpeg2000", "RGB"
    if page.compression != _JPEG:
        raise DirectReadError(f"compression {_named(page.compression)}")
    if page.photometric not in _COLOUR_SPACES:
        raise DirectReadError(f"JPEG of photometric interpretation {_named(page.photometric)}")
    return "jpeg", _COLOUR_SPACES[page.photometric]


def _inspected(page: tifffile.TiffPage) -> tuple[str, str]:
    """Return the codec of a directory's tiles of any kind, and the colour space of JPEG tiles."""
    codec = "none" if page.compression == _NONE else "packed"
    codec = "jpeg2000" if page.compression in _ANY_JPEG2000 else codec
    codec = "jpeg" if page.compression == _JPEG else codec
    return codec, _COLOUR_SPACES.get(page.photometric, "")


def _named(value: int) -> str:
    """Return the name of a TIFF tag's value, or the value if it has none."""
    return str(getattr(value, "name", value))


def compression_name(number: int) -> str:
    """Return the name of a TIFF compression, such as ``"WEBP"``, or its number if it has none."""
    known = number in set(tifffile.COMPRESSION)
    return tifffile.COMPRESSION(number).name if known else str(number)


_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame, which state the process by which the stream was coded."""
_BASELINE = frozenset({0xC0, 0xC1})
_PROGRESSIVE = 0xC2
_FRAME = struct.Struct(">BHHB")
"""Start of a frame: bits of a sample, height and width in pixels, components."""
_ADOBE = {
    "RGB": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00",
    "YCBCR": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01",
}
"""Segments by which a stream states its colour space."""
_HOLE_BYTES = 3
"""Number of zeros at the end of a tile without end marker that are a hole in the file. Fewer may
replace the marker alone."""
_PADDING_BYTES = 8
"""Maximum number of bytes after the end of a tile's data that can be ignored."""

_J2K_HEAD = struct.Struct(">4s4x8I")
"""Start of a JPEG 2000 codestream: markers, then ends and origins of image and tiles."""
_J2K_MARKERS = b"\xff\x4f\xff\x51"
_J2K_STEPS = (b"\x01\x01", b"\x02\x01", b"\x02\x02")
"""Steps along x and y at which a component can have pixels; the first has them all."""
_J2K_COMPONENTS = struct.pack(">H9B", 3, *[7, 1, 1] * 3)
"""Three components of unsigned 8 bits, none of them subsampled."""

_RGB = npt.NDArray[np.uint8]


def decode_tile(data: bytes, tiles: TiledLevel, *, out: _RGB | None = None) -> _RGB:
    """Decode a tile's stream.

    Parameters
    ----------
    data : bytes
        Bytes of the stream in the file.
    tiles : TiledLevel
        Level of the tile.
    out : ndarray of uint8, (H, W, 3), optional
        Memory to decode into.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB pixels in the size of the level's tiles.

    Raises
    ------
    DamagedTileError
        The stream ends in a hole, or the decoder warns of damage.
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
        height, width = tiles.tile.height, tiles.tile.width
        least = {"min_height": height, "min_width": width, "min_factor": tiles.reduced_by}
        tile: _RGB = simplejpeg.decode_jpeg(stream, "RGB", buffer=out, strict=True, **least)
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
    """Check that a tile's data do not end in a hole, as broken copies do.

    Zeros are valid codes: decoders turn them into pixels, and OpenSlide does not refuse them. A
    JPEG or JPEG 2000 stream ends in a marker. Streams of the other codecs do not end in that
    many zeros. Only uncoded pixels can all be zeros.

    Parameters
    ----------
    data : bytes
        Bytes of the data in the file.
    codec : str
        Codec, as in :class:`wsiad.slides.tiff_tiles.TiledLevel`.

    Raises
    ------
    DamagedTileError
        The data end in a hole.
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
    """Return a tile's JPEG stream in a form that can be decoded alone.

    It receives the tables that the level's tiles share, and the colour space that the TIFF
    states, which overrides the stream's own markers. The frame is checked, so that no more
    memory is used than a tile needs.

    Parameters
    ----------
    data : bytes
        Stream, with or without its tables.
    tiles : TiledLevel
        Level of the tile.

    Returns
    -------
    bytes

    Raises
    ------
    DirectReadError
        The stream is not a baseline JPEG of three components in the size of the tile.
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
            height, width = (tiles.reduced_by * n for n in (tiles.tile.height, tiles.tile.width))
            if frame != _FRAME.pack(8, height, width, 3):
                raise DirectReadError("JPEG of another size or kind of pixel than its tile")
        if kind not in (_APP0, _APP14):
            parts.append(data[at:end])
        elif _is_warned_of(kind, data[at + 4 : end]):
            raise DirectReadError("JPEG of an unknown version or colour transform")
        at = end
    raise DirectReadError("not a JPEG stream")


def _is_warned_of(kind: int, segment: bytes) -> bool:
    """Tell whether decoders warn of a segment that is left out of the stream here."""
    if kind == _APP0:
        return segment[:5] == b"JFIF\0" and len(segment) >= 14 and segment[5] != 1
    return segment[:5] == b"Adobe" and len(segment) >= 12 and segment[11] not in (0, 1)


def ends_in_hole(data: bytes) -> bool:
    """Tell whether a JPEG stream ends in zeros instead of its end marker.

    An interrupted copy leaves a hole in the file, and zeros are valid codes: decoders turn them
    into grey, and OpenSlide does not refuse them.
    """
    return data.endswith(bytes(_HOLE_BYTES)) and not data.rstrip(b"\0").endswith(_EOI)


def check_jpeg2000_size(data: bytes, tile: Size) -> None:
    """Check that a JPEG 2000 codestream fills its tile; OpenSlide fills the rest with other pixels.

    Raises
    ------
    DamagedTileError
        The codestream has another size or origin. Or its colours are at another scale than the
        tile's or half of it, for which OpenSlide returns other pixels at every call.
    """
    head = _J2K_HEAD.size
    if len(data) < head or data[:4] != _J2K_MARKERS:
        return
    _, width, height, left, top, *_ = _J2K_HEAD.unpack_from(data)
    if (width, height, left, top) != (tile.width, tile.height, 0, 0):
        raise DamagedTileError("its JPEG 2000 data are of another size than the tile")
    # Each component has three bytes: its depth, and its steps along x and y.
    components = int.from_bytes(data[head : head + 2])
    steps = [data[head + 3 + 3 * n : head + 5 + 3 * n] for n in range(min(components, 3))]
    if any(step not in _J2K_STEPS[: 1 if n == 0 else None] for n, step in enumerate(steps)):
        raise DamagedTileError("its JPEG 2000 colours are not at the scale of the tile or half")


def jpeg2000_problem(data: bytes, tiles: TiledLevel) -> str:
    """Return why a stream is not a JPEG 2000 codestream of RGB that OpenSlide accepts.

    Aperio's YCbCr (compression 33003) has its colours at half the width, and decoders enlarge
    and convert them in different ways.

    Parameters
    ----------
    data : bytes
    tiles : TiledLevel
        Level of the tile.

    Returns
    -------
    str
        The reason; empty if the stream is accepted.
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
