"""The losses of adversarial games, and the players of a game with an optimiser for each.

A :class:`GameLoss` is a pair: the loss of a critic, and that of its opponent. The critic returns
a number without an activation; for the binary loss it is a logit. A game of several networks is
trained by one optimiser whose groups are the players, so that a checkpoint keeps all moments;
:func:`descend_alone` moves some players and leaves the others unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.config import Config, UsedOptions
from wsiad.learning.adversarial_game import Critic, CriticLoss, Match, WassersteinLoss
from wsiad.learning.checkpoint import OptimiserFactory, clip_and_step

_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class GameLoss:
    """The losses of both sides of a game.

    Parameters
    ----------
    critic : callable
        Loss that a critic minimises.
    opponent : callable
        Function that maps the critic's numbers for generated inputs, (N,), to the loss of each,
        (N,), that their maker minimises.
    hiding : callable
        Function that maps the critic's numbers for real inputs, (N,), to the loss of each, (N,),
        that a maker of a part of them minimises, such as the code of a real image: the game with
        both sides exchanged.
    needs_mix : bool
        True if the critic's loss uses mixtures of real and generated inputs.
    """

    critic: CriticLoss
    opponent: Callable[[Tensor], Tensor]
    hiding: Callable[[Tensor], Tensor]
    needs_mix: bool = False

    def mix(self, rng: np.random.Generator, like: Tensor) -> Tensor | None:
        """Return drawn shares of mixtures for a batch (N, ...), (N,), if the loss uses them."""
        if not self.needs_mix:
            return None
        return torch.from_numpy(rng.random(len(like), dtype=np.float32)).to(like)


def binary_critic(critic: Critic, match: Match) -> Tensor:
    """Return −mean log σ(D(real)) − mean log (1 − σ(D(made))), a scalar.

    Notes
    -----
    Goodfellow et al., "Generative Adversarial Nets", NIPS 2014, eq. 1.
    """
    real, made = critic(match.real), critic(match.made)
    return functional.softplus(-real).mean() + functional.softplus(made).mean()


def binary_opponent(judged: Tensor) -> Tensor:
    """Return −log σ(D), the loss of Goodfellow et al. that does not saturate."""
    return functional.softplus(-judged)


def binary_hiding(judged: Tensor) -> Tensor:
    """Return −log (1 − σ(D)), the loss that does not saturate with both labels exchanged."""
    return functional.softplus(judged)


def saturating_opponent(judged: Tensor) -> Tensor:
    """Return log (1 − σ(D)), whose gradient vanishes where the critic is sure."""
    return -functional.softplus(judged)


def saturating_hiding(judged: Tensor) -> Tensor:
    """Return log σ(D), whose gradient vanishes where the critic is sure."""
    return functional.logsigmoid(judged)


def least_squares_critic(critic: Critic, match: Match) -> Tensor:
    """Return ½ mean (D(real) − 1)² + ½ mean D(made)², a scalar.

    Notes
    -----
    Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017, eq. 9.
    """
    real, made = critic(match.real), critic(match.made)
    return ((real - 1).square().mean() + made.square().mean()) / 2


def least_squares_opponent(judged: Tensor) -> Tensor:
    """Return ½ (D − 1)²."""
    return (judged - 1).square() / 2


def least_squares_hiding(judged: Tensor) -> Tensor:
    """Return ½ D²."""
    return judged.square() / 2


def hinge_critic(critic: Critic, match: Match) -> Tensor:
    """Return mean max(0, 1 − D(real)) + mean max(0, 1 + D(made)), a scalar.

    Notes
    -----
    Lim & Ye, "Geometric GAN", arXiv 1705.02894.
    """
    real, made = critic(match.real), critic(match.made)
    return functional.relu(1 - real).mean() + functional.relu(1 + made).mean()


def plain_opponent(judged: Tensor) -> Tensor:
    """Return −D, the loss of the opponent in the Wasserstein, the hinge and the ratio game."""
    return -judged


def plain_hiding(judged: Tensor) -> Tensor:
    """Return D, the loss of the game in which :func:`plain_opponent` has the other side."""
    return judged


class GameOptions(UsedOptions):
    """Options of the loss of an adversarial game."""

    loss: Literal["wasserstein-gp", "bce", "bce-saturating", "bce-ratio", "lsgan", "hinge"] = (
        "wasserstein-gp"
    )
    """Loss of the game: that of Wasserstein with a gradient penalty, binary cross entropy (which
    saturates for the opponent, or does not, or is its log of (1 − σ(D)) / σ(D)), least squares,
    or hinge."""
    gradient_penalty: _NotNegative = 10.0
    """Weight of the gradient penalty, for ``wasserstein-gp``."""
    drift: _NotNegative = 0.0
    """Weight of the critic's squared outputs, for ``wasserstein-gp``."""
    drift_of: Literal["both", "real"] = "both"
    """Outputs to which ``drift`` applies: those for real and generated inputs, or for real ones."""

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        penalised, loss = self.loss == "wasserstein-gp", f"loss: {self.loss}"
        return super().uses() | {
            "gradient_penalty": (penalised, loss),
            "drift": (penalised, loss),
            "drift_of": (penalised and self.drift > 0, "drift: 0" if penalised else loss),
        }

    def game_loss(self) -> GameLoss:
        """Return the losses of both sides."""
        match self.loss:
            case "wasserstein-gp":
                critic = WassersteinLoss(self.gradient_penalty, self.drift, self.drift_of)
                return GameLoss(critic, plain_opponent, plain_hiding, needs_mix=True)
            case "bce":
                return GameLoss(binary_critic, binary_opponent, binary_hiding)
            case "bce-saturating":
                return GameLoss(binary_critic, saturating_opponent, saturating_hiding)
            case "bce-ratio":
                return GameLoss(binary_critic, plain_opponent, plain_hiding)
            case "lsgan":
                return GameLoss(least_squares_critic, least_squares_opponent, least_squares_hiding)
            case "hinge":
                return GameLoss(hinge_critic, plain_opponent, plain_hiding)


