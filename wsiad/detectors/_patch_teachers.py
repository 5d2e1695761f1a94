"""The base of detectors whose own teacher learns a backbone, and whose students learn the teacher.

Both trainings are on healthy tiles, follow each other, and have a folder each. Teachers and
students see small patches, without padding.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.detectors import _backbone
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors._features import DEEPEST, DefaultLayers
from wsiad.detectors._trained import (
    TrainedDetector,
    TrainedOptions,
    about_training,
    after,
    before_the_last,
    images,
)
from wsiad.learning.batches import centre_crops, check_size, on_device, sample
from wsiad.learning.checkpoint import STEPS_OF, Recipe, adam
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.loop import TrainingResult
from wsiad.learning.step import Loss
from wsiad.learning.training_options import LearningRate
from wsiad.networks import features
from wsiad.networks.distillation import combined
from wsiad.networks.features import AUTO, BackboneFeatures
from wsiad.networks.patch_students import PatchNetwork, TaughtPatches
from wsiad.networks.weights import Weights

_FOLDER = "teachers"
_STREAM = 1 << 34  # keeps the windows of statistics apart from those of the training

_Count = Annotated[int, pydantic.Field(ge=1)]


class PatchTeacherOptions(BackboneOptions, TrainedOptions):
    """Options of every detector whose own teacher learns a backbone."""

    backbone: str = AUTO
    """Network that the teachers learn first, as for all detectors on frozen features. It is not
    needed afterwards."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules of the backbone whose output the teachers learn. Default: the method's."""
    width: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    """Share of the published channels of the networks."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    statistics_tiles: _Count = 2_048
    """Maximum number of healthy tiles from which means, deviations and quantiles are computed."""
    learning_rate: LearningRate = 1e-4
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-5
    """Weight of the squared weights in the loss (L2)."""

    scoring_only: ClassVar[frozenset[str]] = (
        TrainedOptions.scoring_only | BackboneOptions.scoring_only | {"places"}
    )
    default_layers: ClassVar[DefaultLayers] = DEEPEST
    """The layers that the method uses by default."""

    def chosen_layers(self) -> tuple[str, ...]:
        """Return the chosen layers, or the backbone's defaults."""
        return self.layers or self.default_layers.of(self.backbone)


