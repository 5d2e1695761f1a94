"""Area under the ROC curve (AUC) with its interval: slides by DeLong, tiles by resampling slides.

Higher scores stand for tumour. An area below 0.5 is reported as it is.

Resampling slides estimates the figures on other slides of the same kind. Slides are independent,
but lesions and tiles of one slide are not. Slides are therefore drawn, each with all its lesions
and tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
"""Nominal coverage of all intervals."""

NO_RESAMPLES = "no resample of the slides gives the figure"
"""Reason why an interval is not defined: the bootstrap has no usable resample."""

_ROWS = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """Figure with its interval, or the reason why it is not defined.

    Parameters
    ----------
    value : float or None
        The figure; ``None`` where it is not defined.
    low, high : float or None
        Ends of the 95 % interval; ``None`` where it is not defined.
    undefined : str or None
        Reason why the figure is not defined.
    interval_undefined : str or None
        Reason why the interval is not defined although the figure is.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str | None = None
    interval_undefined: str | None = None

    def __str__(self) -> str:
        if self.value is None:
            return f"not defined: {self.undefined}"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} (95 % {self.low:.3f}–{self.high:.3f})"

    def as_json(self, name: str = "value") -> dict[str, Any]:
        """Return the figure under a name, its interval, and the reasons if there are any."""
        known: dict[str, Any] = {name: self.value, "low": self.low, "high": self.high}
        if self.undefined:
            known["undefined"] = self.undefined
        if self.interval_undefined:
            known["interval_undefined"] = self.interval_undefined
        return known


def undefined(reason: str) -> Estimate:
    """Return an estimate that states why the figure is not defined."""
    return Estimate(None, undefined=reason)


