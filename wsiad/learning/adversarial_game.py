"""An adversarial game: critics that learn to tell two kinds of things apart, and their opponent.

A game has one side a critic. A :class:`Side` says what its critic is shown of a batch, real
things and made ones (images, latents, pairs of either), and what it minimises: any function of
the critic and both. :class:`AdversarialGame` adds the sides up and takes the critics' steps;
who steps them is the caller's: an optimiser of their own (:class:`Adversary`, along with a
:class:`~wsiad.learning.loop.Training`), or one for all players (a
:attr:`~wsiad.learning.checkpoint.Recipe.update`). What the opponent minimises is the method's.

A checkpoint keeps the players and their moments; what a step draws follows from the seed and
its number, so that a killed training goes on as it would have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.config import Config
from wsiad.learning.checkpoint import Checkpoint, OptimiserFactory, Trained
from wsiad.learning.ranks import Ranks
from wsiad.learning.stages import Stage

B = TypeVar("B")

Critic = Callable[[Tensor], Tensor]
"""Maps things, float (N, ...), to a number each, float (N,): higher is more real."""

CriticLoss = Callable[[Critic, "Match"], Tensor]
"""Maps a critic and what it is shown to what it minimises, a scalar."""


@dataclass(frozen=True, slots=True)
class Match:
    """The tensors that a critic is to tell apart; they carry no gradient.

    Parameters
    ----------
    real, made : Tensor, float (N, ...)
    mix : Tensor, float (N,), or None
        Share of the real one, from 0 to 1, in what lies between the two, for losses that look
        there.
    """

    real: Tensor
    made: Tensor
    mix: Tensor | None = None

    def between(self) -> Tensor:
        """Return mix · real + (1 − mix) · made, float (N, ...)."""
        assert self.mix is not None, "the loss looks between real and made, and there is no mix"
        share = self.mix.view(-1, *[1] * (self.real.ndim - 1))
        return share * self.real + (1 - share) * self.made


def gradient_penalty(critic: Critic, at: Tensor) -> Tensor:
    """Return the mean of (‖∇D(z)‖₂ − 1)² over points z, a scalar that critics can minimise.

    Parameters
    ----------
    critic : callable
    at : Tensor, float (N, ...)
        The points.

    Notes
    -----
    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, eq. 3, where the
    points are mixtures of real and made ones (:meth:`Match.between`).
    """
    points = at.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


@dataclass(frozen=True, slots=True)
class WassersteinLoss:
    """The loss of a critic *D* of the Wasserstein game with gradient penalty.

    −(mean D(real) − mean D(made)) + ``drift`` · mean D² + ``penalty`` · :func:`gradient_penalty`
    between real and made.

    Parameters
    ----------
    penalty : float
        Weight of the gradient penalty.
    drift : float
        Weight of the squared outputs, which would else have no zero.
    drift_of : {"both", "real"}
        Whose outputs these are: real and made ones, each with a mean of its own that is added;
        or real ones alone.

    Notes
    -----
    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017. The drift of real
    ones is that of Karras et al., "Progressive Growing of GANs", ICLR 2018.
    """

    penalty: float = 10.0
    drift: float = 1e-3
    drift_of: Literal["both", "real"] = "both"

    def __call__(self, critic: Critic, match: Match) -> Tensor:
        """Return what the critic minimises, a scalar."""
        of_real, of_made = critic(match.real), critic(match.made)
        game = of_made.mean() - of_real.mean()
        drift = of_real.square().mean()
        if self.drift_of == "both":
            drift = drift + of_made.square().mean()
        penalty = gradient_penalty(critic, match.between())
        loss: Tensor = game + self.drift * drift + self.penalty * penalty
        return loss


@dataclass(frozen=True, slots=True)
class Side(Generic[B]):
    """One critic of a game.

    Parameters
    ----------
    critic : callable
        The critic for a batch; most do not depend on it, one that grows does.
    match : callable
        What the critic is shown of a batch. It is called without gradients.
    loss : callable
        What the critic minimises.
    """

    critic: Callable[[B], Critic]
    match: Callable[[B], Match]
    loss: CriticLoss

    def critic_loss(self, batch: B) -> Tensor:
        """Return what the critic minimises on a batch, a scalar."""
        with torch.no_grad():
            match = self.match(batch)
        return self.loss(self.critic(batch), match)


class AdversarialGame(Generic[B]):
    """Several critics, each with its own eyes and loss, trained in turn with their opponent.

    Parameters
    ----------
    sides : sequence of Side
        At least one. Critics share no parameters, so that the sum of their losses trains each
        by its own.
    """

    def __init__(self, sides: Sequence[Side[B]]) -> None:
        if not sides:
            raise ValueError("a game needs a side")
        self.sides = tuple(sides)

    def critics_loss(self, batch: B) -> Tensor:
        """Return the sum of what the critics minimise on a batch, a scalar.

        What they are shown carries no gradient: it reaches the critics alone.
        """
        first, *others = [side.critic_loss(batch) for side in self.sides]
        return sum(others, start=first)

    def train_critics(self, batches: Iterable[B], minimise: Callable[[Tensor], None]) -> None:
        """Take a step of the critics on each of some batches, one after the other.

        Parameters
        ----------
        batches : iterable
            Asked for one by one: a batch may depend on the step before.
        minimise : callable
            Takes a step of the critics down a scalar.
        """
        for batch in batches:
            minimise(self.critics_loss(batch))


_MIX = 1 << 33  # keeps its draws apart from those of the windows

_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Count = Annotated[int, pydantic.Field(ge=1)]


class AdversarialOptions(Config):
    """The critic of an adversarial term, and how it is trained: a Wasserstein game."""

    learning_rate: _Positive = 2e-4
    """Learning rate of the critic's Adam; constant."""
    critic_steps: _Count = 2
    """Steps of the critic before each of the autoencoder, each with a batch of its own."""
    gradient_penalty: _NotNegative = 10.0
    """Weight of (‖∇D‖ − 1)²."""
    drift: _NotNegative = 1e-3
    """Weight of D²."""
    channels: _Count = 4
    """Width of the critic."""


