"""DevNet from end to end: a pretrained network is trained further by the deviation loss."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.detectors import _backbone
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors._end_to_end import LabelledWindows
from wsiad.detectors._features import DEEPEST
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, group, images
from wsiad.detectors.outlier_exposure import PlaceClassifier
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import Recipe, adam, descend
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.training_options import (
    BatchSize,
    LearningRate,
    LoopOptions,
    MaxSteps,
    Schedule,
    ValInterval,
)
from wsiad.networks import features
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.vgg import Padding

PRIOR_DRAWS: Final = 5_000
"""Number of draws from the prior of the scores, a normal distribution."""

_Count = Annotated[int, pydantic.Field(ge=1)]


def prior_of(seed: int) -> Tensor:
    """Return mean and standard deviation (2,) of the draws from the prior."""
    draws = np.random.default_rng([seed, PRIOR_DRAWS]).standard_normal(PRIOR_DRAWS)
    return torch.tensor([draws.mean(), draws.std()], dtype=torch.float32)


def deviation_loss(healthy: Tensor, anomalous: Tensor, margin: float) -> Tensor:
    """Return the mean of both classes' mean losses, from deviations of any shape.

    The loss of a healthy tile is |dev|, that of an anomalous one max(0, margin − dev).
    """
    return (healthy.abs().mean() + (margin - anomalous).clamp(min=0).mean()) / 2


class DeviationTraining(LoopOptions):
    """Options of DevNet's training from end to end."""

    layer: str | None = None
    """Module whose output is scored by a linear layer at every place. Default: the last one before
    the backbone's own classifier."""
    batch: BatchSize = 24
    """Number of healthy tiles in a step, and of anomalous ones."""
    learning_rate: LearningRate = 2e-4
    lr_schedule: Schedule = "cosine"
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-5
    """Weight of the squared weights in the loss."""
    grad_clip: Annotated[float, pydantic.Field(gt=0)] | None = 1.0
    """Maximum norm of the gradient; larger ones are scaled down."""
    max_steps: MaxSteps = 1_000
    val_interval: ValInterval = 100
    """Steps between two validations on the held-out healthy tiles, which serve only the log: the
    last weights are kept."""
    keep: Literal["last"] = "last"
    """Weights that are kept: the last ones, for healthy tiles alone do not show when to stop."""


class DeviationOptions(DeviationTraining, BackboneOptions, TrainedOptions):
    """Options of :class:`WholeDevNet`."""

    margin: Annotated[float, pydantic.Field(gt=0)] = 5.0
    """Deviations from the prior that an anomaly must have."""
    magnify: Annotated[float, pydantic.Field(ge=1)] = 1.0
    """Factor by which tiles are enlarged before the network."""

    # The loss is of the pooled score.
    scoring_only: ClassVar[frozenset[str]] = (
        TrainedOptions.scoring_only | BackboneOptions.scoring_only
    ) - {"pooling", "pooling_top"}

    def chosen_layer(self) -> str:
        """Return the chosen layer, or the backbone's default."""
        return self.layer or DEEPEST.of(self.backbone)[-1]


class DeviationNetwork(PlaceClassifier):
    """A backbone and a linear layer: the deviation of every place from the prior.

    With ``strongest`` the deviation of an image is that of the mean of the strongest |scores| of
    its places; without, that of the mean of all scores. Batch normalisations are trained.

    Parameters
    ----------
    backbone, channels, magnify
        See :class:`~wsiad.detectors.outlier_exposure.PlaceClassifier`.
    strongest : float or None
        Share of the places, at least one.
    """

    prior: Tensor

    def __init__(
        self,
        backbone: BackboneFeatures,
        channels: int,
        *,
        magnify: float,
        strongest: float | None,
    ) -> None:
        super().__init__(backbone, channels, magnify=magnify, dropout=0)
        self.strongest = strongest
        self.register_buffer("prior", torch.tensor([0.0, 1.0]))

    def train(self, mode: bool = True) -> Self:
        """Train the batch normalisations too: half of the batch is always anomalous."""
        nn.Module.train(self, mode)
        return self

    def places(self, images: Tensor, edge: int | None = None) -> Tensor:
        """Return the deviations of the places, (N, h, w), of images (N, 3, S, S) in [0, 1]."""
        scores = super().places(images, edge)
        mean, deviation = self.prior
        return ((scores.abs() if self.strongest else scores) - mean) / deviation

    def forward(self, images: Tensor) -> Tensor:
        """Return the deviation of each image, (N,)."""
        flat = self.places(images).flatten(1)
        if self.strongest:
            count = max(1, int(self.strongest * flat.shape[1] + 1e-9))
            flat = flat.topk(count, dim=1).values
        return flat.mean(dim=1)