class PatchTeacherDetector(TrainedDetector):
    """A detector whose own teachers learn a backbone, and whose students learn the teachers.

    A subclass makes the networks (:meth:`drawn`) and trains the teachers (:meth:`distil`). What
    the students minimise, and how maps are scored, is of the networks; :meth:`recipe` can say how
    the students are trained.
    """

    Options: ClassVar[type[DetectorOptions]] = PatchTeacherOptions
    default_input_px: ClassVar[int | None] = 64
    options: PatchTeacherOptions

    @abstractmethod
    def drawn(self, seed: int) -> TaughtPatches:
        """Return untrained networks whose weights are drawn from a seed."""

    @abstractmethod
    def distil(
        self,
        network: TaughtPatches,
        found: Weights,
        *,
        tiles: HealthyTiles,
        context: FitContext,
        started: float,
    ) -> TrainingResult:
        """Train the teachers on the features of a backbone of these weights."""

    def recipe(self, network: TaughtPatches, context: FitContext) -> tuple[Recipe, dict[str, Any]]:
        """Return the recipe of the students, and what their checkpoint must also agree with."""
        return Recipe(adam(weight_decay=self.options.weight_decay)), {}

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the teachers, for at most half of ``max_minutes``, then the students.

        Raises
        ------
        DetectorError
            The tiles are too small, or a training diverged.
        WeightsError
            The backbone's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device = context.device
        self.options, found = _backbone.settled(self.options, context, self.spec)
        network = self._placed(self.drawn(context.seed))
        self._check_patches(network)
        self._network = network
        recipe, identity = self.recipe(network, context)
        before = self.distil(network, found, tiles=tiles, context=context, started=started)
        self._about = {
            "backbone": self.options.backbone,
            "weights": found.note(),
            "layers": list(self.options.chosen_layers()),
            "teachers": about_training(before),
        }
        network.teachers.requires_grad_(requires_grad=False)
        network.standardise([signed_images(part) for part in self._statistics(tiles.fit, context)])
        result = self._train(
            network.students,
            lambda windows: network.losses(signed_images(windows)),
            tiles=tiles,
            context=after(before, context),
            identity={
                "part": "students",
                "weights": found.sha256,
                f"{STEPS_OF}teachers": before.steps,
                **identity,
            },
            recipe=recipe,
        )
        network.normalise(list(self._held_out(tiles.stop, context.seed)))
        return self._report(result, network)

    def places(self, images: Tensor) -> Tensor:
        """Return the mean of the maps of scores, (N, m, m)."""
        maps = self._taught().scores(2 * images - 1)
        return combined(maps, self.options.places, "sum") / len(maps)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the teachers' standardised outputs, averaged over the tile, side by side."""
        network = self._taught()
        return self.embed_images(
            lambda part: torch.cat(
                [one.mean(dim=(2, 3)) for one in network.taught(2 * part - 1)], dim=1
            ),
            tiles,
        )

    def empty(self, state: State) -> nn.Module:
        """Return untrained teachers and students."""
        return self.drawn(0)

    def _check_patches(self, network: TaughtPatches) -> None:
        """Check that windows can be extended to the patches of the teachers by mirroring."""
        largest = max(one.patch for one in network.teachers if isinstance(one, PatchNetwork))
        edge, least = self.spec.size, largest // 2 + 1
        if edge < least:
            smaller = ", or smaller patches" if "patches" in type(self.options).model_fields else ""
            raise DetectorError(
                f"windows of {edge} px cannot be extended to patches of {largest} px",
                remedy=f"Set --option input_px={least} at least{smaller}.",
            )

    def _taught(self) -> TaughtPatches:
        network = self.network()
        assert isinstance(network, TaughtPatches)
        return network

    def _backbone_of(self, found: Weights) -> BackboneFeatures:
        """Return the backbone that the teachers learn."""
        return self._placed(
            BackboneFeatures(
                self.options.backbone,
                self.options.chosen_layers(),
                1,
                found.tensors,
                padding=features.stated_padding(found.metadata),
                arguments=self.options.backbone_args,
                normalisation=self.options.normalisation(),
                source=None if found.random else found.source,
                encoder=self.options.encoder,
            )
        )

    def _train_teachers(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        tiles: HealthyTiles,
        context: FitContext,
        started: float,
        sha256: str,
        recipe: Recipe,
        changes: dict[str, Any],
    ) -> TrainingResult:
        """Train a module, in the folder of the teachers, with changed options of the loop."""
        return self._train(
            module,
            loss,
            tiles=tiles,
            context=before_the_last(context, _FOLDER),
            identity={"part": "teachers", "weights": sha256},
            recipe=recipe,
            options=self.options.model_copy(update=changes),
            started=started,
        )

    def _statistics(self, source: TileSource, context: FitContext) -> Iterator[Tensor]:
        """Yield random windows of healthy tiles for means and deviations."""
        most = self.options.statistics_tiles
        return self._healthy_windows(source, most, seed=context.seed, stream=_STREAM)

    def _held_out(self, source: TileSource, seed: int) -> Iterator[Tensor]:
        """Yield the central windows of held-out tiles in [−1, 1]."""
        options = self.options
        _, batches = sample(source, options.statistics_tiles, batch=options.batch, seed=seed)
        for part in batches:
            yield signed_images(centre_crops(on_device(part, self._device), self.spec.size))


def signed_images(windows: Tensor) -> Tensor:
    """Turn windows, uint8 (N, S, S, 3), into images (N, 3, S, S) in [−1, 1]."""
    return 2 * images(windows) - 1
