"""Endless shuffled batches whose position can be noted and found again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from torch import Tensor

from wsiad.detector import Tiles, TileSource
from wsiad.errors import DetectorError
from wsiad.training.crops import on_host
from wsiad.training.stages import Stages


class Batch(NamedTuple):
    """A batch, in pinned memory if that was asked for, and the position of the one after it."""

    tiles: Tiles | Tensor
    epoch: int
    position: int


def endless(
    source: TileSource,
    batch: int,
    *,
    seed: int,
    epoch: int = 0,
    position: int = 0,
    pinned: bool = False,
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

        def following() -> Batch:
            found = next(batches)
            return found._replace(tiles=on_host(found.tiles, pinned=True)) if pinned else found

        ahead = pool.submit(following)
        while True:
            current = ahead.result()
            ahead = pool.submit(following)
            yield current


def staged(
    source: TileSource,
    stages: Stages,
    *,
    seed: int,
    step: int = 0,
    epoch: int = 0,
    position: int = 0,
    times: int = 1,
    pinned: bool = False,
) -> Generator[Batch, None, None]:
    """Yield batches as :func:`endless` does, from ``step`` on, as large as its stage wants.

    Each has ``times`` as many tiles as the stage's batch. Another size begins another
    epoch, as positions count batches of one size.
    """
    while True:
        size = stages.span(step).batch
        if step and size != stages.span(step - 1).batch:
            epoch, position = epoch + 1, 0
        ahead = endless(
            source, times * size, seed=seed, epoch=epoch, position=position, pinned=pinned
        )
        with closing(ahead) as batches:
            for batch in batches:
                yield batch
                step, epoch, position = step + 1, batch.epoch, batch.position
                if stages.span(step).batch != size:
                    break


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
