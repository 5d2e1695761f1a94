"""Latents of an autoencoder: plain, variational, a memory, a code book, or autoregressive.

A latent model receives what the encoder makes, (N, C) or (N, C, m, m), and returns what the
decoder receives, with a penalty for each image. Random draws use torch's global generator, which
a training sets at every step; without draws the result is a function of the image alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_MOST_LOG = 20.0  # of a log variance: exp of it is finite in float32


class Code(NamedTuple):
    """The code of images.

    Parameters
    ----------
    value : Tensor, (N, C) or (N, C, m, m)
        Input of the decoder.
    penalty : Tensor, (N,)
        Penalty of each image; 0 if there is none.
    density : Tensor, (N, ...)
        Unlikeliness of each image's latent, by place if it has places; zeros if the latent has
        none.
    """

    value: Tensor
    penalty: Tensor
    density: Tensor


class LatentModel(nn.Module, ABC):
    """The way from an encoder's output to a decoder's input."""

    outputs_per_channel = 1
    """Number of the encoder's outputs for each channel of the code."""

    @abstractmethod
    def forward(self, raw: Tensor, *, draw: bool = False) -> Code:
        """Return the code of an encoder's output; a drawn one if ``draw`` and if it is random."""

    def vectors(self, raw: Tensor) -> Tensor:
        """Return the deterministic code as vectors, (N, D)."""
        return self(raw).value.flatten(1)


class PlainLatent(LatentModel):
    """The encoder's output as it is."""

    def forward(self, raw: Tensor, *, draw: bool = False) -> Code:
        """Return the output itself."""
        nothing = raw.new_zeros(len(raw))
        return Code(raw, nothing, nothing)


def kullback_leibler(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return ½ (μ² + σ² − 1 − log σ²), the divergence from N(0, 1), by dimension."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


class VariationalLatent(LatentModel):
    """A Gaussian with a mean and a log variance for each dimension, drawn to N(0, 1).

    Parameters
    ----------
    reduction : {"mean", "sum"}
        Way in which the divergences of the dimensions become the penalty.

    Notes
    -----
    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
    """

    outputs_per_channel = 2

    def __init__(self, reduction: Literal["mean", "sum"]) -> None:
        super().__init__()
        self._reduction = reduction

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance."""
        mean, log_variance = raw.chunk(2, dim=1)
        return mean, log_variance.clamp(-_MOST_LOG, _MOST_LOG)

    def divergence(self, raw: Tensor) -> Tensor:
        """Return the divergence of each dimension, (N, C) or (N, C, m, m)."""
        return kullback_leibler(*self.parts(raw))

    def forward(self, raw: Tensor, *, draw: bool = False) -> Code:
        """Return the mean, or a draw, with the divergence as the penalty."""
        mean, log_variance = self.parts(raw)
        by_dimension = kullback_leibler(mean, log_variance)
        flat = by_dimension.flatten(1)
        penalty = flat.mean(dim=1) if self._reduction == "mean" else flat.sum(dim=1)
        value = mean
        if draw:
            value = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return Code(value, penalty, by_dimension.sum(dim=1))


class MemoryLatent(LatentModel):
    """A weighted sum of a few learnt vectors, by their similarity to the encoder's output.

    Small weights are shrunk to 0. If all are, the largest alone counts: the published code
    would decode a vector of zeros.

    Parameters
    ----------
    size : int
        Number N of vectors.
    channels : int
        Length of the vectors.
    similarity : {"cosine", "dot"}
        Similarity whose softmax gives the weights: the paper's, or that of the released code.
    shrink : float or None
        Weights below it become 0; 1/N by default.

    Notes
    -----
    Gong et al., "Memorizing Normality to Detect Anomaly", ICCV 2019; cosine similarity and 1/N
    are from general knowledge of the paper. In a map every place is looked up alone.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        similarity: Literal["cosine", "dot"] = "cosine",
        shrink: float | None = None,
    ) -> None:
        super().__init__()
        self._similarity, self._shrink = similarity, 1 / size if shrink is None else shrink
        self.vectors_ = nn.Parameter(torch.empty(size, channels))
        bound = channels**-0.5
        nn.init.uniform_(self.vectors_, -bound, bound)

    def weights(self, rows: Tensor) -> Tensor:
        """Return the weights (M, N) of rows (M, C)."""
        memory: Tensor = self.vectors_
        if self._similarity == "cosine":
            rows, memory = functional.normalize(rows, dim=1), functional.normalize(memory, dim=1)
        soft = (rows @ memory.T).softmax(dim=1)
        if not self._shrink:
            return soft
        over = soft - self._shrink
        hard = over.relu() * soft / (over.abs() + 1e-12)
        total = hard.sum(dim=1, keepdim=True)
        nearest = functional.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft)
        return torch.where(total > 0, hard / total.clamp_min(1e-12), nearest)

    def forward(self, raw: Tensor, *, draw: bool = False) -> Code:
        """Return sums of the memory's vectors, with the entropy of their weights as penalty."""
        rows = raw.movedim(1, -1).flatten(0, -2)
        weights = self.weights(rows)
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=1)
        shape = (len(raw), *raw.shape[2:])
        value = (weights @ self.vectors_).view(*shape, raw.shape[1]).movedim(-1, 1)
        by_place = entropy.view(shape)
        penalty = by_place.flatten(1).mean(dim=1) if raw.ndim > 2 else by_place
        return Code(value, penalty, torch.zeros_like(by_place))


