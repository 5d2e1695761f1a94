"""In which order tiles are read and given: arithmetic of indices, without a pixel.

Chunks are visited in a random order. Each tile of the visit with number v is given at the
time v + u, with u uniform in [0, window): a chunk's tiles spread over as many visits as fit
in a buffer, chunks come and go one by one, and no more than window + 1 of them are held at
any time. All of it is a pure function of the seed, the epoch and the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunks:
    """The wanted tiles of some slides, by the chunks that they lie in.

    Parameters
    ----------
    slide, number : ndarray of int64, (C,)
        Index of each chunk's slide, and its number in the slide.
    first : ndarray of int64, (C + 1,)
        Where the tiles of each chunk begin in ``offset``.
    offset : ndarray of int64, (T,)
        Wanted tiles, counted from the first of their chunk.
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
            Tiles a chunk, of each slide.
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
        """Wanted tiles of a chunk, counted from its first."""
        return self.offset[self.first[chunk] : self.first[chunk + 1]]


@dataclass(frozen=True, slots=True)
class Visits:
    """Readings of chunks, each with the tiles that are taken of it.

    Parameters
    ----------
    chunk : ndarray of int64, (V,)
    visit, offset : ndarray of int64, (T,)
        Of each tile: the visit that reads it, and its place in the chunk.
    """

    chunk: Indices
    visit: Indices
    offset: Indices


def every_tile(chunks: Chunks) -> Visits:
    """Visit each chunk once, and take all its tiles."""
    visit = np.repeat(np.arange(len(chunks)), np.diff(chunks.first))
    return Visits(np.arange(len(chunks)), visit, chunks.offset)


def fair_to_slides(chunks: Chunks, *, per_slide: int, seed: int, epoch: int) -> Visits:
    """Take equally many tiles of each slide, whatever its size.

    Of each slide there is an endless sequence of passes over its tiles, each in another
    order of chunks; an epoch takes the next ``per_slide`` of it. Over the epochs, every
    tile of a slide is therefore taken as often as the others, give or take one.
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
    """Order of a slide's tiles in a pass: chunk by chunk, at random in both."""
    rank = rng.permutation(int(chunk.max()) + 1)
    return np.lexsort((rng.random(len(chunk)), rank[chunk]))


@dataclass(frozen=True, slots=True)
class Order:
    """What is read, and what is given.

    Parameters
    ----------
    chunk : ndarray of int64, (V,)
        Chunks in the order of reading.
    visit, offset : ndarray of int64, (T,)
        Of each tile in the order of giving: which of the readings it comes from, and its
        place in the chunk.
    least : int
        Tiles of the share that has fewest.
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
    """Order a share of visits.

    Parameters
    ----------
    visits : Visits
    window : int
        Over how many visits the tiles of one are spread; at most ``window + 1`` chunks
        are held at a time.
    seed, epoch : int
        Name the order.
    share, shares : int
        Which of how many parts without overlap, as even as whole visits allow.
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
    """Where a new combination of values begins."""
    if not len(columns[0]):
        return np.empty(0, np.int64)
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    return np.append(0, np.flatnonzero(changes) + 1)


def _joined(parts: list[Indices]) -> Indices:
    return np.concatenate(parts or [np.empty(0, np.int64)])
