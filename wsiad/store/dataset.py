"""Sources of tiles that detectors draw from (:class:`wsiad.learning.detector.TileSource`).

A source holds tiles in memory (:class:`ArrayTiles`: small data, tests and notebooks), or reads
tiles of a store (:mod:`wsiad.store.tile_source`). Reading single tiles of a chunked, compressed
store at random decodes a complete chunk for each. Complete chunks are read instead: all of them
once if the tiles fit in memory, otherwise through a shuffling buffer.

The order of reading is arithmetic of indices, without a pixel. Chunks are visited in a random
order. Each tile of visit v is given at the time v + u, with u uniform in [0, window): the
tiles of a chunk spread over as many visits as fit in a buffer, chunks come and go one by one,
and at most window + 1 of them are held at any time. The order is a pure function of the seed,
the epoch and the share. Threads read the chunks that come next.

Memory bound: ``buffer_bytes`` and one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.geometry import TilePx


class ArrayTiles:
    """A source of tiles over an array.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, S, S, 3)
        RGB tiles, at least one.

    Raises
    ------
    InputError
        The array has another shape or dtype, or holds no tile.
    """

    def __init__(self, tiles: npt.NDArray[np.uint8]) -> None:
        if (
            tiles.dtype != np.uint8
            or tiles.ndim != 4
            or tiles.shape[1] != tiles.shape[2]
            or tiles.shape[3] != 3
        ):
            raise InputError(
                f"tiles must be uint8 (N, S, S, 3), not {tiles.dtype} {tuple(tiles.shape)}"
            )
        if not len(tiles):
            raise InputError("there are no tiles")
        self._tiles = tiles

    @property
    def tile(self) -> TilePx:
        """Edge of the tiles, pixels."""
        return TilePx(self._tiles.shape[1])

    def __len__(self) -> int:
        return len(self._tiles)

    def ordered(self, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield every tile once in its order, in batches of at most ``batch``."""
        for start in range(0, len(self._tiles), batch):
            yield self._tiles[start : start + batch]

    def shuffled(
        self, batch: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield full batches, from batch ``start`` of an order that seed and epoch decide.

        The tiles left over at the end of an epoch are dropped. If there are fewer tiles than a
        batch holds, they are repeated to fill one.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self._tiles))
        if len(order) < batch:
            order = np.resize(order, batch)
        for first in range(start * batch, len(order) - batch + 1, batch):
            yield self._tiles[order[first : first + batch]]


Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunks:
    """The wanted tiles of some slides, grouped by the chunks that hold them.

    Parameters
    ----------
    slide, number : ndarray of int64, (C,)
        Index of each chunk's slide, and its number in the slide.
    first : ndarray of int64, (C + 1,)
        Index in ``offset`` of the first tile of each chunk, and its length at the end.
    offset : ndarray of int64, (T,)
        Wanted tiles, counted from the first tile of their chunk.
    """

    slide: Indices
    number: Indices
    first: Indices
    offset: Indices

    @classmethod
    def of(cls, wanted: Sequence[Indices], *, sizes: Sequence[int]) -> Chunks:
        """List the chunks of wanted tiles.

        Parameters
        ----------
        wanted : sequence of ndarray of int64
            Indices of the wanted tiles of each slide.
        sizes : sequence of int
            Number of tiles in a chunk, for each slide.
        """
        tiles = [np.unique(indices) for indices in wanted]
        slide = np.repeat(np.arange(len(tiles)), [len(indices) for indices in tiles])
        number = _joined([indices // size for indices, size in zip(tiles, sizes, strict=True)])
        offset = _joined([indices % size for indices, size in zip(tiles, sizes, strict=True)])
        starts = _run_starts(slide, number)
        return cls(slide[starts], number[starts], np.append(starts, len(offset)), offset)

    def __len__(self) -> int:
        return len(self.slide)

    @property
    def tiles(self) -> int:
        """Number of wanted tiles."""
        return len(self.offset)

    def tiles_of(self, chunk: int) -> Indices:
        """Return the wanted tiles of a chunk, counted from its first tile."""
        return self.offset[self.first[chunk] : self.first[chunk + 1]]


@dataclass(frozen=True, slots=True)
class Visits:
    """Readings of chunks, each with the tiles that are taken from it.

    Parameters
    ----------
    chunk : ndarray of int64, (V,)
        Chunk that each visit reads.
    visit, offset : ndarray of int64, (T,)
        For each tile, the visit that reads it and its position in the chunk.
    """

    chunk: Indices
    visit: Indices
    offset: Indices


def every_tile(chunks: Chunks) -> Visits:
    """Visit each chunk once and take all its wanted tiles."""
    visit = np.repeat(np.arange(len(chunks)), np.diff(chunks.first))
    return Visits(np.arange(len(chunks)), visit, chunks.offset)


def fair_to_slides(chunks: Chunks, *, per_slide: int, seed: int, epoch: int) -> Visits:
    """Take equally many tiles from each slide, regardless of its size.

    Each slide has an endless sequence of passes over its tiles, each in a different order of
    chunks. An epoch takes the next ``per_slide`` tiles of this sequence. Over the epochs, every
    tile of a slide is therefore taken equally often, give or take once.
    """
    parts: list[tuple[Indices, Indices, Indices]] = []
    count = 0
    for slide in np.unique(chunks.slide):
        mine = np.flatnonzero(chunks.slide == slide)
        chunk = np.repeat(mine, np.diff(chunks.first)[mine])
        offset = chunks.offset[chunks.first[mine[0]] : chunks.first[mine[-1] + 1]]
        low, high, length = epoch * per_slide, (epoch + 1) * per_slide, len(offset)
        for turn in range(low // length, (high - 1) // length + 1):
            order = _turn(chunk - mine[0], rng=np.random.default_rng([seed, int(slide), turn]))
            taken = order[max(0, low - turn * length) : high - turn * length]
            starts = _run_starts(chunk[taken])
            runs = np.diff(np.append(starts, len(taken)))
            visit = count + np.repeat(np.arange(len(starts)), runs)
            parts.append((chunk[taken][starts], visit, offset[taken]))
            count += len(starts)
    return Visits(*(_joined(list(columns)) for columns in zip(*parts, strict=True)))


def _turn(chunk: Indices, *, rng: np.random.Generator) -> Indices:
    """Return a random order of a slide's tiles: chunk by chunk, shuffled within each chunk."""
    rank = rng.permutation(int(chunk.max()) + 1)
    return np.lexsort((rng.random(len(chunk)), rank[chunk]))


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which tiles are read and given.

    Parameters
    ----------
    chunk : ndarray of int64, (V,)
        Chunks in the order of reading.
    visit, offset : ndarray of int64, (T,)
        For each tile in the order of giving, the index of the reading that it comes from and
        its position in the chunk.
    least : int
        Number of tiles of the smallest share.
    """

    chunk: Indices
    visit: Indices
    offset: Indices
    least: int

    def __len__(self) -> int:
        return len(self.visit)


def shuffled(
    visits: Visits, *, window: int, seed: int, epoch: int, share: int = 0, shares: int = 1
) -> Order:
    """Return the order of the tiles of a share of visits.

    Parameters
    ----------
    visits : Visits
    window : int
        Number of visits over which the tiles of one visit are spread. At most ``window + 1``
        chunks are held at a time.
    seed, epoch : int
        Numbers that decide the order.
    share, shares : int
        Index of this share and number of shares. Shares do not overlap, and are as even as
        complete visits allow.
    """
    rng = np.random.default_rng([seed, epoch])
    place = rng.permutation(len(visits.chunk))
    at = place[visits.visit]
    least = int(np.bincount(at % shares, minlength=shares).min()) if len(at) else 0
    mine = np.flatnonzero(at % shares == share)
    local = at[mine] // shares
    chunk = np.empty(len(range(share, len(place), shares)), np.int64)
    chosen = place % shares == share
    chunk[place[chosen] // shares] = visits.chunk[chosen]
    delay = np.random.default_rng([seed, epoch, share, shares]).random(len(mine))
    order = np.argsort(local + delay * max(1, min(window, len(chunk))), kind="stable")
    return Order(chunk, local[order], visits.offset[mine][order], least)


def _run_starts(*columns: Indices) -> Indices:
    """Return the indices at which a new combination of values begins."""
    if not len(columns[0]):
        return np.empty(0, np.int64)
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    return np.append(0, np.flatnonzero(changes) + 1)


def _joined(parts: list[Indices]) -> Indices:
    return np.concatenate(parts or [np.empty(0, np.int64)])


Tiles = npt.NDArray[np.uint8]

Read = Callable[[int, Tiles], None]
"""Reads a chunk by its index into an array, uint8 (chunk, S, S, 3)."""

AHEAD = 4
"""Chunks that are read before they are needed."""

THREADS = 2
"""Threads that read chunks: decoding a tile takes about three times as long as copying it."""


def window_of(buffer_bytes: int, chunk_bytes: int) -> int:
    """Return the most visits that a tile can wait if the chunks held must fit in a buffer."""
    return max(1, buffer_bytes // chunk_bytes - 1 - AHEAD)


def batches(
    order: Order,
    read: Read,
    *,
    chunk_shape: tuple[int, ...],
    batch: int,
    start: int = 0,
    stop: int | None = None,
    threads: int = THREADS,
    spare: list[Tiles] | None = None,
) -> Iterator[tuple[Tiles, slice]]:
    """Yield tiles in their order, in batches of ``batch`` and a last one with the rest.

    Parameters
    ----------
    order : Order
    read : callable
        Function that reads a chunk; it is called by other threads.
    chunk_shape : tuple of int
        Number of tiles in a chunk, and the shape of a tile.
    batch : int
        Number of tiles in a batch.
    start, stop : int
        First tile to yield, and the end of the range (excluded). Chunks from which no tile is
        yielded are not read.
    threads : int
        Number of threads that read chunks; decoding does not hold Python's lock.
    spare : list of ndarray, optional
        Memory of chunks of an earlier epoch, which is used again and put back at the end. New
        memory costs a page fault every 4 KiB.

    Yields
    ------
    tiles : ndarray of uint8, (batch, S, S, 3)
        Tiles in memory that is not used again.
    given : slice
        Their range in the order.
    """
    stop = len(order) if stop is None else min(stop, len(order))
    left = np.bincount(order.visit[start:stop], minlength=len(order.chunk))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=threads))
        free = spare if spare is not None else []
        held = _Held(order, read, left, shape=chunk_shape, pool=pool, free=free)
        stack.callback(held.cancel)
        for first in range(start, stop, batch):
            given = slice(first, min(first + batch, stop))
            yield held.take(given), given


class _Held:
    """Chunks in memory: read ahead, and kept until their last tile was given."""

    def __init__(
        self,
        order: Order,
        read: Read,
        left: npt.NDArray[np.int64],
        *,
        shape: tuple[int, ...],
        pool: ThreadPoolExecutor,
        free: list[Tiles],
    ) -> None:
        self._order, self._read, self._left = order, read, left
        self._shape, self._pool = shape, pool
        self._to_read = iter(np.flatnonzero(left).tolist())
        self._coming: deque[tuple[int, Future[Tiles]]] = deque()
        self._chunks: dict[int, Tiles] = {}
        self._free = free
        for _ in range(AHEAD):
            self._request()

    def cancel(self) -> None:
        """Stop reading."""
        for _, future in self._coming:
            future.cancel()

    def _request(self) -> None:
        visit = next(self._to_read, None)
        if visit is not None:
            memory = self._free.pop() if self._free else np.empty(self._shape, np.uint8)
            chunk = int(self._order.chunk[visit])
            self._coming.append((visit, self._pool.submit(self._filled, chunk, memory)))

    def _filled(self, chunk: int, memory: Tiles) -> Tiles:
        self._read(chunk, memory)
        return memory

    def take(self, given: slice) -> Tiles:
        """Return the tiles of a range of the order, uint8 (N, S, S, 3)."""
        visits = self._order.visit[given].tolist()
        offsets = self._order.offset[given].tolist()
        out = np.empty((len(visits), *self._shape[1:]), np.uint8)
        for place, (visit, offset) in enumerate(zip(visits, offsets, strict=True)):
            while visit not in self._chunks:
                came, future = self._coming.popleft()
                self._chunks[came] = future.result()
                self._request()
            out[place] = self._chunks[visit][offset]
            self._left[visit] -= 1
            if not self._left[visit]:
                self._free.append(self._chunks.pop(visit))
        return out
