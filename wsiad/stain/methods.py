"""Stain vectors by sparse non-negative matrix factorisation (Vahadane)."""

from __future__ import annotations

from typing import Final

import numpy as np

from wsiad.stain.concentration import Stains, concentrations
from wsiad.stain.density import Densities, Weights

SPARSITY: Final = 0.1
"""λ of the dictionary learning, as in StainTools."""

# Ruifrok and Johnston's haematoxylin and eosin: where to start, not where to end.
_START: Final = np.array([[0.651, 0.701, 0.290], [0.216, 0.801, 0.558]])
_TOLERANCE: Final = 1e-7
_MAX_STEPS: Final = 2000


def learn_stains(density: Densities, weights: Weights) -> Stains:
    """Learn the two stains that best explain weighted optical densities.

    Minimises the weighted mean of ½‖x − aD‖² + λ(a₁ + a₂) over concentrations a ≥ 0 and
    stains D ≥ 0 with unit rows, by turns: the concentrations exactly, the stains by
    block coordinate descent. It stops when no element of D moves by more than 1e-7
    (some 60 steps), at the latest after 2,000 steps.

    Parameters
    ----------
    density : ndarray of float64, (n, 3)
        Optical densities of stained tissue.
    weights : ndarray of float64, (n,)
        Pixels of each density.

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
    """Minimise over one stain after the other with the concentrations fixed."""
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
