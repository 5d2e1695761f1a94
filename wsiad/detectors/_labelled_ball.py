"""Deep SAD from end to end: Deep SVDD's network, with labelled anomalous tiles pushed away."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._end_to_end import LabelledWindows
from wsiad.detectors._trained import images
from wsiad.detectors.deep_svdd import BallOptions, DeepSvdd, DeepSvddOptions
from wsiad.learning.checkpoint import Recipe, adam, descend
from wsiad.learning.detector import DetectorOptions, FitContext, FitReport, HealthyTiles
from wsiad.learning.loop import TrainingResult
from wsiad.learning.step import Loss
from wsiad.networks.hypersphere import Hypersphere, centre_of

EPSILON = 1e-6
"""Number that is added to squared distances of labelled tiles."""

_BATCH = 128


def semi_supervised_losses(distances: Tensor, labels: Tensor, eta: float) -> Tensor:
    """Return the loss (N,) of squared distances (N,) to the centre.

    Parameters
    ----------
    distances : Tensor, (N,)
        Squared distances ‖φ − c‖².
    labels : Tensor, (N,)
        1 for a labelled healthy tile, −1 for a labelled anomalous one, 0 for one without a label.
    eta : float
        Weight η of labelled tiles.

    Returns
    -------
    Tensor, (N,)
        ‖φ − c‖² without a label, otherwise η (‖φ − c‖² + 1e-6) to the power of the label.
    """
    near = distances + EPSILON
    labelled = torch.where(labels > 0, near, near.reciprocal())
    return torch.where(labels == 0, distances, eta * labelled)


class LabelledBallTraining(BallOptions):
    """Options of Deep SAD's training from end to end."""

    anomalous_share: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Share of anomalous windows in a step. Default: their share of all tiles, as published."""
    healthy: Literal["unlabelled", "labelled"] = "unlabelled"
    """Count healthy tiles as unlabelled ones, most of which are healthy, or as labelled ones,
    which have the weight ``eta`` too."""


class LabelledBallOptions(LabelledBallTraining, DeepSvddOptions):
    """Options of :class:`LabelledBall`."""

    eta: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Weight of labelled tiles."""


class LabelledBall(DeepSvdd):
    """Squared distance |φ(x) − c|² of a tile to a centre, far for what is labelled as anomalous.

    Network and centre are those of :class:`~wsiad.detectors.deep_svdd.DeepSvdd`. In every step,
    each window is an anomalous one with the probability ``anomalous_share``. So are the windows of
    the pretraining, and the centre is the mean output over both kinds by that share. The loss is
    the mean of :func:`semi_supervised_losses` over the step's windows.

    Notes
    -----
    Ruff et al., *Deep Semi-Supervised Anomaly Detection*, ICLR 2020 (arXiv 1906.02694), eq. 8 and
    appendix on the networks, as in the authors' code.
    """

    Options: ClassVar[type[DetectorOptions]] = LabelledBallOptions
    uses_anomalies: ClassVar[bool | Literal["needed"]] = "needed"
    options: LabelledBallOptions
    _taught: LabelledWindows
    _share: float

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the autoencoder, for at most half of ``max_minutes``, then the ball.

        Raises
        ------
        DetectorError
            There are no anomalous tiles, the tiles are too small, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        self._taught = LabelledWindows(context, self.spec.size)
        count = len(self._taught)
        self._share = self.options.anomalous_share or count / (count + len(tiles.fit))
        return super().fit(tiles, context)

    def losses(self, distances: Tensor, anomalous: Tensor) -> Tensor:
        """Return the loss (N,) of squared distances (N,) of windows that are anomalous or not."""
        known = 1 if self.options.healthy == "labelled" else 0
        labels = torch.where(anomalous, -1, known)
        return semi_supervised_losses(distances, labels, self.options.eta)

    def _report(self, result: TrainingResult, module: nn.Module) -> FitReport:
        share = round(self._share, 6)
        self._about |= {"anomalous_tiles": len(self._taught), "anomalous_share": share}
        return super()._report(result, module)

    def _identity(self, part: str) -> dict[str, Any]:
        return {**super()._identity(part), "anomalies": self._taught.identity()}

    @torch.no_grad()
    def _centre(self, ball: Hypersphere, outputs: Tensor) -> Tensor:
        windows = self._taught.windows[: self.options.centre_tiles]
        parts = (part.to(self._device) for part in torch.split(windows, _BATCH))
        strange = torch.cat([ball.encoder(images(part)) for part in parts])
        mean = (1 - self._share) * outputs.mean(dim=0) + self._share * strange.mean(dim=0)
        return centre_of(mean[None])

    def _pretraining(self, loss: Loss) -> Recipe:
        options = self.options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            seen, _ = self._taught.mixed(windows, step, share=self._share)
            found = loss(seen).mean()
            descend(optimiser, found, clip=options.grad_clip)
            return found

        return Recipe(adam(weight_decay=options.pretrain_weight_decay), update=update)

    def _recipe(self, ball: Hypersphere) -> Recipe:
        options = self.options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            seen, anomalous = self._taught.mixed(windows, step, share=self._share)
            found = self.losses(ball(images(seen)), anomalous).mean()
            descend(optimiser, found, clip=options.grad_clip)
            return found

        return Recipe(adam(weight_decay=options.weight_decay), update=update)
