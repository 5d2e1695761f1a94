"""The cache of decoded tiles of a slide's file, of limited size.

It also cuts rectangles of a level at the edges of the tiles of its file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Size

RGB = npt.NDArray[np.uint8]
"""A decoded tile, uint8 (H, W, 3)."""

Key = tuple[int, int]
"""Level, and index of the tile in it."""


class TileCache:
    """Decoded tiles, of which the least recently used are dropped and their memory used again.

    Tiles that were read ahead of their use have a limit of their own. They stay until they are
    requested, and are then like all others. While there are many of them, the others have less
    room, down to a quarter. All together stay below the limit of those read ahead plus a quarter
    of the other limit.

    Parameters
    ----------
    max_bytes, max_ahead_bytes : int
        Limits of the tiles that were requested, and of those that were read ahead.
    """

    def __init__(self, max_bytes: int, max_ahead_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._max_ahead_bytes, self._ahead_bytes = max_ahead_bytes, 0
        self._tiles: OrderedDict[Key, RGB] = OrderedDict()
        self._ahead: dict[Key, RGB] = {}
        self._spare: RGB | None = None

    def get(self, key: Key, *, ahead: bool = False) -> RGB | None:
        """Return a tile if it is kept; unless ``ahead``, this requests one read ahead."""
        tile = self._tiles.get(key)
        if tile is not None:
            self._tiles.move_to_end(key)
            return tile
        tile = self._ahead.get(key)
        if tile is not None and not ahead:
            del self._ahead[key]
            self._ahead_bytes -= tile.nbytes
            self._drop_for(tile.nbytes)
            self._put(key, tile)
        return tile

    def room(self, tile: Size, *, ahead: bool = False) -> RGB | None:
        """Drop tiles until one more fits; return memory of that shape, if any was freed.

        New memory costs a page fault every 4 KiB, a tenth of a tile's decoding. Memory that the
        processor's cache no longer holds costs as much.
        """
        nbytes, shape = 3 * tile.width * tile.height, (tile.height, tile.width, 3)
        fits = ahead and self._fits_ahead(nbytes)
        dropped = [] if fits else self._drop_for(nbytes)
        if self._spare is not None:
            dropped.append(self._spare)
            self._spare = None
        usable = [old for old in dropped if old.shape == shape and old.flags.c_contiguous]
        return usable[-1] if usable else None

    def put(self, key: Key, tile: RGB, *, ahead: bool = False) -> None:
        """Keep a tile for which :meth:`room` was called."""
        if ahead and self._fits_ahead(tile.nbytes):
            self._ahead[key] = tile
            self._ahead_bytes += tile.nbytes
            self._drop_for(0)
        else:
            self._put(key, tile)

    def finish(self, key: Key) -> None:
        """Drop a requested tile that is not needed again; its memory is used next."""
        tile = self._tiles.pop(key, None)
        if tile is not None:
            self._bytes -= tile.nbytes
            self._spare = tile

    def clear(self) -> None:
        """Drop all tiles."""
        self._spare = None
        self._tiles.clear()
        self._ahead.clear()
        self._bytes = self._ahead_bytes = 0

    def _put(self, key: Key, tile: RGB) -> None:
        self._tiles[key] = tile
        self._bytes += tile.nbytes

    def _fits_ahead(self, nbytes: int) -> bool:
        return self._ahead_bytes + nbytes <= self._max_ahead_bytes

    def _drop_for(self, nbytes: int) -> list[RGB]:
        dropped = []
        both = self._max_ahead_bytes + self._max_bytes // 4
        most = min(self._max_bytes, both - self._ahead_bytes)
        while self._tiles and self._bytes + nbytes > most:
            _, tile = self._tiles.popitem(last=False)
            self._bytes -= tile.nbytes
            dropped.append(tile)
        return dropped


class Cut(NamedTuple):
    """The common part of a rectangle and a tile of the file.

    Parameters
    ----------
    rectangle : int
        Index of the rectangle.
    asked, own : tuple of slice
        Rows and columns of the part, in the rectangle and in the tile.
    """

    rectangle: int
    asked: tuple[slice, slice]
    own: tuple[slice, slice]

    @property
    def pixels(self) -> int:
        """Number of pixels of the part."""
        down, across = self.own
        return int((down.stop - down.start) * (across.stop - across.start))


def inside(x: int, y: int, size: Size, level: Size) -> bool:
    """Tell whether a rectangle is within a level, in pixels of the level."""
    return 0 <= x <= level.width - size.width and 0 <= y <= level.height - size.height


def cut_by_tile(
    corners: Sequence[tuple[int, int]], size: Size, tile: Size, level: Size
) -> Iterator[tuple[int, int, list[Cut]]]:
    """Cut rectangles of one size, tile by tile of the file.

    Parameters
    ----------
    corners : sequence of (int, int)
        Top-left corners, x and y in pixels of the level.
    size, tile, level : Size
        Sizes of the rectangles, of the file's tiles and of the level, pixels.

    Yields
    ------
    row, column : int
        Row and column of a tile; each comes once, in the order in which the rectangles need them.
    list of Cut
        Its requested parts. None is outside of the level.
    """
    lefts, tops = {x for x, _ in corners}, {y for _, y in corners}
    across = {x: _pieces(x, size.width, tile.width, level.width) for x in lefts}
    down = {y: _pieces(y, size.height, tile.height, level.height) for y in tops}
    cuts: dict[tuple[int, int], list[Cut]] = {}
    for index, (x, y) in enumerate(corners):
        for row, asked_y, own_y in down[y]:
            for column, asked_x, own_x in across[x]:
                cut = Cut(index, (asked_y, asked_x), (own_y, own_x))
                cuts.setdefault((row, column), []).append(cut)
    for (row, column), parts in cuts.items():
        yield row, column, parts


def _pieces(first: int, length: int, tile: int, end: int) -> list[tuple[int, slice, slice]]:
    """Cut ``length`` pixels from ``first`` at the edges of tiles, along one axis.

    Returns
    -------
    list of (int, slice, slice)
        Index of a tile, position of its pixels among the requested ones, and their position in
        the tile; nothing below 0 or from ``end`` on.
    """
    low, high = max(first, 0), min(first + length, end)
    pieces = []
    for index in range(low // tile, -(-high // tile) if high > low else 0):
        start, stop = max(low, index * tile), min(high, (index + 1) * tile)
        own = slice(start - index * tile, stop - index * tile)
        pieces.append((index, slice(start - first, stop - first), own))
    return pieces
