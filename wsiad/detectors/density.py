"""Trained densities of healthy features: a mixture, an energy, or a normalising flow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._trained import DistilledDetector, DistilledOptions, images
from wsiad.detectors._vectors import all_alike
from wsiad.learning.checkpoint import Recipe, adam, descend
from wsiad.learning.detector import DetectorOptions, FitContext, FitReport, HealthyTiles
from wsiad.learning.training_options import BatchSize
from wsiad.networks.channel_moments import ChannelMoments
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.density_model import DensityModel, HealthyDensity, Standardise, gathered
from wsiad.networks.distillation import Combine, Distillation, combined
from wsiad.networks.energy_model import EnergyModel
from wsiad.networks.features import AUTO, BackboneFeatures
from wsiad.networks.flow import Flow
from wsiad.networks.mixture_model import MixtureModel
from wsiad.networks.multiscale_flow import Glow
from wsiad.networks.pixel_features import PIXELS
from wsiad.networks.stack_shape import Level, StackShape

_STREAM: Final = 1 << 33  # keeps the windows of statistics apart from those of the training
_NOISE: Final = 0x64656E73
_HELD_OUT: Final = 1 << 40  # the noise of a validation, the same each time
_FIRST: Final = 1 << 41  # that of the first batch

_Count = Annotated[int, pydantic.Field(ge=1)]
_Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
_Weight = Annotated[float, pydantic.Field(ge=0)]
_Positive = Annotated[float, pydantic.Field(gt=0)]
_Kernel = Literal[1, 3, 5]

_WIDTHS: Final[dict[str, tuple[int, ...]]] = {
    "dagmm": (64, 16),
    "dsebm": (128,),
    "flow": (),
    "glow": (64,),
}
_CONV_WIDTHS: Final = (16, 32, 64, 64)

_OF_MODELS: Final = {
    ("dagmm",): (
        *("autoencoder", "code", "gaussians", "dropout", "energy_weight", "variance_weight"),
    ),
    ("dsebm",): ("stride", "dense"),
    ("flow",): ("hidden_ratio", "clamp", "limit", "squeezes"),
    ("glow",): ("scales",),
    ("flow", "glow"): ("steps",),
    ("flow", "dsebm"): ("kernels",),
    ("glow", "dagmm", "dsebm"): ("widths",),
    ("flow", "glow", "dsebm"): ("noise",),
}
"""Options that do nothing with other models."""


class DensityOptions(DistilledOptions):
    """Options of ``density``."""

    model: Literal["flow", "glow", "dagmm", "dsebm"] = "flow"
    """Model of the density: a normalising flow; one of several scales with invertible 1 × 1
    convolutions (glow); an autoencoder with a mixture of Gaussians of its code and errors (dagmm);
    or an energy that is trained by removing noise (dsebm)."""
    backbone: str = AUTO
    """Frozen network whose features are modelled, as for all detectors on frozen features, or
    ``pixels``."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is modelled. Default: the ends of SqueezeNet's three resolutions, or
    ``layer1``, ``layer2`` and ``layer3`` of a ResNet."""
    grid: Literal["places", "layers"] = "places"
    """Model the features of all layers together, averaged to the places; or those of each layer by
    a model of its own, on the layer's grid."""
    standardise: Standardise = "channels"
    """Scale the features by mean and deviation of their channel over healthy tiles, by those of
    all features of the tile, or not at all."""
    most_deviations: _Positive | None = None
    """Farthest from the mean, in deviations of the channel, that a standardised feature counts:
    one beyond counts as that far. A channel which is nearly always 0 has a tiny deviation, and a
    single place where it is not can make a flow diverge. Default: no limit."""
    fit_tiles: _Count = 20_000
    """Maximum number of healthy tiles from which means, deviations and the mixture of ``dagmm`` are
    computed."""
    combine: Combine = "sum"
    """Way in which the scores of the layers at a place are combined, for ``grid: layers``; squared
    distances can also be multiplied."""
    score: Literal["density", "reconstruction", "probability"] = "density"
    """Score a place by −log of the density, or its energy; for ``dsebm`` also by the squared
    distance to the reconstruction x − ∇E, and for ``flow`` by −exp(−½ mean z²), as FastFlow's
    code does."""
    widths: tuple[_Count, ...] | None = None
    """Units of the hidden layers of the autoencoder (dagmm; default 64 and 16, or 16, 32, 64 and 64
    channels of a convolutional one), or channels of the convolutions (dsebm; default 128; glow;
    default 64)."""
    autoencoder: Literal["dense", "conv"] = "dense"
    """Autoencoder of ``dagmm``: of the vector of each place, or a convolutional one of the complete
    map, which is then scored as one place."""
    code: _Count = 4
    """Dimensions of the code of the autoencoder, for ``dagmm``."""
    gaussians: _Count = 4
    """Number of Gaussians, for ``dagmm``."""
    dropout: _Share = 0.5
    """Share of the hidden units that are dropped where memberships are estimated, for ``dagmm``."""
    energy_weight: _Weight = 0.1
    """Weight of the energy in the loss, for ``dagmm``."""
    variance_weight: _Weight = 0.005
    """Weight of the inverse variances in the loss, for ``dagmm``."""
    noise: _Weight | None = None
    """Standard deviation of the noise that is removed (dsebm; default 1), or width of the uniform
    noise that makes values continuous (flow, glow; default 2/255 on pixels, else 0)."""
    kernels: Annotated[tuple[_Kernel, ...], pydantic.Field(min_length=1)] = (1,)
    """Edges of the convolutions of a flow's steps, in turn; the first is that of ``dsebm``. With 1,
    every place is on its own."""
    stride: _Count = 1
    """Stride of the convolutions, for ``dsebm``."""
    dense: _Count | None = None
    """Units of a last layer that sees the complete map after a 2 × 2 maximum, for ``dsebm``."""
    steps: _Count = 8
    """Number of coupling steps, for ``flow``, and for each scale of ``glow``."""
    scales: Annotated[int, pydantic.Field(ge=1, le=6)] = 3
    """Number of scales of ``glow``."""
    hidden_ratio: _Positive = 1.0
    """Width of the hidden layers of a flow's steps, relative to their inputs."""
    clamp: _Positive = 2.0
    """Largest log-scale of a flow's steps."""
    limit: Literal["atan", "tanh"] = "atan"
    """Function that limits log-scales. `tanh` also divides what the networks of the steps return
    by ten, as the code of CFLOW-AD and FastFlow does, so that a training does not diverge."""
    squeezes: Annotated[int, pydantic.Field(ge=0, le=4)] = 0
    """Number of times that 2 × 2 neighbours become channels before a flow."""
    weight_decay: _Weight = 0.0
    """Weight of the squared weights in the loss (L2)."""
    batch: BatchSize = 32

    scoring_only: ClassVar[frozenset[str]] = (DistilledOptions.scoring_only | {"score"}) - {
        "places"
    }
    later: ClassVar[Mapping[str, Any]] = {
        "autoencoder": "dense",
        "scales": 3,
        "limit": "atan",
        "most_deviations": None,
    }

    @pydantic.model_validator(mode="after")
    def _score_of_the_model(self) -> Self:
        for score, model in (("reconstruction", "dsebm"), ("probability", "flow")):
            if self.score == score and self.model != model:
                raise ValueError(f"score: {score} is for model: {model}")
        return self

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        model = f"model: {self.model}"
        uses = {
            "combine": (self.grid == "layers", f"grid: {self.grid}"),
            "most_deviations": (
                self.standardise == "channels",
                f"standardise: {self.standardise}",
            ),
            "fit_tiles": (
                self.standardise == "channels" or self.model in ("dagmm", "glow"),
                f"{model} and standardise: {self.standardise}",
            ),
        }
        for models, names in _OF_MODELS.items():
            uses |= dict.fromkeys(names, (self.model in models, model))
        return super().uses() | uses


