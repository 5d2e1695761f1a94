"""Vectors as bytes in fewer dimensions, whose distances bound those of the vectors.

A bank of vectors is first compared in its codes. Products of bytes are exact, and processors with
instructions for them (AVX-512 VNNI) compute them several times as fast as those of floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from wsiad.core.compiled import CODE, compiled, multiplies_bytes
from wsiad.detectors._cells import (
    UNIT,
    Doubles,
    Floats,
    Indices,
    enter,
    evenly,
    principal,
    square_distance,
)

_LARGEST = 127
_MOST_SQUARE = 3e38  # of a distance of codes
_CHUNK = 128  # products that are looked at together
_DIMENSIONS = {True: CODE, False: 32}  # of bytes, of floats
_SEED = 0  # of the rotation
_BLOCK = 8192  # vectors worked on at once
_SAMPLE = 1 << 14  # vectors from which components are found
_TRIED = 64  # vectors of a bank that tell whether bytes are fine enough
_MOST_LEFT = 1 / 128
"""Largest share of a bank that bytes may leave to be compared: with more, floats are quicker."""


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes of N vectors of K dimensions.

    Parameters
    ----------
    codes : Tensor of int8 or float32, (N, K)
        Bytes are filled up with zeros to 64.
    squares : ndarray of float32, (N,)
        Squared lengths of the codes.
    errors : ndarray of float32, (N,)
        By how much, at most, the distance of two vectors is smaller than that of their codes times
        the scale is the sum of both errors.
    """

    codes: Tensor
    squares: Floats
    errors: Floats


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of a bank of vectors of C channels.

    A vector is reduced to its principal components and the length of what these leave, which
    makes no distance larger. For bytes it is then turned by a random rotation, so that all numbers
    are about as large, and rounded to multiples of a scale. Where bytes are not quick, or too
    coarse for the bank, the reduced vectors themselves are the codes, in fewer dimensions.

    Parameters
    ----------
    mean : Tensor of float32, (C,)
    axes : Tensor of float32, (C, K - 1)
        Orthonormal directions of the reduction.
    rest : float
        Mean length of what the components leave.
    turn : Tensor of float32, (K, K), or None
        Rotation; ``None`` if the codes are floats.
    scale : float
        Distance of two neighbouring bytes; 1 for floats.
    """

    mean: Tensor
    axes: Tensor
    rest: float = 0.0
    turn: Tensor | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, vectors: Tensor) -> Codes:
        """Find the codes of vectors on the CPU, (B, C), that are compared most quickly."""
        if multiplies_bytes() and (found := cls.found(vectors, in_bytes=True))._is_fine(vectors):
            return found
        return cls.found(vectors, in_bytes=False)

    @classmethod
    def found(cls, vectors: Tensor, *, in_bytes: bool) -> Codes:
        """Find codes of vectors on the CPU, (B, C), that are bytes or floats."""
        mean = vectors.mean(dim=0)
        found = cls(mean, principal(evenly(vectors, _SAMPLE) - mean, _DIMENSIONS[in_bytes] - 1))
        left = sum(float(part[:, -1].sum()) for part in found._blocks(vectors))
        found = replace(found, rest=left / len(vectors))
        if not in_bytes:
            return found
        width = found.axes.shape[1] + 1
        drawn = np.random.default_rng(_SEED).standard_normal((width, width))
        turn = torch.from_numpy(np.linalg.qr(drawn)[0]).float()
        largest = max(float((part @ turn).abs().max()) for part in found._blocks(vectors))
        return replace(found, turn=turn, scale=largest / _LARGEST or 1.0)

    def _blocks(self, vectors: Tensor) -> Iterator[Tensor]:
        return map(self._reduced, torch.split(vectors, _BLOCK))

    def _is_fine(self, vectors: Tensor) -> bool:
        """Tell whether few vectors of the bank seem nearer to one of it than the nearest other."""
        vectors = evenly(vectors, _BLOCK)
        some = evenly(vectors, _TRIED)
        nearest = torch.cdist(some.double(), vectors.double()).kthvalue(2, dim=1).values
        asked, held = self.coded(some), self.coded(vectors)
        reach = (nearest + torch.from_numpy(asked.errors + held.errors.max())) / self.scale
        away = torch.cdist(asked.codes.double(), held.codes.double())
        return bool((away <= reach[:, None]).double().mean() <= _MOST_LEFT)

    def coded(self, vectors: Tensor, order: Tensor | None = None) -> Coded:
        """Return the codes of vectors on the CPU, (N, C), of the bank or not, in an order."""
        blocks = torch.split(vectors if order is None else order, _BLOCK)
        parts = [self._coded(part if order is None else vectors[part]) for part in blocks]
        return Coded(
            codes=torch.cat([part.codes for part in parts]),
            squares=np.concatenate([part.squares for part in parts]),
            errors=np.concatenate([part.errors for part in parts]),
        )

    @property
    def rounding(self) -> float:
        """Return the error of the square of a distance, relative to that of two lengths' sum."""
        return 0.0 if self.turn is not None else 8 * (self.axes.shape[1] + 3) * UNIT

    def _coded(self, vectors: Tensor) -> Coded:
        reduced = self._reduced(vectors)
        length = reduced.norm(dim=1) + 2 * abs(self.rest)
        channels, width = self.axes.shape[0], reduced.shape[1]
        errors = 4 * (channels + 2 * width + 16) * (width + 1) ** 0.5 * UNIT * length
        if self.turn is None:
            squares = reduced.square().sum(dim=1)
            return Coded(codes=reduced, squares=squares.numpy(), errors=errors.numpy())
        turned = reduced @ self.turn
        codes = (turned / self.scale).round_().clamp_(-_LARGEST, _LARGEST).nan_to_num_(0)
        errors += (turned - codes * self.scale).norm(dim=1)
        return Coded(
            codes=pad(codes.to(torch.int8), (0, CODE - width)),
            squares=codes.square().sum(dim=1).numpy(),
            errors=errors.numpy(),
        )

    def _reduced(self, vectors: Tensor) -> Tensor:
        centred = vectors - self.mean
        found = centred @ self.axes
        # Directly: what a difference of squares cancels would be no bound.
        left = torch.addmm(centred, found, self.axes.t(), alpha=-1).norm(dim=1, keepdim=True)
        return torch.cat([found, left - self.rest], dim=1)


