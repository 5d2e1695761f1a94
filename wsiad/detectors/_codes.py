"""Vectors as bytes in fewer dimensions, whose distances bound those of the vectors.

A bank of vectors is first compared in its codes. Products of bytes are exact, and processors with
instructions for them (AVX-512 VNNI) compute them several times as fast as those of floats.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsiad.detectors._cells import UNIT, Floats, evenly, principal

Sums = npt.NDArray[np.int32 | np.float32]

_LARGEST = 127
_DIMENSIONS = {True: 64, False: 32}  # of bytes, of floats
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
    squares : ndarray of int32 or float32, (N,)
        Squared lengths of the codes.
    errors : ndarray of float32, (N,)
        By how much, at most, the distance of two vectors is smaller than that of their codes times
        the scale is the sum of both errors.
    """

    codes: Tensor
    squares: Sums
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
        if bytes_are_quick() and (found := cls.found(vectors, in_bytes=True))._is_fine(vectors):
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
            codes=codes.to(torch.int8),
            squares=codes.square().sum(dim=1).to(torch.int32).numpy(),
            errors=errors.numpy(),
        )

    def _reduced(self, vectors: Tensor) -> Tensor:
        centred = vectors - self.mean
        found = centred @ self.axes
        # Directly: what a difference of squares cancels would be no bound.
        left = torch.addmm(centred, found, self.axes.t(), alpha=-1).norm(dim=1, keepdim=True)
        return torch.cat([found, left - self.rest], dim=1)


def products(asked: Tensor, block: Tensor, out: Tensor) -> None:
    """Multiply codes, (N, K) and (K, B); products of bytes are exact.

    Parameters
    ----------
    asked, block : Tensor of int8, or of float32
    out : Tensor of int32, or of float32, (N, B)
        Contiguous memory of the products.
    """
    if asked.dtype == torch.int8:
        torch._int_mm(asked, block, out=out)
    else:
        torch.mm(asked, block, out=out)


@functools.cache
def bytes_are_quick() -> bool:
    """Tell whether this processor has instructions (AVX-512 VNNI) that multiply bytes exactly.

    torch multiplies bytes by them, in its library oneDNN; without it, one by one.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if supported is None or not supported() or not hasattr(torch, "_int_mm"):
        return False
    library: Any = torch.backends.mkldnn
    if not (library.is_available() and library.enabled):
        return False
    largest = torch.full((32, _DIMENSIONS[True]), _LARGEST, dtype=torch.int8)
    largest[::2] *= -1
    found = torch.empty(32, 32, dtype=torch.int32)
    try:
        torch._int_mm(largest, largest.T, out=found)
    except (RuntimeError, NotImplementedError):
        return False
    return bool((found == largest.int() @ largest.T.int()).all())
