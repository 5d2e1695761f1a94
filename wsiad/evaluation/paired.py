"""Two results on the same slides: a difference beyond what the choice of slides makes.

Both are taken on the same slides, and the same resamples of them, so that what makes a
slide hard for both does not count as uncertainty of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.evaluation.auc import Floats, TilePool, placements
from wsiad.evaluation.bootstrap import (
    LEVEL,
    NO_RESAMPLES,
    Estimate,
    percentile_interval,
    slide_weights,
    undefined,
)
from wsiad.evaluation.froc import OPERATING_POINTS, Pool

Weights = npt.NDArray[np.int64]

_NOTHING = 1e-18
"""Variance that is rounding alone."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much a figure of the second result is above that of the first.

    Parameters
    ----------
    a, b : float or None
        The figure of either; ``None`` where it is not defined.
    estimate : Estimate
        Second less first, with a 95 % interval.
    p : float or None
        Two-sided, of there being no difference; ``None`` where there is no interval.
    """

    a: float | None
    b: float | None
    estimate: Estimate
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        return {"a": self.a, "b": self.b, **self.estimate.as_json("difference"), "p": self.p}


def delong_pair(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Areas under the ROC curves of several scores of the same slides, and their covariance.

    DeLong et al., Biometrics 44 (1988), equations 4 to 6; by midranks as in Sun & Xu, IEEE
    Signal Processing Letters 21 (2014).

    Parameters
    ----------
    positive, negative : ndarray of float64, (K, M) and (K, N)
        Scores of either class by each of K results; M and N at least 2.

    Returns
    -------
    areas, covariance : ndarray of float64, (K,) and (K, K)
    """
    parts = [placements(p, n) for p, n in zip(positive, negative, strict=True)]
    of_positive, of_negative = (np.array(side) for side in zip(*parts, strict=True))
    covariance = np.cov(of_positive) / positive.shape[1] + np.cov(of_negative) / negative.shape[1]
    return of_positive.mean(axis=1), np.atleast_2d(covariance)


def auc_difference(positive: Floats, negative: Floats) -> Difference:
    """Difference of two slide AUCs with DeLong's paired test.

    Parameters
    ----------
    positive, negative : ndarray of float64, (2, M) and (2, N)
        Scores of tumour and of normal slides by either result, slides in the same order.
    """
    from scipy import special

    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        return Difference(
            None, None, undefined(f"there is no {'normal' if m else 'tumour'} slide with a score")
        )
    a, b = (float(placements(p, q)[0].mean()) for p, q in zip(positive, negative, strict=True))
    value = b - a
    if m < 2 or n < 2:
        reason = "a class has fewer than two slides"
        return Difference(a, b, Estimate(value, interval_undefined=reason))
    _, covariance = delong_pair(positive, negative)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= _NOTHING:
        reason = "DeLong's variance is 0: the scores leave nothing to vary"
        return Difference(a, b, Estimate(value, interval_undefined=reason))
    error = math.sqrt(variance)
    half = float(special.ndtri((1 + LEVEL) / 2)) * error
    # Both tails of the normal distribution.
    p = math.erfc(abs(value) / error / math.sqrt(2))
    # Areas lie between 0 and 1, so their difference does between -1 and 1.
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Difference(a, b, Estimate(value, low, high), p)


def froc_differences(a: Pool, b: Pool, *, resamples: int, seed: int) -> list[Difference]:
    """Differences of the FROC score, then of the sensitivity at each operating point.

    Parameters
    ----------
    a, b : Pool
        Hits on the same slides, in the same order, by the same protocol.
    resamples, seed : int
        Of the bootstrap over slides.

    Returns
    -------
    list of Difference
        Seven.
    """

    def figures(pool: Pool, weights: Weights | None) -> Floats | None:
        found = pool.sensitivities(weights)
        return None if found is None else np.array([found.mean(), *found])

    if a.lesions == 0:
        missing = Difference(None, None, undefined("there is no lesion to find"))
        return [missing] * (1 + len(OPERATING_POINTS))
    few = a.slides_with_lesions < 2
    return _differences(
        lambda weights: (figures(a, weights), figures(b, weights)),
        slide_weights(a.slides, resamples=0 if few else resamples, seed=seed),
        "lesions lie on fewer than two slides" if few else NO_RESAMPLES,
    )


def tile_difference(a: TilePool, b: TilePool, *, resamples: int, seed: int) -> Difference:
    """Difference of two tile AUROCs, with an interval over slides.

    Parameters
    ----------
    a, b : TilePool
        Tiles of the same slides, in the same order; the tiles may differ.
    resamples, seed : int
        Of the bootstrap over slides.
    """

    def figures(pool: TilePool, weights: Weights | None) -> Floats | None:
        area = pool.area(weights)
        return None if area is None else np.array([area])

    for pool in (a, b):
        if pool.area() is None:
            return Difference(a.area(), b.area(), undefined(pool.missing))
    few = min(a.fewest_slides, b.fewest_slides) < 2
    return _differences(
        lambda weights: (figures(a, weights), figures(b, weights)),
        slide_weights(a.slides, resamples=0 if few else resamples, seed=seed),
        "tiles of a class come from fewer than two slides" if few else NO_RESAMPLES,
    )[0]


def _differences(
    figures: Callable[[Weights | None], tuple[Floats | None, Floats | None]],
    draws: Iterable[Weights],
    no_interval: str,
) -> list[Difference]:
    """Differences of several figures, defined without weights, over the same draws for both."""
    a, b = figures(None)
    assert a is not None
    assert b is not None
    pairs = (figures(weights) for weights in draws)
    samples = [
        second - first for first, second in pairs if first is not None and second is not None
    ]
    found = []
    for index, (one, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        value = other - one
        if not samples:
            estimate = Estimate(value, interval_undefined=no_interval)
            found.append(Difference(one, other, estimate))
            continue
        drawn = np.array([sample[index] for sample in samples])
        low, high = percentile_interval(drawn).tolist()
        found.append(Difference(one, other, Estimate(value, low, high), bootstrap_p(drawn)))
    return found


def bootstrap_p(samples: Floats) -> float:
    """Two-sided p-value of no difference: twice the smaller tail of the resamples beyond 0.

    One is added to either count, so that no number of resamples shows a p-value of 0
    (Davison & Hinkley, *Bootstrap Methods and their Application*, 1997, section 4.2).

    Parameters
    ----------
    samples : ndarray of float64, (R,)
        Differences of resamples; a difference of 0 is in both tails.
    """
    tails = np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0)
    return min(1.0, 2 * (1 + int(min(tails))) / (1 + len(samples)))
