"""A step of a training: windows of its tiles, their loss, and the update of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from wsiad.learning.adversarial_game import Adversary
from wsiad.learning.batches import on_device, random_crops
from wsiad.learning.checkpoint import Recipe, Trained
from wsiad.learning.detector import FitContext, Tiles
from wsiad.learning.stages import Stages
from wsiad.learning.training_options import LoopOptions

Loss = Callable[..., Tensor]
"""Function that maps windows, uint8 (N, S, S, 3), to the loss of each, float32 (N,).

If the training has stages, the :class:`~wsiad.learning.stages.Stage` is the second argument.
"""


class Step:
    """A step of a training, as a pure function of its tiles, the seed and its number.

    Parameters
    ----------
    trained : Trained
        The parameters of the module.
    module : nn.Module
        Module to train.
    loss : callable
        Loss of the windows; see :data:`Loss`.
    size : int
        Edge of the windows, pixels.
    limit : int
        Number of steps of the complete training, on which the learning rate can depend.
    options : LoopOptions
    context : FitContext
    recipe : Recipe
    stages : Stages, optional
    adversary : Adversary, optional
        See :class:`~wsiad.learning.loop.Training`.
    """

    def __init__(
        self,
        trained: Trained,
        module: nn.Module,
        *,
        loss: Loss,
        size: int,
        limit: int,
        options: LoopOptions,
        context: FitContext,
        recipe: Recipe,
        stages: Stages | None = None,
        adversary: Adversary[Any] | None = None,
    ) -> None:
        self._trained, self._module, self._loss = trained, module, loss
        self._size, self._limit = size, limit
        self._options, self._context, self._recipe = options, context, recipe
        self._stages, self._adversary = stages, adversary

    @property
    def draws(self) -> int:
        """Number of batches of tiles that a step takes."""
        return self._adversary.draws if self._adversary else 1

    def losses(self, windows: Tensor, number: int) -> Tensor:
        """Return the loss of each window, (N,), by the stage of a step."""
        return self._loss(windows, self._stages.at(number)) if self._stages else self._loss(windows)

    def take(self, tiles: Tiles | Tensor, number: int) -> Tensor:
        """Take the step of a given number, from 0; return the losses that are logged."""
        ranks, total = self._context.ranks, len(tiles) * self._context.ranks.count
        windows = random_crops(
            on_device(tiles, self._context.device),
            self._size,
            seed=self._context.seed,
            step=number,
            rows=ranks.own(total, groups=self.draws) if ranks.count > 1 else None,
            total=total,
            flips=self._recipe.flips,
        )
        if self._stages and self._stages.begins(number):
            self._trained.restart()
            if self._adversary:
                self._adversary.restart()
        rate = self._options.rate(number, limit=self._limit)
        self._module.train()
        if self._recipe.update:
            return self._trained.update(self._recipe.update, windows, number, rate=rate)
        minimised, losses = self._training_losses(windows, number)
        self._trained.minimise(minimised.mean(), rate=rate, grad_clip=self._options.grad_clip)
        return losses

    def _training_losses(self, windows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the losses that a step minimises, and those that are logged."""
        if self._adversary:
            stage = self._stages.at(number) if self._stages else None
            return self._adversary.losses(windows, number, stage)
        losses = self.losses(windows, number)
        return losses, losses