@compiled
def _any_below(dots: Floats, squares: Floats, limit: np.float32) -> bool:
    count, two = np.int32(0), np.float32(2)
    for place in range(len(dots)):
        count += np.int32(squares[place] - two * dots[place] <= limit)
    return bool(count > 0)


@compiled
def _lowest(dots: Floats, squares: Floats) -> int:
    """Return the place of the code that is nearest."""
    two = np.float32(2)
    lowest, at = squares[0] - two * dots[0], 0
    for place in range(len(dots)):
        lowest = min(lowest, squares[place] - two * dots[place])
    while at < len(dots) - 1 and squares[at] - two * dots[at] > lowest:
        at += 1
    return at


@compiled
def _most(best: float, spare: float, square: float) -> np.float32:
    """Return the largest square, less ``square``, of a code's distance if the vector is nearer."""
    reach = np.sqrt(best) + spare
    most = reach * reach * 1.000001 - square
    if not most > -_MOST_SQUARE:  # also of a vector that is not finite
        return np.float32(-_MOST_SQUARE)
    return np.float32(min(most, _MOST_SQUARE))


@compiled
def refine(
    dots: Floats,
    rows: Indices,
    squares: Floats,
    order: Indices,
    asked: Floats,
    bank: Floats,
    lengths: Floats,
    errors: Floats,
    error: float,
    rounding: float,
    longest: float,
    best: Doubles,
    found: Indices,
) -> None:
    """Compare the vectors that are not ruled out, and keep the nearest.

    ``dots`` are products of codes whose squared lengths are ``lengths`` and ``squares``, and whose
    errors are ``errors`` and at most ``error``; no code of ``squares`` is longer than ``longest``.
    For ``best`` and ``found`` see
    :func:`~wsiad.detectors._cells.enter`.
    """
    last = best.shape[1] - 1
    for row in range(len(rows)):
        i = rows[row]
        if last == 0 and best[i, 0] == np.inf:
            # The one whose code is nearest first: few others are then near enough.
            index = order[_lowest(dots[row], squares)]
            square = square_distance(asked[i], bank[index])
            if square < best[i, 0]:  # not if it is no number
                best[i, 0], found[i, 0] = square, index
        length = np.float64(lengths[i])
        spare = errors[i] + error
        length -= rounding * (np.sqrt(length) + longest) ** 2
        limit = _most(best[i, last], spare, length)
        for begin in range(0, len(order), _CHUNK):
            chunk, across = dots[row, begin : begin + _CHUNK], squares[begin : begin + _CHUNK]
            if not _any_below(chunk, across, limit):
                continue
            for place in range(len(chunk)):
                if not across[place] - 2 * chunk[place] <= limit:
                    continue
                index = order[begin + place]
                square = square_distance(asked[i], bank[index])
                if enter(best, found, i, square, index):
                    limit = _most(best[i, last], spare, length)
