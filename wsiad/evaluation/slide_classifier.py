"""Slide classification by a random forest on heatmap features, cross-validated by slide.

This is *supervised*: the forest learns from the reference labels of the very slides that
are evaluated, each slide judged by a forest that has not seen it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.evaluation.auc import slide_auc
from wsiad.evaluation.bootstrap import Estimate, undefined
from wsiad.evaluation.slide_features import NAMES, Floats

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
    """What a forest makes of the slides.

    Parameters
    ----------
    slide_auc : Estimate
        Of the out-of-fold probabilities.
    probabilities : ndarray of float64, (N,), or None
        Probability of tumour by forests that have not seen the slide.
    folds, trees : int
        How many; 0 folds where there are too few slides.
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
        Of each slide.
    tumour : ndarray of bool, (N,)
        Whether it holds tumour.
    seed : int
        Of the folds and of the forests.
    trees : int
        Of each forest.

    Returns
    -------
    ForestResult
        At most :data:`FOLDS` folds, each with slides of both classes; not defined where a
        class has fewer than two slides.
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