def drawn_mix(count: int, *, seed: int, at: Sequence[int], ranks: Ranks, like: Tensor) -> Tensor:
    """Return shares from 0 to 1 for :class:`Match`, float32 (count,).

    Parameters
    ----------
    count : int
        How many this process needs.
    seed : int
    at : sequence of int
        Names the draw: the number of the step, and that of the critics' step in it.
    ranks : Ranks
        Processes that train together; each takes its own part of one draw.
    like : Tensor
        Device and data type.
    """
    total = count * ranks.count
    drawn = np.random.default_rng([seed, _MIX, *at]).random(total, dtype=np.float32)
    return torch.from_numpy(drawn[ranks.own(total)]).to(like, non_blocking=True)


class Adversary(ABC, Generic[B]):
    """The critics' side of a training: what :class:`~wsiad.learning.loop.Training` trains along.

    A subclass makes a batch of windows (:meth:`batch`) and says what its opponent, the module
    of the training, minimises (:meth:`opponent_losses`).

    Parameters
    ----------
    game : AdversarialGame
    critics : nn.Module
        All critics, on the training's device.
    steps : int
        Steps of the critics before each of the module, each with a batch of its own.
    learning_rate : float
        Of the critics; constant.
    ranks : Ranks
        Processes that train together.
    optimiser : callable, optional
        Makes the critics' optimiser; Adam by default. A group of its parameters may have a
        ``factor`` of the learning rate.
    """

    def __init__(
        self,
        game: AdversarialGame[B],
        critics: nn.Module,
        *,
        steps: int,
        learning_rate: float,
        ranks: Ranks,
        optimiser: OptimiserFactory | None = None,
    ) -> None:
        self.game, self._steps, self._rate = game, steps, learning_rate
        self._trained = Trained(
            critics, name="critic", moments="critic_adam", ranks=ranks, optimiser=optimiser
        )

    @abstractmethod
    def batch(self, windows: Tensor, at: tuple[int, int], stage: Stage | None) -> B:
        """Return a batch for the sides of the game.

        Parameters
        ----------
        windows : Tensor of uint8, (N, S, S, 3)
        at : tuple of int
            Number of the step, and that of the critics' step in it; both from 0.
        stage : Stage or None
        """

    @abstractmethod
    def opponent_losses(
        self, windows: Tensor, step: int, stage: Stage | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the module minimises and what is logged, (N,) each."""

    @property
    def draws(self) -> int:
        """Batches that a step of the training takes."""
        return 1 + self._steps

    def restart(self) -> None:
        """Begin a stage: the critics' moments are forgotten."""
        self._trained.restart()

    def losses(self, windows: Tensor, step: int, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """Train the critics for a step of the module; return the module's losses.

        Parameters
        ----------
        windows : Tensor of uint8, (draws · N, S, S, 3)
            All but the last N are the critics'.
        step : int
            From 0.
        stage : Stage or None

        Returns
        -------
        minimised, distance : Tensor, (N,)
            With the adversarial term, and without.
        """
        *before, own = windows.chunk(self.draws)
        batches = (self.batch(part, (step, number), stage) for number, part in enumerate(before))
        self.game.train_critics(batches, lambda loss: self._trained.minimise(loss, rate=self._rate))
        return self.opponent_losses(own, step, stage)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return self._trained.tensors()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what a checkpoint kept."""
        self._trained.restore(checkpoint)
