"""An adversarial game: critics that learn to distinguish two kinds of inputs, and their opponent.

A game has one side for each critic. A :class:`Side` defines the inputs that its critic sees of a
batch, real and generated ones (images, latents, pairs of either), and the loss that it minimises:
any function of the critic and both. :class:`AdversarialGame` adds the sides and takes the
critics' steps. The caller provides the optimiser: one for the critics (:class:`Adversary`, next
to a :class:`~wsiad.learning.loop.Training`), or one for all players (a
:attr:`~wsiad.learning.checkpoint.Recipe.update`). The method defines the opponent's loss.

A checkpoint keeps the players and their moments. The draws of a step follow from the seed and
its number, so that a killed training continues exactly.
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
from wsiad.learning.devices import Ranks
from wsiad.learning.stages import Stage

B = TypeVar("B")

Critic = Callable[[Tensor], Tensor]
"""Function that maps inputs, float (N, ...), to a number each, float (N,); higher is more real."""

CriticLoss = Callable[[Critic, "Match"], Tensor]
"""Function that maps a critic and its inputs to the loss that it minimises, a scalar."""


@dataclass(frozen=True, slots=True)
class Match:
    """The tensors that a critic must distinguish; they carry no gradient.

    Parameters
    ----------
    real, made : Tensor, float (N, ...)
        Real and generated inputs.
    mix : Tensor, float (N,), or None
        Share of the real input, from 0 to 1, in a mixture of the two, for losses that use
        mixtures.
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
        Points at which the gradient is taken.

    Notes
    -----
    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, eq. 3, where the
    points are mixtures of real and generated ones (:meth:`Match.between`).
    """
    points = at.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


@dataclass(frozen=True, slots=True)
class WassersteinLoss:
    """The loss of a critic *D* of the Wasserstein game with gradient penalty.

    It is −(mean D(real) − mean D(made)) + ``drift`` · mean D² + ``penalty`` ·
    :func:`gradient_penalty` between real and made.

    Parameters
    ----------
    penalty : float
        Weight of the gradient penalty.
    drift : float
        Weight of the squared outputs, which would otherwise have no zero.
    drift_of : {"both", "real"}
        Outputs to which ``drift`` applies: those for real and generated inputs, with a mean
        each that are added; or those for real ones alone.

    Notes
    -----
    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017. The drift of real
    outputs is that of Karras et al., "Progressive Growing of GANs", ICLR 2018.
    """

    penalty: float = 10.0
    drift: float = 1e-3
    drift_of: Literal["both", "real"] = "both"

    def __call__(self, critic: Critic, match: Match) -> Tensor:
        """Return the loss of the critic, a scalar."""
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
    """A critic of a game, with its inputs and its loss.

    Parameters
    ----------
    critic : callable
        Function that returns the critic for a batch; only a growing critic depends on it.
    match : callable
        Function that returns the critic's inputs from a batch; called without gradients.
    loss : callable
        Loss of the critic.
    """

    critic: Callable[[B], Critic]
    match: Callable[[B], Match]
    loss: CriticLoss

    def critic_loss(self, batch: B) -> Tensor:
        """Return the loss of the critic on a batch, a scalar."""
        with torch.no_grad():
            match = self.match(batch)
        return self.loss(self.critic(batch), match)


class AdversarialGame(Generic[B]):
    """Several critics, each with its own inputs and loss, trained in turn with their opponent.

    Parameters
    ----------
    sides : sequence of Side
        At least one side. Critics share no parameters, so the sum of their losses trains each
        critic by its own.
    """

    def __init__(self, sides: Sequence[Side[B]]) -> None:
        if not sides:
            raise ValueError("a game needs a side")
        self.sides = tuple(sides)

    def critics_loss(self, batch: B) -> Tensor:
        """Return the sum of the critics' losses on a batch, a scalar.

        The inputs of the critics carry no gradient: it reaches only the critics.
        """
        first, *others = [side.critic_loss(batch) for side in self.sides]
        return sum(others, start=first)

    def train_critics(self, batches: Iterable[B], minimise: Callable[[Tensor], None]) -> None:
        """Take a step of the critics on each of some batches, one after the other.

        Parameters
        ----------
        batches : iterable
            Batches, requested one by one, as a batch can depend on the step before.
        minimise : callable
            Function that takes a step of the critics down a scalar.
        """
        for batch in batches:
            minimise(self.critics_loss(batch))


_MIX = 1 << 33  # keeps its draws apart from those of the windows

_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Count = Annotated[int, pydantic.Field(ge=1)]


class AdversarialOptions(Config):
    """Options of the critic of an adversarial term and of its training, a Wasserstein game."""

    learning_rate: _Positive = 2e-4
    """Learning rate of the critic's Adam; constant."""
    critic_steps: _Count = 2
    """Steps of the critic before each step of the autoencoder, each with its own batch."""
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
        Number of shares that this process needs.
    seed : int
    at : sequence of int
        Numbers that decide the draw: those of the step and of the critics' step in it.
    ranks : Ranks
        Processes that train together; each takes its own part of one draw.
    like : Tensor
        Tensor whose device and data type the shares have.
    """
    total = count * ranks.count
    drawn = np.random.default_rng([seed, _MIX, *at]).random(total, dtype=np.float32)
    return torch.from_numpy(drawn[ranks.own(total)]).to(like, non_blocking=True)


class Adversary(ABC, Generic[B]):
    """The critics' side of a training, which :class:`~wsiad.learning.loop.Training` trains as well.

    A subclass makes a batch from windows (:meth:`batch`) and defines the loss of its opponent,
    the module of the training (:meth:`opponent_losses`).

    Parameters
    ----------
    game : AdversarialGame
    critics : nn.Module
        All critics, on the training's device.
    steps : int
        Steps of the critics before each step of the module, each with its own batch.
    learning_rate : float
        Learning rate of the critics; constant.
    ranks : Ranks
        Processes that train together.
    optimiser : callable, optional
        Function that makes the critics' optimiser; Adam by default. A group of its parameters
        can have a ``factor`` of the learning rate.
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
            Number of the step, and of the critics' step in it; both from 0.
        stage : Stage or None
        """

    @abstractmethod
    def opponent_losses(
        self, windows: Tensor, step: int, stage: Stage | None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses that the module minimises and those that are logged, (N,) each."""

    @property
    def draws(self) -> int:
        """Number of batches that a step of the training takes."""
        return 1 + self._steps

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the critics."""
        return list(self._trained.parameters.values())

    def restart(self) -> None:
        """Begin a stage and forget the critics' moments."""
        self._trained.restart()

    def losses(self, windows: Tensor, step: int, stage: Stage | None) -> tuple[Tensor, Tensor]:
        """Train the critics for a step of the module; return the module's losses.

        Parameters
        ----------
        windows : Tensor of uint8, (draws · N, S, S, 3)
            Windows; all but the last N are the critics'.
        step : int
            Number of the step, from 0.
        stage : Stage or None

        Returns
        -------
        minimised, distance : Tensor, (N,)
            Losses with the adversarial term, and without it.
        """
        *before, own = windows.chunk(self.draws)
        batches = (self.batch(part, (step, number), stage) for number, part in enumerate(before))
        self.game.train_critics(batches, lambda loss: self._trained.minimise(loss, rate=self._rate))
        return self.opponent_losses(own, step, stage)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps."""
        return self._trained.tensors()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the tensors that a checkpoint kept."""
        self._trained.restore(checkpoint)
