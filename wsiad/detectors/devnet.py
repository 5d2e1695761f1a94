"""DevNet: the scores of anomalies are pushed away from a prior of the healthy scores."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

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


class DevNet(HeadDetector):
    """Output of a network that is trained with the deviation loss on few anomalies.

    μ and σ are those of 5,000 draws from a normal distribution, and dev = (φ(x) − μ) / σ. The
    loss is |dev| for healthy tiles and max(0, margin − dev) for anomalous ones; the score is dev.

    Notes
    -----
    Pang, Shen & van den Hengel, *Deep Anomaly Detection with Deviation Networks*, KDD 2019
    (arXiv 1911.08623), §3, here on frozen features. Outlier exposure: Hendrycks, Mazeika &
    Dietterich, ICLR 2019 (arXiv 1812.04606), with the binary cross-entropy of Ruff et al.,
    *Rethinking Assumptions in Deep Anomaly Detection*, 2021 (arXiv 2006.00339).
    """

    Options: ClassVar[type[DetectorOptions]] = DevNetOptions
    options: DevNetOptions

    def outputs(self) -> int:
        """Return 1, the number of outputs."""
        return 1

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
        usual = ((healthy - mean) / deviation).abs().mean()
        strange = (self.options.margin - (anomalous - mean) / deviation).clamp(min=0).mean()
        return (usual + strange) / 2

    def strangeness(self, outputs: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the deviation from the prior, or the logit with ``bce``."""
        if self.options.loss == "bce":
            return outputs[:, 0]
        mean, deviation = fixed["prior"]
        return (outputs[:, 0] - mean) / deviation
