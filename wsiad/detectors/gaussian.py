"""A Gaussian of healthy features: the score is the Mahalanobis distance to it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
from torch import Tensor

from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import Matrix, check_different, float32, shrink, whitening
from wsiad.learning.detector import DetectorOptions, Pooling

_MOST_FURTHER = 0.2
"""Largest share of vectors that are taken into a fitted Gaussian."""


class GaussianOptions(FeatureOptions):
    """Options of ``gaussian``."""

    shrinkage: Literal["ledoit-wolf"] | Annotated[float, pydantic.Field(ge=0, le=1)] = 0.3
    """Share of the identity (times the mean variance) in the covariance; ``ledoit-wolf`` computes
    the share that estimates the covariance best, which is smaller."""
    pooling: Pooling = "quantile"


class Gaussian(FeatureDetector):
    """Mahalanobis distance of frozen features to those of healthy tiles.

    Tissue has no fixed layout, so all places of a tile share one Gaussian. (PaDiM, Defard et
    al. 2020, has one for each place, for aligned images.)

    Notes
    -----
    The covariance follows Ledoit & Wolf, J. Multivariate Analysis 88 (2004).
    """

    Options: ClassVar[type[DetectorOptions]] = GaussianOptions
    options: GaussianOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the mean (C,) and the whitening (C, C) of healthy vectors."""
        check_different(vectors)
        values = vectors.astype(np.float64)
        mean = values.mean(axis=0)
        covariance = _covariance(values - mean, self.options.shrinkage)
        found = whitening(covariance, len(values))
        return {
            "mean": float32(mean),
            "whitening": float32(found),
        }

    def extended(self, vectors: Vectors, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return mean and whitening of the earlier and the further vectors together.

        The further ones count for at most a fifth of all, as rare tissue is in a run that was
        fitted on it: their weight is lowered until they do.
        """
        share = self.options.shrinkage
        if isinstance(share, str) or share == 1:
            return super().extended(vectors, fitted)
        before = int(self._about["vectors"])
        further = min(float(len(vectors)), _MOST_FURTHER / (1 - _MOST_FURTHER) * before)
        total = before + further
        old = fitted["mean"].numpy().astype(np.float64)
        values = vectors.astype(np.float64)
        new = values.mean(axis=0)
        mean = (before * old + further * new) / total
        # The earlier covariance, with what was replaced in it by the identity.
        root = fitted["whitening"].numpy().astype(np.float64)
        shrunk = np.linalg.inv(root.T @ root)
        level = shrunk.diagonal().mean() * share
        covariance = (shrunk - level * np.eye(len(old))) / (1 - share)
        spread = (values - new).T @ (values - new) / len(values)
        pooled = before / total * (covariance + np.outer(old - mean, old - mean))
        pooled += further / total * (spread + np.outer(new - mean, new - mean))
        return {
            "mean": float32(mean),
            "whitening": float32(whitening(shrink(pooled, share), round(total))),
        }

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the Mahalanobis distance (not its square) of each vector."""
        return ((vectors - fitted["mean"]) @ fitted["whitening"].t()).norm(dim=1)


def _covariance(centred: Matrix, shrinkage: str | float) -> Matrix:
    if isinstance(shrinkage, str):
        from sklearn.covariance import ledoit_wolf

        found: Matrix = ledoit_wolf(centred, assume_centered=True)[0]
        return found
    return shrink(centred.T @ centred / len(centred), shrinkage)
