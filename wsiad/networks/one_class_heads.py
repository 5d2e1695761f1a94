"""Small networks on frozen feature vectors that learn one class, each by an objective of its own.

A head defines its loss on a batch of healthy vectors (:meth:`Head.loss`), what it takes from all
healthy vectors (:meth:`Head.settle`), and the score of vectors (:meth:`Head.forward`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.2
_EPSILON = 1e-5  # of the normalisation of single vectors
_ASCENT, _LIMITED_EVERY = 0.001, 5  # length of a step; steps between two limits of the distance
_HARD = 0.5  # quantile of the errors from which local features count
_LEAST = 1e-10


@dataclass(frozen=True, slots=True)
class References:
    """Feature vectors of labelled reference tiles.

    Parameters
    ----------
    vectors : Tensor, (R, C)
    classes : Tensor of int64, (R,)
        Number of the class of each vector, from 0.
    """

    vectors: Tensor
    classes: Tensor


class Head(nn.Module):
    """A network on vectors (N, C) that learns from healthy ones."""

    factors: ClassVar[dict[str, float]] = {}
    """Factor of the learning rate of parts by their names; 1 for the others."""

    @abstractmethod
    def forward(self, vectors: Tensor) -> Tensor:
        """Return the scores (N,) of vectors (N, C); higher is stranger."""

    @abstractmethod
    def loss(self, vectors: Tensor, reference: References | None) -> Tensor:
        """Return the loss, a scalar, of a batch of healthy vectors, and of reference ones.

        Random draws are those of the global generator of torch.
        """

    def settle(self, vectors: Tensor) -> None:
        """Take from all healthy vectors what is not learnt by descent."""


class NoiseHead(Head):
    """OC-CNN: a classifier of healthy features against noise around 0.

    A linear layer, which begins as the identity, stands for the fully connected part that is
    trained further. Each of its outputs is normalised by its own mean and deviation, so that
    features cannot collapse.

    Parameters
    ----------
    channels : int
        Number C of channels.
    deviation : float
        Standard deviation of the noise in every channel.
    """

    def __init__(self, channels: int, *, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self.adapter, self.out = nn.Linear(channels, channels), nn.Linear(channels, 2)
        with torch.no_grad():
            self.adapter.weight.copy_(torch.eye(channels))
            self.adapter.bias.zero_()

    def features(self, vectors: Tensor) -> Tensor:
        """Return normalised features (N, C)."""
        adapted: Tensor = self.adapter(vectors)
        centred = adapted - adapted.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + _EPSILON).sqrt()

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (N, 2) of noise and of healthy features."""
        found: Tensor = self.out(torch.relu(features))
        return found

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the log odds that vectors are noise."""
        noise, healthy = self.logits(self.features(vectors)).unbind(dim=1)
        return noise - healthy

    def loss(self, vectors: Tensor, reference: References | None) -> Tensor:
        """Return the cross-entropy of healthy features and as many vectors of noise."""
        healthy = self.features(vectors)
        noise = self.deviation * torch.randn_like(healthy)
        logits = self.logits(torch.cat([noise, healthy]))
        classes = torch.arange(2, device=logits.device).repeat_interleave(len(vectors))
        return functional.cross_entropy(logits, classes)


class CompactHead(Head):
    """DOC: features that distinguish reference classes, and are near each other for healthy tiles.

    Parameters
    ----------
    channels, classes : int
        Number of channels, and of reference classes.
    weight : float
        Weight λ of the compactness.
    templates : int
        Number of healthy tiles, to the nearest of which the score is the distance.
    """

    templates: Tensor

    def __init__(self, channels: int, classes: int, *, weight: float, templates: int) -> None:
        super().__init__()
        self.weight = weight
        self.adapter, self.out = nn.Linear(channels, channels), nn.Linear(channels, classes)
        with torch.no_grad():
            self.adapter.weight.copy_(torch.eye(channels))
            self.adapter.bias.zero_()
        self.register_buffer("templates", torch.zeros(templates, channels))

    def features(self, vectors: Tensor) -> Tensor:
        """Return features (N, C)."""
        return torch.relu(self.adapter(vectors))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the distance of vectors to the nearest template."""
        found = self.features(vectors)
        nearest = [(found - template).square().sum(dim=1) for template in self.templates]
        return torch.stack(nearest).amin(dim=0).sqrt()

    def loss(self, vectors: Tensor, reference: References | None) -> Tensor:
        """Return the cross-entropy of references plus the weighted compactness."""
        assert reference is not None
        logits = self.out(self.features(reference.vectors))
        descriptive = functional.cross_entropy(logits, reference.classes)
        return descriptive + self.weight * compactness(self.features(vectors))

    def settle(self, vectors: Tensor) -> None:
        """Take vectors that are evenly spread in their order as templates."""
        count = len(self.templates)
        chosen = torch.arange(count, device=vectors.device) * len(vectors) // count
        with torch.no_grad():
            self.templates.copy_(self.features(vectors[chosen]))


