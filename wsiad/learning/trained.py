"""A module's parameters and what trains them, as a checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wsiad.learning.checkpoint import Checkpoint
from wsiad.learning.ranks import Ranks
from wsiad.learning.recipe import OptimiserFactory, Update, adam, descend

_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


class Trained:
    """The parameters of a module, trained by an optimiser of their own.

    Parameters
    ----------
    module : nn.Module
        On the device where it stays.
    name : str
        Of the parameters in a checkpoint.
    moments : str
        Begin of the names of the optimiser's moments in a checkpoint.
    average_decay : float, optional
        Keep a running average of the parameters, with this decay a step.
    ranks : Ranks
        Gradients are averaged over them.
    optimiser : callable
        Makes the optimiser; Adam by default.

    Attributes
    ----------
    parameters : dict of str to Parameter
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        moments: str,
        average_decay: float | None = None,
        ranks: Ranks,
        optimiser: OptimiserFactory | None = None,
    ) -> None:
        self._module, self._make = module, optimiser or adam()
        self.parameters = dict(module.named_parameters())
        kept = module.state_dict().keys()
        self._buffers = {name: b for name, b in module.named_buffers() if name in kept}
        self._name, self._prefix, self._ranks = name, moments, ranks
        self._decay = average_decay or 0.0
        self._average = self.copy() if average_decay else {}
        self.restart()

    def restart(self) -> None:
        """Forget all moments: the next step is the optimiser's first."""
        self._optimiser = self._make(self._module)

    def minimise(self, loss: Tensor, *, rate: float, grad_clip: float | None = None) -> None:
        """Take one step down the gradient of a scalar.

        Parameters
        ----------
        loss : Tensor
        rate : float
            Learning rate.
        grad_clip : float, optional
            Greatest norm of the gradient.
        """
        self._set_rate(rate)
        descend(self._optimiser, loss, clip=grad_clip, before=self._share)
        self._take_average()

    def update(self, update: Update, windows: Tensor, step: int, *, rate: float) -> Tensor:
        """Let a method take a step of its own; return its loss, ()."""
        self._set_rate(rate)
        loss = update(windows, self._optimiser, step)
        self._take_average()
        return loss

    def _set_rate(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1)

    def _share(self) -> None:
        self._ranks.average([p.grad for p in self.parameters.values() if p.grad is not None])

    def _take_average(self) -> None:
        for name, average in self._average.items():
            if name in self.parameters:
                average.lerp_(self.parameters[name].detach(), 1 - self._decay)
            else:
                average.copy_(self._buffers[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the module hold the averaged parameters, if there are any."""
        own = self.copy()
        self.set(self._average or own)
        try:
            yield
        finally:
            self.set(own)

    def copy(self) -> dict[str, Tensor]:
        """Return a copy of the parameters, and of the buffers that the module would store."""
        return {name: tensor.clone() for name, tensor in self._own()}

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in (*self.parameters.items(), *self._buffers.items()):
            yield name, tensor.detach()

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Give parameters and buffers other values."""
        for name, tensor in self._own():
            tensor.copy_(tensors[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters, average and moments by their names in a checkpoint."""
        found = {f"{self._name}.{name}": tensor for name, tensor in self.copy().items()}
        found |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        for name, parameter in self.parameters.items():
            for moment, value in self._optimiser.state.get(parameter, {}).items():
                found[f"{self._prefix}_{moment}.{name}"] = value
        return found

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over parameters, average and moments from a checkpoint."""
        self.set(checkpoint.group(self._name))
        for name, average in self._average.items():
            average.copy_(checkpoint.group("average")[name])
        for moment in _MOMENTS:
            for name, tensor in checkpoint.group(f"{self._prefix}_{moment}").items():
                parameter = self.parameters[name]
                # Adam counts its steps in a scalar on the CPU; moments lie as parameters do.
                like = tensor.clone() if moment == "step" else torch.empty_like(parameter)
                self._optimiser.state[parameter][moment] = like.copy_(tensor).detach()
