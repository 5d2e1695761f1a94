"""Deep SAD: healthy tiles are drawn to a centre, labelled anomalous ones pushed away from it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._end_to_end import SWITCH, EndToEndDetector, EndToEndOptions
from wsiad.detectors._labelled_ball import (
    EPSILON,
    LabelledBall,
    LabelledBallOptions,
    LabelledBallTraining,
)
from wsiad.detectors._trained import TrainedDetector
from wsiad.learning.detector import DetectorOptions
from wsiad.networks.hypersphere import centre_of, square_distances


class DeepSadOptions(EndToEndOptions):
    """Options of ``deep-sad``."""

    representation: Annotated[int, pydantic.Field(ge=1)] = 32
    """Dimensions of the space in which distances to the centre are measured."""
    eta: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Weight of the labelled anomalous tiles."""
    end_to_end: Annotated[LabelledBallTraining | None, SWITCH] = None
    """Train a network of convolutions from end to end, as published: a mapping of options of that
    training, or true for its defaults. By default a head on frozen features is trained."""

    also_end_to_end: ClassVar[frozenset[str]] = frozenset({"representation", "eta"})


class DeepSad(EndToEndDetector):
    """Squared distance of φ(x) to a centre c.

    The loss is the mean of ‖φ − c‖² over healthy tiles, plus η times the mean of
    (‖φ − c‖² + 1e-6)⁻¹ over anomalous ones. c is the mean of the untrained network's outputs,
    with no coordinate closer to 0 than 0.1. The network has no biases, because with them it
    could map everything to c. With ``end_to_end``, φ is a network of convolutions on the tiles
    (:class:`~wsiad.detectors._labelled_ball.LabelledBall`).

    Notes
    -----
    Ruff, Vandermeulen, Görnitz, Binder, Müller, Müller & Kloft, *Deep Semi-Supervised
    Anomaly Detection*, ICLR 2020 (arXiv 1906.02694), eq. 8. The head is on frozen
    features, without the pretraining as an autoencoder and with as many anomalous tiles as healthy
    ones in a step.
    """

    Options: ClassVar[type[DetectorOptions]] = DeepSadOptions
    options: DeepSadOptions
    bias: ClassVar[bool] = False

    def outputs(self) -> int:
        """Return the number of dimensions of the representation."""
        return self.options.representation

    def fixed(self, network: nn.Module, healthy: Tensor, *, seed: int) -> dict[str, Tensor]:
        """Return the centre."""
        with torch.no_grad():
            return {"centre": centre_of(network(healthy))}

    def loss(self, healthy: Tensor, anomalous: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        away = self.strangeness(anomalous, fixed)
        near = self.strangeness(healthy, fixed).mean()
        return near + self.options.eta * (away + EPSILON).reciprocal().mean()

    def strangeness(self, outputs: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the squared distance to the centre."""
        return square_distances(outputs, fixed["centre"])

    def whole_network(self) -> TrainedDetector:
        """Return Deep SVDD's network with labelled tiles."""
        training = self.options.end_to_end
        assert training is not None
        values = self._given(self.options.also_end_to_end) | training.model_dump()
        return LabelledBall(LabelledBallOptions(**values), self.spec)
