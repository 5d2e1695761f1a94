"""Slide classification by a random forest on heatmap features, cross-validated by slide.

This method is *supervised*: the forest learns from the reference labels of the slides that are
evaluated. Each slide is classified by a forest that has not seen it.

The features of a heatmap describe the number, the size and the shape of the regions that stand
out. Wang et al. (arXiv:1606.05718, 2016) used a random forest on 28 geometric features of their
tumour probability maps, which are not published in full. The 31 features here are those of the
open reimplementation of their method by Vekariya (2017), by definition.

The features need values from 0 to 1: scores become the share of healthy windows with a lower
score. The windows of a results folder have both score and percentile, so this scale is read from
the results, and the run itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import EvaluationError
from wsiad.evaluation.auc import Estimate, slide_auc, undefined

Floats = npt.NDArray[np.float64]

HIGH, LOW = 0.9, 0.5
"""Thresholds on a tumour probability: at least `HIGH`, more than `LOW`."""

_STATISTICS = ("max", "mean", "variance", "skewness", "kurtosis")
_SHAPES = (
    ("area", "high"),
    ("perimeter", "high"),
    ("eccentricity", "high"),
    ("extent", "low"),
    ("solidity", "high"),
)

NAMES = (
    "regions high",
    "area high / tissue",
    "area of largest region low",
    "longest axis of largest region low",
    "pixels high",
    "mean of region means high",
    *(f"{shape} {level} {name}" for shape, level in _SHAPES for name in _STATISTICS),
)
"""Names of the 31 features; "high" and "low" name the threshold by which regions are found."""


def slide_features(values: Floats, *, high: float = HIGH, low: float = LOW) -> Floats:
    """Measure the regions of a heatmap that stand out.

    Parameters
    ----------
    values : ndarray of float64, (H, W)
        Heatmap with values from 0 (healthy) to 1, such as a tumour probability or a percentile
        among healthy tissue; NaN where there is no tissue.
    high, low : float
        Thresholds: a region is a set of connected pixels (8-connectivity) of at least `high`,
        or of more than `low`.

    Returns
    -------
    ndarray of float64, (31,)
        Features in the order of :data:`NAMES`, not rounded; lengths and areas in heatmap pixels.
        All are 0 where no pixel reaches `high`. Variance is that of the population, kurtosis is
        excess kurtosis; both and skewness are 0 for a single region.
    """
    features = np.zeros(len(NAMES))
    strong, weak = _regions(values, values >= high), _regions(values, values > low)
    if not strong:
        return features
    largest = max(weak, key=lambda region: region.area)
    pixels = float(np.count_nonzero(values >= high))
    features[:6] = (
        len(strong),
        pixels / np.count_nonzero(np.isfinite(values)),
        largest.area,
        largest.axis_major_length,
        pixels,
        np.mean([region.intensity_mean for region in strong]),
    )
    for index, (shape, level) in enumerate(_SHAPES):
        regions = strong if level == "high" else weak
        measured = np.array([float(getattr(region, shape)) for region in regions])
        features[6 + 5 * index : 11 + 5 * index] = _statistics(measured)
    return features


def _regions(values: Floats, mask: npt.NDArray[np.bool_]) -> list[Any]:
    from skimage import measure

    labels = measure.label(mask, connectivity=2)
    return list(measure.regionprops(labels, intensity_image=np.where(mask, values, 0.0)))


def _statistics(values: Floats) -> tuple[float, ...]:
    """Return maximum, mean, population variance, skewness and excess kurtosis.

    The last three are 0 where the values do not vary.
    """
    mean, variance = float(values.mean()), float(values.var())
    away = values - mean
    if variance <= (1e-9 * max(1.0, abs(mean))) ** 2:
        return float(values.max()), mean, 0.0, 0.0, 0.0
    skewness = float((away**3).mean()) / variance**1.5
    kurtosis = float((away**4).mean()) / variance**2 - 3
    return float(values.max()), mean, variance, skewness, kurtosis


TREES = 500
FOLDS = 5

SUPERVISED = (
    "supervised: the forest learns from the reference labels of the evaluated slides, by "
    "cross-validation; not to be compared with scores that use healthy slides alone. DeLong's "
    "interval takes the out-of-fold probabilities as given: it does not cover another division "
    "into folds."
)


@dataclass(frozen=True, slots=True, eq=False)
class ForestResult:
    """Scores of slides by random forests.

    Parameters
    ----------
    slide_auc : Estimate
        Slide AUC of the out-of-fold probabilities.
    probabilities : ndarray of float64, (N,), or None
        Probability of tumour of each slide, by a forest that has not seen the slide.
    folds, trees : int
        Number of folds, 0 where there are too few slides, and of trees per forest.
    """

    slide_auc: Estimate
    probabilities: Floats | None
    folds: int
    trees: int

    def as_json(self, slides: list[str], thresholds: tuple[float, float]) -> dict[str, Any]:
        """Return the result as JSON values."""
        given = None if self.probabilities is None else self.probabilities.tolist()
        return {
            "name": "forest",
            "note": SUPERVISED,
            "slide_auc": self.slide_auc.as_json(),
            "folds": self.folds,
            "trees": self.trees,
            "features": list(NAMES),
            "high": thresholds[0],
            "low": thresholds[1],
            "probabilities": None if given is None else dict(zip(slides, given, strict=True)),
        }


def cross_validated_forest(
    features: Floats, tumour: npt.NDArray[np.bool_], *, seed: int, trees: int = TREES
) -> ForestResult:
    """Classify slides by forests that have not seen them.

    Parameters
    ----------
    features : ndarray of float64, (N, F)
        Features of each slide.
    tumour : ndarray of bool, (N,)
        True for each slide that holds tumour.
    seed : int
        Seed of the folds and of the forests.
    trees : int
        Number of trees per forest.

    Returns
    -------
    ForestResult
        Result of at most :data:`FOLDS` folds, each with slides of both classes; not defined
        where a class has fewer than two slides.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(tumour.sum()), int((~tumour).sum()))
    if folds < 2:
        return ForestResult(undefined("a class has fewer than two slides"), None, 0, trees)
    probabilities = np.zeros(len(tumour))
    division = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fitted, held_out in division.split(features, tumour):
        forest = RandomForestClassifier(trees, random_state=seed, n_jobs=1)
        forest.fit(features[fitted], tumour[fitted])
        probabilities[held_out] = forest.predict_proba(features[held_out])[:, 1]
    area = slide_auc(probabilities[tumour], probabilities[~tumour])
    return ForestResult(area, probabilities, folds, trees)


