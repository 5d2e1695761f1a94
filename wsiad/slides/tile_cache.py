"""Decoded tiles of a slide's file, as long as there is room for them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Size

RGB = npt.NDArray[np.uint8]
"""A decoded tile, uint8 (H, W, 3)."""

Key = tuple[int, int]
"""Level, and index of the tile in it."""


class TileCache:
    """Decoded tiles, the least recently used of which go; their memory is used again.

    Tiles that were read ahead of their use have a bound of their own. They stay until
    they are asked for, and are from then on like any other. While there are many of them,
    the others have less room, down to a quarter, so that all together stay below the one
    bound and a quarter of the other.

    Parameters
    ----------
    max_bytes, max_ahead_bytes : int
        Bounds on the tiles that were asked for, and on those that were read ahead.
    """

    def __init__(self, max_bytes: int, max_ahead_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._max_ahead_bytes, self._ahead_bytes = max_ahead_bytes, 0
        self._tiles: OrderedDict[Key, RGB] = OrderedDict()
        self._ahead: dict[Key, RGB] = {}
        self._spare: RGB | None = None

    def get(self, key: Key, *, ahead: bool = False) -> RGB | None:
        """Return a tile if it is there; one that was read ahead is asked for unless ``ahead``."""
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
        """Drop tiles until one more fits; memory of that shape, if there was some.

        Fresh memory costs a page fault every 4 KiB, a tenth of a tile's decoding; memory
        that the processor's cache no longer holds costs as much.
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
        """Keep a tile that :meth:`room` was made for."""
        if ahead and self._fits_ahead(tile.nbytes):
            self._ahead[key] = tile
            self._ahead_bytes += tile.nbytes
            self._drop_for(0)
        else:
            self._put(key, tile)

    def finish(self, key: Key) -> None:
        """Drop a tile that was asked for and is not needed again: its memory is used next."""
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
