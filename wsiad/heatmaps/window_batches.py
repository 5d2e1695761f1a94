"""Batches of windows: joined across the blocks that they are read in, and scored.

Windows are read in blocks of a slide or of a store. A thread reads ahead and joins them into full
batches while the batch before is scored.

Memory bound: one block as it is read, and joined batches of 16 MiB or three batches, whichever is
more, and one batch more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from wsiad.core.ahead import read_ahead, room_for
from wsiad.learning.detector import Detector, Scores
from wsiad.learning.feature_source import batch_maps
from wsiad.tiling.stream import Example
from wsiad.tissue.quality import LeftOut

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Batch of windows with their positions on the lattice.

    Parameters
    ----------
    pixels : ndarray of uint8, (N, size, size, 3)
        RGB pixels, stain-normalised.
    rows, columns : ndarray of int32, (N,)
        Positions on the grid of the windows.
    left_out : LeftOut
        Windows that are not scored: the slide lacks pixels for a part of them, or they fail a
        quality threshold.
    examples : tuple of Example
        Example windows to look at.
    """

    pixels: npt.NDArray[np.uint8]
    rows: IntArray
    columns: IntArray
    left_out: LeftOut = field(default_factory=LeftOut)
    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Scores of a :class:`WindowBatch`: per window (N,), and per place (N, m, m)."""

    rows: IntArray
    columns: IntArray
    scores: npt.NDArray[np.float32]
    places: npt.NDArray[np.float32]
    left_out: LeftOut = field(default_factory=LeftOut)
    examples: tuple[Example, ...] = ()


class _Joined:
    """Batch that is being filled from blocks."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self._size, self._pinned = size, pinned
        self._parts: list[WindowBatch] = []
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._filled = 0

    def add(self, block: WindowBatch, start: int) -> int:
        """Add windows of a block from ``start`` on; return how many there was room for."""
        count = min(self._size - self._filled, len(block) - start)
        part = slice(start, start + count)
        if count:
            if self._pixels is None:
                from wsiad.learning.batches import host_memory

                shape = (self._size, *block.pixels.shape[1:])
                self._pixels = host_memory(shape, pinned=self._pinned)
            self._pixels[self._filled : self._filled + count] = block.pixels[part]
            self._filled += count
        first = start == 0
        self._parts.append(
            WindowBatch(
                pixels=block.pixels[:0],
                rows=block.rows[part],
                columns=block.columns[part],
                left_out=block.left_out if first else LeftOut(),
                examples=block.examples if first else (),
            )
        )
        return count

    @property
    def full(self) -> bool:
        """True where there is no room for another window."""
        return self._filled == self._size

    def taken(self) -> WindowBatch | None:
        """Return the batch as it is, and begin another one; ``None`` where nothing was added."""
        parts, pixels, filled = self._parts, self._pixels, self._filled
        self._parts, self._pixels, self._filled = [], None, 0
        if not parts:
            return None
        return WindowBatch(
            pixels=parts[0].pixels if pixels is None else pixels[:filled],
            rows=np.concatenate([part.rows for part in parts]),
            columns=np.concatenate([part.columns for part in parts]),
            left_out=LeftOut.join([part.left_out for part in parts]),
            examples=tuple(example for part in parts for example in part.examples),
        )


def joined(
    blocks: Iterator[WindowBatch], batch: int, *, pinned: bool = False
) -> Iterator[WindowBatch]:
    """Yield windows in batches of ``batch``, whatever the blocks; the last batch can be smaller.

    Order, windows that are left out and examples are kept; the latter two come with the batch of
    their block's first window.

    Parameters
    ----------
    blocks : iterator of WindowBatch
        Blocks in order.
    batch : int
        Number of windows of a batch.
    pinned : bool
        True to join them in memory that a GPU reads directly.
    """
    waiting = _Joined(batch, pinned=pinned)
    while (block := next(blocks, None)) is not None:
        start = waiting.add(block, 0)
        while waiting.full:
            if (found := waiting.taken()) is not None:
                yield found
            if start < len(block):
                start += waiting.add(block, start)
        del block  # while the next one is read
    if (found := waiting.taken()) is not None:
        yield found


def score_windows(
    detector: Detector, blocks: Iterator[WindowBatch], *, batch: int, pinned: bool = False
) -> Generator[ScoredBatch, None, None]:
    """Score windows in batches of ``batch``, whatever the blocks; the last batch can be smaller.

    A thread reads the blocks ahead. Whoever stops early must close the generator before the slide
    is closed.

    Parameters
    ----------
    detector : Detector
        Fitted detector.
    blocks : iterator of WindowBatch
        Blocks in order; only the thread uses it from now on.
    batch : int
        Number of windows that are scored at a time.
    pinned : bool
        True for a detector on a GPU, which then reads batches directly, without waiting for them.

    Raises
    ------
    WsiadError
        A block cannot be read.
    """
    limit = room_for(batch * 3 * detector.spec.size**2)
    batches = joined(blocks, batch, pinned=pinned)
    with closing(read_ahead(batches, size=lambda part: part.pixels.nbytes, limit=limit)) as ahead:
        waiting: deque[WindowBatch] = deque()
        for places in batch_maps(detector, _pixels(ahead, waiting)):
            yield from _without_windows(waiting)
            yield _scored(waiting.popleft(), detector.pool(places), places)
        yield from _without_windows(waiting)


def _pixels(
    batches: Iterator[WindowBatch], waiting: deque[WindowBatch]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the pixels of batches; the rest of each waits for its scores."""
    for batch in batches:
        waiting.append(replace(batch, pixels=batch.pixels[:0].copy()))
        if len(batch):
            yield batch.pixels
        del batch  # while the next one is awaited


def _without_windows(waiting: deque[WindowBatch]) -> Iterator[ScoredBatch]:
    """Yield the first batches if they have no window: they only say what is left out."""
    nothing = np.empty(0, np.float32)
    while waiting and not len(waiting[0]):
        yield _scored(waiting.popleft(), nothing, nothing.reshape(0, 1, 1))


def _scored(windows: WindowBatch, scores: Scores, places: Scores) -> ScoredBatch:
    return ScoredBatch(
        rows=windows.rows,
        columns=windows.columns,
        scores=scores,
        places=places,
        left_out=windows.left_out,
        examples=windows.examples,
    )
