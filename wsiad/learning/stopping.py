"""Early stopping on the held-out healthy loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self


@dataclass(slots=True)
class EarlyStopping:
    """Know when the held-out loss has stopped falling, and which step was best.

    Parameters
    ----------
    interval : int
        Steps between two validations.
    patience : int
        Training is over when more than so many validations in a row brought no
        improvement.
    min_delta : float
        How much lower a loss must be to count as an improvement.
    keeps_last : bool
        Take every validation for the best so far: nothing is stopped early.

    Attributes
    ----------
    best_step, best_loss
        Of the lowest loss so far, be it by less than ``min_delta``.
    mark_step, mark_loss
        Of the last improvement by at least ``min_delta``; patience runs from here.
    last_step
        Of the last validation.
    """

    interval: int
    patience: int = 3
    min_delta: float = 1e-3
    keeps_last: bool = False
    best_step: int = 0
    best_loss: float = math.inf
    mark_step: int = 0
    mark_loss: float = math.inf
    last_step: int = 0

    def update(self, step: int, loss: float) -> bool:
        """Take in a validation; return whether its weights are the best so far."""
        self.last_step = step
        if self.keeps_last:
            self.best_step = self.mark_step = step
            self.best_loss = self.mark_loss = loss
            return True
        if loss < self.mark_loss - self.min_delta:
            self.mark_step, self.mark_loss = step, loss
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            return True
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out, as of the last validation."""
        return (self.last_step - self.mark_step) / self.interval > self.patience

    def values(self) -> dict[str, Any]:
        """Return the progress as JSON values; a loss that is not known yet is ``None``."""
        return {
            "best_step": self.best_step,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "last_step": self.last_step,
            "mark_step": self.mark_step,
            "mark_loss": None if math.isinf(self.mark_loss) else self.mark_loss,
        }

    def restore(self, values: dict[str, Any]) -> Self:
        """Take over progress returned by :meth:`values`."""
        self.best_step, self.mark_step = int(values["best_step"]), int(values["mark_step"])
        self.last_step = int(values["last_step"])
        self.best_loss = math.inf if values["best_loss"] is None else float(values["best_loss"])
        self.mark_loss = math.inf if values["mark_loss"] is None else float(values["mark_loss"])
        return self
