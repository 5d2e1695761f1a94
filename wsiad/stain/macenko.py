"""Stain vectors from the extreme directions of the optical density plane (Macenko)."""

from __future__ import annotations

from typing import Final

import numpy as np

from wsiad.stain.concentration import Stains
from wsiad.stain.density import Densities, Weights, weighted_quantile

ROBUST_SHARE: Final = 0.01
"""Share of the pixels beyond each extreme direction (the paper's α = 1 %)."""


def extreme_stains(density: Densities, weights: Weights) -> Stains:
    """Return the directions between which all but 2 % of the densities lie.

    The densities are projected on the plane of their two largest principal
    components; the stains are the 1st and the 99th percentile of the angle within it.
    An element below zero, which no stain can have, is set to zero.

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
