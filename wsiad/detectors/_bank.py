"""Exact search of the nearest vectors of a bank, by bounds of few dimensions and by cells.

On a CPU most vectors of a bank are ruled out without their distance. The principal components of
the bank, and the length of what these leave, are the *reduced* vectors: their distance is never
larger than that of the complete vectors. They are parted into cells by k-means; a cell is left
out if none of its vectors can be near enough. Vectors that are not ruled out are compared in
float64, so the result does not depend on the reduction or the cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsiad.core.compiled import compiled, compiled_sum
from wsiad.detectors._vectors import nearest

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_REDUCED = 32  # dimensions, the length of the rest included
_LEAST_VECTORS, _LEAST_CHANNELS = 2048, 48  # of banks that are worth reducing
_IN_A_CELL = 500  # vectors, about
_MOST_CELLS = 1024
_SAMPLE = 1 << 16  # vectors from which components and cells are found
_ROUNDS = 8  # of k-means, and of the search for components
_ASKED = 8192  # vectors that are searched at once
_ROWS, _COLUMNS = 512, 1024  # of ranks, which a core's own cache holds
_CHUNK = 64  # ranks that are looked at together
_UNIT = 2.0**-24  # relative rounding of float32


@dataclass(frozen=True, slots=True)
class _Reduction:
    """Distances in few dimensions that are at most those of complete vectors.

    Parameters
    ----------
    mean : Tensor of float32, (C,)
        Mean of the bank.
    axes : Tensor of float32, (C, K - 1)
        Orthonormal directions.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> _Reduction:
        """Return the principal components of vectors, by subspace iteration."""
        mean = vectors.double().mean(dim=0)
        sample = (_evenly(vectors, _SAMPLE // 4) - mean.float()).contiguous()
        rng = np.random.default_rng(vectors.shape[1])
        start = rng.normal(size=(vectors.shape[1], _REDUCED - 1))
        axes = torch.from_numpy(start)
        for _ in range(_ROUNDS):
            axes = torch.linalg.qr(axes.double()).Q
            axes = sample.T @ (sample @ axes.float())
        return cls(mean.float(), torch.linalg.qr(axes.double()).Q.float().contiguous())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return reduced vectors, (N, C) to (N, K); the last is the length of what is left."""
        centred = vectors - self.mean
        found = centred @ self.axes
        rest = torch.addmm(centred, found, self.axes.T, alpha=-1).norm(dim=1, keepdim=True)
        return torch.cat([found, rest], dim=1)

    @property
    def rounding(self) -> float:
        """Return the largest error of a reduced vector, relative to its length."""
        channels, width = self.axes.shape
        return 4 * (channels + width + 8) * (width + 1) ** 0.5 * _UNIT


@dataclass(frozen=True, slots=True)
class _Cells:
    """Reduced vectors of a bank, cell by cell.

    Parameters
    ----------
    centres : Tensor of float32, (M, K)
        Means of the cells.
    order : ndarray of int64, (B,)
        Indices of the vectors in the bank, cell by cell.
    starts : ndarray of int64, (M + 1,)
        Where cells begin in ``order``.
    products : Tensor of float32, (B, K + 1)
        −2 times the reduced vectors, in that order, and their squared length.
    radii : ndarray of float32, (M,)
        Largest distance of a vector of a cell from its centre.
    margins : ndarray of float32, (M, M)
        By how much, at least, the vectors of a cell (column) are nearer to their centre than to
        that of another (row), in squared distances.
    apart : ndarray of float32, (M, M)
        Distances of the centres.
    longest : float
        Largest length of a reduced vector.
    """

    centres: Tensor
    order: Indices
    starts: Indices
    products: Tensor
    radii: Floats
    margins: Floats
    apart: Floats
    longest: float

    @classmethod
    def of(cls, reduced: Tensor) -> _Cells:
        """Part reduced vectors into cells."""
        count = max(1, min(_MOST_CELLS, len(reduced) // _IN_A_CELL))
        centres = _means(_evenly(reduced, max(_SAMPLE, 64 * count)), count)
        belongs = torch.cat([_squares(part, centres).argmin(dim=1) for part in _parts(reduced)])
        sizes = torch.bincount(belongs, minlength=count)
        centres, sizes = centres[sizes > 0].contiguous(), sizes[sizes > 0]
        order = torch.argsort(belongs, stable=True)
        ordered = reduced[order]
        lengths = ordered.square().sum(dim=1, keepdim=True)
        radii = np.empty(len(centres), np.float32)
        margins = np.empty((len(centres), len(centres)), np.float32)
        for cell, part in enumerate(torch.split(ordered, sizes.tolist())):
            squares = _squares(part, centres)
            radii[cell] = (part - centres[cell]).norm(dim=1).max()
            margins[:, cell] = (squares - squares[:, cell, None]).amin(dim=0)
        return cls(
            centres=centres,
            order=order.numpy(),
            starts=np.concatenate([[0], np.cumsum(sizes.numpy())]),
            products=torch.cat([-2 * ordered, lengths], dim=1),
            radii=radii,
            margins=margins,
            apart=torch.cdist(centres.double(), centres.double()).float().numpy(),
            longest=float(lengths.max().sqrt()),
        )


class Bank:
    """Vectors in which the nearest to others are found.

    Parameters
    ----------
    vectors : Tensor of float32, (B, C)
        Vectors of the bank, finite.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self._reduction: _Reduction | None = None
        few = len(vectors) < _LEAST_VECTORS or vectors.shape[1] < _LEAST_CHANNELS
        if vectors.device.type == "cpu" and not few:
            self._reduction = _Reduction.of(vectors)
            reduced = torch.cat([self._reduction(part) for part in _parts(vectors)])
            self._cells = _Cells.of(reduced)

    @property
    def reduced(self) -> bool:
        """Tell whether vectors are ruled out by bounds; others are compared directly."""
        return self._reduction is not None

    def nearest(self, asked: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Find the nearest vectors of the bank.

        Parameters
        ----------
        asked : Tensor of float32, (N, C)
            Vectors to compare, on the device of the bank.
        count : int
            Number of neighbours, at most B.

        Returns
        -------
        distances : Tensor of float32, (N, count)
            Euclidean distances, increasing.
        indices : Tensor of int64, (N, count)
            Indices in the bank; of equally near vectors the first.
        """
        if self._reduction is None or not len(asked):
            return nearest(asked, self.vectors, count)
        asked = asked.contiguous()
        found = torch.cat([self._found(part, count) for part in torch.split(asked, _ASKED)])
        columns = [(asked - self.vectors[column]).norm(dim=1) for column in found.T]
        return torch.stack(columns, dim=1), found

    def _found(self, asked: Tensor, count: int) -> Tensor:
        """Return the indices of the nearest vectors, int64 (N, count)."""
        assert self._reduction is not None
        cells = self._cells
        reduced = self._reduction(asked)
        lengths = reduced.square().sum(dim=1)
        squares = _squares(reduced, cells.centres)
        own = squares.argmin(dim=1).numpy()
        reach = lengths.sqrt() + cells.longest
        search = _Search(
            asked=asked.numpy(),
            bank=self.vectors.numpy(),
            order=cells.order,
            products=torch.cat([reduced, torch.ones(len(asked), 1)], dim=1),
            lengths=lengths.numpy(),
            slack=(self._reduction.rounding * reach).numpy(),
            rounding=(8 * _REDUCED * _UNIT * reach.square()).numpy(),
            best=np.full((len(asked), count), np.inf),
            found=np.zeros((len(asked), count), np.int64),
        )
        first = np.argsort(own, kind="stable")
        counts = np.bincount(own, minlength=len(cells.centres))
        search.through(cells, first, np.concatenate([[0], np.cumsum(counts)]))
        bounds = (squares.numpy(), own, cells.radii, cells.margins, cells.apart)
        starts = np.zeros(len(cells.centres) + 1, np.int64)
        limits: Doubles = np.sqrt(search.best[:, -1]) + search.slack
        _within(*bounds, limits, search.rounding, starts, np.empty(0, np.int64))
        starts = np.concatenate([[0], np.cumsum(starts[1:])])
        rows = np.empty(starts[-1], np.int64)
        _within(*bounds, limits, search.rounding, starts.copy(), rows)
        search.through(cells, rows, starts)
        return torch.from_numpy(search.found)


class LastBank:
    """The bank that was searched last, so that a bank is prepared once."""

    def __init__(self) -> None:
        self._bank: Bank | None = None

    def nearest(self, asked: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Find the nearest of vectors, by :meth:`Bank.nearest`."""
        bank = self._bank
        if bank is None or bank.vectors is not vectors:
            bank = self._bank = Bank(vectors)
        return bank.nearest(asked, count)


@dataclass(frozen=True, slots=True)
class _Search:
    """Neighbours that were found so far, of N vectors."""

    asked: Floats
    bank: Floats
    order: Indices
    products: Tensor
    lengths: Floats
    slack: Floats
    rounding: Floats
    best: Doubles
    found: Indices

    def through(self, cells: _Cells, rows: Indices, starts: Indices) -> None:
        """Compare vectors with cells: those of ``rows`` from ``starts`` on with each."""
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            for cell in np.flatnonzero(np.diff(starts)).tolist():
                among = rows[starts[cell] : starts[cell + 1]]
                for first in range(0, len(among), _ROWS * threads):
                    part = among[first : first + _ROWS * threads]
                    asked = self.products[torch.from_numpy(part)]
                    for begin in range(cells.starts[cell], cells.starts[cell + 1], _COLUMNS):
                        end = min(begin + _COLUMNS, cells.starts[cell + 1])
                        ranks = (asked @ cells.products[begin:end].T).numpy()
                        if threads == 1:
                            self._refine(ranks, part, begin)
                            continue
                        cuts = np.array_split(np.arange(len(part)), threads)
                        tasks = [
                            pool.submit(self._refine, ranks[cut], part[cut], begin)
                            for cut in cuts
                            if len(cut)
                        ]
                        for task in tasks:
                            task.result()

    def _refine(self, ranks: Floats, rows: Indices, begin: int) -> None:
        _refine(
            ranks,
            rows,
            self.order[begin : begin + ranks.shape[1]],
            self.asked,
            self.bank,
            self.lengths,
            self.slack,
            self.rounding,
            self.best,
            self.found,
        )


def _evenly(vectors: Tensor, most: int) -> Tensor:
    """Return at most so many of the vectors, evenly spaced."""
    return vectors[:: -(-len(vectors) // most)]


def _parts(vectors: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(vectors, _ASKED))


def _squares(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances, (N, K) and (M, K) to (N, M)."""
    found = torch.addmm(centres.square().sum(dim=1), vectors, centres.T, alpha=-2)
    return found.add_(vectors.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def _means(vectors: Tensor, count: int) -> Tensor:
    """Return centres of k-means, (count, K), which begin at vectors drawn at random."""
    rng = np.random.default_rng(count)
    drawn = rng.choice(len(vectors), count, replace=False)
    centres = vectors[torch.from_numpy(np.sort(drawn))].clone()
    for _ in range(_ROUNDS):
        belongs = torch.cat([_squares(part, centres).argmin(dim=1) for part in _parts(vectors)])
        sizes = torch.bincount(belongs, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, belongs, vectors)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
    return centres


@compiled
def _within(
    squares: Floats,
    own: Indices,
    radii: Floats,
    margins: Floats,
    apart: Floats,
    limits: Doubles,
    rounding: Floats,
    places: Indices,
    rows: Indices,
) -> None:
    """Find the vectors for which a cell, other than their own, can hold a neighbour.

    ``places`` are counted up from one after the cell's number, or, if there is room in ``rows``,
    from its own, where the vectors are written.
    """
    writes = len(rows) > 0
    for i in range(len(squares)):
        near = squares[i, own[i]]
        error = rounding[i]
        limit = limits[i]
        for cell in range(squares.shape[1]):
            if cell == own[i]:
                continue
            reach = limit + radii[cell] * 1.00001
            if squares[i, cell] - error > reach * reach:
                continue
            ahead = margins[own[i], cell] + squares[i, cell] - near - 4 * error
            if ahead > 2.00001 * apart[own[i], cell] * limit:
                continue
            if writes:
                rows[places[cell]] = i
                places[cell] += 1
            else:
                places[cell + 1] += 1


@compiled_sum
def square_distance(one: Floats, other: Floats) -> float:
    """Return the squared distance of two vectors, summed in float64."""
    total = 0.0
    for channel in range(len(one)):
        away = np.float64(one[channel]) - np.float64(other[channel])
        total += away * away
    return total


@compiled
def _any_below(values: Floats, limit: np.float32) -> bool:
    count = np.int32(0)
    for place in range(len(values)):
        count += np.int32(values[place] <= limit)
    return bool(count > 0)


@compiled
def _refine(
    ranks: Floats,
    rows: Indices,
    order: Indices,
    asked: Floats,
    bank: Floats,
    lengths: Floats,
    slack: Floats,
    rounding: Floats,
    best: Doubles,
    found: Indices,
) -> None:
    """Compare the vectors that are not ruled out, and keep the nearest.

    A rank is the squared distance of reduced vectors less ``lengths``. ``best`` are increasing
    squared distances, and ``found`` who has them; of equal ones the first of the bank is first.
    """
    last = best.shape[1] - 1
    for row in range(len(rows)):
        i = rows[row]
        reach = np.sqrt(best[i, last]) + slack[i]
        limit = np.float32(reach * reach + rounding[i] - lengths[i])
        for begin in range(0, len(order), _CHUNK):
            chunk = ranks[row, begin : begin + _CHUNK]
            if not _any_below(chunk, limit):
                continue
            for place in range(len(chunk)):
                if not chunk[place] <= limit:
                    continue
                index = order[begin + place]
                square = square_distance(asked[i], bank[index])
                at = last
                if not (square < best[i, at] or (square == best[i, at] and index < found[i, at])):
                    continue
                while at > 0 and (
                    square < best[i, at - 1]
                    or (square == best[i, at - 1] and index < found[i, at - 1])
                ):
                    best[i, at] = best[i, at - 1]
                    found[i, at] = found[i, at - 1]
                    at -= 1
                best[i, at] = square
                found[i, at] = index
                reach = np.sqrt(best[i, last]) + slack[i]
                limit = np.float32(reach * reach + rounding[i] - lengths[i])
