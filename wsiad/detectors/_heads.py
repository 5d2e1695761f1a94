"""The base of small networks on frozen features, trained on balanced batches of both classes."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.detectors._labelled import (
    LabelledDetector,
    LabelledOptions,
    LabelledVectors,
    standardisation,
)
from wsiad.learning.detector import DetectorOptions, FitContext
from wsiad.learning.training_options import LearningRate
from wsiad.learning.training_progress import TrainingProgress
from wsiad.networks.conv_stack import drawing_weights

_Count = Annotated[int, pydantic.Field(ge=1)]
_PREFIX = "network."


class HeadOptions(LabelledOptions):
    """Options of the small networks on frozen features."""

    hidden: _Count = 64
    """Number of units in the hidden layer."""
    steps: _Count = 200
    """Number of optimiser steps; the run's ``--max-steps`` can set a smaller limit."""
    batch: Annotated[int, pydantic.Field(ge=2)] = 64
    """Number of vectors in a step, half of them anomalous."""
    learning_rate: LearningRate = 1e-4
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-2
    """Decoupled weight decay of Adam."""


class HeadDetector(LabelledDetector):
    """A network with one hidden layer on the standardised features of complete tiles.

    A subclass defines the outputs: their number, whether layers have biases, the loss
    (:meth:`loss`), and the score (:meth:`strangeness`).
    """

    Options: ClassVar[type[DetectorOptions]] = HeadOptions
    options: HeadOptions
    bias: ClassVar[bool] = True

    @abstractmethod
    def outputs(self) -> int:
        """Return the number of outputs."""

    @abstractmethod
    def loss(self, healthy: Tensor, anomalous: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the loss of the outputs of a batch, (B, outputs) of each class."""

    @abstractmethod
    def strangeness(self, outputs: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the score (N,) of outputs (N, outputs)."""

    def fixed(self, network: nn.Module, healthy: Tensor, *, seed: int) -> dict[str, Tensor]:
        """Return tensors that are set before the training and kept."""
        return {}

    def fit_labelled(
        self, vectors: LabelledVectors, context: FitContext
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train on the CPU, where so small a network is fastest and every result is repeatable."""
        mean, deviation = standardisation(vectors.healthy)
        healthy, anomalous = (
            (torch.from_numpy(part) - mean) / deviation
            for part in (vectors.healthy, vectors.anomalous)
        )
        with drawing_weights(context.seed):
            network = _network(healthy.shape[1], self.options.hidden, self.outputs(), self.bias)
        fixed = self.fixed(network, healthy, seed=context.seed)
        steps, ended_by = self._train(
            network, healthy, anomalous=anomalous, fixed=fixed, context=context
        )
        weights = {_PREFIX + name: value.detach() for name, value in network.state_dict().items()}
        fitted = {"mean": mean, "deviation": deviation, **fixed, **weights}
        return fitted, {"steps": steps, "ended_by": ended_by}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the score of each vector; see :meth:`strangeness`."""
        values = (vectors - fitted["mean"]) / fitted["deviation"]
        with torch.inference_mode():
            inner = nn.functional.relu(self._layer(values, fitted, "0"))
            return self.strangeness(self._layer(inner, fitted, "2"), fitted)

    def _layer(self, values: Tensor, fitted: dict[str, Tensor], name: str) -> Tensor:
        bias = fitted[f"{_PREFIX}{name}.bias"] if self.bias else None
        return nn.functional.linear(values, fitted[f"{_PREFIX}{name}.weight"], bias)

    def _train(
        self,
        network: nn.Module,
        healthy: Tensor,
        anomalous: Tensor,
        fixed: dict[str, Tensor],
        context: FitContext,
    ) -> tuple[int, str]:
        options, budget = self.options, context.budget
        limit = min(options.steps, budget.max_steps or options.steps)
        end = time.monotonic() + 60 * (budget.max_minutes or float("inf"))
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        rng = np.random.default_rng([context.seed, len(anomalous)])
        half = options.batch // 2
        with TrainingProgress(limit, budget=budget, quiet=context.quiet) as progress:
            for step in range(limit):
                if step and time.monotonic() > end:
                    return step, "max-minutes"
                parts = [
                    network(values[torch.from_numpy(rng.integers(0, len(values), half))])
                    for values in (healthy, anomalous)
                ]
                loss = self.loss(parts[0], parts[1], fixed)
                if not bool(torch.isfinite(loss)):
                    raise DetectorError(
                        f"the loss is not finite at step {step}",
                        remedy="Set a smaller learning_rate.",
                    )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                progress.took(loss=float(loss.detach()))
        return limit, "max-steps"


def _network(inputs: int, hidden: int, outputs: int, bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, outputs, bias=bias)
    )
