"""A bounded, reproducible sample of a source of tiles."""

from __future__ import annotations

from collections.abc import Iterator

from wsiad.learning.detector import Tiles, TileSource


def sample(
    source: TileSource, most: int | None, *, batch: int, seed: int
) -> tuple[int, Iterator[Tiles]]:
    """Return how many tiles will come, and their batches.

    All tiles in their order if there are at most ``most``; otherwise as many full
    batches as fit into ``most`` (at least one), drawn by the seed from the whole source.
    """
    count = len(source)
    if most is None or count <= most:
        return count, source.ordered(batch)
    batch = min(batch, most)
    batches = most // batch
    return batches * batch, _first(source.shuffled(batch, seed=seed, epoch=0), batches)


def _first(batches: Iterator[Tiles], count: int) -> Iterator[Tiles]:
    for _, tiles in zip(range(count), batches, strict=False):
        yield tiles
