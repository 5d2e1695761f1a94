"""Cells of a bank of vectors, and the few dimensions in which they are compared first.

The *reduced* vectors are the principal components of a bank and the length of what these leave:
their distances are never larger than those of the complete vectors. K-means parts them into
cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsiad.core.compiled import compiled, compiled_sum

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

UNIT = 2.0**-24
"""Largest relative rounding of a float32."""

_DIMENSIONS = 32  # of reduced vectors
_IN_A_CELL = 500  # vectors, about
_MOST_CELLS = 1024
_SAMPLE = 1 << 16  # vectors from which components and cells are found
_ROUNDS = 8  # of k-means
_BLOCK = 8192  # vectors worked on at once


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a bank of B vectors of C channels, as M means of K dimensions.

    Parameters
    ----------
    mean : Tensor of float32, (C,)
        Mean of the bank.
    axes : Tensor of float32, (C, K - 1)
        Orthonormal directions of the reduction.
    centres : Tensor of float32, (M, K)
        Means of the cells.
    order : ndarray of int64, (B,)
        Indices of the vectors in the bank, cell by cell.
    starts : ndarray of int64, (M + 1,)
        Where cells begin in ``order``.
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

    mean: Tensor
    axes: Tensor
    centres: Tensor
    order: Indices
    starts: Indices
    radii: Floats
    margins: Floats
    apart: Floats
    longest: float

    @classmethod
    def of(cls, vectors: Tensor, state: Mapping[str, Tensor] | None = None) -> Cells:
        """Part vectors on the CPU into cells, or into those of a state.

        Raises
        ------
        ValueError
            The state is not that of these vectors.
        """
        if state is None:
            state = _parted(vectors)
        mean, axes, centres, belongs = _checked(state, vectors)
        count = len(centres)
        sizes = torch.bincount(belongs, minlength=count)
        order = torch.argsort(belongs, stable=True)
        radii = np.zeros(count, np.float32)
        margins = np.full((count, count), np.inf, np.float32)
        longest = 0.0
        for cell, members in enumerate(torch.split(order, sizes.tolist())):
            for indices in _parts(members):
                part = reduce(vectors[indices], mean, axes)
                longest = max(longest, float(part.norm(dim=1).max()))
                squares = squared(part, centres)
                ahead = (squares - squares[:, cell, None]).amin(dim=0).numpy()
                margins[:, cell] = np.minimum(margins[:, cell], ahead)
                radii[cell] = max(radii[cell], float((part - centres[cell]).norm(dim=1).max()))
        return cls(
            mean=mean,
            axes=axes,
            centres=centres,
            order=order.numpy(),
            starts=np.concatenate([[0], np.cumsum(sizes.numpy())]),
            radii=radii,
            margins=margins,
            apart=torch.cdist(centres.double(), centres.double()).float().numpy(),
            longest=longest,
        )

    @property
    def rounding(self) -> float:
        """Return the largest error of a reduced vector, relative to its length."""
        channels, width = self.axes.shape
        return float(4 * (channels + width + 8) * (width + 1) ** 0.5 * UNIT)

    def reduced(self, vectors: Tensor) -> Tensor:
        """Return reduced vectors, (N, C) to (N, K), on the device of the vectors."""
        return reduce(vectors, self.mean.to(vectors.device), self.axes.to(vectors.device))

    def state(self) -> dict[str, Tensor]:
        """Return tensors of which :meth:`of` makes the same cells of the same vectors."""
        belongs = np.empty(len(self.order), np.int32)
        belongs[self.order] = np.repeat(np.arange(len(self.centres)), np.diff(self.starts))
        return {
            "mean": self.mean,
            "axes": self.axes,
            "centres": self.centres,
            "belongs": torch.from_numpy(belongs),
        }


def reduce(vectors: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Return components along axes, and the length of what they leave, (N, C) to (N, K)."""
    centred = vectors - mean
    found = centred @ axes
    # Directly: what a difference of squares cancels would be no bound.
    rest = torch.addmm(centred, found, axes.t(), alpha=-1).norm(dim=1, keepdim=True)
    return torch.cat([found, rest], dim=1)


