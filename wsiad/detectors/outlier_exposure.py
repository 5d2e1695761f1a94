"""Outlier exposure: a pretrained network is trained further to distinguish anomalous tiles.

The network classifies tiles as healthy or anomalous at every place, and is trained end to end.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.detectors import _backbone
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors._end_to_end import central_windows
from wsiad.detectors._features import DEEPEST
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, group, images
from wsiad.detectors.linear_probe import LinearProbe, LinearProbeOptions
from wsiad.learning.batches import ViewOptions, centre_crops, check_size, on_device, random_views
from wsiad.learning.checkpoint import Recipe, descend
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.training_options import MaxSteps, Schedule
from wsiad.networks.encoder import Encoder
from wsiad.networks.encoder_network import embedding_layers
from wsiad.networks.features import AUTO, BackboneFeatures
from wsiad.networks.vgg import Padding


class PlaceClassifier(nn.Module):
    """A backbone and a linear layer: a logit at every place of its last features.

    The logit of a tile is the mean over its places, which equals that of the mean features,
    because the layer is linear. Batch normalisations keep the statistics that they came with:
    the network will not see batches with equally many tiles of both classes.

    Parameters
    ----------
    backbone : BackboneFeatures
        Backbone with one layer; its weights are trained too.
    channels : int
        Number of channels of that layer.
    magnify : float
        Factor by which images are enlarged before the backbone.
    dropout : float
        Share of the mean features that is left out in a training step.
    """

    def __init__(
        self, backbone: BackboneFeatures, channels: int, *, magnify: float, dropout: float
    ) -> None:
        super().__init__()
        self.backbone, self.magnify = backbone.requires_grad_(requires_grad=True), magnify
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, 1)

    def train(self, mode: bool = True) -> Self:
        """Train the weights, without the statistics of batch normalisations."""
        super().train(mode)
        self.backbone.eval()
        return self

    def maps(self, images: Tensor) -> Tensor:
        """Return the features (N, C, h, w) of RGB images (N, 3, S, S) in [0, 1]."""
        if self.magnify != 1:
            images = functional.interpolate(images, scale_factor=self.magnify, mode="bilinear")
        return self.backbone.maps(self.backbone.normalised(images))[0].float()

    def vectors(self, images: Tensor) -> Tensor:
        """Return the mean features of each image, (N, C)."""
        return self.maps(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logit of each image, (N,)."""
        logits: Tensor = self.head(self.dropout(self.vectors(images)))[:, 0]
        return logits

    def places(self, images: Tensor, edge: int | None = None) -> Tensor:
        """Return the logits of edge × edge places, (N, edge, edge), or of all places."""
        found = self.maps(images)
        if edge:
            found = functional.adaptive_avg_pool2d(found, edge)
        return functional.conv2d(found, self.head.weight[:, :, None, None], self.head.bias)[:, 0]


_ROOM = 1.5  # windows that views are cut from: a turned view needs a larger one

_Count = Annotated[int, pydantic.Field(ge=1)]
_Share = Annotated[float, pydantic.Field(ge=0, lt=1)]


