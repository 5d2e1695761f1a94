"""Endless shuffled batches whose position can be noted and found again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from wsiad.detector import Tiles, TileSource
from wsiad.errors import DetectorError


class Batch(NamedTuple):
    """A batch and the position of the one after it."""

    tiles: Tiles
    epoch: int
    position: int


def endless(
    source: TileSource, batch: int, *, seed: int, epoch: int = 0, position: int = 0
) -> Generator[Batch, None, None]:
    """Yield batches epoch by epoch, from batch ``position`` of ``epoch`` on.

    One batch is read ahead in a thread, so that reading and computing overlap.

    Raises
    ------
    DetectorError
        The source yields nothing.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        batches = _forever(source, batch, seed, epoch, position)
        ahead = pool.submit(next, batches)
        while True:
            current = ahead.result()
            ahead = pool.submit(next, batches)
            yield current


def _forever(
    source: TileSource, batch: int, seed: int, epoch: int, position: int
) -> Iterator[Batch]:
    while True:
        for tiles in source.shuffled(batch, seed=seed, epoch=epoch, start=position):
            position += 1
            yield Batch(tiles, epoch, position)
        if position == 0:
            raise DetectorError("there are no tiles to fit on")
        epoch, position = epoch + 1, 0
