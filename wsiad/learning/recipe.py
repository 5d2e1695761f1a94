"""What of a step is a method's own: its optimiser, its update, whether windows are flipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Update = Callable[[Tensor, torch.optim.Optimizer, int], Tensor]
"""Does a step: windows, uint8 (N, S, S, 3), optimiser and number of the step to the loss, ()."""

OptimiserFactory = Callable[[nn.Module], torch.optim.Optimizer]
"""Makes the optimiser of a module; its learning rate is set anew at every step."""


def adam(*, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0) -> OptimiserFactory:
    """Return what makes an Adam of all parameters.

    Parameters
    ----------
    betas : tuple of float
        Decay of the moments, a step.
    weight_decay : float
        Of the squared weights in the loss (L2), as in the papers; not decoupled.
    """

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), betas=betas, weight_decay=weight_decay)

    return make


def sgd(*, momentum: float, weight_decay: float = 0) -> OptimiserFactory:
    """Return what makes a gradient descent with momentum of all parameters."""

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            module.parameters(), lr=1e-3, momentum=momentum, weight_decay=weight_decay
        )

    return make


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a training differs from Adam on the mean loss of flipped windows.

    Parameters
    ----------
    optimiser : callable
        Makes the optimiser. A group of its parameters may have a ``factor`` by which the
        learning rate is multiplied there.
    update : callable or None
        Does a step in place of one descent of the mean loss. Whatever it draws must be a
        function of the seed and the step, and whatever it keeps a buffer of the module:
        then a killed training resumes exactly.
    flips : bool
        Flip windows at random in both directions.
    keeps : {"best", "last"}
        Keep the weights whose held-out loss was least, and stop when it falls no more; or
        the last ones, where that loss does not say how good they are.
    """

    optimiser: OptimiserFactory = field(default_factory=adam)
    update: Update | None = None
    flips: bool = True
    keeps: Literal["best", "last"] = "best"


def descend(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    *,
    clip: float | None = None,
    before: Callable[[], None] | None = None,
) -> None:
    """Do one step down a loss (); a ``clip`` bounds the norm of the gradient.

    ``before`` is called when the gradients are known.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if before:
        before()
    clip_and_step(optimiser, clip=clip)


def clip_and_step(optimiser: torch.optim.Optimizer, *, clip: float | None = None) -> None:
    """Do one step along the gradients there are; a ``clip`` bounds their norm."""
    if clip:
        every = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(every, clip)
    optimiser.step()
