"""A critic trained along with a module, and what it adds to the module's loss.

The Wasserstein game with gradient penalty: what the critic and its opponent minimise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.config import Config
from wsiad.learning.checkpoint import Checkpoint, Trained
from wsiad.learning.ranks import Ranks
from wsiad.learning.stages import Stage

Critic = Callable[[Tensor], Tensor]
"""Maps images, float (N, C, H, W), to a number each, float (N,): higher is more real."""


def critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    mix: Tensor,
    penalty_weight: float,
    drift_weight: float,
) -> Tensor:
    """Return what the critic *D* minimises, a scalar.

    −(mean D(x) − mean D(y)) + ``drift_weight`` · (mean D(x)² + mean D(y)²) +
    ``penalty_weight`` · :func:`gradient_penalty`.

    Parameters
    ----------
    critic : callable
    real, fake : Tensor, float (N, C, H, W)
        *x* and *y*; they carry no gradient.
    mix : Tensor, float (N,)
        Of the penalty.
    penalty_weight, drift_weight : float

    Notes
    -----
    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017; the drift term
    is that of Karras et al., "Progressive Growing of GANs", ICLR 2018, for both images.
    """
    of_real, of_fake = critic(real), critic(fake)
    game = of_fake.mean() - of_real.mean()
    drift = of_real.square().mean() + of_fake.square().mean()
    penalty = gradient_penalty(critic, real, fake, mix=mix)
    return game + drift_weight * drift + penalty_weight * penalty


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, *, mix: Tensor) -> Tensor:
    """Return the mean of (‖∇D(z)‖₂ − 1)² at z = mix · real + (1 − mix) · fake, a scalar.

    Parameters
    ----------
    critic : callable
    real, fake : Tensor, float (N, C, H, W)
    mix : Tensor, float (N,)
        Of 0 to 1, one for each pair of images.
    """
    share = mix.view(-1, 1, 1, 1)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


_MIX = 1 << 33  # keeps its draws apart from those of the windows

_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Count = Annotated[int, pydantic.Field(ge=1)]


class AdversarialOptions(Config):
    """The critic of an adversarial term, and how it is trained: a Wasserstein game."""

    learning_rate: _Positive = 2e-4
    """Of the critic's Adam; constant."""
    critic_steps: _Count = 2
    """Steps of the critic before each of the autoencoder, each with a batch of its own."""
    gradient_penalty: _NotNegative = 10.0
    """Weight of (‖∇D‖ − 1)²."""
    drift: _NotNegative = 1e-3
    """Weight of D²."""
    channels: _Count = 4
    """Width of the critic."""


class Game(Protocol):
    """What is reconstructed, and how it is judged."""

    def images(self, windows: Tensor, stage: Stage | None = None) -> tuple[Tensor, Tensor]:
        """Return the images of windows, (N, C, H, W), and their reconstructions."""
        ...

    def distance(self, original: Tensor, made: Tensor, stage: Stage | None = None) -> Tensor:
        """Return the distance of each image to its reconstruction, (N,)."""
        ...

    def judge(self, images: Tensor, stage: Stage | None = None) -> Tensor:
        """Return what the critic gives to each image, (N,)."""
        ...


class Adversary:
    """The critic's side of a training; see :mod:`wsiad.learning.adversary`.

    Parameters
    ----------
    game : Game
    critic : nn.Module
        What ``game.judge`` judges by, on the training's device.
    weight : float
        Of −D(reconstruction) in the loss of the module.
    options : AdversarialOptions
    seed : int
        Decides where the gradient penalty is taken.
    ranks : Ranks
        Processes that train together.
    """

    def __init__(
        self,
        game: Game,
        critic: nn.Module,
        *,
        weight: float,
        options: AdversarialOptions,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self._game, self._weight, self._options, self._seed = game, weight, options, seed
        self._ranks = ranks
        self._trained = Trained(critic, name="critic", moments="critic_adam", ranks=ranks)

    @property
    def draws(self) -> int:
        """Batches that a step of the training takes."""
        return 1 + self._options.critic_steps

    def restart(self) -> None:
        """Begin a stage: the critic's moments are forgotten."""
        self._trained.restart()

    def losses(self, windows: Tensor, step: int, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """Train the critic for a step of the module; return the module's losses.

        Parameters
        ----------
        windows : Tensor of uint8, (draws · N, S, S, 3)
            All but the last N are the critic's.
        step : int
            From 0.
        stage : Stage or None

        Returns
        -------
        minimised, distance : Tensor, (N,)
            With the adversarial term, and without.
        """
        *before, own = windows.chunk(self.draws)
        for number, part in enumerate(before):
            self._train(part, (step, number), stage)
        x, y = self._game.images(own, stage)
        distance = self._game.distance(x, y, stage)
        return distance - self._weight * self._game.judge(y, stage), distance

    def _train(self, windows: Tensor, at: tuple[int, int], stage: Stage | None) -> None:
        options = self._options
        with torch.no_grad():
            x, y = self._game.images(windows, stage)
        total = len(x) * self._ranks.count
        drawn = np.random.default_rng([self._seed, _MIX, *at]).random(total, dtype=np.float32)
        drawn = drawn[self._ranks.own(total)]
        loss = critic_loss(
            lambda images: self._game.judge(images, stage),
            x,
            y,
            mix=torch.from_numpy(drawn).to(x, non_blocking=True),
            penalty_weight=options.gradient_penalty,
            drift_weight=options.drift,
        )
        self._trained.minimise(loss, rate=options.learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return self._trained.tensors()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what a checkpoint kept."""
        self._trained.restore(checkpoint)
