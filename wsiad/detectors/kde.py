"""A kernel density of healthy features: the score is the negative log-density."""

from __future__ import annotations

import math
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
    in_blocks,
    project,
    square_distances,
)
from wsiad.learning.detector import DetectorOptions, Pooling

_LEAST_VECTORS = 10
_HELD_OUT = 5  # every fifth vector, to choose the bandwidth by
_TRIED = 2.0 ** np.arange(-3, 3.5, 0.5)  # times Scott's bandwidth


class KdeOptions(FeatureOptions):
    """Options of ``kde``."""

    pca_components: PcaComponents = 16
    """Principal components to reduce to first, whitened: a number, a share of variance, or all."""
    bandwidth: Literal["scott", "likelihood"] | Annotated[float, pydantic.Field(gt=0)] = "scott"
    """Standard deviation of the kernel in whitened components: a number, Scott's rule, or the value
    under which held-out healthy vectors are most likely."""
    fit_vectors: Annotated[int, pydantic.Field(ge=1)] = 5_000
    """Maximum number of feature vectors to fit on; the time of scoring grows with it."""
    pooling: Pooling = "quantile"


class KernelDensity(FeatureDetector):
    """Negative logarithm of a Gaussian kernel density of frozen features.

    The density is that of 16 principal components, as in DFKDE of anomalib. Its kernel has the
    covariance of the healthy vectors times the square of Scott's factor N^(−1/(D+4)), which
    whitening and a round kernel produce. With ``likelihood``, the factor is chosen on a fifth
    of the healthy vectors. Places of one tile may be on both sides, which favours narrow
    kernels.
    """

    Options: ClassVar[type[DetectorOptions]] = KdeOptions
    remembers_tiles: ClassVar[bool] = True
    options: KdeOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the projection, the projected ``bank`` (B, D) and the ``bandwidth`` (1,)."""
        check_count(vectors, _LEAST_VECTORS, "a kernel density")
        projection = fit_projection(vectors, self.options.pca_components, whiten=True)
        bank = project(torch.from_numpy(vectors), projection)
        bandwidth = self.options.bandwidth
        if bandwidth == "likelihood":
            found = likeliest_bandwidth(bank, seed=self._seed)
        elif isinstance(bandwidth, float):
            found = bandwidth
        else:
            found = scott(*bank.shape)
        return {**projection, "bank": bank, "bandwidth": torch.tensor([found])}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the negative log-density of each vector, in whitened components."""
        return -log_density(project(vectors, fitted), fitted["bank"], fitted["bandwidth"])


def scott(count: int, dimensions: int) -> float:
    """Return Scott's bandwidth for vectors of variance 1."""
    return float(count ** (-1 / (dimensions + 4)))


def log_density(vectors: Tensor, bank: Tensor, bandwidth: Tensor) -> Tensor:
    """Return the log-density (N,) of vectors (N, D) by Gaussian kernels around a bank (B, D)."""
    count, dimensions = bank.shape
    constant = math.log(count) + dimensions * (0.5 * math.log(2 * math.pi) + bandwidth.log())

    def logarithm(part: Tensor) -> Tensor:
        exponents = square_distances(part, bank).div_(-2 * bandwidth.square())
        return exponents.logsumexp(dim=1) - constant

    return in_blocks(logarithm, vectors, count)


def likeliest_bandwidth(bank: Tensor, *, seed: int) -> float:
    """Return the bandwidth under which a held-out fifth of the vectors is most likely."""
    order = np.random.default_rng(seed).permutation(len(bank))
    held = bank[torch.from_numpy(order[::_HELD_OUT])]
    rest = bank[torch.from_numpy(np.delete(order, np.s_[::_HELD_OUT]))]
    tried = _TRIED * scott(*rest.shape)
    means = [log_density(held, rest, torch.tensor([float(h)])).double().mean() for h in tried]
    return float(tried[int(np.argmax(means))])
