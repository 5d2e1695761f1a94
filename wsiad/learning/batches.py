"""Endless shuffled batches whose position can be noted and found again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.learning.crops import on_host
from wsiad.learning.detector import FitContext, Tiles, TileSource
from wsiad.learning.ranks import Ranks
from wsiad.learning.stages import Stages

ALONE = Ranks()


class Batch(NamedTuple):
    """A batch, in pinned memory if that was asked for, and the position of the one after it."""

    tiles: Tiles | Tensor
    epoch: int
    position: int


def planned(
    source: TileSource,
    stages: Stages | int,
    context: FitContext,
    *,
    times: int = 1,
    step: int = 0,
    epoch: int = 0,
    position: int = 0,
) -> Generator[Batch, None, None]:
    """Yield what the steps of a training take from ``step`` on: this process's tiles.

    Parameters
    ----------
    source : TileSource
    stages : Stages or int
        Or tiles a batch, over all processes.
    context : FitContext
    times : int
        Batches that a step takes at once.
    step, epoch, position : int
        Where to begin.
    """
    pinned, ranks = context.device.type == "cuda", context.ranks
    at: dict[str, Any] = {"epoch": epoch, "position": position, "pinned": pinned}
    if isinstance(stages, Stages):
        given = {"step": step, "times": times, "ranks": ranks, **at}
        return staged(source, stages, seed=context.seed, **given)
    total = times * stages
    rows = ranks.own(total, groups=times) if ranks.count > 1 else None
    return endless(source, total, seed=context.seed, rows=rows, **at)


def endless(
    source: TileSource,
    batch: int,
    *,
    seed: int,
    epoch: int = 0,
    position: int = 0,
    pinned: bool = False,
    rows: npt.NDArray[np.int64] | None = None,
) -> Generator[Batch, None, None]:
    """Yield batches epoch by epoch, from batch ``position`` of ``epoch`` on.

    One batch is read ahead in a thread, so that reading and computing overlap. With ``rows``
    only these of each batch are given.

    Raises
    ------
    DetectorError
        The source yields nothing.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        batches = _forever(source, batch, seed, epoch, position)

        def following() -> Batch:
            found = next(batches)
            if rows is not None:
                found = found._replace(tiles=found.tiles[rows])
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
    ranks: Ranks = ALONE,
) -> Generator[Batch, None, None]:
    """Yield batches as :func:`endless` does, from ``step`` on, as large as its stage wants.

    Each has ``times`` as many tiles as the stage's batch. Another size begins another
    epoch, as positions count batches of one size.
    """
    while True:
        size = stages.span(step).batch
        if step and size != stages.span(step - 1).batch:
            epoch, position = epoch + 1, 0
        rows = ranks.own(times * size, groups=times) if ranks.count > 1 else None
        where = {"epoch": epoch, "position": position}
        ahead = endless(source, times * size, seed=seed, **where, pinned=pinned, rows=rows)
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