def squared(vectors: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances, (N, K) and (M, K) to (N, M)."""
    found = torch.addmm(centres.square().sum(dim=1), vectors, centres.t(), alpha=-2)
    return found.add_(vectors.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def _parted(vectors: Tensor) -> dict[str, Tensor]:
    """Return the state of new cells; equal vectors give equal cells."""
    sample = evenly(vectors, _SAMPLE)
    mean = sample.mean(dim=0)
    axes = principal(evenly(sample, _SAMPLE // 4) - mean, _DIMENSIONS - 1)
    count = max(1, min(_MOST_CELLS, len(vectors) // _IN_A_CELL))
    centres = _means(reduce(sample, mean, axes), count)
    belongs = torch.cat(
        [squared(reduce(part, mean, axes), centres).argmin(dim=1) for part in _parts(vectors)]
    )
    used, numbers = np.unique(belongs.numpy(), return_inverse=True)
    return {
        "mean": mean,
        "axes": axes,
        "centres": centres[torch.from_numpy(used)],
        "belongs": torch.from_numpy(numbers),
    }


def _checked(state: Mapping[str, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, axes, centres, belongs = (
        state[name].cpu() for name in ("mean", "axes", "centres", "belongs")
    )
    count, channels = vectors.shape
    belongs = belongs.long()
    if (
        mean.shape != (channels,)
        or axes.ndim != 2
        or centres.ndim != 2
        or axes.shape != (channels, centres.shape[1] - 1)
        or belongs.shape != (count,)
        or not all(bool(part.isfinite().all()) for part in (mean, axes, centres))
        or not 0 <= int(belongs.min()) <= int(belongs.max()) < len(centres)
    ):
        raise ValueError("its cells are not those of its bank")
    return mean, axes, centres.contiguous(), belongs


def principal(centred: Tensor, count: int) -> Tensor:
    """Return at most so many principal directions, float32 (C, count), orthonormal."""
    axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors
    return axes[:, -count:].float().contiguous()


def _means(vectors: Tensor, count: int) -> Tensor:
    """Return centres of k-means, (count, K), which begin at vectors drawn at random."""
    drawn = np.random.default_rng(count).choice(len(vectors), count, replace=False)
    centres = vectors[torch.from_numpy(np.sort(drawn))].clone()
    for _ in range(_ROUNDS):
        belongs = torch.cat([squared(part, centres).argmin(dim=1) for part in _parts(vectors)])
        sizes = torch.bincount(belongs, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, belongs, vectors)
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres


def evenly(vectors: Tensor, most: int) -> Tensor:
    """Return at most so many of the vectors, evenly spaced."""
    return vectors[:: -(-len(vectors) // most)]


def _parts(vectors: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(vectors, _BLOCK))


@compiled_sum
def square_distance(one: Floats, other: Floats) -> float:
    """Return the squared distance of two vectors, summed in float64."""
    total = 0.0
    for channel in range(len(one)):
        away = np.float64(one[channel]) - np.float64(other[channel])
        total += away * away
    return total


@compiled
def enter(best: Doubles, found: Indices, row: int, square: float, index: int) -> bool:
    """Enter a vector among the nearest of a row, and tell whether it is one of them.

    ``best`` are increasing squared distances, and ``found`` who has them; of equal ones the first
    of the bank is first.
    """
    at = best.shape[1] - 1
    if not (square < best[row, at] or (square == best[row, at] and index < found[row, at])):
        return False
    while at > 0 and (
        square < best[row, at - 1] or (square == best[row, at - 1] and index < found[row, at - 1])
    ):
        best[row, at] = best[row, at - 1]
        found[row, at] = found[row, at - 1]
        at -= 1
    best[row, at] = square
    found[row, at] = index
    return True


@compiled
def within(
    squares: Floats,
    own: Indices,
    radii: Floats,
    margins: Floats,
    apart: Floats,
    limits: Doubles,
    rounding: Floats,
    near: Flags,
    counts: Indices,
) -> None:
    """Find the vectors for which a cell, other than their own, can hold a neighbour.

    No neighbour is farther than ``limits``. Cells of infinite ``squares``, the squared distances
    (N, M) from the centres whose errors are below ``rounding``, are left out.

    ``near``, (N, M), is set to what was found, and ``counts``, (M,), to the number of vectors.
    """
    counts[:] = 0
    for i in range(len(squares)):
        mine, limit, error = own[i], limits[i], rounding[i]
        ahead, between = margins[mine], apart[mine]
        nearest = squares[i, mine] + 4 * error
        for cell in range(squares.shape[1]):
            square = squares[i, cell]
            reach = limit + radii[cell] * 1.00001
            # Not "is at most": a number that is none rules nothing out.
            beyond = (square - error > reach * reach) | (square == np.inf)
            beyond |= ahead[cell] + square - nearest > 2.00001 * between[cell] * limit
            near[i, cell] = not beyond
        near[i, mine] = False
        for cell in range(squares.shape[1]):
            counts[cell] += near[i, cell]


@compiled
def listed(near: Flags, starts: Indices, rows: Indices) -> None:
    """Write the rows of each column of ``near`` to ``rows``, from the column's start on.

    ``rows`` has room for one more than there are.
    """
    for cell in range(near.shape[1]):
        place = starts[cell]
        for i in range(len(near)):
            rows[place] = i  # of no flag: the next row, or the next column's, is written over it
            place += near[i, cell]
