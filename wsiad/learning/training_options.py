"""Options of the training of a network, which detectors inherit, and of its limits."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any, Literal

import pydantic

from wsiad.core.config import Config, UsedOptions
from wsiad.core.errors import DetectorError

logger = logging.getLogger(__name__)

_Positive = Annotated[float, pydantic.Field(gt=0)]
_Count = Annotated[int, pydantic.Field(ge=1)]

BatchSize = Annotated[_Count, pydantic.Field(description="Number of tiles in a step.")]
LearningRate = Annotated[_Positive, pydantic.Field(description="Learning rate of Adam.")]
Schedule = Annotated[
    Literal["constant", "cosine", "drop"],
    pydantic.Field(
        description="Schedule of the learning rate; ``cosine`` falls to 0 at ``max_steps`` or the "
        "run's limit, ``drop`` is a tenth in the last twentieth of these steps."
    ),
]
MaxSteps = Annotated[
    _Count,
    pydantic.Field(
        description="Maximum number of steps; the run's ``--max-steps`` can set a smaller limit."
    ),
]
ValInterval = Annotated[
    _Count,
    pydantic.Field(description="Steps between two validations on the held-out healthy tiles."),
]
Patience = Annotated[
    int,
    pydantic.Field(
        ge=0,
        description="Stop after more than this many validations in a row without an improvement.",
    ),
]

_NOT_IDENTITY = frozenset({"max_steps", "checkpoint_seconds", "log_interval"})

_DROP, _DROPS_AT = 0.1, 0.95  # factor of the rate, from this part of the steps on

END_WORDS = {
    "fitted": "fitted",
    "early-stopping": "stopped early",
    "max-steps": "stopped at max_steps",
    "max-minutes": "stopped at max_minutes",
    "extended": "extended",
}
"""Words for the terminal on why a fit ended."""


class LoopOptions(UsedOptions):
    """Options of the training of a network."""

    batch: BatchSize = 128
    learning_rate: LearningRate = 1e-3
    lr_schedule: Schedule = "constant"
    grad_clip: _Positive | None = None
    """Maximum norm of the gradient; larger ones are scaled down."""
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Decay in a step of a running average of the weights, which is then validated and kept."""
    max_steps: MaxSteps = 100_000
    val_interval: ValInterval = 1_000
    val_tiles: _Count | None = 2_048
    """Maximum number of held-out tiles in a validation (a fixed sample); ``null`` for all."""
    patience: Patience = 3
    min_delta: Annotated[float, pydantic.Field(ge=0)] = 1e-3
    """Minimum decrease of the held-out loss that counts as an improvement."""
    keep: Literal["best", "last"] = "best"
    """Weights that are kept: those of the lowest held-out loss, or the last ones, after
    ``max_steps`` and without early stopping. The held-out loss then only goes into the log."""
    checkpoint_seconds: _Positive = 300.0
    """Maximum time between two checkpoints, seconds."""
    log_interval: _Count = 50
    """Steps between two lines of metrics.csv."""

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        stops = (self.keep == "best", f"keep: {self.keep}")
        return super().uses() | {"patience": stops, "min_delta": stops}

    def rate(self, step: int, *, limit: int) -> float:
        """Return the learning rate of a step (from 0) of a training of at most ``limit`` steps."""
        if self.lr_schedule == "constant":
            return self.learning_rate
        if self.lr_schedule == "drop":
            return self.learning_rate * (_DROP if step >= int(_DROPS_AT * limit) else 1)
        return self.learning_rate * (1 + math.cos(math.pi * min(step, limit) / limit)) / 2

    def identity(self, *, limit: int) -> dict[str, Any]:
        """Return the values on which the weights after a given step depend, as JSON."""
        names = LoopOptions.model_fields.keys() - _NOT_IDENTITY
        values = self.model_dump(mode="json", include=set(names))
        if self.lr_schedule != "constant":
            values["max_steps"] = limit
        if values.get("keep") == "best":  # as in checkpoints of before there was a choice
            del values["keep"]
        return values


class InversionOptions(Config):
    """Options of methods that are known to be inverted."""

    accept_inverted: bool = False
    """Fit also what is known to score tumour below healthy tissue (H&E); the run states it."""


def check_inverted(what: str, *, accepted: bool, instead: str) -> None:
    """Refuse to fit what is known to score tumour below healthy tissue, unless that is accepted.

    Parameters
    ----------
    what : str
        Measurement that shows it; empty if there is none.
    accepted : bool
        True if the user said to go on; the measurement is then a warning.
    instead : str
        Remedy: what to use instead, in the imperative.

    Raises
    ------
    DetectorError
        It is known, and not accepted.
    """
    if what and not accepted:
        raise DetectorError(
            what, remedy=f"{instead}; or go on with --accept-inverted, which the run states."
        )
    if what:
        logger.warning("%s; accepted by accept_inverted", what)


class LimitOptions(Config):
    """Limits at which a training is stopped."""

    max_steps: _Count | None = None
    """Stop after this many optimiser steps."""
    max_minutes: _Positive | None = None
    """Stop after this many minutes of fitting."""


class LogOptions(Config):
    """Options of a log of the training besides metrics.csv."""

    log: Literal["tensorboard", "mlflow"] | None = None
    """Log that repeats metrics.csv, with options and final figures: TensorBoard's, in the folder
    `tensorboard` of the run, or MLflow's, on the server of MLFLOW_TRACKING_URI or in the folder
    `mlruns` beside the run. For methods that are trained step by step."""


class TrimmingOptions(UsedOptions):
    """Options of a training on tiles among which lesions may hide."""

    share: Annotated[float, pydantic.Field(ge=0, lt=0.5)] = 0.0
    """Share of each slide's tiles to leave out: those that a first fit finds strangest; the fit is
    then repeated. 0 fits once, on all tiles."""
    rounds: _Count = 3
    """Maximum number of times that the tiles are judged and left out anew; fewer if the same tiles
    would be left out again."""
    by: Literal["score", "latent"] = "score"
    """Judge tiles by the method's score, or by a one-class SVM on the method's features of them
    (ITSR)."""
    folds: Annotated[int, pydantic.Field(ge=1, le=10)] | None = None
    """Number of parts of the tiles, of whole slides if there are enough; each part is judged by a
    fit on the others. With 1, a fit judges the tiles that taught it. Default: 2 for methods that
    remember tiles (knn, patchcore, kde, ensemble), which find none of their own strange, else 1."""

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        trims = (self.share > 0, "share: 0")
        return super().uses() | dict.fromkeys(("rounds", "by", "folds"), trims)
