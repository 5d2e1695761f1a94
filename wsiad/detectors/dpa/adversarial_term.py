"""The adversarial term of the Deep Perceptual Autoencoder: a critic of its reconstructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from wsiad.detectors.dpa.objective import Objective
from wsiad.learning.adversarial_game import (
    AdversarialGame,
    AdversarialOptions,
    Adversary,
    Critic,
    Match,
    Side,
    WassersteinLoss,
    drawn_mix,
)
from wsiad.learning.devices import Ranks
from wsiad.learning.stages import Stage
from wsiad.networks.autoencoder import AutoencoderShape, encoder, from_image, initialise
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.growing import encoded, growing_edges

_STREAM = 1  # keeps the draws of its weights apart from the autoencoder's


class GrowingCritic(nn.Module):
    """A critic of images at every resolution of a growing training.

    It is an encoder of the autoencoder's kind down to one number, and grows like the encoder
    of :class:`GrowingAutoencoder`.

    Parameters
    ----------
    shape : AutoencoderShape
        Sizes of the encoder at the final resolution, with one number as its latent.
    start_px : int
        Resolution to begin with, pixels.

    Raises
    ------
    DetectorError
        The encoder has no such resolution.
    """

    def __init__(self, shape: AutoencoderShape, start_px: int) -> None:
        super().__init__()
        self.edges = growing_edges(shape, start_px)
        self._blocks = shape.blocks_per_edge
        self.encoder = nn.Sequential(*encoder(shape))
        widths = dict(zip(self.edges[::-1], shape.channels, strict=False))
        self.from_image = nn.ModuleDict(
            {str(px): nn.Sequential(*from_image(shape, widths[px])) for px in self.edges[:-1]}
        )
        initialise(self)

    def forward(self, x: Tensor, *, px: int, alpha: float = 1.0) -> Tensor:
        """Judge images of ``px``, float (N, C, px, px) in [−1, 1]; float (N,)."""
        layers = list(self.encoder)
        return encoded(
            x, layers, self.from_image, self.edges, blocks=self._blocks, px=px, alpha=alpha
        ).flatten()


def seeded_critic(
    image_px: int,
    start_px: int,
    seed: int,
    *,
    channels: int,
    blocks: Literal["residual18", "residual9"],
) -> GrowingCritic:
    """Return a critic whose weights follow from the seed alone and differ from the autoencoder's.

    Parameters
    ----------
    image_px, start_px : int
        Final and first resolution, pixels; the same if nothing grows.
    seed : int
    channels : int
        Width at every resolution.
    blocks : {"residual18", "residual9"}

    Raises
    ------
    DetectorError
        The critic cannot halve these resolutions down to 4 px.
    """
    widths = (channels,) * len(AutoencoderShape.edges(image_px, 1))
    shape = AutoencoderShape(image_px, 1, widths, latent_channels=1, blocks=blocks)
    with drawing_weights(int(np.random.default_rng([seed, _STREAM]).integers(2**63))):
        return GrowingCritic(shape, start_px)


@dataclass(frozen=True, slots=True)
class CriticBatch:
    """The batch of a critic's step.

    Parameters
    ----------
    windows : Tensor
        Windows, uint8 (N, S, S, 3).
    at : tuple of int
        Number of the step, and of the critic's step in it.
    stage : Stage or None
    """

    windows: Tensor
    at: tuple[int, int]
    stage: Stage | None


class AdversarialTerm(Adversary[CriticBatch]):
    """The critic's side of a training: it distinguishes images from their reconstructions.

    Parameters
    ----------
    objective : Objective
        Objective that makes the reconstructions and measures their distance.
    critic : GrowingCritic
        Critic on the training's device.
    size : int
        Edge of the windows, pixels: the critic's resolution if the training has no stages.
    weight : float
        Weight of −D(reconstruction) in the loss of the autoencoder.
    options : AdversarialOptions
    seed : int
        Seed of the positions at which the gradient penalty is taken.
    ranks : Ranks
        Processes that train together.
    """

    def __init__(
        self,
        objective: Objective,
        critic: GrowingCritic,
        *,
        size: int,
        weight: float,
        options: AdversarialOptions,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self._objective, self._critic, self._size = objective, critic, size
        self._weight, self._seed, self._ranks = weight, seed, ranks
        side = Side(
            critic=lambda batch: self._judge(batch.stage),
            match=self._match,
            loss=WassersteinLoss(options.gradient_penalty, options.drift),
        )
        super().__init__(
            AdversarialGame([side]),
            critic,
            steps=options.critic_steps,
            learning_rate=options.learning_rate,
            ranks=ranks,
        )

    def batch(self, windows: Tensor, at: tuple[int, int], stage: Stage | None) -> CriticBatch:
        """Return a batch of the critic's windows."""
        return CriticBatch(windows, at, stage)

    def opponent_losses(
        self, windows: Tensor, step: int, stage: Stage | None
    ) -> tuple[Tensor, Tensor]:
        """Return the autoencoder's losses, (N,): with the critic, and the distance alone."""
        x, y = self._objective.images(windows, stage)
        distance = self._objective.distance(x, y, stage)
        return distance - self._weight * self._judge(stage)(y), distance

    def _match(self, batch: CriticBatch) -> Match:
        x, y = self._objective.images(batch.windows, batch.stage)
        mix = drawn_mix(len(x), seed=self._seed, at=batch.at, ranks=self._ranks, like=x)
        return Match(x, y, mix)

    def _judge(self, stage: Stage | None) -> Critic:
        now = stage or Stage(self._size)
        return lambda images: self._critic(images, px=now.px, alpha=now.alpha)