class PlayerOptions(Config):
    """Options of the training of a player of a game."""

    learning_rate: _Positive = 2e-4
    """Learning rate of the player's Adam."""
    betas: tuple[_Decay, _Decay] = (0.5, 0.999)
    """Decay of the moments of the player's Adam in a step."""
    updates: Annotated[int, pydantic.Field(ge=1)] = 1
    """Number of the player's updates in a step of the training."""


@dataclass(frozen=True, slots=True)
class Player:
    """Networks that are trained together, with an Adam of their own.

    Parameters
    ----------
    modules : sequence of nn.Module
    learning_rate : float
    betas : tuple of float
        Decay of the moments in a step.
    weight_decay : float
        Weight of the squared weights in the loss (L2), not decoupled.
    """

    modules: Sequence[nn.Module]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all modules."""
        return [p for module in self.modules for p in module.parameters()]


def adam_of(players: Iterable[Player], *, rate: float) -> OptimiserFactory:
    """Return a function that makes one Adam with a group for each player.

    Parameters
    ----------
    players : iterable of Player
        Players; each parameter of the trained module belongs to one of them.
    rate : float
        Learning rate of the training, to which the players' rates are related: a schedule of it
        changes all of them alike.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": player.parameters(),
            "factor": player.learning_rate / rate,
            "betas": player.betas,
            "weight_decay": player.weight_decay,
        }
        for player in players
    ]

    def make(module: nn.Module) -> torch.optim.Optimizer:
        known = {id(p) for group in groups for p in group["params"]}
        if missing := [n for n, p in module.named_parameters() if id(p) not in known]:
            raise ValueError(f"{missing[0]} belongs to no player")
        # A copy, because an optimiser writes its defaults into the groups that it receives.
        return torch.optim.Adam([dict(group) for group in groups], lr=rate)

    return make


def descend_alone(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    player: Player,
    *,
    clip: float | None = None,
) -> None:
    """Take a step of one player down a loss (); all other players keep weights and moments.

    Parameters
    ----------
    optimiser : Optimizer
        Optimiser of all players.
    loss : Tensor, ()
    player : Player
    clip : float, optional
        Maximum norm of the player's gradient.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=player.parameters())  # type: ignore[no-untyped-call]
    clip_and_step(optimiser, clip=clip)