class Density(DistilledDetector):
    """Negative logarithm of a trained density of healthy features.

    The features of a frozen backbone, or pixels, are modelled by one of three models that are
    trained on random windows. Their loss on held-out tiles ends the training, and their scores
    do not depend on other tiles of a batch.

    ``flow`` is Real NVP (Dinh et al. 2017) on the features of places or on pixels. On maps of
    each layer, with 3 × 3 and 1 × 1 convolutions in turn, it is FastFlow (Yu et al. 2021), and
    with 1 × 1 ones CFlow (Gudovskiy et al. 2022) without the condition on the position, which
    means nothing in tissue. ``glow`` is Glow (Kingma & Dhariwal 2018), whose normalised activations
    are set by the first batch of healthy windows. ``dagmm`` is DAGMM (Zong et al. 2018) and
    ``dsebm`` DSEBM (Zhai et al. 2016). See :class:`~wsiad.networks.flow.Flow`,
    :class:`~wsiad.networks.multiscale_flow.Glow`,
    :class:`~wsiad.networks.mixture_model.MixtureModel` and
    :class:`~wsiad.networks.energy_model.EnergyModel`.
    """

    Options: ClassVar[type[DetectorOptions]] = DensityOptions
    options: DensityOptions
    _seed = 0

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the model; that of ``dagmm`` gets its mixture by one pass over healthy tiles.

        Raises
        ------
        DetectorError
            The backbone or a layer is unknown, the tiles or features are too small, or the
            training diverged.
        WeightsError
            The backbone's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        report = super().fit(tiles, context)
        network = self.network().eval()
        for number, model in enumerate(self._models(network)):
            if isinstance(model, MixtureModel):
                with torch.no_grad():
                    model.settle(network(part)[1][number] for part in self._healthy(tiles, context))
        return report

    def prepared(
        self, teacher: BackboneFeatures, tiles: HealthyTiles, context: FitContext
    ) -> dict[str, Any]:
        """Compute mean and deviation of the channels of healthy features."""
        self._seed = context.seed
        self._scaling = self._first = None
        teacher = self._placed(teacher)
        if self.options.model == "glow":
            with torch.no_grad():
                first = next(self._healthy(tiles, context))
                self._first = teacher.maps(teacher.normalised(first))
        if self.options.standardise != "channels":
            return {}
        moments: defaultdict[int, ChannelMoments] = defaultdict(ChannelMoments)
        with torch.no_grad():
            for part in self._healthy(tiles, context):
                maps = gathered(teacher.maps(teacher.normalised(part)), self._grid())
                for number, one in enumerate(maps):
                    moments[number].add(one)
        found = [each.scaling() for each in moments.values()]
        if None in found:
            raise all_alike("features")
        self._scaling = [one for one in found if one is not None]
        return {}

    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a backbone with untrained models of its features."""
        shapes = teacher.check_places(self.spec.size)
        grid = self._grid()
        if grid is not None:
            shapes = [(sum(shape[0] for shape in shapes), grid, grid)]
        with drawing_weights(seed):
            models = [self._model(shape) for shape in shapes]
        found = HealthyDensity(
            models,
            [shape[0] for shape in shapes],
            standardise=self.options.standardise,
            most_deviations=self.options.most_deviations,
            places=grid,
        )
        if self._scaling is not None:
            means, deviations = zip(*self._scaling, strict=True)
            found.standardise(means, deviations)
        if self._first is not None:
            with torch.no_grad():
                maps = found(torch.empty(0), [one.cpu() for one in self._first])
            drawn = found.draw(maps, self._rng(_FIRST))
            for model, one, numbers in zip(models, maps, drawn, strict=True):
                model.begin(one, numbers)
            self._first = None
        return Distillation(teacher, found)

    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss (N,) of every model, with the same noise each time."""
        density = self._density()
        return density.losses(found, density.draw(found, self._rng(_HELD_OUT)))

    def recipe(self) -> Recipe:
        """Return the recipe: the noise of a step follows from the seed and its number."""
        options, network = self.options, self.network()

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            _, maps = network(images(windows))
            density = self._density()
            losses = density.losses(maps, density.draw(maps, self._rng(step)))
            loss: Tensor = sum(losses[1:], start=losses[0]).mean()
            descend(optimiser, loss, clip=options.grad_clip)
            return loss

        return Recipe(adam(weight_decay=options.weight_decay), update)

    def places(self, images: Tensor) -> Tensor:
        """Return how unlikely each place is, (N, m, m)."""
        options = self.options
        maps = self._density().scores(self.network()(images)[1])
        return combined(maps, options.places, options.combine)

    _scaling: list[tuple[Tensor, Tensor]] | None = None
    _first: list[Tensor] | None = None
    """Features of the first batch of healthy windows, for a model that begins with them."""

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, _NOISE, step])

    def _density(self) -> HealthyDensity:
        density = self.network_as(Distillation).student
        assert isinstance(density, HealthyDensity)
        return density

    def _models(self, network: torch.nn.Module) -> list[DensityModel]:
        assert isinstance(network, Distillation)
        return self._density().each()

    def _grid(self) -> int | None:
        return self.options.places if self.options.grid == "places" else None

    def _healthy(self, tiles: HealthyTiles, context: FitContext) -> Iterator[Tensor]:
        """Return images of healthy tiles of the fit, the same each time."""
        most = self.options.fit_tiles
        return map(
            images, self._healthy_windows(tiles.fit, most, seed=context.seed, stream=_STREAM)
        )

    def _model(self, shape: tuple[int, int, int]) -> DensityModel:
        options = self.options
        conv = options.model == "dagmm" and options.autoencoder == "conv"
        usual_widths = _CONV_WIDTHS if conv else _WIDTHS[options.model]
        widths = usual_widths if options.widths is None else options.widths
        pixels = 2 / 255 if options.backbone == PIXELS else 0.0
        match options.model:
            case "dagmm":
                return MixtureModel(
                    shape[0],
                    widths=widths,
                    code=options.code,
                    gaussians=options.gaussians,
                    dropout=options.dropout,
                    energy_weight=options.energy_weight,
                    variance_weight=options.variance_weight,
                    image=_stack(shape, widths, options.code) if conv else None,
                )
            case "glow":
                return Glow(
                    shape[0],
                    scales=options.scales,
                    steps=options.steps,
                    hidden=widths[0] if widths else _WIDTHS["glow"][0],
                    noise=pixels if options.noise is None else options.noise,
                )
            case "dsebm":
                return EnergyModel(
                    shape,
                    widths=widths,
                    kernel=options.kernels[0],
                    stride=options.stride,
                    dense=options.dense,
                    noise=1.0 if options.noise is None else options.noise,
                    reconstruction=options.score == "reconstruction",
                )
            case "flow":
                return Flow(
                    shape[0],
                    steps=options.steps,
                    kernels=options.kernels,
                    hidden_ratio=options.hidden_ratio,
                    clamp=options.clamp,
                    limit=options.limit,
                    squeezes=options.squeezes,
                    noise=pixels if options.noise is None else options.noise,
                    probability=options.score == "probability",
                )


def _stack(shape: tuple[int, int, int], widths: Sequence[int], code: int) -> StackShape:
    """Return the shape of a convolutional autoencoder of maps, whose latent is a vector."""
    channels, height, width = shape
    if height != width or not widths:
        raise DetectorError(
            f"maps of {height} × {width} have no convolutional autoencoder of {len(widths)} levels",
            remedy="Set --option autoencoder=dense, or widths.",
        )
    return StackShape(
        height,
        tuple(Level(width) for width in widths),
        latent="dense",
        latent_channels=code,
        image_channels=channels,
        norm="none",
    )