def slide_weights(slides: int, *, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the number of times that each slide is drawn, (slides,), for each resample.

    A resample has as many slides as there are, drawn with replacement. The same seed gives the
    same draws.
    """
    generator = np.random.default_rng(seed)
    share = np.full(slides, 1 / slides)
    for start in range(0, resamples, _ROWS):
        yield from generator.multinomial(slides, share, size=min(_ROWS, resamples - start))


def percentile_interval(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the percentile interval of resampled figures.

    Parameters
    ----------
    samples : ndarray of float64, (R, ...)
        One or several figures per resample; R at least 1.

    Returns
    -------
    ndarray of float64, (2, ...)
        Low and high ends.
    """
    tail = (1 - LEVEL) / 2
    return np.quantile(samples, [tail, 1 - tail], axis=0)


Floats = npt.NDArray[np.float64]


def delong(positive: Floats, negative: Floats) -> tuple[float, float]:
    """Return the area under the ROC curve and its standard error.

    The method is that of DeLong et al., Biometrics 44 (1988). A tie counts half.

    Parameters
    ----------
    positive, negative : ndarray of float64, (M,) and (N,)
        Scores of the two classes, at least one each; minus infinity is a score too.

    Returns
    -------
    area, standard_error : float
        Area, 0 to 1, and its error, which is NaN where a class has fewer than two scores.
    """
    of_positive, of_negative = placements(positive, negative)
    m, n = len(positive), len(negative)
    area = float(of_positive.mean())
    if m < 2 or n < 2:
        return area, math.nan
    variance = of_positive.var(ddof=1) / m + of_negative.var(ddof=1) / n
    return area, math.sqrt(variance)


def placements(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Return, for each score, the share of the other class that is on its right side.

    The right side of a positive score is below it, that of a negative score above it. A tie
    counts half.

    Returns
    -------
    ndarray of float64, (M,) and (N,)
        DeLong's structural components of the two classes; the mean of either is the area.
    """
    return _share_below(positive, others=negative), 1 - _share_below(negative, others=positive)


def _share_below(scores: Floats, *, others: Floats) -> Floats:
    """Return, for each score, the share of others that are below it; a tie counts half.

    All shares are NaN where a score or another one is.
    """
    if np.isnan(scores).any() or np.isnan(others).any():
        return np.full(len(scores), np.nan)
    # The ranks of `scipy.stats` give the same numbers, after half a second of imports.
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (below + up_to) / 2 / len(others)


def slide_auc(positive: Floats, negative: Floats) -> Estimate:
    """Return the area under the ROC curve with DeLong's 95 % interval on the logit scale.

    The logit keeps the interval between 0 and 1, with better coverage near the ends than the
    interval on the plain scale (Pepe, *The Statistical Evaluation of Medical Tests*, 2003,
    section 5.2).
    """
    from scipy import special

    if not len(positive) or not len(negative):
        missing = "tumour" if not len(positive) else "normal"
        return undefined(f"there is no {missing} slide with a score")
    area, error = delong(positive, negative)
    if math.isnan(error):
        return Estimate(area, interval_undefined="a class has fewer than two slides")
    if error == 0 or area in (0, 1):
        return Estimate(area, interval_undefined="DeLong's variance is 0 for these scores")
    half = float(special.ndtri((1 + LEVEL) / 2)) * error / (area * (1 - area))
    centre = float(special.logit(area))
    low, high = float(special.expit(centre - half)), float(special.expit(centre + half))
    return Estimate(area, low, high)


def roc_curve(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates, starting at (0, 0) with the strictest threshold."""
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    rates = [
        1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)
        for scores in (negative, positive)
    ]
    return np.insert(rates[0], 0, 0.0), np.insert(rates[1], 0, 0.0)


def roc_band(
    positive: Floats, negative: Floats, grid: Floats, *, resamples: int, seed: int
) -> Floats | None:
    """Return the pointwise 95 % band of the true positive rate, by resampling slides.

    Parameters
    ----------
    positive, negative : ndarray of float64
        Slide scores of the two classes.
    grid : ndarray of float64, (G,)
        False positive rates.
    resamples, seed : int
        Number of resamples and seed of the bootstrap.

    Returns
    -------
    ndarray of float64, (2, G), or None
        Low and high ends; ``None`` where no resample has slides of both classes.
    """
    scores = np.concatenate([positive, negative])
    is_positive = np.arange(len(scores)) < len(positive)
    samples = []
    for weights in slide_weights(len(scores), resamples=resamples, seed=seed):
        drawn = [np.repeat(scores[c], weights[c]) for c in (is_positive, ~is_positive)]
        if len(drawn[0]) and len(drawn[1]):
            samples.append(np.interp(grid, *roc_curve(*drawn)))
    return percentile_interval(np.array(samples)) if samples else None


def tile_auroc(
    positive: Sequence[Floats],
    negative: Sequence[Floats],
    *,
    resamples: int,
    seed: int,
) -> Estimate:
    """Return the area under the ROC curve of all tiles, with an interval by resampling slides.

    Tiles of one slide share stain, scanner and patient. An interval by resampling tiles would
    be far too narrow.

    Parameters
    ----------
    positive, negative : sequence of ndarray of float64
        Scores of the tumour tiles and of the healthy tiles of each slide; either may be empty.
    resamples, seed : int
        Number of resamples and seed of the bootstrap.
    """
    pool = TilePool(positive, negative)
    value = pool.area()
    if value is None:
        return undefined(pool.missing)
    if pool.fewest_slides < 2:
        return Estimate(
            value, interval_undefined="tiles of a class come from fewer than two slides"
        )
    drawn = slide_weights(len(positive), resamples=resamples, seed=seed)
    samples = [area for area in map(pool.area, drawn) if area is not None]
    if not samples:
        return Estimate(value, interval_undefined=NO_RESAMPLES)
    low, high = percentile_interval(np.array(samples)).tolist()
    return Estimate(value, low, high)


class TilePool:
    """Tiles of all slides, prepared to compute the area for any weights of the slides.

    The pairs that tumour tiles of slide i win over healthy tiles of slide j are counted once.
    With these counts, the area of any resample of slides is exact without another sort.

    Parameters
    ----------
    positive, negative : sequence of ndarray of float64
        Scores of the tumour tiles and of the healthy tiles of each slide; either may be empty.
    """

    def __init__(self, positive: Sequence[Floats], negative: Sequence[Floats]) -> None:
        self._tumour = np.array([len(scores) for scores in positive], dtype=np.float64)
        self._healthy = np.array([len(scores) for scores in negative], dtype=np.float64)
        self._wins = _wins(positive, negative)
        self.slides = len(positive)

    @property
    def missing(self) -> str:
        """Reason why there is no area: the class without tiles."""
        return f"there is no {'healthy' if self._tumour.any() else 'tumour'} tile"

    @property
    def fewest_slides(self) -> int:
        """Number of slides with tumour tiles or with healthy tiles, whichever is smaller."""
        return int(min(np.count_nonzero(self._tumour), np.count_nonzero(self._healthy)))

    def area(self, weights: npt.NDArray[np.int64] | None = None) -> float | None:
        """Return the area with each slide counted as often as its weight, once by default.

        The area is ``None`` where a class has no tile.
        """
        if weights is None:
            weights = np.ones(len(self._tumour), dtype=np.int64)
        pairs = float(weights @ self._tumour) * float(weights @ self._healthy)
        return float(weights @ self._wins @ weights) / pairs if pairs else None


def _wins(positive: Sequence[Floats], negative: Sequence[Floats]) -> Floats:
    """Count the pairs won by tumour tiles of slide i over healthy tiles of slide j.

    The result has the shape (slides, slides); a tie counts half.
    """
    slides = len(positive)
    owner = np.repeat(np.arange(slides), [len(scores) for scores in positive])
    scores = np.concatenate([np.zeros(0), *positive])
    order = np.argsort(scores, kind="stable")
    owner, scores = owner[order], scores[order]
    wins = np.zeros((slides, slides))
    for j, others in enumerate(negative):
        if len(others):
            others = np.sort(others)
            below = np.searchsorted(others, scores, side="left")
            up_to = np.searchsorted(others, scores, side="right")
            wins[:, j] = np.bincount(owner, (below + up_to) / 2, slides)
    return wins
