"""An autoencoder whose code and errors have the density of a mixture of Gaussians (DAGMM)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.networks.conv_stack import Decoder, Encoder
from wsiad.networks.density_model import DensityModel, uniform
from wsiad.networks.stack_shape import StackShape

_RIDGE: Final = 1e-6  # added to every variance, so that the covariances are regular
_LEAST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of K Gaussians of vectors (D,).

    Parameters
    ----------
    weights : Tensor, (K,)
    means : Tensor, (K, D)
    lower : Tensor, (K, D, D)
        Cholesky factors of the covariances.
    """

    weights: Tensor
    means: Tensor
    lower: Tensor

    @classmethod
    def of(cls, sums: Tensor, first: Tensor, second: Tensor) -> Mixture:
        """Return the mixture of weighted moments: Σγ (K,), Σγz (K, D) and Σγzzᵀ (K, D, D)."""
        counts = sums.clamp_min(_LEAST)
        means = first / counts[:, None]
        covariance = second / counts[:, None, None] - means[:, :, None] * means[:, None, :]
        ridge = _RIDGE * torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
        lower, failed = torch.linalg.cholesky_ex(covariance + ridge)
        if bool(failed.any()):  # a Gaussian of hardly any vector: rounding left it indefinite
            diagonal = covariance.diagonal(dim1=1, dim2=2).clamp_min(0) + _RIDGE
            plain = torch.diag_embed(diagonal.sqrt())
            lower = torch.where((failed > 0)[:, None, None], plain, lower)
        return cls(counts / counts.sum(), means, lower)

    def energy(self, z: Tensor) -> Tensor:
        """Return −log of the density of vectors, (N, D) to (N,)."""
        away = z[:, None, :] - self.means
        whitened = torch.linalg.solve_triangular(
            self.lower, away.permute(1, 2, 0), upper=False
        )  # (K, D, N)
        half_log_det = self.lower.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
        logs = self.weights.log() - half_log_det - constant
        return -(logs[:, None] - 0.5 * whitened.square().sum(dim=1)).logsumexp(dim=0)

    def inverse_variances(self) -> Tensor:
        """Return Σ 1 / Σ_jj over all Gaussians and dimensions, (); it keeps them from shrinking."""
        return (1 / self.lower.square().sum(dim=2)).sum()


