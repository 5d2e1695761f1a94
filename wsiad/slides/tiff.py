"""The backend that decodes JPEG or JPEG 2000 tiles of TIFF and SVS directly, each only once.

OpenSlide spends most of its time outside of the JPEG decoder (blending, converting to RGBA and
back). Here the tiles of the file are read and decoded, and their pixels copied to the requested
places. All other facts about the slide are OpenSlide's, whose pixels remain the reference: a slide
is read in this way only if a tile of each level was compared with them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DamagedTileError, DirectReadError, SlideReadError
from wsiad.core.geometry import Size
from wsiad.slides.inspection import TIFF_FORMATS
from wsiad.slides.openslide_backend import OpenSlideBackend
from wsiad.slides.slide import Edges, Level, Region, Slide
from wsiad.slides.tiff_tiles import TiledLevel, decode_tile, read_layout
from wsiad.slides.tile_cache import Cut, TileCache, cut_by_tile, inside

logger = logging.getLogger(__name__)

FORMATS = TIFF_FORMATS

CACHE_BYTES = 64 * 2**20
"""Size of the decoded tiles that are kept: blocks that share a tile do not decode it twice."""

AHEAD_BYTES = 96 * 2**20
"""Size of the decoded tiles that are read ahead of their use; stains are estimated from them."""

_COMPARED_TILES = 8
_COMPARED_PX = 256
"""Edge of the part of a tile that is compared with OpenSlide. Another decoder or another coding of
colours would show in any part with structure."""

_RGB = npt.NDArray[np.uint8]


class JpegTiffBackend(Slide):
    """A slide whose JPEG tiles are decoded directly; see :func:`open_jpeg_tiff`.

    Pixels equal those of :class:`OpenSlideBackend`, bit by bit, wherever OpenSlide's ratio of
    sizes is an integer. It is not where a pyramid dropped an odd edge: OpenSlide accepts only
    whole pixels of level 0, and then interpolates up to half of one away from the level's
    pixels. Here the level's own pixels are returned.

    Parameters
    ----------
    reference : OpenSlideBackend
        The same slide, which is closed with this one.
    layout : tuple of TiledLevel
        Tiles of each level.
    cache_bytes, ahead_bytes : int
        Limits of the decoded tiles that are kept: those used last, and those read ahead.
    """

    backend = "jpeg-tiff"
    reads_tiles = True

    def __init__(
        self,
        reference: OpenSlideBackend,
        layout: tuple[TiledLevel, ...],
        *,
        cache_bytes: int = CACHE_BYTES,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self.name, self.path, self.format = reference.name, reference.path, reference.format
        self.levels, self.bounds = reference.levels, reference.bounds
        self.spacing, self.spacing_source = reference.spacing, reference.spacing_source
        self.scale_note = reference.scale_note
        self.scale_overridden = reference.scale_overridden
        self._reference, self._layout = reference, list(layout)
        self._reduced: dict[int, int] = {}
        self._cache, self._ahead = TileCache(cache_bytes, ahead_bytes), False
        self._once, self._used = False, dict[tuple[int, int], int]()
        self._bad: set[tuple[int, int]] = set()
        self._file = self.path.open("rb", buffering=0)
        self._bytes = os.fstat(self._file.fileno()).st_size

    def reduced(self, level: int, by: int) -> tuple[int, Level]:
        """Return a level whose tiles are decoded smaller; see :meth:`Slide.reduced`."""
        tiles, whole = self._layout[level], self.levels[level]
        width, height = tiles.tile.width, tiles.tile.height
        if tiles.codec != "jpeg" or width % by or height % by:
            kind = f"{tiles.codec} of {width} × {height} px"
            raise self._not_reduced(f"those of level {level} are {kind}")
        tiles = replace(
            tiles,
            size=Size(tiles.size.width // by, tiles.size.height // by),
            tile=Size(width // by, height // by),
            reduced_by=by,
        )
        self._layout.append(tiles)
        number = len(self._layout) - 1
        self._reduced[number] = level
        return number, Level(tiles.size, by * whole.downsample_x, by * whole.downsample_y)

    def listed(self, level: int, x: Edges, y: Edges) -> npt.NDArray[np.bool_] | None:
        """Tell which cells the file lists tiles for; see :meth:`Slide.listed`."""
        return self._layout[level].listed(x, y)

    def read_level(self, level: int, x: int, y: int, size: Size) -> Region:
        """Read a rectangle of a level; see :meth:`Slide.read_level`."""
        tiles = self._layout[level]
        rgb = np.empty((size.height, size.width, 3), np.uint8)
        valid = None if inside(x, y, size, tiles.size) else np.zeros(rgb.shape[:2], bool)
        if valid is not None:
            rgb[:] = 0
        for row, column, cuts in cut_by_tile([(x, y)], size, tiles.tile, tiles.size):
            tile = self._tile(level, row, column)
            if self._once:
                self._use(level, row, column, cuts=cuts)
            for _, asked, own in cuts:
                if tile is not None:
                    rgb[asked] = tile[own]
                    if valid is not None:
                        valid[asked] = True
                    continue
                if valid is None:
                    valid = np.ones(rgb.shape[:2], bool)
                rgb[asked], valid[asked] = 0, False
        return Region(rgb, valid)

    def read_tiles(
        self, level: int, corners: npt.NDArray[np.int64], out: _RGB
    ) -> npt.NDArray[np.bool_]:
        """Read rectangles of a level, by the tiles of the file; see :meth:`Slide.read_tiles`."""
        tiles, size = self._layout[level], Size(out.shape[2], out.shape[1])
        places = corners.tolist()
        whole = np.array([inside(x, y, size, tiles.size) for x, y in places], bool)
        for row, column, cuts in cut_by_tile(places, size, tiles.tile, tiles.size):
            tile = self._tile(level, row, column)
            if tile is None:
                whole[[cut.rectangle for cut in cuts]] = False
                continue
            for rectangle, asked, own in cuts:
                out[rectangle][asked] = tile[own]
            if sum(cut.pixels for cut in cuts) >= tiles.tile.width * tiles.tile.height:
                self._cache.finish((level, row * tiles.columns + column))
        return whole

    def _use(self, level: int, row: int, column: int, *, cuts: Sequence[Cut]) -> None:
        """Count pixels of a tile that are not read again; drop it when none is left."""
        _, _, size = self._place(level, row, column)
        key = (level, row * self._layout[level].columns + column)
        used = self._used.pop(key, 0) + sum(cut.pixels for cut in cuts)
        if used >= size.width * size.height:
            self._cache.finish(key)
        else:
            self._used[key] = used

    def _tile(self, level: int, row: int, column: int) -> _RGB | None:
        """Return a tile; ``None`` if it is missing, or damaged and skipped."""
        tiles = self._layout[level]
        index = row * tiles.columns + column
        if not tiles.counts[index] or (level, index) in self._bad:
            return None
        tile = self._cache.get((level, index), ahead=self._ahead)
        if tile is None:
            try:
                tile = self._decoded(level, row, column)
            except DamagedTileError:
                if not self.skip_damaged:
                    raise
                self._bad.add((level, index))
                self.note_damage(level, *self._place(level, row, column))
                return None
            self._cache.put((level, index), tile, ahead=self._ahead)
        return tile

    def _decoded(self, level: int, row: int, column: int) -> _RGB:
        """Decode a tile, or let OpenSlide decode it if its kind is not known here."""
        tiles = self._layout[level]
        index = row * tiles.columns + column
        room = self._cache.room(tiles.tile, ahead=self._ahead)
        try:
            return self._decode(tiles, index, room)
        except DamagedTileError as error:
            place = self._coded(level, *self._place(level, row, column))
            raise self._reference.damage(*place, error.problem) from error
        except DirectReadError as error:
            logger.debug("%s: tile %d of level %d: %s", self.name, index, level, error)
            return self._by_reference(level, row, column)

    @contextmanager
    def reading_ahead(self) -> Iterator[None]:
        """Keep decoded tiles until they are requested again; see :meth:`Slide.reading_ahead`."""
        self._ahead = True
        try:
            yield
        finally:
            self._ahead = False

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """Drop tiles of which all pixels were read; see :meth:`Slide.reading_once`."""
        self._once = True
        try:
            yield
        finally:
            self._once = False

    def forget(self) -> None:
        """Release the decoded tiles; see :meth:`Slide.forget`."""
        self._cache.clear()
        self._used.clear()

    def _decode(self, tiles: TiledLevel, index: int, out: _RGB | None = None) -> _RGB:
        """Read and decode a tile, into ``out`` if set."""
        offset, count = int(tiles.offsets[index]), int(tiles.counts[index])
        if not 0 < offset <= self._bytes - count:
            raise DirectReadError("a tile lies outside of the file")
        data = self._read(count, offset)
        if len(data) != count:
            raise DirectReadError("a tile cannot be read whole")
        return decode_tile(data, tiles, out=out)

    def _read(self, count: int, offset: int) -> bytes:
        """Read bytes of the file; after an error, perhaps the network's, by a new handle."""
        try:
            return os.pread(self._file.fileno(), count, offset)
        except OSError as error:
            logger.warning("%s: read error at byte %d (%s); reopening", self.name, offset, error)
        self.check_unchanged()
        try:
            self._file.close()
            self._file = self.path.open("rb", buffering=0)
            return os.pread(self._file.fileno(), count, offset)
        except OSError as error:
            raise DirectReadError(f"a tile cannot be read ({error})") from error

    def check_unchanged(self) -> None:
        """Check that the file is the one that was opened; see :meth:`Slide.check_unchanged`."""
        self._reference.check_unchanged()

    def _by_reference(self, level: int, row: int, column: int, *, most: int | None = None) -> _RGB:
        """Let OpenSlide decode a tile that was not decoded here, or find it damaged.

        By default this is the complete tile, up to the level's edge. With ``most``, it is a
        square of at most that edge in pixels at its top-left corner.
        """
        x, y, size = self._place(level, row, column)
        if most is not None:
            size = Size(min(most, size.width), min(most, size.height))
        coded = self._coded(level, x, y, size)
        region = self._reference.read_level(*coded)
        if region.valid is not None:
            raise self._reference.damage(*coded, "OpenSlide has no pixels there")
        if level not in self._reduced:
            return region.rgb
        # Only JPEG of the usual kind is decoded smaller: the mean is what that comes near to.
        return np.asarray(
            cv2.resize(region.rgb, (size.width, size.height), interpolation=cv2.INTER_AREA),
            np.uint8,
        )

    def _coded(self, level: int, x: int, y: int, size: Size) -> tuple[int, int, int, Size]:
        """Return level and rectangle of the file that make a rectangle of a level."""
        by = self._layout[level].reduced_by
        size = Size(by * size.width, by * size.height)
        return self._reduced.get(level, level), by * x, by * y, size

    def _place(self, level: int, row: int, column: int) -> tuple[int, int, Size]:
        """Return left, top and size of a tile's part within the level, pixels of the level."""
        tiles = self._layout[level]
        x, y = column * tiles.tile.width, row * tiles.tile.height
        width = min(tiles.tile.width, tiles.size.width - x)
        return x, y, Size(width, min(tiles.tile.height, tiles.size.height - y))

    def compare(self) -> None:
        """Compare a tile of each level, one with the most bytes, with OpenSlide's.

        Damaged tiles do not show how the others are read, so the next tile is compared.

        Raises
        ------
        DirectReadError
            A tile differs, or none can be decoded.
        """
        for level, tiles in enumerate(self._layout):
            problem = None
            for index in tiles.largest(_COMPARED_TILES):
                try:
                    own = self._decode(tiles, index)
                    if not self._reference.exact(level):
                        break
                    # OpenSlide's way to a pixel takes three times as long as decoding it.
                    place = divmod(index, tiles.columns)
                    seen = self._by_reference(level, *place, most=_COMPARED_PX)
                except (DirectReadError, SlideReadError) as error:
                    problem = problem or error.problem
                    continue
                if not np.array_equal(own[: seen.shape[0], : seen.shape[1]], seen):
                    raise DirectReadError("OpenSlide decodes its tiles differently")
                break
            else:
                if problem:
                    raise DirectReadError(problem)

    def close(self) -> None:
        """Close the file."""
        self.release()
        self._reference.close()

    def release(self) -> None:
        """Close the file, but leave OpenSlide's open."""
        self._file.close()


def open_jpeg_tiff(reference: OpenSlideBackend) -> JpegTiffBackend:
    """Open a slide whose tiles are decoded directly.

    Parameters
    ----------
    reference : OpenSlideBackend
        Slide to read; the result owns it, if there is one.

    Raises
    ------
    DirectReadError
        The format, a directory or the pixels are of a kind that is not known here; names it.
    SlideOpenError
        A directory lists fewer tiles than its size needs.
    """
    if reference.format not in FORMATS:
        raise DirectReadError(f"format {reference.format}")
    sizes = [level.size for level in reference.levels]
    layout = read_layout(
        reference.path, sizes, name=reference.name, padded=reference.format == "philips"
    )
    if reference.format == "aperio" and any((tiles.counts == 0).any() for tiles in layout):
        # OpenSlide fills such tiles from the level above.
        raise DirectReadError("Aperio with missing tiles")
    reference.inspect(layout)
    slide = JpegTiffBackend(reference, layout)
    try:
        slide.compare()
    except BaseException:
        slide.release()
        raise
    return slide
