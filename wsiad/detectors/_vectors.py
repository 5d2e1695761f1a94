"""Arithmetic of feature vectors in blocks: counting, projection, whitening, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import by_number, counted
from wsiad.detectors._stored import Vectors

PcaComponents = (
    Annotated[int, pydantic.Field(ge=1)] | Annotated[float, pydantic.Field(gt=0, lt=1)] | None
)
"""Number of principal components, or the share of variance to explain, or ``None`` for all."""

Matrix = npt.NDArray[np.float64]

_BLOCK_VALUES = 1 << 24  # values held at once: 64 MiB
_ROWS_ON_A_CPU = 128  # of products; what its cache no longer holds is slow
_NO_VARIANCE = 1e-10  # of the largest: what is below is rounding


def check_count(
    values: Sized, least: int, purpose: str, *, noun: str = "healthy vector", otherwise: str = ""
) -> None:
    """Check that there are enough healthy vectors, or tiles, for a purpose.

    Parameters
    ----------
    values : sized
        The vectors or tiles; their number counts.
    least : int
        Minimum number.
    purpose : str
        What needs them, for the error.
    noun : str
        Word for one of them.
    otherwise : str
        What can be done besides fitting on more tiles, such as ``"set fewer neighbours"``.

    Raises
    ------
    DetectorError
        There are fewer than ``least``.
    """
    number = len(values)
    if number < least:
        raise DetectorError(
            f"{counted(number, noun)} {by_number(number, 'is', 'are')} too few for {purpose}",
            remedy=f"Fit on more tiles{', or ' * bool(otherwise)}{otherwise}.",
        )


def check_different(vectors: npt.NDArray[np.floating]) -> None:
    """Check that healthy vectors (N, C) are not all alike.

    Raises
    ------
    DetectorError
        They are, as those by weights of zeros, and there are at least two.
    """
    if len(vectors) > 1 and (vectors == vectors[0]).all():
        raise all_alike("vectors")


def all_alike(what: str) -> DetectorError:
    """Return the error that healthy vectors, or features, are all alike."""
    return DetectorError(
        f"healthy {what} are all alike",
        remedy="Look at the weights of the backbone, which may be zeros, or fit on other tiles.",
    )


def random_state(seed: int) -> int:
    """Return a seed that scikit-learn accepts (32 bits), from any seed."""
    return int(np.random.default_rng(seed).integers(1 << 31))


def float32(values: npt.NDArray[np.floating]) -> Tensor:
    """Return an array as a float32 tensor on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def in_blocks(function: Callable[[Tensor], Tensor], vectors: Tensor, width: int) -> Tensor:
    """Apply a function that holds ``width`` values for a vector, to vectors in blocks."""
    rows = max(1, _BLOCK_VALUES // max(width, 1))
    return torch.cat([function(part) for part in torch.split(vectors, rows)])


def fit_projection(
    vectors: Vectors, components: PcaComponents, *, standardise: bool = False, whiten: bool = False
) -> dict[str, Tensor]:
    """Return a projection on principal components, for :func:`project`.

    Parameters
    ----------
    vectors : ndarray of float32, (N, C)
        Healthy vectors.
    components : int, float or None
        Number of components, the minimum share of variance that they explain, or all.
    standardise : bool
        Divide channels by their standard deviation first; constant channels are unchanged.
    whiten : bool
        Scale every component to the variance 1.

    Returns
    -------
    dict of str to Tensor
        ``centre`` (C,) and ``matrix`` (C, K), float32.

    Raises
    ------
    DetectorError
        The vectors are all alike, or span fewer dimensions than components.
    """
    from sklearn.decomposition import PCA

    check_count(vectors, 2, "principal components")
    values = vectors.astype(np.float64)
    centre = values.mean(axis=0)
    values -= centre
    scale = _deviations(values) if standardise else np.ones_like(centre)
    values /= scale
    if not values.any():
        raise all_alike("vectors")
    count = min(components, *values.shape) if isinstance(components, int) else components
    solver = "covariance_eigh" if len(values) > values.shape[1] else "full"
    pca = PCA(count, svd_solver=solver).fit(values)
    variance = pca.explained_variance_
    used = variance > _NO_VARIANCE * variance[0]
    if isinstance(components, int) and used.sum() < components:
        raise DetectorError(
            f"{len(values)} healthy vectors of {values.shape[1]} channels span "
            f"{used.sum()} dimensions, fewer than the {components} principal components requested",
            remedy="Fit on more (and different) tiles, or set fewer components.",
        )
    axes = pca.components_[used]
    if whiten:
        axes = axes / np.sqrt(variance[used])[:, None]
    return {"centre": float32(centre), "matrix": float32((axes / scale).T)}


def project(vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
    """Return the principal components, (N, C) to (N, K), by a fitted projection."""
    return (vectors - fitted["centre"]) @ fitted["matrix"]


def _deviations(centred: Matrix) -> Matrix:
    found = np.sqrt(np.square(centred).mean(axis=0))
    return np.where(found > np.sqrt(_NO_VARIANCE) * found.max(), found, 1.0)


def shrink(covariance: Matrix, share: float) -> Matrix:
    """Return a covariance (C, C) of which a share is replaced by the mean variance times I."""
    found = (1 - share) * covariance
    np.fill_diagonal(found, found.diagonal() + share * covariance.diagonal().mean())
    return found


def whitening(covariance: Matrix, count: int) -> Matrix:
    """Return W (C, C), lower triangular, with Wᵀ W the inverse of a covariance.

    Parameters
    ----------
    covariance : ndarray of float64, (C, C)
        Symmetric covariance matrix.
    count : int
        Number of vectors from which it was computed, for the error.

    Raises
    ------
    DetectorError
        The covariance is singular.
    """
    from scipy.linalg import solve_triangular

    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise DetectorError(
            f"the covariance of {count} healthy vectors of {len(covariance)} channels is singular",
            remedy="Fit on more (and different) tiles, or set a larger shrinkage.",
        ) from error
    found: Matrix = solve_triangular(lower, np.eye(len(covariance)), lower=True)
    return found


def square_distances(vectors: Tensor, bank: Tensor) -> Tensor:
    """Return squared Euclidean distances, (N, C) and (B, C) to (N, B).

    The distances come from one matrix product. The rounding is that of |v|², which suits
    centred vectors.
    """
    squares = torch.addmm(bank.square().sum(dim=1), vectors, bank.t(), beta=1, alpha=-2)
    return (squares + vectors.square().sum(dim=1, keepdim=True)).clamp_min_(0)


def nearest(vectors: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest vectors of a bank by comparing all; see :class:`Bank` for large ones.

    Parameters
    ----------
    vectors, bank : Tensor of float32, (N, C) and (B, C)
        Vectors to compare and vectors of the bank, on one device.
    count : int
        Number of neighbours, at most B.

    Returns
    -------
    distances : Tensor of float32, (N, count)
        Euclidean distances, increasing.
    indices : Tensor of int64, (N, count)
        Indices in the bank.
    """
    squares = bank.square().sum(dim=1)

    def ranked(part: Tensor) -> Tensor:
        # |v − b|² up to the constant |v|²: one matrix product finds who is nearest, but
        # cancels digits when it is close; its distance is then taken directly.
        ranks = torch.addmm(squares, part, bank.t(), beta=1, alpha=-2)
        if count == 1:
            return ranks.min(dim=1, keepdim=True).indices
        return ranks.topk(count, dim=1, largest=False).indices

    width = len(bank)
    if vectors.device.type == "cpu":
        width = max(width, _BLOCK_VALUES // _ROWS_ON_A_CPU)
    indices = in_blocks(ranked, vectors, width)
    distances = torch.stack([(vectors - bank[column]).norm(dim=1) for column in indices.T], dim=1)
    return distances, indices
