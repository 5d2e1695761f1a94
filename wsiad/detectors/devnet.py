"""DevNet: the scores of anomalies are pushed away from a prior of the healthy scores."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._heads import HeadDetector, HeadOptions
from wsiad.learning.detector import DetectorOptions

_PRIOR_DRAWS = 5_000


class DevNetOptions(HeadOptions):
    """Options of ``devnet``."""

    loss: Literal["deviation", "bce"] = "deviation"
    """Loss: ``deviation``, as published, or ``bce``, the binary cross-entropy of healthy against
    anomalous tiles, as in outlier exposure."""
    margin: Annotated[float, pydantic.Field(gt=0)] = 5.0
    """Deviations from the prior that an anomaly must have, for ``deviation``."""
    confidence: bool = False
    """Train a second output that tells how likely the score is right (CAAD); a tile of low
    confidence is strange as well."""

    @pydantic.model_validator(mode="after")
    def _of_deviations(self) -> Self:
        if self.confidence and self.loss != "deviation":
            raise ValueError("confidence is for the loss deviation")
        return self


class DevNet(HeadDetector):
    """Output of a network that is trained with the deviation loss on few anomalies.

    μ and σ are those of 5,000 draws from a normal distribution, and dev = (φ(x) − μ) / σ. The
    loss is |dev| for healthy tiles and max(0, margin − dev) for anomalous ones; the score is dev.

    With ``confidence``, a second output c is trained by the cross-entropy to tell whether dev is on
    the right side of half the margin, and the score is max(dev, margin · (1 − c)): a tile is as
    strange as an anomaly if nothing is known of it.

    Notes
    -----
    Pang, Shen & van den Hengel, *Deep Anomaly Detection with Deviation Networks*, KDD 2019
    (arXiv 1911.08623), §3, here on frozen features. Outlier exposure: Hendrycks, Mazeika &
    Dietterich, ICLR 2019 (arXiv 1812.04606), with the binary cross-entropy of Ruff et al.,
    *Rethinking Assumptions in Deep Anomaly Detection*, 2021 (arXiv 2006.00339). Confidence:
    Zhang et al., *Viral Pneumonia Screening on Chest X-rays Using Confidence-Aware Anomaly
    Detection*, IEEE TMI 2020 (arXiv 2003.12338), from general knowledge of the paper, which flags a
    tile if its score is high or its confidence is low, with a threshold for each.
    """

    Options: ClassVar[type[DetectorOptions]] = DevNetOptions
    options: DevNetOptions

    def outputs(self) -> int:
        """Return the number of outputs: 1, or 2 with a confidence."""
        return 2 if self.options.confidence else 1

    def fixed(self, network: nn.Module, healthy: Tensor, *, seed: int) -> dict[str, Tensor]:
        """Return mean and deviation of the prior's draws."""
        draws = np.random.default_rng([seed, _PRIOR_DRAWS]).standard_normal(_PRIOR_DRAWS)
        return {"prior": torch.tensor([draws.mean(), draws.std()], dtype=torch.float32)}

    def loss(self, healthy: Tensor, anomalous: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the mean of both classes' mean losses."""
        if self.options.loss == "bce":
            softplus = nn.functional.softplus
            return (softplus(healthy).mean() + softplus(-anomalous).mean()) / 2
        mean, deviation = fixed["prior"]
        usual, strange = ((part[:, :1] - mean) / deviation for part in (healthy, anomalous))
        margin = self.options.margin
        loss = (usual.abs().mean() + (margin - strange).clamp(min=0).mean()) / 2
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
