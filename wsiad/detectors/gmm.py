"""A mixture of Gaussians of healthy features: the score is the negative log-likelihood."""

from __future__ import annotations

import logging
import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import counted
from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import (
    Matrix,
    PcaComponents,
    check_count,
    fit_projection,
    float32,
    in_blocks,
    project,
    random_state,
    shrink,
    whitening,
)
from wsiad.learning.detector import DetectorOptions, Pooling

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

logger = logging.getLogger(__name__)


class GmmOptions(FeatureOptions):
    """Options of ``gmm``."""

    gaussians: Annotated[int, pydantic.Field(ge=1)] = 5
    """Number of Gaussians in the mixture."""
    covariance: Literal["full", "diag"] = "full"
    """Covariance of each Gaussian: full, or only the variances of the components."""
    shrinkage: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.3
    """Share of the identity (times the mean variance) in every covariance, after the fit."""
    pca_components: PcaComponents = None
    """Principal components to reduce to first: a number, a share of variance, or all."""
    max_iterations: Annotated[int, pydantic.Field(ge=1)] = 100
    """Maximum number of rounds of expectation and maximisation."""
    mixtures: Literal["joint", "sum", "max"] = "joint"
    """One mixture of the features of all layers, or one of each layer, such as a level of pixels:
    the score is then the sum over the layers, or that of the layer under which a place is least
    likely."""
    pooling: Pooling = "quantile"


class MixtureOfGaussians(FeatureDetector):
    """Negative log-likelihood of frozen features under a mixture of Gaussians.

    The mixture is fitted with scikit-learn's ``GaussianMixture`` (expectation and maximisation
    from a k-means start). With one Gaussian, all components and the same shrinkage, it ranks
    vectors as ``gaussian`` does. The likelihood is that of the principal components; their
    rotation changes nothing.

    With ``backbone: pixels`` it is the method of textures of TEXEM (Xie & Mirmehdi 2007: patches
    of several levels, a mixture each) and of compressed sensing (Böttger & Ulrich 2016: random
    projections of patches). Sizes of patches and mixtures in the presets of these names are from
    general knowledge of the papers.
    """

    Options: ClassVar[type[DetectorOptions]] = GmmOptions
    options: GmmOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the projection, and the log-weights, means (K, D) and whitenings of K Gaussians.

        ``log_scale`` (K,) is the logarithm of a Gaussian's weight times its normalisation.
        ``whitening`` is (K, D, D), or (K, D) for diagonal covariances. With a mixture for each
        layer, the names begin with its number, and ``widths`` are the channels of the layers.
        """
        if self.options.mixtures == "joint":
            return self._fit_mixture(vectors)
        widths = [shape[0] for shape in self._layer_shapes()]
        parts = np.split(vectors, np.cumsum(widths)[:-1], axis=1)
        fitted = {"widths": torch.tensor(widths)}
        for number, part in enumerate(parts):
            own = self._fit_mixture(np.ascontiguousarray(part))
            fitted |= {f"{number}.{name}": tensor for name, tensor in own.items()}
        return fitted

    def _layer_shapes(self) -> list[tuple[int, int, int]]:
        if self._backbone is None or self.options.imported():
            raise DetectorError(
                f"mixtures: {self.options.mixtures} needs the layers of a network",
                remedy="Set mixtures: joint.",
            )
        return self._backbone.check_places(self._edge())

    def _fit_mixture(self, vectors: Vectors) -> dict[str, Tensor]:
        options = self.options
        purpose = f"a mixture of {counted(options.gaussians, 'Gaussian')}"
        check_count(vectors, 2 * options.gaussians, purpose, otherwise="set fewer gaussians")
        projection = fit_projection(vectors, options.pca_components)
        values = project(torch.from_numpy(vectors), projection).double().numpy()
        mixture = _mixture(values, options, self._seed)
        whitenings = [
            _whitening(covariance, options.shrinkage, len(values))
            for covariance in mixture.covariances_
        ]
        logs = [_log_determinant(found) for found in whitenings]
        constant = 0.5 * values.shape[1] * math.log(2 * math.pi)
        return {
            **projection,
            "log_scale": float32(np.log(mixture.weights_) + logs - constant),
            "means": float32(mixture.means_),
            "whitening": float32(np.stack(whitenings)),
        }

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the negative log-likelihood of each vector."""
        if self.options.mixtures == "joint":
            return in_blocks(lambda part: _surprise(part, fitted), vectors, vectors.shape[1])
        found = []
        for number, part in enumerate(torch.split(vectors, fitted["widths"].tolist(), dim=1)):
            start = f"{number}."
            own = {k.removeprefix(start): t for k, t in fitted.items() if k.startswith(start)}
            found.append(in_blocks(partial(_surprise, fitted=own), part, part.shape[1]))
        levels = torch.stack(found)
        return levels.sum(dim=0) if self.options.mixtures == "sum" else levels.amax(dim=0)


def _mixture(values: Matrix, options: GmmOptions, seed: int) -> GaussianMixture:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        options.gaussians,
        covariance_type=options.covariance,
        # A floor that follows the unit of the features; scikit-learn's is absolute.
        reg_covar=1e-6 * float(values.var(axis=0).mean()),
        max_iter=options.max_iterations,
        random_state=random_state(seed),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            mixture.fit(values)
        except ValueError as error:
            raise DetectorError(
                f"a mixture of {options.gaussians} Gaussians does not fit {len(values)} healthy "
                f"vectors ({error})",
                remedy="Fit on more tiles, or set fewer gaussians or pca_components.",
            ) from error
    if not mixture.converged_:
        logger.warning(
            "the mixture of Gaussians did not converge in %d rounds; max_iterations allows more",
            options.max_iterations,
        )
    return mixture


def _whitening(covariance: Matrix, shrinkage: float, count: int) -> Matrix:
    if covariance.ndim == 2:
        return whitening(shrink(covariance, shrinkage), count)
    found: Matrix = ((1 - shrinkage) * covariance + shrinkage * covariance.mean()) ** -0.5
    return found


def _log_determinant(found: Matrix) -> float:
    return float(np.log(found.diagonal() if found.ndim == 2 else found).sum())


def _surprise(vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
    values = project(vectors, fitted)
    logs = []
    for scale, mean, white in zip(
        fitted["log_scale"], fitted["means"], fitted["whitening"], strict=True
    ):
        away = values - mean
        whitened = away @ white.T if white.ndim == 2 else away * white
        logs.append(scale - 0.5 * whitened.square().sum(dim=1))
    return -torch.stack(logs).logsumexp(dim=0)
