"""Methods that estimate the stains of a slide.

Vahadane's finds stain vectors by sparse non-negative matrix factorisation, Macenko's by the
extreme directions of the optical density plane. The amounts of both stains in a colour are the
solution of a non-negative lasso, computed exactly. Reinhard's transfers the colour statistics
of the tissue.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from wsiad.stain.colours import (
    MAX_LIGHTNESS,
    Densities,
    Weights,
    from_lab,
    to_lab,
    weighted_quantile,
)
from wsiad.stain.profile import LabStatistics

Stains = npt.NDArray[np.float64]
"""Optical density vectors of haematoxylin and eosin, unit rows, (2, 3)."""

Concentrations = npt.NDArray[np.float64]
"""Concentrations of haematoxylin and eosin, (n, 2)."""

PENALTY: Final = 0.01
"""λ of the concentrations, as in StainTools; the dictionary is learnt with a larger one."""


def concentrations(
    density: Densities, stains: Stains, *, penalty: float = PENALTY
) -> Concentrations:
    """Minimise ½‖x − aD‖² + λ(a₁ + a₂) over a ≥ 0 for each density x.

    With two unit stains at an acute angle, the signs of two numbers give the active set, so no
    solver is needed. With b = Dx − λ and c = d₁·d₂, both stains are active where b₁ > c b₂ and
    b₂ > c b₁; elsewhere at most the one with the larger b is active.

    Parameters
    ----------
    density : ndarray of float64, (n, 3)
        Optical densities x.
    stains : ndarray of float64, (2, 3)
        Unit rows D with 0 ≤ d₁·d₂ < 1.
    penalty : float
        λ ≥ 0.

    Returns
    -------
    ndarray of float64, (n, 2)
    """
    return active_set(*(stains @ density.T - penalty), cosine=float(stains[0] @ stains[1])).T


def active_set(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], *, cosine: float
) -> npt.NDArray[np.float64]:
    """Return both concentrations, (2, ...), from b₁ and b₂ of :func:`concentrations`."""
    alone_first, alone_second = first, second
    first, second = alone_first - cosine * alone_second, alone_second - cosine * alone_first
    scale = 1.0 / (1.0 - cosine * cosine)
    both = np.stack(
        [
            np.where(second > 0, first * scale, alone_first),
            np.where(first > 0, second * scale, alone_second),
        ]
    )
    return np.maximum(both, 0.0, out=both)


SPARSITY: Final = 0.1
"""λ of the dictionary learning, as in StainTools."""

# Ruifrok and Johnston's haematoxylin and eosin: where to start, not where to end.
_START: Final = np.array([[0.651, 0.701, 0.290], [0.216, 0.801, 0.558]])
_TOLERANCE: Final = 1e-7
_MAX_STEPS: Final = 2000


def learn_stains(density: Densities, weights: Weights) -> Stains:
    """Learn the two stains that explain weighted optical densities best.

    Minimises the weighted mean of ½‖x − aD‖² + λ(a₁ + a₂) over concentrations a ≥ 0 and
    stains D ≥ 0 with unit rows. It alternates: the concentrations are solved exactly, the
    stains by block coordinate descent. It stops when no element of D moves by more than 1e-7
    (after some 60 steps), or after 2,000 steps.

    Parameters
    ----------
    density : ndarray of float64, (n, 3)
        Optical densities of stained tissue.
    weights : ndarray of float64, (n,)
        Number of pixels of each density.

    Returns
    -------
    ndarray of float64, (2, 3)
        Unit rows, in no particular order.

    References
    ----------
    A. Vahadane et al., "Structure-preserving color normalization and sparse stain
    separation for histological images", IEEE Trans. Med. Imaging 35(8), 2016, section
    III-B. J. Mairal et al., "Online learning for matrix factorization and sparse
    coding", JMLR 11, 2010, algorithm 2.
    """
    share = (weights / weights.sum())[:, None]
    stains = _START / np.linalg.norm(_START, axis=1, keepdims=True)
    for _ in range(_MAX_STEPS):
        amounts = concentrations(density, stains, penalty=SPARSITY)
        weighted = amounts * share
        updated = _update(stains, weighted.T @ amounts, weighted.T @ density)
        moved = np.abs(updated - stains).max()
        stains = updated
        if moved < _TOLERANCE:
            break
    return stains


def objective(density: Densities, weights: Weights, stains: Stains) -> float:
    """Return the weighted mean that :func:`learn_stains` minimises."""
    amounts = concentrations(density, stains, penalty=SPARSITY)
    loss = 0.5 * ((density - amounts @ stains) ** 2).sum(axis=1) + SPARSITY * amounts.sum(axis=1)
    return float(np.average(loss, weights=weights))


def _update(stains: Stains, second_moment: Stains, cross_moment: Stains) -> Stains:
    """Minimise over one stain after the other, with the concentrations fixed."""
    stains = stains.copy()
    for row in range(2):
        if second_moment[row, row] <= 0.0:
            continue  # this stain is nowhere: nothing says what it looks like
        slope = cross_moment[row] - second_moment[row] @ stains
        moved = np.maximum(stains[row] + slope / second_moment[row, row], 0.0)
        length = np.linalg.norm(moved)
        if length > 0.0:
            stains[row] = moved / length
    return stains


ROBUST_SHARE: Final = 0.01
"""Share of the pixels beyond each extreme direction (α = 1 % in the paper)."""


def extreme_stains(density: Densities, weights: Weights) -> Stains:
    """Return the directions between which all but 2 % of the densities lie.

    The densities are projected on the plane of their two largest principal
    components. The stains are the 1st and the 99th percentile of the angle in this plane.
    An element below zero is set to zero, because no stain can have one.

    Parameters
    ----------
    density : ndarray of float64, (n, 3)
        Optical densities of stained tissue.
    weights : ndarray of float64, (n,)
        Number of pixels of each density.

    Returns
    -------
    ndarray of float64, (2, 3)
        Unit rows, in no particular order.

    References
    ----------
    M. Macenko et al., "A method for normalizing histology slides for quantitative
    analysis", ISBI 2009, section 3.
    """
    covariance = np.cov(density, rowvar=False, aweights=weights)
    plane = np.linalg.eigh(covariance).eigenvectors[:, [2, 1]]
    # All densities are positive: with the first axis pointing to their side, no angle
    # comes near ±180°.
    mean = np.average(density, axis=0, weights=weights)
    plane[:, 0] *= np.sign(mean @ plane[:, 0]) or 1.0
    projected = density @ plane
    angle = np.arctan2(projected[:, 1], projected[:, 0])[:, None]
    ends = [weighted_quantile(angle, weights, q)[0] for q in (ROBUST_SHARE, 1 - ROBUST_SHARE)]
    stains = np.maximum(np.array([[np.cos(end), np.sin(end)] for end in ends]) @ plane.T, 0.0)
    lengths = np.linalg.norm(stains, axis=1, keepdims=True)
    return stains / np.where(lengths > 0, lengths, 1.0)


_WHITE_LIGHTNESS: Final = 100.0


def lab_statistics(rgb: npt.NDArray[np.float64], weights: Weights) -> LabStatistics:
    """Return mean and standard deviation of L*, a* and b*.

    Parameters
    ----------
    rgb : ndarray of float64, (n, 3)
        Colours of stained tissue relative to white glass, 0 to 255.
    weights : ndarray of float64, (n,)
        Number of pixels of each colour.

    Raises
    ------
    StainError
        All colours are the same.
    """
    lab = to_lab(rgb)
    mean = np.average(lab, axis=0, weights=weights)
    std = np.sqrt(np.average((lab - mean) ** 2, axis=0, weights=weights))
    return LabStatistics(
        (float(mean[0]), float(mean[1]), float(mean[2])),
        (float(std[0]), float(std[1]), float(std[2])),
    )


def transfer(
    rgb: npt.NDArray[np.float32], source: LabStatistics, target: LabStatistics
) -> npt.NDArray[np.float32]:
    """Give colours the mean and standard deviation of the target's tissue.

    The statistics match exactly up to L* = 80, that is for all colours that
    :func:`lab_statistics` counted. Above, lightness continues linearly to white, and the
    change of a* and b* fades out: glass stays glass.

    Parameters
    ----------
    rgb : ndarray of float32, (n, 3)
        Colours relative to white glass, 0 to 255.
    source, target : LabStatistics
        Statistics of the slide, and those that it should have.

    Returns
    -------
    ndarray of float32, (n, 3)
        Colours, 0 to 255, not rounded.

    References
    ----------
    E. Reinhard et al., "Color transfer between images", IEEE Comput. Graph. Appl.
    21(5), 2001; in CIE L*a*b* as is usual for histology, not in their lαβ.
    """
    lab = to_lab(rgb)
    scale = np.divide(target.std, source.std)
    shift = np.array(target.mean) - scale * source.mean
    moved = lab * scale.astype(np.float32) + shift.astype(np.float32)
    pale = (lab[:, :1] - MAX_LIGHTNESS) / (_WHITE_LIGHTNESS - MAX_LIGHTNESS)
    pale = np.clip(pale, 0.0, 1.0, out=pale)
    knee = min(float(MAX_LIGHTNESS * scale[0] + shift[0]), _WHITE_LIGHTNESS)
    ramp = knee + pale * (_WHITE_LIGHTNESS - knee)
    moved[:, :1] = np.where(pale > 0, ramp, moved[:, :1])
    moved[:, 1:] += pale * (lab[:, 1:] - moved[:, 1:])
    return from_lab(moved)
