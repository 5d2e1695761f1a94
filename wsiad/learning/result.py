"""Where a training stands, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EndedBy = Literal["early-stopping", "max-steps", "max-minutes"]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a training ended; the module holds the weights of ``best_step``.

    If the last stage was not reached, ``best_step`` is 0, ``best_loss`` infinite, and the
    module holds the weights as they are.
    """

    ended_by: EndedBy
    steps: int
    best_step: int
    best_loss: float
    seconds: float


@dataclass(slots=True)
class Position:
    """Where a training stands, apart from its tensors.

    Parameters
    ----------
    step : int
        Steps taken.
    epoch, position : int
        Of the next batch.
    seconds : float
        That the training took up to its last checkpoint.
    loss_sum, loss_count : float, int
        Over the steps since the last line of the metrics.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
