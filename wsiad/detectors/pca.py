"""Principal components of healthy features: the score is what they cannot reconstruct."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import PcaComponents, fit_projection
from wsiad.learning.detector import DetectorOptions, Pooling


class PcaOptions(FeatureOptions):
    """Options of ``pca``."""

    components: PcaComponents = 0.9
    """Number of principal components, or the minimum share of variance that they explain."""
    pooling: Pooling = "quantile"


class PrincipalComponents(FeatureDetector):
    """Squared error of frozen features reconstructed from principal components.

    With v̂ the projection of a vector on the principal components of healthy vectors, the score
    is |v − v̂|². This is the feature reconstruction error of DFM in anomalib. DFM keeps the
    components that explain 97 % of the variance; the default of 90 % suits tissue better.
    """

    Options: ClassVar[type[DetectorOptions]] = PcaOptions
    options: PcaOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the ``centre`` (C,) and the components, ``matrix`` (C, K), of length 1."""
        fitted = fit_projection(vectors, self.options.components)
        channels, components = fitted["matrix"].shape
        if components == channels:
            raise DetectorError(
                f"{components} principal components of {channels} channels reconstruct everything",
                remedy="Set fewer components.",
            )
        return fitted

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the squared reconstruction error of each vector."""
        away = vectors - fitted["centre"]
        axes = fitted["matrix"]
        return (away - away @ axes @ axes.t()).square().sum(dim=1)
