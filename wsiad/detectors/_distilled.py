"""What the detectors share whose student learns a frozen teacher's features."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import pydantic
from torch import Tensor

from wsiad.detectors import _backbone
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors._layers import THREE_DEPTHS, DefaultLayers
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, group, images
from wsiad.learning.capabilities import Embedding
from wsiad.learning.crops import check_size
from wsiad.learning.detector import (
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.recipe import Recipe
from wsiad.networks import features
from wsiad.networks.backbones import AUTO, settle
from wsiad.networks.distillation import Combine, Distillation, combined, place_distances
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.vgg import Padding

_Count = Annotated[int, pydantic.Field(ge=1)]


class DistilledOptions(BackboneOptions, TrainedOptions):
    """Options of every detector with a student and a teacher."""

    backbone: str = AUTO
    """The teacher: a torchvision classification network, such as squeezenet1_1 or resnet18, or
    one of timm, such as timm/convnext_atto; ``auto`` as for all on frozen features."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is learnt, from the finest; by default the ends of SqueezeNet's three
    resolutions, or ``layer1``, ``layer2`` and ``layer3`` of a ResNet."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    combine: Combine = "product"
    """How the distances of the layers at a place become one."""
    batch: _Count = 32
    """Tiles a step."""
    val_interval: _Count = 200
    """Steps between two looks at the held-out healthy tiles."""

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"places", "combine"}

    default_layers: ClassVar[DefaultLayers] = THREE_DEPTHS
    """Of the method."""

    def chosen_layers(self) -> tuple[str, ...]:
        """Return the layers given, or the backbone's defaults."""
        return self.layers or self.default_layers.of(self.backbone)


class DistilledDetector(TrainedDetector):
    """A detector that scores places by how far a student is from its teacher there.

    A subclass makes the student (:meth:`student`), says what it minimises
    (:meth:`distances`) and how (:meth:`recipe`).
    """

    Options: ClassVar[type[DetectorOptions]] = DistilledOptions
    options: DistilledOptions

    @abstractmethod
    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with a student whose weights are drawn from a seed."""

    @abstractmethod
    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss (N,) of every layer, of features (N, C, h, w)."""

    @abstractmethod
    def recipe(self) -> Recipe:
        """Return how the student is trained."""

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the student on random windows; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The backbone or a layer is unknown, the tiles or features are too small, or the
            training diverged.
        WeightsError
            The teacher's weights are not at hand.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device = context.device
        chosen = settle(
            self.options.backbone,
            context.weights,
            seed=context.seed,
            arguments=self.options.backbone_args,
        )
        found = chosen.weights
        options = self.options = self.options.model_copy(update={"backbone": chosen.name})
        padding = features.stated_padding(found.metadata)
        source = None if found.random else found.source
        teacher = self._teacher(found.tensors, padding, source=source)
        distillation = self._placed(self.distillation(teacher, seed=context.seed))
        self._network = distillation

        def loss(windows: Tensor) -> Tensor:
            distances = self.distances(*distillation(images(windows)))
            return sum(distances[1:], start=distances[0])

        self._about = {
            **_backbone.about(found, teacher, name=options.backbone),
            "layers": list(options.chosen_layers()),
            "padding": padding,
        }
        result = self._train(
            distillation.student,
            loss,
            tiles=tiles,
            context=context,
            identity={"weights": found.sha256},
            recipe=self.recipe(),
            started=started,
        )
        return self._report(result, distillation.student)

    def places(self, images: Tensor) -> Tensor:
        """Return the distance between student and teacher at every place."""
        options = self.options
        return combined(place_distances(*self.network()(images)), options.places, options.combine)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the teacher's features: of length 1 at every place and layer, then averaged."""
        distillation = self.network()
        assert isinstance(distillation, Distillation)
        return self.embed_images(distillation.directions, tiles)

    def empty(self, state: State) -> Distillation:
        """Return teacher and student of the state's shapes."""
        self.options = _backbone.restored(self.options, state.values)
        tensors, padding = group(state, "teacher.network"), state.values["padding"]
        return self.distillation(self._teacher(tensors, padding), seed=0)

    def _teacher(
        self, tensors: Mapping[str, Tensor], padding: Padding, *, source: str | None = None
    ) -> BackboneFeatures:
        options = self.options
        teacher = BackboneFeatures(
            options.backbone,
            options.chosen_layers(),
            options.places,
            tensors,
            padding=padding,
            arguments=options.backbone_args,
            normalisation=options.normalisation(),
            source=source,
        )
        teacher.check_places(self.spec.size)
        return teacher