class HyperplaneHead(Head):
    """OC-NN: healthy features lie beyond a hyperplane, w · g(V x) ≥ r.

    Parameters
    ----------
    channels, hidden : int
        Number of channels, and of units of the hidden layer.
    nu : float
        Share of healthy vectors on the wrong side.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, channels: int, hidden: int, *, nu: float) -> None:
        super().__init__()
        self.nu = nu
        self.inner = nn.Linear(channels, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def heights(self, vectors: Tensor) -> Tensor:
        """Return w · g(V x) of vectors, (N,); g is the sigmoid."""
        found: Tensor = self.out(torch.sigmoid(self.inner(vectors / self.scale)))[:, 0]
        return found

    def forward(self, vectors: Tensor) -> Tensor:
        """Return r − w · g(V x): positive on the strange side."""
        return self.offset - self.heights(vectors)

    def loss(self, vectors: Tensor, reference: References | None) -> Tensor:
        """Return ½|w|² + ½|V|² + mean max(0, r − ŷ) / ν − r."""
        squares = self.out.weight.square().sum() + self.inner.weight.square().sum()
        outside = torch.relu(self.offset - self.heights(vectors)).mean()
        return squares / 2 + outside / self.nu - self.offset

    @torch.no_grad()
    def settle(self, vectors: Tensor) -> None:
        """Set r to the quantile ν of the heights of healthy vectors."""
        self.offset.copy_(torch.quantile(self.heights(vectors).double(), self.nu))

    @torch.no_grad()
    def rescale(self, vectors: Tensor) -> None:
        """Set the scale of the inputs to the root mean square of healthy vectors.

        They are not centred: the hyperplane separates them from the origin.
        """
        self.scale.copy_(vectors.square().mean().sqrt().clamp(min=1e-12))


class NoisyFeatureHead(Head):
    """SimpleNet: a discriminator of adapted features against the same with noise.

    Parameters
    ----------
    channels, hidden : int
        Number of channels, and of units of the discriminator's hidden layer.
    deviation : float
        Standard deviation of the noise in every channel.
    margin : float
        Output that healthy features must exceed, and noisy ones must stay below its negative.
    """

    factors: ClassVar[dict[str, float]] = {"discriminator": 2.0}

    def __init__(self, channels: int, hidden: int, *, deviation: float, margin: float) -> None:
        super().__init__()
        self.deviation, self.margin = deviation, margin
        self.adapter = nn.Linear(channels, channels)
        self.discriminator = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(hidden, 1, bias=False),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Return −D of the adapted vectors."""
        return -self.discriminator(self.adapter(vectors))[:, 0]

    def loss(self, vectors: Tensor, reference: References | None) -> Tensor:
        """Return the hinge losses of healthy and noisy features, added."""
        healthy = self.adapter(vectors)
        noisy = healthy + self.deviation * torch.randn_like(healthy)
        usual, strange = self.discriminator(torch.cat([healthy, noisy]))[:, 0].chunk(2)
        found: Tensor = (
            torch.relu(self.margin - usual).mean() + torch.relu(self.margin + strange).mean()
        )
        return found