@dataclass(frozen=True, slots=True, eq=False)
class HealthyScale:
    """Share of healthy windows that have a lower score, as a function of the score.

    Parameters
    ----------
    scores, shares : ndarray of float64, (N,)
        Points of the function, both ascending; shares are 0 to 1. Between two scores the share
        is linear; beyond the ends it is constant.
    """

    scores: Floats
    shares: Floats

    @classmethod
    def of(cls, slides: Iterable[tuple[str, npt.NDArray[Any]]]) -> Self:
        """Read the scale from the windows of slides that one run has scored.

        Parameters
        ----------
        slides : iterable of (str, structured ndarray)
            Name of each slide, and its windows with the fields ``score`` and ``percentile``
            (0 to 100).

        Raises
        ------
        EvaluationError
            Windows have no percentiles, or there is no window.
        """
        parts = []
        for slide, windows in slides:
            if "percentile" not in (windows.dtype.names or ()):
                raise EvaluationError(
                    "its windows have no percentiles",
                    subject=slide,
                    remedy="Run `wsiad heatmap` on the slide again, or exclude it.",
                )
            scores, first = np.unique(np.asarray(windows["score"], np.float64), return_index=True)
            parts.append((scores, np.asarray(windows["percentile"], np.float64)[first]))
        if not parts:
            raise EvaluationError("no slide has a scored window")
        scores, percentiles = (np.concatenate(side) for side in zip(*parts, strict=True))
        scores, first = np.unique(scores, return_index=True)
        # Percentiles rise with the score; what rounding has left of disorder goes.
        return cls(scores, np.maximum.accumulate(percentiles[first]) / 100)

    def of_heatmap(self, scores: npt.NDArray[np.float32]) -> Floats:
        """Return the share of healthy windows below each pixel, NaN where nothing was scored.

        Parameters
        ----------
        scores : ndarray of float32, (H, W)
            Heatmap of the slide.
        """
        placed = np.interp(scores.astype(np.float64), self.scores, self.shares)
        return np.where(np.isfinite(scores), placed, np.nan)
