"""Tiles given in a shuffled order, while threads read the chunks that come next.

Memory bound: the buffer that :func:`window_of` was asked for, and one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from wsiad.store.order import Order

Tiles = npt.NDArray[np.uint8]

Read = Callable[[int, Tiles], None]
"""Reads a chunk by its index into an array, uint8 (chunk, S, S, 3)."""

AHEAD = 4
"""Chunks that are read before they are needed."""

THREADS = 2
"""Decoding a tile takes about three times as long as copying it into a batch."""


def window_of(buffer_bytes: int, chunk_bytes: int) -> int:
    """How many visits a tile may wait, for the chunks held to fit in a buffer; at least 1."""
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
) -> Iterator[tuple[Tiles, slice]]:
    """Yield tiles in their order, in batches of ``batch`` and a last one of what is left.

    Parameters
    ----------
    order : Order
    read : callable
        Reads a chunk; called by other threads.
    chunk_shape : tuple of int
        Tiles a chunk, and the shape of a tile.
    batch : int
        Tiles a batch.
    start, stop : int
        First tile to give, and the one before which to end; chunks of which nothing is
        given are not read.
    threads : int
        That read chunks; decoding does not hold Python's lock.

    Yields
    ------
    tiles : ndarray of uint8, (batch, S, S, 3)
        Memory of its own.
    given : slice
        Which tiles of the order they are.
    """
    stop = len(order) if stop is None else min(stop, len(order))
    left = np.bincount(order.visit[start:stop], minlength=len(order.chunk))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=threads))
        held = _Held(order, read, left, shape=chunk_shape, pool=pool)
        stack.callback(held.cancel)
        for first in range(start, stop, batch):
            given = slice(first, min(first + batch, stop))
            yield held.take(given), given


class _Held:
    """The chunks that are held: read ahead, kept while tiles of them are to come."""

    def __init__(
        self,
        order: Order,
        read: Read,
        left: npt.NDArray[np.int64],
        *,
        shape: tuple[int, ...],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._order, self._read, self._left = order, read, left
        self._shape, self._pool = shape, pool
        self._to_read = iter(np.flatnonzero(left).tolist())
        self._coming: deque[tuple[int, Future[Tiles]]] = deque()
        self._chunks: dict[int, Tiles] = {}
        self._free: list[Tiles] = []
        for _ in range(AHEAD):
            self._request()

    def cancel(self) -> None:
        """Read no more."""
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
        """Return tiles of the order."""
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
