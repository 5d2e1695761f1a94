"""A one-class support vector machine on healthy features; the score is the signed distance."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import (
    PcaComponents,
    check_count,
    fit_projection,
    float32,
    in_blocks,
    project,
    square_distances,
)
from wsiad.learning.detector import DetectorOptions, Pooling

_TOLERANCE = 1e-6  # of libsvm; its default leaves scores uncertain in the fifth digit


class OcsvmOptions(FeatureOptions):
    """Options of ``ocsvm``."""

    nu: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.1
    """Maximum share of healthy vectors outside, and minimum share that becomes support vectors."""
    gamma: Literal["scale"] | Annotated[float, pydantic.Field(gt=0)] = "scale"
    """γ of the kernel exp(−γ |u − v|²); ``scale`` is 1 / (components × their mean variance)."""
    pca_components: PcaComponents = 0.95
    """Principal components of the standardised features: a number, a share of variance, or all."""
    fit_vectors: Annotated[int, pydantic.Field(ge=1)] = 5_000
    """Maximum number of feature vectors to fit on; the time of a fit grows with its square."""
    pooling: Pooling = "quantile"

    inverted_auroc: ClassVar[str] = "0.341"

    def known_inverted(self) -> str:
        """Return the measurement of the default kernel; a narrow one was not inverted."""
        return super().known_inverted() if self.gamma == "scale" else ""


class OneClassSvm(FeatureDetector):
    """Signed distance of frozen features to the boundary of a Gaussian one-class SVM.

    The method is that of Schölkopf et al., Neural Computation 13 (2001), fitted with
    scikit-learn (libsvm) on standardised principal components. ν = 0.1 as in the comparison of
    Deep SAD (Ruff et al., ICLR 2020), but γ follows from the healthy vectors alone and is not
    chosen on a test set.

    The score is ρ − Σ α k(v, s) over support vectors s, with Σ α = 1. It is scikit-learn's
    ``decision_function`` with its sign changed, divided by ν times the number of vectors. It is
    positive outside of the healthy region, and constant far away from it, where the kernel
    vanishes.
    """

    Options: ClassVar[type[DetectorOptions]] = OcsvmOptions
    options: OcsvmOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the projection, support vectors (S, D), ``alpha`` (S,), ``rho`` and ``gamma``."""
        from sklearn.svm import OneClassSVM

        options = self.options
        least = int(np.ceil(2 / options.nu))
        purpose = f"a one-class SVM of nu {options.nu}: it needs {least}"
        check_count(vectors, least, purpose, otherwise="set a larger nu")
        projection = fit_projection(vectors, options.pca_components, standardise=True)
        values = project(torch.from_numpy(vectors), projection).double().numpy()
        gamma = options.gamma
        if not isinstance(gamma, float):
            gamma = 1 / (values.shape[1] * float(values.var()))
        machine = OneClassSVM(kernel="rbf", nu=options.nu, gamma=gamma, tol=_TOLERANCE).fit(values)
        alpha = machine.dual_coef_[0]
        return {
            **projection,
            "support": float32(machine.support_vectors_),
            "alpha": float32(alpha / alpha.sum()),
            "rho": float32(machine.offset_ / alpha.sum()),
            "gamma": torch.tensor([gamma], dtype=torch.float32),
        }

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return how far each vector is outside of the healthy region."""
        support = fitted["support"]

        def outside(part: Tensor) -> Tensor:
            kernel = torch.exp(-fitted["gamma"] * square_distances(part, support))
            return fitted["rho"] - kernel @ fitted["alpha"]

        return in_blocks(outside, project(vectors, fitted), len(support))
