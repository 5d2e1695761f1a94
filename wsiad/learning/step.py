"""A step of a training: windows of its tiles, their loss, and the update of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.learning.adversarial_game import Adversary
from wsiad.learning.batches import centre_crops, on_device, random_crops
from wsiad.learning.checkpoint import Recipe, Trained
from wsiad.learning.detector import FitContext, Tiles, TileSource
from wsiad.learning.devices import memory_bytes
from wsiad.learning.stages import Stages
from wsiad.learning.training_options import LoopOptions

_GIB = 1 << 30

Loss = Callable[..., Tensor]
"""Function that maps windows, uint8 (N, S, S, 3), to the loss of each, float32 (N,).

If the training has stages, the :class:`~wsiad.learning.stages.Stage` is the second argument.
"""


def kept_bytes(
    work: Callable[[Tensor], object], windows: Tensor, *, besides: Iterable[Tensor] = ()
) -> int:
    """Return the most bytes that are kept at a time until gradients are known, during some work.

    Tensors that share memory count once. Random draws are as if there had been none.

    Parameters
    ----------
    work : callable
        Function of windows.
    windows : Tensor
    besides : iterable of Tensor
        Tensors that are in memory anyway, such as weights, and do not count.
    """
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in besides)
    now = most = 0

    class Kept:
        """A tensor that is kept; it goes when its gradient is known, or its loss is dropped."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            # Without its own history: an output would hold itself, and never go.
            self.tensor, storage = tensor.detach(), tensor.untyped_storage()
            self.place, self.bytes = storage.data_ptr(), storage.nbytes()
            now += 0 if uses[self.place] else self.bytes
            uses[self.place] += 1
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            uses[self.place] -= 1
            now -= 0 if uses[self.place] else self.bytes

    devices = [windows.device] if windows.is_cuda else []
    hooks = torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor)
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), hooks:
        work(windows)
    return most


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

    def check_memory(self, source: TileSource) -> None:
        """Refuse a training whose steps need more memory than the device has.

        What a step keeps until its gradients are known is counted for one window and for two; the
        difference is of each window. A step of a method's own and steps of critics are taken for
        that, and undone. Gradients and moments are not counted.

        Raises
        ------
        DetectorError
            The activations of a step are larger than the complete memory of the device.
        """
        device, stages = self._context.device, self._stages
        tile = next(iter(source.ordered(1)))[:1]
        windows = centre_crops(on_device(tile, device), self._size)
        has = memory_bytes(device)
        starts = {0: self._options.batch} if stages is None else stages.batches()
        parts, weights = self._recipe.parts, list(self._module.parameters())
        if self._adversary:
            weights += self._adversary.parameters()
        self._module.eval()
        for number, batch in starts.items():
            alone, two = (
                kept_bytes(
                    lambda some: self._tried(some, number),  # noqa: B023
                    windows.repeat(n * (parts if self._recipe.update else 1), 1, 1, 1),
                    besides=weights,
                )
                for n in (1, 2)
            )
            together = -(-batch // (parts * self._context.ranks.count))
            needs = (two - alone + tile.nbytes) * together
            if needs > has:
                raise DetectorError(
                    f"a step keeps {needs / _GIB:,.0f} GiB for {together:,} windows of "
                    f"{self._size} px, and {device} has {has / _GIB:,.0f} GiB",
                    remedy="Set a smaller batch or input_px, or a network with fewer channels.",
                )

    def _tried(self, windows: Tensor, number: int) -> None:
        """Compute what a step on some windows computes, and leave all weights as they are."""
        if self._recipe.update:
            own = self._trained.copy()
            self._recipe.update(windows, self._recipe.optimiser(self._module), number)
            self._trained.set(own)
            self._module.zero_grad(set_to_none=True)
        elif self._adversary:
            stage = self._stages.at(number) if self._stages else None
            self._adversary.game.critics_loss(self._adversary.batch(windows, (number, 0), stage))
            self._adversary.opponent_losses(windows, number, stage)
        else:
            self.losses(windows, number)

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
