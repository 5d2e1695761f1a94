"""Maximum-likelihood fit of a Dirichlet distribution (Minka, 2000, revised 2012)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, gammaln, polygamma

from wsiad.core.errors import DetectorError

Values = npt.NDArray[np.float64]

_ROUNDS = 200
_TOLERANCE = 1e-10
_LEAST_VARIANCE = 1e-14
_LEAST_ALPHA = 1e-4
_HALVINGS = 40


def fit_dirichlet(mean_log: Values, mean: Values, mean_square: Values) -> Values:
    """Return the parameters α (K,) under which vectors of probabilities are likeliest.

    The likelihood depends on the mean of log p alone and is concave in α: Newton's steps,
    halved until they raise it, from where the moments of p point to.

    Parameters
    ----------
    mean_log, mean, mean_square : ndarray of float64, (K,)
        Mean over the vectors of log p, p and p².

    Raises
    ------
    DetectorError
        All vectors are equal: the likelihood has no maximum.
    """
    variance = mean_square - mean**2
    varied = variance > _LEAST_VARIANCE
    if not varied.any():
        raise DetectorError(
            "the classifier's answers are the same for all healthy tiles",
            remedy="Fit on more tiles, or train longer.",
        )
    total = np.median((mean - mean_square)[varied] / variance[varied])
    alpha = np.maximum(total * mean, _LEAST_ALPHA)
    likelihood = _likelihood(alpha, mean_log)
    for _ in range(_ROUNDS):
        step = _newton_step(alpha, mean_log)
        for _ in range(_HALVINGS):
            moved = alpha + step
            if (moved > 0).all() and (found := _likelihood(moved, mean_log)) >= likelihood:
                break
            step = step / 2
        else:
            return alpha
        gained, alpha, likelihood = found - likelihood, moved, found
        if gained <= _TOLERANCE * max(abs(likelihood), 1.0):
            return alpha
    return alpha


def _likelihood(alpha: Values, mean_log: Values) -> float:
    return float(gammaln(alpha.sum()) - gammaln(alpha).sum() + (alpha - 1) @ mean_log)


def _newton_step(alpha: Values, mean_log: Values) -> Values:
    """Return −H⁻¹ g; H is a diagonal and a constant, and needs no matrix."""
    gradient = digamma(alpha.sum()) - digamma(alpha) + mean_log
    diagonal = -polygamma(1, alpha)
    constant = polygamma(1, alpha.sum())
    shared = (gradient / diagonal).sum() / (1 / constant + (1 / diagonal).sum())
    step: Values = -(gradient - shared) / diagonal
    return step
