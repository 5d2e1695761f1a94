"""Tiles of a store as what a detector draws from (:class:`wsiad.learning.detector.TileSource`).

Reading single tiles of a chunked, compressed store at random decodes a whole chunk for
each. Here whole chunks are read: all of them once, where the tiles fit in memory, else
through a shuffling buffer (:mod:`wsiad.store.buffer`).

Memory bound: ``buffer_bytes`` and one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from wsiad.core.units import TilePx
from wsiad.store import buffer, order
from wsiad.store.arrays import ArrayTiles
from wsiad.store.stored_slide import StoredSlide

BUFFER_BYTES = 2**31

Tiles = npt.NDArray[np.uint8]


def store_tiles(
    parts: Sequence[tuple[StoredSlide, npt.NDArray[np.int64]]],
    *,
    buffer_bytes: int = BUFFER_BYTES,
) -> ArrayTiles | ChunkedTiles:
    """Return tiles of stored slides as a source.

    Parameters
    ----------
    parts : sequence of (StoredSlide, ndarray of int64)
        Slides and the indices of their tiles that are wanted.
    buffer_bytes : int
        Up to this many bytes of tiles are held in memory.

    Raises
    ------
    StoreError
        A chunk is damaged or missing.
    """
    chunked = ChunkedTiles(parts, buffer_bytes=buffer_bytes)
    if len(chunked) * chunked.tile_bytes > buffer_bytes:
        return chunked
    tiles = np.empty((len(chunked), chunked.tile, chunked.tile, 3), np.uint8)
    filled = 0
    for batch in chunked.ordered(4096):
        tiles[filled : filled + len(batch)] = batch
        filled += len(batch)
    return ArrayTiles(tiles)


class ChunkedTiles:
    """Tiles of stored slides that are read chunk by chunk; see :func:`store_tiles`."""

    def __init__(
        self,
        parts: Sequence[tuple[StoredSlide, npt.NDArray[np.int64]]],
        *,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        if not parts:
            raise ValueError("a source needs at least one slide")
        self._slides = [slide for slide, _ in parts]
        self._tile = self._slides[0].tile
        self.tile_bytes = self._tile**2 * 3
        sizes = [slide.chunk for slide in self._slides]
        self._chunks = order.Chunks.of([wanted for _, wanted in parts], sizes=sizes)
        self._shape = (max(sizes), self._tile, self._tile, 3)
        self._window = buffer.window_of(buffer_bytes, max(sizes) * self.tile_bytes)

    @property
    def tile(self) -> TilePx:
        """Edge of the tiles, pixels."""
        return self._tile

    def __len__(self) -> int:
        return self._chunks.tiles

    def _read(self, chunk: int, out: Tiles) -> None:
        slide = self._slides[self._chunks.slide[chunk]]
        slide.read_chunk(int(self._chunks.number[chunk]), out[: slide.chunk])

    def ordered(self, batch: int) -> Iterator[Tiles]:
        """Yield every tile once, slide by slide, in batches of at most ``batch``."""
        for chunk in range(len(self._chunks)):
            tiles = np.empty(self._shape, np.uint8)
            self._read(chunk, tiles)
            wanted = self._chunks.tiles_of(chunk)
            tiles = tiles[wanted] if len(wanted) < len(tiles) else tiles
            for start in range(0, len(tiles), batch):
                yield tiles[start : start + batch]

    def shuffled(self, batch: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Tiles]:
        """Yield full batches, from batch ``start`` of an order that seed and epoch decide.

        The tiles left over in an epoch are dropped. Fewer tiles than a batch fill
        one by coming round again.
        """
        visits = order.every_tile(self._chunks)
        chosen = order.shuffled(visits, window=self._window, seed=seed, epoch=epoch)
        full = len(chosen) // batch * batch
        for tiles, _ in buffer.batches(
            chosen,
            self._read,
            chunk_shape=self._shape,
            batch=batch,
            start=start * batch,
            stop=full or None,
        ):
            yield tiles if full else np.resize(tiles, (batch, *tiles.shape[1:]))