class OutlierExposureOptions(BackboneOptions, TrainedOptions):
    """Options of ``outlier-exposure``."""

    backbone: str = AUTO
    """Backbone: a torchvision classification network, such as squeezenet1_1 or resnet18, or one of
    timm, such as timm/convnext_atto. ``auto`` is as for all detectors on frozen features."""
    layer: str | None = None
    """Module whose output is classified. Default: the last one before the backbone's own
    classifier."""
    magnify: Annotated[float, pydantic.Field(ge=1, le=8)] | None = None
    """Factor by which tiles are enlarged before the network. Default: 2, because networks of
    ImageNet know larger objects than nuclei, and 1 for wsiad's network."""
    places: _Count | None = None
    """Edge of the grid of places in a tile. Default: that of the layer's features, for which the
    mean over the places is exactly the logit of the tile."""
    batch: _Count = 32
    """Number of healthy tiles in a step, and of anomalous ones."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-4
    """Learning rate of AdamW for the backbone."""
    head_factor: Annotated[float, pydantic.Field(gt=0)] = 10.0
    """Factor by which the learning rate is larger for the linear layer."""
    lr_schedule: Schedule = "cosine"
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-2
    """Decoupled weight decay of AdamW."""
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = 0.98
    """Decay of the running average of the weights in a step; null keeps the last weights."""
    dropout: _Share = 0.3
    """Share of the features that is left out in a step."""
    smoothing: Annotated[float, pydantic.Field(ge=0, lt=0.5)] = 0.05
    """Label of healthy tiles; that of anomalous tiles is 1 minus this, instead of 0 and 1."""
    exposures: Annotated[float, pydantic.Field(gt=0)] = 100.0
    """Average number of times that each anomalous tile is shown. A training on few tiles ends
    early, before it memorises them; there are no held-out anomalies to stop by."""
    max_steps: MaxSteps = 5_000
    val_interval: _Count = 100
    """Steps between two validations on the held-out healthy tiles, which serve only the log."""
    scale: Annotated[float, pydantic.Field(ge=1)] = 1.2
    """Maximum factor by which a training view is enlarged or shrunk."""
    stain_gain: _Share = 0.2
    """Maximum share by which each stain of a training view is made stronger or weaker."""
    stain_shift: _Share = 0.05
    """Maximum optical density that each stain of a training view gains or loses."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the training: ``auto`` is bfloat16 on CUDA, otherwise float32."""

    scoring_only: ClassVar[frozenset[str]] = (
        TrainedOptions.scoring_only | BackboneOptions.scoring_only | {"places"}
    )

    def chosen_layer(self) -> str:
        """Return the chosen layer, or the backbone's default."""
        return self.layer or DEEPEST.of(self.backbone)[-1]

    def bounded(self, anomalous: int) -> Self:
        """Return the options with the number of steps limited by the number of anomalous tiles."""
        steps = math.ceil(self.exposures * anomalous / self.batch)
        return self.model_copy(update={"max_steps": min(self.max_steps, steps)})

    def probe(self) -> LinearProbeOptions:
        """Return the options of the linear probe with which the training starts."""
        return LinearProbeOptions(
            backbone=self.backbone,
            backbone_args=self.backbone_args,
            mean=self.mean,
            std=self.std,
            layers=(self.chosen_layer(),),
            magnify=self.magnify,
            places=1,
            statistics="mean",
            encoder=self.encoder,
            any_mpp=self.any_mpp,
            carry_weights=True,
        )

    def for_encoder(self, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
        """Return the options that depend on the encoder; see :class:`BackboneOptions`."""
        if not self.carry_weights:
            raise DetectorError(
                f"the weights of {encoder.name} would be trained and held by the run (licence: "
                f"{encoder.licence})",
                remedy="Allow it with --option carry_weights=true, or choose a detector on frozen "
                "features.",
            )
        (layer,) = embedding_layers(encoder, "places")
        return super().for_encoder(encoder, names) | {"layer": self.layer or layer, "magnify": 1}

    def views(self, input_px: int) -> ViewOptions:
        """Return the options of the random views of tiles."""
        return ViewOptions(
            view_px=input_px,
            scale=self.scale,
            stain_gain=self.stain_gain,
            stain_shift=self.stain_shift,
        )


class OutlierExposure(TrainedDetector):
    """Logit of a network that is trained end to end on healthy and labelled anomalous tiles.

    The linear layer starts as the linear probe on the frozen features of the backbone's last
    layer (:class:`~wsiad.detectors.linear_probe.LinearProbe`), so that the first steps do not
    damage the features for the sake of an untrained layer. Then both are trained by the binary
    cross-entropy of equally many healthy and anomalous tiles in a step, each in a view of its
    own: turned, scaled, with different stains. The running average of the weights is kept.

    Notes
    -----
    Outlier exposure: Hendrycks, Mazeika & Dietterich, *Deep Anomaly Detection with Outlier
    Exposure*, ICLR 2019 (arXiv 1812.04606), with the binary cross-entropy of Ruff et al.,
    *Rethinking Assumptions in Deep Anomaly Detection*, 2021 (arXiv 2006.00339). Probe first,
    then all layers: Kumar et al., *Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution*, ICLR 2022 (arXiv 2202.10054), section 3.
    """

    Options: ClassVar[type[DetectorOptions]] = OutlierExposureOptions
    uses_anomalies: ClassVar[bool | Literal["needed"]] = "needed"
    options: OutlierExposureOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Fit the linear probe, then train all layers on views of the tiles.

        Views are cut from the centre of an anomalous tile, and from anywhere in a healthy one.

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
        if context.anomalies is None:
            raise DetectorError("learns from labelled anomalous tiles, and there are none")
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device = context.device
        self.options, weights = _backbone.settled(self.options, context, self.spec, trained=True)
        probe = LinearProbe(self.options.probe(), self.spec)
        probe.then_trained = True
        found = probe.fit(tiles, context).notes
        network = self._started_from(probe.state())
        self._network = network
        window = min(tiles.fit.tile, round(_ROOM * self.spec.size))
        anomalous = central_windows(context.anomalies, window)

        def loss(windows: Tensor) -> Tensor:
            logits: Tensor = network(images(centre_crops(windows, self.spec.size)))
            return functional.softplus(logits)

        about = ("weights", "backbone", "normalisation", "layers", "anomalous_tiles", "strength")
        self._about = {key: found[key] for key in about if key in found} | {
            "padding": network.backbone.padding
        }
        if weights.random:
            self._about["weights"] = weights.note(trained=True)
        result = self._train(
            network,
            loss,
            tiles=tiles,
            context=context,
            identity={
                "weights": weights.sha256,
                "anomalies": hashlib.sha256(anomalous.numpy().tobytes()).hexdigest(),
            },
            recipe=self._recipe(network, anomalous, context),
            options=self.options.bounded(len(anomalous)),
            started=started,
            size=window,
        )
        return self._report(result, network)

    def places(self, images: Tensor) -> Tensor:
        """Return the logits of the places, (N, m, m)."""
        return self._classifier().places(images, self.options.places)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the mean features that the linear layer receives."""
        return self.embed_images(self._classifier().vectors, tiles)

    def empty(self, state: State) -> nn.Module:
        """Return a network of the state's shapes."""
        self.options = _backbone.restored(self.options, state.values)
        return self._classifying(group(state, "backbone.network"), state.values["padding"])

    def _started_from(self, probe: State) -> PlaceClassifier:
        """Return the network whose logits are those of a linear probe."""
        network = self._classifying(group(probe, "backbone"), probe.values["padding"])
        fitted = group(probe, "fitted")
        weight = fitted["weight"] / fitted["deviation"]
        with torch.no_grad():
            network.head.weight.copy_(weight[None])
            network.head.bias.copy_(fitted["bias"] - weight @ fitted["mean"])
        return self._placed(network)

    def _classifying(self, tensors: dict[str, Tensor], padding: Padding) -> PlaceClassifier:
        options = self.options
        backbone = BackboneFeatures(
            options.backbone,
            [options.chosen_layer()],
            options.places or 1,
            tensors,
            padding=padding,
            arguments=options.backbone_args,
            normalisation=options.normalisation(),
            encoder=options.encoder,
        )
        times = options.probe().enlarged_by()
        ((channels, _, _),) = backbone.check_places(int(self.spec.size * times))
        return PlaceClassifier(backbone, channels, magnify=times, dropout=options.dropout)

    def _recipe(self, network: PlaceClassifier, anomalous: Tensor, context: FitContext) -> Recipe:
        """Return the recipe of the training on both classes; draws depend on seed and step."""
        options, views = self.options, self.options.views(self.spec.size)
        use_bf16 = options.precision == "bf16" or (
            options.precision == "auto" and context.device.type == "cuda"
        )

        def optimiser(module: nn.Module) -> torch.optim.Optimizer:
            assert isinstance(module, PlaceClassifier)
            groups: list[dict[str, Any]] = [
                {"params": list(module.backbone.parameters())},
                {"params": list(module.head.parameters()), "factor": options.head_factor},
            ]
            return torch.optim.AdamW(groups, weight_decay=options.weight_decay)

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            rng = np.random.default_rng([context.seed, step, len(anomalous)])
            drawn = torch.from_numpy(rng.integers(0, len(anomalous), len(windows)))
            both = torch.cat([windows, on_device(anomalous[drawn], context.device)])
            seen = random_views(both, views, torch.Generator().manual_seed(_seed_of(rng)))
            labels = torch.full((len(both),), options.smoothing, device=context.device)
            labels[len(windows) :] = 1 - options.smoothing
            with (
                torch.random.fork_rng(devices=[]),  # of dropout
                torch.autocast(context.device.type, torch.bfloat16, enabled=use_bf16),
            ):
                torch.manual_seed(_seed_of(rng))
                logits = network(seen.contiguous(memory_format=torch.channels_last))
            loss = functional.binary_cross_entropy_with_logits(logits.float(), labels)
            descend(optimiser, loss, clip=options.grad_clip)
            return loss

        return Recipe(optimiser, update, keeps="last")

    def _classifier(self) -> PlaceClassifier:
        return self.network_as(PlaceClassifier)


def _seed_of(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 62))