class AscentHead(NoisyFeatureHead):
    """GLASS: healthy features against noisy ones that gradient ascent makes harder, and local ones.

    Noise is moved to where the discriminator takes it for healthy, in short steps. After every
    fifth one its distance from its origin is limited to r to 2 r. The origin is the healthy
    feature itself, or the centre of all with ``quantile``: r is then that quantile of the
    distances of healthy features from the centre. Local features are those of places of images
    that were changed or not; around the centre, those that were are limited to 2 r to 4 r.

    Parameters
    ----------
    channels, hidden : int
        Number of channels, and of units of the discriminator's hidden layer.
    deviation : float
        Standard deviation of the noise in every channel.
    steps : int
        Number of steps of the ascent.
    radius : float
        Distance r from the healthy feature, without a quantile.
    quantile : float or None
        Quantile of the distances from the centre.

    Notes
    -----
    Chen, Luo, Lv & Zhang, *A Unified Anomaly Synthesis Strategy with Gradient Ascent for
    Industrial Anomaly Detection and Localization*, ECCV 2024 (arXiv 2407.09359), and the authors'
    code. Their centre is that of one position in the image, which means nothing in tissue.
    """

    centre: Tensor

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        deviation: float,
        steps: int,
        radius: float,
        quantile: float | None,
    ) -> None:
        super().__init__(channels, hidden, deviation=deviation, margin=0.0)
        self.steps, self.radius, self.quantile = steps, radius, quantile
        self.register_buffer("centre", torch.zeros(channels))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the log odds that vectors are strange."""
        return self.logits(self.adapter(vectors))

    def logits(self, adapted: Tensor) -> Tensor:
        """Return the log odds (N,) that adapted vectors (N, C) are strange."""
        found: Tensor = self.discriminator(adapted)[:, 0]
        return found

    def loss(self, vectors: Tensor, reference: References | None) -> Tensor:
        """Return the cross-entropies of healthy and noisy features plus the focal one of local."""
        assert reference is not None
        healthy, local = self.adapter(vectors), self.adapter(reference.vectors)
        changed = reference.classes == 1
        radius = self.reach(torch.cat([healthy, local[~changed]]))
        noisy = healthy + self.deviation * torch.randn_like(healthy)
        noisy = self.ascended(healthy, noisy, radius)
        usual, strange = self.logits(torch.cat([healthy, noisy])).chunk(2)
        if self.quantile is not None:
            away = limited(local - self.centre, 2 * radius, 4 * radius)
            local = torch.where(changed[:, None], self.centre + away, local)
        return (
            functional.softplus(usual).mean()
            + functional.softplus(-strange).mean()
            + hard_focal(self.logits(local), changed)
        )

    def reach(self, healthy: Tensor) -> Tensor:
        """Return the distance r for adapted healthy vectors, ()."""
        if self.quantile is None:
            return healthy.new_tensor(self.radius)
        return torch.quantile((healthy - self.centre).norm(dim=1), self.quantile)

    def ascended(self, healthy: Tensor, noisy: Tensor, radius: Tensor) -> Tensor:
        """Return noisy vectors (N, C) after the steps of the ascent."""
        origin = healthy if self.quantile is None else self.centre
        for step in range(1, self.steps + 1):
            _, strange = self.logits(torch.cat([healthy, noisy])).chunk(2)
            (slope,) = torch.autograd.grad(
                functional.softplus(-strange).mean(), noisy, retain_graph=True
            )
            noisy = noisy + _ASCENT * functional.normalize(slope, dim=1, eps=_LEAST)
            if step % _LIMITED_EVERY == 0:
                noisy = origin + limited(noisy - origin, radius, 2 * radius)
        return noisy

    @torch.no_grad()
    def settle(self, vectors: Tensor) -> None:
        """Set the centre to the mean of adapted healthy vectors."""
        self.centre.copy_(self.adapter(vectors).mean(dim=0))


def limited(away: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Return vectors (N, C) in their directions, with lengths of ``least`` to ``most``."""
    length = away.norm(dim=1, keepdim=True)
    return away * (length.clamp(least, most) / (length + _LEAST))


def hard_focal(logits: Tensor, changed: Tensor) -> Tensor:
    """Return the focal loss, γ of 2, of the half of vectors whose probability is most wrong.

    Parameters
    ----------
    logits : Tensor, (N,)
        Log odds that a vector is strange.
    changed : Tensor of bool, (N,)
        True for vectors that are.
    """
    right = torch.where(changed, logits, -logits)
    wrong = torch.sigmoid(-right)
    hard = wrong.detach() >= torch.quantile(wrong.detach(), _HARD)
    return (wrong.square() * functional.softplus(-right))[hard].mean()


def compactness(features: Tensor) -> Tensor:
    """Return the mean of |x_i − m_i|² / k, m_i the mean of the others: a scalar of (n, k).

    It equals (n / (n − 1))² times the mean of |x_i − m|² / k with m the mean of all.
    """
    count = len(features)
    others = (features.sum(dim=0) - features) / (count - 1)
    return (features - others).square().mean()
