"""DevNet: the scores of anomalies are pushed away from a prior of the healthy scores."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._deviation_network import (
    DeviationOptions,
    DeviationTraining,
    WholeDevNet,
    deviation_loss,
    prior_of,
)
from wsiad.detectors._end_to_end import SWITCH, EndToEndDetector, EndToEndOptions
from wsiad.detectors._trained import TrainedDetector
from wsiad.learning.detector import DetectorOptions

_BACKBONE = frozenset(
    {"backbone", "backbone_args", "carry_weights", "any_mpp", "encoder", "mean", "std"}
)


class DevNetOptions(EndToEndOptions):
    """Options of ``devnet``."""

    loss: Literal["deviation", "bce"] = "deviation"
    """Loss: ``deviation``, as published, or ``bce``, the binary cross-entropy of healthy against
    anomalous tiles, as in outlier exposure."""
    margin: Annotated[float, pydantic.Field(gt=0)] = 5.0
    """Deviations from the prior that an anomaly must have, for ``deviation``."""
    confidence: bool = False
    """Train a second output that tells how likely the score is right (CAAD); a tile of low
    confidence is strange as well."""
    end_to_end: Annotated[DeviationTraining | None, SWITCH] = None
    """Train the backbone from end to end, as published: a mapping of options of that training, or
    true for its defaults. By default a head on its frozen features is trained."""

    also_end_to_end: ClassVar[frozenset[str]] = _BACKBONE | {"margin", "magnify"}

    @pydantic.model_validator(mode="after")
    def _of_deviations(self) -> Self:
        if self.confidence and self.loss != "deviation":
            raise ValueError("confidence is for the loss deviation")
        if self.end_to_end is not None and self.pooling == "quantile":
            raise ValueError("end_to_end trains the pooled score: choose pooling mean, max or top")
        return self


class DevNet(EndToEndDetector):
    """Output of a network that is trained with the deviation loss on few anomalies.

    μ and σ are those of 5,000 draws from a normal distribution, and dev = (φ(x) − μ) / σ. The
    loss is |dev| for healthy tiles and max(0, margin − dev) for anomalous ones; the score is dev.

    With ``confidence``, a second output c is trained by the cross-entropy to tell whether dev is on
    the right side of half the margin, and the score is max(dev, margin · (1 − c)): a tile is as
    strange as an anomaly if nothing is known of it.

    With ``end_to_end``, φ is the backbone itself with a linear layer at every place
    (:class:`~wsiad.detectors._deviation_network.WholeDevNet`).

    Notes
    -----
    Pang, Shen & van den Hengel, *Deep Anomaly Detection with Deviation Networks*, KDD 2019
    (arXiv 1911.08623), §3; the head is on frozen features. Outlier exposure: Hendrycks, Mazeika &
    Dietterich, ICLR 2019 (arXiv 1812.04606), with the binary cross-entropy of Ruff et al.,
    *Rethinking Assumptions in Deep Anomaly Detection*, 2021 (arXiv 2006.00339). Confidence:
    Zhang et al., *Viral Pneumonia Screening on Chest X-rays Using Confidence-Aware Anomaly
    Detection*, IEEE TMI 2020 (arXiv 2003.12338), from general knowledge of the paper, which flags a
    tile if its score is high or its confidence is low, with a threshold for each.
    """

    Options: ClassVar[type[DetectorOptions]] = DevNetOptions
    options: DevNetOptions
    network_unless: ClassVar[str] = ""

    def outputs(self) -> int:
        """Return the number of outputs: 1, or 2 with a confidence."""
        return 2 if self.options.confidence else 1

    def fixed(self, network: nn.Module, healthy: Tensor, *, seed: int) -> dict[str, Tensor]:
        """Return mean and deviation of the prior's draws."""
        return {"prior": prior_of(seed)}

    def loss(self, healthy: Tensor, anomalous: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the mean of both classes' mean losses."""
        if self.options.loss == "bce":
            softplus = nn.functional.softplus
            return (softplus(healthy).mean() + softplus(-anomalous).mean()) / 2
        mean, deviation = fixed["prior"]
        usual, strange = ((part[:, :1] - mean) / deviation for part in (healthy, anomalous))
        margin = self.options.margin
        loss = deviation_loss(usual, strange, margin)
        if not self.options.confidence:
            return loss
        right = torch.cat([usual < margin / 2, strange >= margin / 2]).float()
        sure = torch.cat([healthy[:, 1:], anomalous[:, 1:]])
        return loss + nn.functional.binary_cross_entropy_with_logits(sure, right)

    def strangeness(self, outputs: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the deviation from the prior, or the logit with ``bce``."""
        if self.options.loss == "bce":
            return outputs[:, 0]
        mean, deviation = fixed["prior"]
        found = (outputs[:, 0] - mean) / deviation
        if self.options.confidence:
            doubt = 1 - torch.sigmoid(outputs[:, 1])
            return torch.maximum(found, self.options.margin * doubt)
        return found

    def whole_network(self) -> TrainedDetector:
        """Return the backbone that is trained with the deviation loss."""
        training = self.options.end_to_end
        assert training is not None
        values = self._given(self.options.also_end_to_end) | training.model_dump()
        values["magnify"] = self.options.enlarged_by()
        return WholeDevNet(DeviationOptions(**values), self.spec)