class WholeDevNet(TrainedDetector):
    """Deviation of the scores of a network that is trained with the deviation loss.

    A linear layer scores every place of the backbone's last features. With the pooling ``top`` the
    score of a tile is the mean of its strongest |scores|, with ``max`` the strongest one, with
    ``mean`` the mean of all scores with their sign; the training minimises the loss of that score.
    Half of the windows in a step are anomalous.

    Notes
    -----
    Pang, Ding, Shen & van den Hengel, *Explainable Deep Few-shot Anomaly Detection with Deviation
    Networks*, 2021 (arXiv 2108.00462), which has ResNet-18 and the tenth of the places with the
    strongest scores; its code also adds half of the image's resolution, which a window of 64 px
    has no places for.
    """

    Options: ClassVar[type[DetectorOptions]] = DeviationOptions
    uses_anomalies: ClassVar[bool | Literal["needed"]] = "needed"
    options: DeviationOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the network on equally many healthy and anomalous windows.

        Raises
        ------
        DetectorError
            There are no anomalous tiles, the backbone or layer is unknown, the tiles are too
            small, or the training diverged.
        WeightsError
            The backbone's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        taught = LabelledWindows(context, self.spec.size)
        self._device = context.device
        if (encoder := self.options.named_encoder()) is not None:
            raise DetectorError(
                f"{encoder.name} is an encoder, which is not trained from end to end here",
                remedy="Leave out the option end_to_end, or choose outlier-exposure.",
            )
        self.options, found = _backbone.settled(self.options, context, self.spec, trained=True)
        padding = features.stated_padding(found.metadata)
        source = None if found.random else found.source
        network = self._network_of(found.tensors, padding, seed=context.seed, source=source)
        network.prior.copy_(prior_of(context.seed))
        self._network = self._placed(network)
        self._about = {
            "weights": found.note(trained=True),
            "backbone": self.options.backbone,
            "layers": [self.options.chosen_layer()],
            "padding": padding,
            "anomalous_tiles": len(taught),
        }
        mean, std = network.backbone.normalisation
        self._about["normalisation"] = {"mean": list(mean), "std": list(std)}

        def loss(windows: Tensor) -> Tensor:
            deviations: Tensor = network(images(windows))
            return deviations.abs()

        result = self._train(
            network,
            loss,
            tiles=tiles,
            context=context,
            identity={"weights": found.sha256, "anomalies": taught.identity()},
            recipe=self._recipe(network, taught),
            started=started,
        )
        return self._report(result, network)

    def places(self, images: Tensor) -> Tensor:
        """Return the deviations of the places, (N, m, m)."""
        return self._deviations().places(images)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the mean features that the linear layer receives."""
        return self.embed_images(self._deviations().vectors, tiles)

    def empty(self, state: State) -> nn.Module:
        """Return a network of the state's shapes."""
        self.options = _backbone.restored(self.options, state.values)
        tensors, padding = group(state, "backbone.network"), state.values["padding"]
        return self._network_of(tensors, padding, seed=0)

    def _deviations(self) -> DeviationNetwork:
        return self.network_as(DeviationNetwork)

    def _network_of(
        self,
        tensors: dict[str, Tensor],
        padding: Padding,
        *,
        seed: int,
        source: str | None = None,
    ) -> DeviationNetwork:
        options = self.options
        backbone = BackboneFeatures(
            options.backbone,
            [options.chosen_layer()],
            1,
            tensors,
            padding=padding,
            arguments=options.backbone_args,
            normalisation=options.normalisation(),
            source=source,
        )
        ((channels, _, _),) = backbone.check_places(int(self.spec.size * options.magnify))
        share = {"top": options.pooling_top, "max": 1e-9}.get(options.pooling)
        with drawing_weights(seed):
            return DeviationNetwork(backbone, channels, magnify=options.magnify, strongest=share)

    def _recipe(self, network: DeviationNetwork, taught: LabelledWindows) -> Recipe:
        options = self.options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            both = torch.cat([windows, taught.drawn(len(windows), step)])
            healthy, anomalous = network(images(both)).split(len(windows))
            found = deviation_loss(healthy, anomalous, options.margin)
            descend(optimiser, found, clip=options.grad_clip)
            return found

        return Recipe(adam(weight_decay=options.weight_decay), update, keeps="last")