class MixtureModel(DensityModel):
    """An autoencoder of vectors, and a mixture of their code, relative error and cosine.

    A vector x with the code c and the reconstruction x̂ becomes z = [c, |x − x̂| / |x|,
    cos(x, x̂)]. A small network estimates how much z belongs to each Gaussian, whose weights,
    means and covariances follow from these memberships. The loss is the mean squared error, plus
    the energy of z, plus Σ 1 / Σ_jj. Each place of a map is a vector, or with ``image`` each
    complete map is one, and the autoencoder is convolutional.

    Parameters
    ----------
    channels : int
    widths : sequence of int
        Units of the encoder's hidden layers; the decoder mirrors them.
    code : int
        Dimensions of the code.
    gaussians, hidden : int
        Number of Gaussians, and units of the network that estimates memberships.
    dropout : float
        Share of these units that are dropped in the training.
    energy_weight, variance_weight : float
        Weights of the second and third term of the loss.
    image : StackShape, optional
        Shape of a convolutional autoencoder of complete maps, in place of ``widths``; its latent
        is a vector of ``code`` dimensions.

    Notes
    -----
    Zong et al., *Deep Autoencoding Gaussian Mixture Model for Unsupervised Anomaly Detection*,
    ICLR 2018. The mixture that scores comes from one pass over healthy vectors (:meth:`settle`),
    not from the last batch of the training.
    """

    weights: Tensor
    means: Tensor
    lower: Tensor

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (64, 16),
        code: int = 4,
        gaussians: int = 4,
        hidden: int = 10,
        dropout: float = 0.5,
        energy_weight: float = 0.1,
        variance_weight: float = 0.005,
        image: StackShape | None = None,
    ) -> None:
        super().__init__()
        sizes = [channels, *widths, code]
        self.encoder: nn.Module = Encoder(image) if image else _dense(sizes)
        self.decoder: nn.Module = Decoder(image) if image else _dense(sizes[::-1])
        self._whole = image is not None
        self.inner = nn.Linear(code + 2, hidden)
        self.membership = nn.Linear(hidden, gaussians)
        self._dropout = dropout
        self._energy_weight, self._variance_weight = energy_weight, variance_weight
        size = code + 2
        self.register_buffer("weights", torch.full((gaussians,), 1 / gaussians))
        self.register_buffer("means", torch.zeros(gaussians, size))
        self.register_buffer("lower", torch.eye(size).repeat(gaussians, 1, 1))

    def latent(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, (N, D + 2), and the mean squared error, (N,), of vectors (N, C).

        With a convolutional autoencoder, the vectors are maps (N, C, h, w).
        """
        code = self.encoder(vectors)
        found = self.decoder(code).flatten(1)
        vectors = vectors.flatten(1)
        away = vectors - found
        relative = away.norm(dim=1) / vectors.norm(dim=1).clamp_min(_LEAST)
        cosine = functional.cosine_similarity(vectors, found, dim=1, eps=_LEAST)
        z = torch.cat([code, relative[:, None], cosine[:, None]], dim=1)
        return z, away.square().mean(dim=1)

    def memberships(self, z: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return how much vectors belong to each Gaussian, (N, K), with a sum of 1.

        Parameters
        ----------
        z : Tensor, (N, D)
        kept : Tensor, (N, hidden), optional
            Factors of the hidden units: 0 for those that are dropped.
        """
        inner = torch.tanh(self.inner(z))
        if kept is not None:
            inner = inner * kept
        return self.membership(inner).softmax(dim=1)

    def draw(self, maps: Tensor, rng: np.random.Generator) -> Tensor | None:
        """Return the factors of the hidden units of each vector, in the training."""
        if not self.training or not self._dropout:
            return None
        count = len(maps) * (1 if self._whole else maps.shape[2] * maps.shape[3])
        drawn = uniform(maps, rng, (count, self.inner.out_features))
        return (drawn >= self._dropout).float() / (1 - self._dropout)

    def losses(self, maps: Tensor, drawn: Tensor | None) -> Tensor:
        """Return the loss of each map, by the mixture of all of them, (N,)."""
        z, error = self.latent(self._vectors(maps))
        exact = z.double()  # second moments cancel digits
        mixture = Mixture.of(*_moments(exact, self.memberships(z, drawn).double()))
        losses = error + self._energy_weight * mixture.energy(exact).float()
        penalty = self._variance_weight * mixture.inverse_variances()
        return losses.reshape(len(maps), -1).mean(dim=1) + penalty.float()

    @torch.no_grad()
    def settle(self, every: Iterable[Tensor]) -> None:
        """Set the mixture by one pass over healthy maps, (N, C, h, w) each."""
        sums: list[Tensor] | None = None
        for maps in every:
            z, _ = self.latent(self._vectors(maps))
            own = _moments(z.double(), self.memberships(z).double())
            sums = list(own) if sums is None else [a + b for a, b in zip(sums, own, strict=True)]
        assert sums is not None
        found = Mixture.of(*sums)
        self.weights.copy_(found.weights)
        self.means.copy_(found.means)
        self.lower.copy_(found.lower)

    def scores(self, maps: Tensor) -> Tensor:
        """Return the energy of each place, (N, h, w), or of the complete map, (N, 1, 1)."""
        z, _ = self.latent(self._vectors(maps))
        mixture = Mixture(self.weights, self.means, self.lower)
        return mixture.energy(z).reshape(len(maps), *((1, 1) if self._whole else maps.shape[2:]))

    def _vectors(self, maps: Tensor) -> Tensor:
        return maps if self._whole else maps.permute(0, 2, 3, 1).flatten(0, 2)


def _moments(z: Tensor, memberships: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σγ, Σγz and Σγzzᵀ of vectors (N, D) and memberships (N, K)."""
    second = torch.einsum("nk,ni,nj->kij", memberships, z, z)
    return memberships.sum(dim=0), memberships.T @ z, second


def _dense(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])