class QuantisedLatent(LatentModel):
    """The nearest vector of a code book at every place.

    Gradients pass to the encoder as if nothing was replaced. The code book follows the encoder
    by exponential averages in training mode. The penalty is the mean of (z − code)².

    Parameters
    ----------
    size : int
        Number of codes.
    channels : int
        Length of the codes.
    decay : float
        Decay of the averages in a step.

    Notes
    -----
    van den Oord, Vinyals & Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS
    2017, with the averages of its appendix A.1.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, channels: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self._decay = decay
        codes = torch.randn(size, channels)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", codes.clone())

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the index of the nearest code of rows (M, C), int64 (M,)."""
        return torch.cdist(rows.float(), self.codes).argmin(dim=1)

    def forward(self, raw: Tensor, *, draw: bool = False) -> Code:
        """Return the nearest codes."""
        rows = raw.movedim(1, -1).flatten(0, -2)
        index = self.nearest(rows.detach())
        found = self.codes[index]
        if self.training:
            self._follow(rows.detach(), index)
        shape = (len(raw), *raw.shape[2:])
        by_place = (rows - found).square().mean(dim=1).view(shape)
        value = found.view(*shape, raw.shape[1]).movedim(-1, 1)
        if torch.is_grad_enabled() and raw.requires_grad:
            value = raw + (value - raw).detach()
        penalty = by_place.flatten(1).mean(dim=1) if raw.ndim > 2 else by_place
        return Code(value, penalty, by_place)

    @torch.no_grad()
    def _follow(self, rows: Tensor, index: Tensor) -> None:
        chosen = functional.one_hot(index, len(self.codes)).to(rows)
        self.counts.lerp_(chosen.sum(dim=0), 1 - self._decay)
        self.sums.lerp_(chosen.T @ rows, 1 - self._decay)
        used = self.counts > 1e-5  # a code that nothing was near to for long stays where it is
        self.codes[used] = self.sums[used] / self.counts[used, None]


class MaskedDense(nn.Module):
    """A dense layer whose output at an element sees the elements before it alone.

    Parameters
    ----------
    elements : int
        Number D of elements, in their order.
    inputs, outputs : int
        Number of channels of each element.
    own : bool
        True if an element also sees itself.
    """

    mask: Tensor

    def __init__(self, elements: int, inputs: int, outputs: int, *, own: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(elements * inputs, elements * outputs)
        sees = torch.ones(elements, elements).tril(0 if own else -1)
        mask = sees.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D · inputs) to (N, D · outputs)."""
        return functional.linear(x, self.dense.weight * self.mask, self.dense.bias)


class AutoregressiveLatent(LatentModel):
    """A vector in (0, 1) whose elements are predicted one after the other.

    A network of masked layers gives for every element a distribution over bins, given the
    elements before it. The penalty is −Σ log p of the elements' bins. A bin has no gradient:
    the penalty reaches the encoder by the inputs of the network.

    Parameters
    ----------
    elements : int
        Length of the vector.
    bins : int
        Number of bins of an element.
    channels : int
        Channels of an element in the hidden layers.
    layers : int
        Number of hidden layers after the first.

    Notes
    -----
    Abati et al., "Latent Space Autoregression for Novelty Detection", CVPR 2019.
    """

    def __init__(
        self, elements: int, *, bins: int = 100, channels: int = 32, layers: int = 3
    ) -> None:
        super().__init__()
        self._bins = bins
        found: list[nn.Module] = [MaskedDense(elements, 1, channels, own=False), nn.LeakyReLU()]
        for _ in range(layers):
            found += [MaskedDense(elements, channels, channels, own=True), nn.LeakyReLU()]
        found.append(MaskedDense(elements, channels, bins, own=True))
        self.estimator = nn.Sequential(*found)

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits (N, D, bins) of vectors (N, D)."""
        found: Tensor = self.estimator(z)
        return found.view(len(z), z.shape[1], self._bins)

    def forward(self, raw: Tensor, *, draw: bool = False) -> Code:
        """Return the vector, with its negative log likelihood as the penalty."""
        bins = (raw.detach() * self._bins).long().clamp(0, self._bins - 1)
        unlikely = functional.cross_entropy(
            self.logits(raw).flatten(0, 1), bins.flatten(), reduction="none"
        )
        total = unlikely.view(raw.shape).sum(dim=1)
        return Code(raw, total, total)
