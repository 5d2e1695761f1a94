"""Deep SAD: healthy tiles are drawn to a centre, labelled anomalous ones pushed away from it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._heads import HeadDetector, HeadOptions
from wsiad.learning.detector import DetectorOptions
from wsiad.networks.hypersphere import centre_of, square_distances

_EPSILON = 1e-6


class DeepSadOptions(HeadOptions):
    """Options of ``deep-sad``."""

    representation: Annotated[int, pydantic.Field(ge=1)] = 32
    """Dimensions of the space in which distances to the centre are measured."""
    eta: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Weight of the labelled anomalous tiles."""


class DeepSad(HeadDetector):
    """Squared distance of φ(x) to a centre c.

    The loss is the mean of ‖φ − c‖² over healthy tiles, plus η times the mean of
    (‖φ − c‖² + 1e-6)⁻¹ over anomalous ones. c is the mean of the untrained network's outputs,
    with no coordinate closer to 0 than 0.1. The network has no biases, because with them it
    could map everything to c.

    Notes
    -----
    Ruff, Vandermeulen, Görnitz, Binder, Müller, Müller & Kloft, *Deep Semi-Supervised
    Anomaly Detection*, ICLR 2020 (arXiv 1906.02694), eq. 8, here on frozen features
    without the pretraining as an autoencoder.
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
        return near + self.options.eta * (away + _EPSILON).reciprocal().mean()

    def strangeness(self, outputs: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the squared distance to the centre."""
        return square_distances(outputs, fixed["centre"])
