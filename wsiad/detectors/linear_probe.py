"""A linear probe: a plane between the features of healthy and a few labelled anomalous tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._labelled import (
    LabelledDetector,
    LabelledOptions,
    LabelledVectors,
    standardisation,
)
from wsiad.learning.detector import DetectorOptions, FitContext

Exact = npt.NDArray[np.float64]

_ITERATIONS = 1_000
_STRENGTHS = {"logistic": (1e-3, 1e-2, 1e-4, 1e-1, 1e-5), "lda": (0.9, 0.5, 0.1)}
"""Candidate strengths for each head: the usual one first, then the nearest ones."""
_FEWEST_FOLDS = 3
"""Minimum number of folds that can tell strengths apart."""


class LinearProbeOptions(LabelledOptions):
    """Options of ``linear-probe``."""

    head: Literal["logistic", "lda"] = "logistic"
    """Classifier: ``logistic`` regression, or ``lda``, Fisher's discriminant with the covariance of
    the healthy tiles, in closed form."""
    strength: Annotated[float, pydantic.Field(gt=0)] | None = None
    """C of ``logistic`` (the smaller, the more regularised), or the share of the identity in the
    covariance of ``lda``, at most 1. By default 0.001 and 0.9, unless cross-validation tells
    another one to be better."""
    folds: Annotated[int, pydantic.Field(ge=2)] = 5
    """Number of folds of the cross-validation, which are split by slide if there are several."""

    @pydantic.model_validator(mode="after")
    def _share_is_at_most_all(self) -> LinearProbeOptions:
        if self.head == "lda" and self.strength is not None and self.strength > 1:
            raise ValueError("`strength` of `lda` is a share: at most 1")
        return self


class LinearProbe(LabelledDetector):
    """Logit of a linear classifier on frozen features, fitted on few labelled tiles.

    Features are standardised by the healthy tiles, and both classes have equal weight.
    Cross-validation chooses the strength of the regularisation: the nearest to the usual one
    that is within a standard error of the best, see :func:`nearest_to_usual`. It compares the
    AUROC of held-out anomalous slides (or tiles, if all are of one slide) against held-out
    healthy tiles.

    Notes
    -----
    Linear probes: Alain & Bengio, *Understanding intermediate layers using linear
    classifier probes*, 2016 (arXiv 1610.01644). Regularised discriminant: Friedman,
    *Regularized Discriminant Analysis*, JASA 84 (1989), with one class's covariance.
    """

    Options: ClassVar[type[DetectorOptions]] = LinearProbeOptions
    options: LinearProbeOptions
    linear: ClassVar[bool] = True

    def fit_labelled(
        self, vectors: LabelledVectors, context: FitContext
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return mean, deviation, weight (D,) and bias (1,), and notes on their choice."""
        options = self.options
        mean, deviation = standardisation(vectors.healthy)
        healthy, held_out, anomalous = (
            (part.astype(np.float64) - mean.numpy()) / deviation.numpy()
            for part in (vectors.healthy, vectors.held_out, vectors.anomalous)
        )
        fit = {"logistic": logistic, "lda": discriminant}[options.head](healthy)
        chosen, areas = options.strength, {}
        if chosen is None:
            folds = list(vectors.folds(options.folds, seed=context.seed))
            areas = {
                strength: [
                    _area(fit(anomalous[on], strength), held_out, anomalous[test])
                    for on, test in folds
                ]
                for strength in (_STRENGTHS[options.head] if folds else ())
            }
            chosen = nearest_to_usual(areas) if areas else _STRENGTHS[options.head][0]
        weight, bias = fit(anomalous, chosen)
        fitted = {
            "mean": mean,
            "deviation": deviation,
            "weight": torch.from_numpy(weight.astype(np.float32)),
            "bias": torch.tensor([bias], dtype=torch.float32),
        }
        notes: dict[str, Any] = {"strength": chosen}
        if areas:
            notes["cross_validated_auroc"] = {
                f"{strength:g}": round(float(np.mean(each)), 4) for strength, each in areas.items()
            }
        return fitted, notes

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the logit of each vector; above 0 it is rather anomalous."""
        standard = (vectors - fitted["mean"]) / fitted["deviation"]
        return standard @ fitted["weight"] + fitted["bias"]


def nearest_to_usual(areas: Mapping[float, Sequence[float]]) -> float:
    """Return the first strength that the folds cannot tell from the best.

    The first is the usual strength. Slides differ far more in how difficult they are than
    strengths do, so that strengths are compared on the same folds: one is as good as the best if
    it falls behind by at most a standard error of the differences, after Breiman, Friedman, Olshen
    & Stone, *Classification and Regression Trees*, 1984, section 3.4.3, where it is the error of
    the best itself. Fewer than three folds say too little, and the usual strength stays.
    """
    usual = next(iter(areas))
    if len(areas[usual]) < _FEWEST_FOLDS:
        return usual
    best = np.asarray(max(areas.values(), key=np.mean))
    for strength, each in areas.items():
        behind = best - np.asarray(each)
        if np.mean(behind) <= np.std(behind, ddof=1) / np.sqrt(len(behind)):
            return strength
    return usual


Head = Callable[[Exact, float], tuple[Exact, float]]
"""Function that maps anomalous vectors and a strength to weight (D,) and bias."""


def logistic(healthy: Exact) -> Head:
    """Prepare the logistic regression of anomalous against these healthy vectors."""
    from sklearn.linear_model import LogisticRegression

    def fit(anomalous: Exact, strength: float) -> tuple[Exact, float]:
        values = np.concatenate([healthy, anomalous])
        labels = np.repeat([0, 1], [len(healthy), len(anomalous)])
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=_ITERATIONS)
        model.fit(values, labels)
        return model.coef_[0].astype(np.float64), float(model.intercept_[0])

    return fit


def discriminant(healthy: Exact) -> Head:
    """Prepare Fisher's discriminant with the covariance of these healthy vectors.

    With Σ = (1 − s) S + s · tr(S)/D · I of the healthy vectors, the weight is Σ⁻¹ (m₁ − m₀),
    and the bias puts 0 in the middle between the means. All strengths s come from one
    eigendecomposition of S.
    """
    centre = healthy.mean(axis=0)
    values, basis = np.linalg.eigh(np.cov(healthy.T, bias=True))
    values = values.clip(0)

    def fit(anomalous: Exact, strength: float) -> tuple[Exact, float]:
        spectrum = (1 - strength) * values + strength * values.mean()
        if spectrum.min() <= spectrum.max() * 1e-12:
            raise DetectorError(
                "the covariance of the healthy tiles' features is singular",
                remedy="Fit on more tiles, or set a larger strength.",
            )
        other = anomalous.mean(axis=0)
        weight = basis @ ((basis.T @ (other - centre)) / spectrum)
        return weight, float(-weight @ (other + centre) / 2)

    return fit


def _area(head: tuple[Exact, float], healthy: Exact, anomalous: Exact) -> float:
    from sklearn.metrics import roc_auc_score

    scores = np.concatenate([healthy, anomalous]) @ head[0]
    labels = np.repeat([0, 1], [len(healthy), len(anomalous)])
    return float(roc_auc_score(labels, scores))
