"""PaDiM for tissue: a Gaussian of randomly chosen channels of several layers."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.detectors._features import (
    THREE_DEPTHS,
    DefaultLayers,
    FeatureDetector,
    FeatureOptions,
)
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import check_count, float32, whitening
from wsiad.learning.detector import DetectorOptions, Pooling


class PadimOptions(FeatureOptions):
    """Options of ``padim``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is used. Default: the ends of SqueezeNet's three resolutions, or
    ``layer1``, ``layer2`` and ``layer3`` of a ResNet."""
    channels: Annotated[int, pydantic.Field(ge=1)] = 100
    """Number of channels that are kept, drawn at random from those of all layers."""
    regularisation: Annotated[float, pydantic.Field(ge=0)] = 0.01
    """Number that is added to the variance of every channel, in the unit of squared features."""
    pooling: Pooling = "quantile"

    default_layers: ClassVar[DefaultLayers] = THREE_DEPTHS


class Padim(FeatureDetector):
    """Mahalanobis distance in random channels of the features of several layers.

    In PaDiM (Defard et al. 2020), layers of several depths are concatenated, 100 channels (550
    for wide_resnet50_2) are drawn at random, and 0.01 is added to the diagonal of their
    covariance. PaDiM has one Gaussian for each place of aligned images and scores an image by
    its strangest place. Tissue has no fixed layout: here all places share one Gaussian, and the
    user chooses the pooling.
    """

    Options: ClassVar[type[DetectorOptions]] = PadimOptions
    options: PadimOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the chosen ``channels`` (D,), their mean (D,) and whitening (D, D)."""
        check_count(vectors, 2, "a covariance")
        count = min(self.options.channels, vectors.shape[1])
        rng = np.random.default_rng([self._seed, vectors.shape[1]])
        channels = np.sort(rng.choice(vectors.shape[1], count, replace=False))
        values = vectors[:, channels].astype(np.float64)
        covariance = np.cov(values.T).reshape(count, count)
        np.fill_diagonal(covariance, covariance.diagonal() + self.options.regularisation)
        return {
            "channels": torch.from_numpy(channels),
            "mean": float32(values.mean(axis=0)),
            "whitening": float32(whitening(covariance, len(values))),
        }

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the Mahalanobis distance (not its square) of each vector."""
        away = vectors.index_select(1, fitted["channels"]) - fitted["mean"]
        return (away @ fitted["whitening"].t()).norm(dim=1)
