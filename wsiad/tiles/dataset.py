"""Tiles of a store as what a detector draws from (:class:`wsiad.detector.TileSource`).

Reading single tiles of a chunked, compressed store at random decodes a whole chunk for
each. Here whole chunks are read: all of them once, where the tiles fit in memory, else in
shuffled groups of chunks, whose tiles are shuffled in turn.

Memory bound: ``buffer_bytes`` and one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.tiles.arrays import ArrayTiles
from wsiad.tiles.store import StoredSlide
from wsiad.units import TilePx

BUFFER_BYTES = 2**31

Tiles = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Chunk:
    slide: StoredSlide
    start: int
    tiles: npt.NDArray[np.int64]
    """Wanted tiles, counted from ``start``."""

    def read(self) -> Tiles:
        stop = self.start + int(self.tiles.max()) + 1
        return self.slide.tiles(self.start, stop)[self.tiles]


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
    """
    chunked = ChunkedTiles(parts, buffer_bytes=buffer_bytes)
    if len(chunked) * chunked.tile_bytes > buffer_bytes:
        return chunked
    tile = chunked.tile
    everything = list(chunked.ordered(4096))
    empty = np.empty((0, tile, tile, 3), np.uint8)
    return ArrayTiles(np.concatenate(everything or [empty]))


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
        self._tile = parts[0][0].tile
        self.tile_bytes = self._tile**2 * 3
        self._chunks = [chunk for slide, wanted in parts for chunk in _chunks(slide, wanted)]
        self._count = sum(len(chunk.tiles) for chunk in self._chunks)
        self._buffer_tiles = max(1, buffer_bytes // self.tile_bytes)

    @property
    def tile(self) -> TilePx:
        """Edge of the tiles, pixels."""
        return self._tile

    def __len__(self) -> int:
        return self._count

    def ordered(self, batch: int) -> Iterator[Tiles]:
        """Yield every tile once, slide by slide, in batches of at most ``batch``."""
        for chunk in self._chunks:
            tiles = chunk.read()
            for start in range(0, len(tiles), batch):
                yield tiles[start : start + batch]

    def shuffled(self, batch: int, *, seed: int, epoch: int) -> Iterator[Tiles]:
        """Yield full batches in an order that is a pure function of seed and epoch."""
        rng = np.random.default_rng([seed, epoch])
        rest = np.empty((0, self._tile, self._tile, 3), np.uint8)
        yielded = False
        for group in self._groups(rng):
            tiles = np.concatenate([rest, *(chunk.read() for chunk in group)])
            rng.shuffle(tiles)
            full = len(tiles) // batch * batch
            for start in range(0, full, batch):
                yielded = True
                yield tiles[start : start + batch]
            rest = tiles[full:]
        if not yielded and len(rest):
            yield np.resize(rest, (batch, *rest.shape[1:]))

    def _groups(self, rng: np.random.Generator) -> Iterator[list[_Chunk]]:
        group: list[_Chunk] = []
        held = 0
        for index in rng.permutation(len(self._chunks)):
            chunk = self._chunks[int(index)]
            if group and held + len(chunk.tiles) > self._buffer_tiles:
                yield group
                group, held = [], 0
            group.append(chunk)
            held += len(chunk.tiles)
        if group:
            yield group


def _chunks(slide: StoredSlide, wanted: npt.NDArray[np.int64]) -> Iterator[_Chunk]:
    wanted = np.sort(wanted)
    size = slide.chunk
    for number in np.unique(wanted // size):
        inside = wanted[wanted // size == number]
        yield _Chunk(slide, int(number) * size, inside - int(number) * size)
