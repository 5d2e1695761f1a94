"""How a network is trained, as options that detectors inherit; and where, and for how long."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic

from wsiad.core.config import Config

_Positive = Annotated[float, pydantic.Field(gt=0)]
_Count = Annotated[int, pydantic.Field(ge=1)]

BatchSize = Annotated[_Count, pydantic.Field(description="Tiles a step.")]
LearningRate = Annotated[_Positive, pydantic.Field(description="Learning rate of Adam.")]
Schedule = Annotated[
    Literal["constant", "cosine"],
    pydantic.Field(
        description="``cosine`` falls to 0 at ``max_steps`` (or the run's smaller bound)."
    ),
]
MaxSteps = Annotated[
    _Count,
    pydantic.Field(
        description="The most steps; the run's ``--max-steps`` may set a smaller bound."
    ),
]
ValInterval = Annotated[
    _Count, pydantic.Field(description="Steps between two looks at the held-out healthy tiles.")
]
Patience = Annotated[
    int,
    pydantic.Field(
        ge=0,
        description="Stop when more than so many looks in a row brought no improvement.",
    ),
]

_NOT_IDENTITY = frozenset({"max_steps", "checkpoint_seconds", "log_interval"})

END_WORDS = {
    "fitted": "fitted",
    "early-stopping": "stopped early",
    "max-steps": "stopped at max_steps",
    "max-minutes": "stopped at max_minutes",
}
"""Words for people on why a fit ended."""


class LoopOptions(Config):
    """How a network is trained."""

    batch: BatchSize = 128
    learning_rate: LearningRate = 1e-3
    lr_schedule: Schedule = "constant"
    grad_clip: _Positive | None = None
    """Greatest norm of the gradient; larger ones are scaled down."""
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Validate and keep a running average of the weights with this decay a step."""
    max_steps: MaxSteps = 100_000
    val_interval: ValInterval = 1_000
    val_tiles: _Count | None = 2_048
    """The most held-out tiles to look at (a fixed sample); ``null`` for all."""
    patience: Patience = 3
    min_delta: Annotated[float, pydantic.Field(ge=0)] = 1e-3
    """How much lower the held-out loss must be to count as an improvement."""
    checkpoint_seconds: _Positive = 300.0
    """The longest time between two checkpoints."""
    log_interval: _Count = 50
    """Steps between two lines of metrics.csv."""

    def rate(self, step: int, *, limit: int) -> float:
        """Learning rate of a step (from 0) of a training of at most ``limit`` steps."""
        if self.lr_schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * min(step, limit) / limit)) / 2

    def identity(self, *, limit: int) -> dict[str, Any]:
        """Return the values on which the weights after a given step depend, as JSON."""
        names = LoopOptions.model_fields.keys() - _NOT_IDENTITY
        values = self.model_dump(mode="json", include=set(names))
        if self.lr_schedule == "cosine":
            values["max_steps"] = limit
        return values


class DeviceOptions(Config):
    """Which device is computed on."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""


class LimitOptions(Config):
    """When a training is stopped that has not ended by itself."""

    max_steps: _Count | None = None
    """Stop after so many optimiser steps."""
    max_minutes: _Positive | None = None
    """Stop after so many minutes of fitting."""
