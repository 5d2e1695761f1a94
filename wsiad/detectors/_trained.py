"""The base of detectors whose network is trained by the common loop: fit, scores, state.

It also holds what is common to detectors whose student learns the features of a frozen teacher.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError, WsiadError
from wsiad.detectors import _backbone
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors._features import THREE_DEPTHS, DefaultLayers
from wsiad.detectors._stored import in_batches
from wsiad.learning.batches import check_size, on_device, random_crops, sample
from wsiad.learning.checkpoint import Recipe
from wsiad.learning.detector import (
    Detector,
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Scores,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.loop import Training, TrainingResult
from wsiad.learning.step import Loss
from wsiad.learning.training_options import BatchSize, LoopOptions, ValInterval
from wsiad.networks import features
from wsiad.networks.distillation import Combine, Distillation, combined, place_distances
from wsiad.networks.encoder import Encoder
from wsiad.networks.encoder_network import stage_layers
from wsiad.networks.features import AUTO, BackboneFeatures
from wsiad.networks.vgg import Padding

SCORE_BATCH = 128

M = TypeVar("M", bound=nn.Module)


class TrainedOptions(DetectorOptions, LoopOptions):
    """Options of every detector whose network is trained."""

    later: ClassVar[Mapping[str, Any]] = {}
    """Options of later versions, with the values that change nothing."""

    @pydantic.model_serializer(mode="wrap")
    def _without_later_options(
        self, whole: pydantic.SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out an option of a later version if it changes nothing: old runs stay equal."""
        values: dict[str, Any] = whole(self)
        return {k: v for k, v in values.items() if k not in self.later or v != self.later[k]}

    def identity(self, *, limit: int) -> dict[str, Any]:
        """Return the values on which the weights after a given step depend, as JSON."""
        own = type(self).model_fields.keys() - LoopOptions.model_fields.keys()
        values = self.model_dump(mode="json", include=set(own) - self.scoring_only)
        if values.get("encoder") is None:  # as in checkpoints of before there were any
            values.pop("encoder", None)
        return {**super().identity(limit=limit), **values}


class TrainedDetector(Detector):
    """A detector that consists of one network, which is trained completely or in part.

    A subclass fits (:meth:`fit`, with :meth:`_train` and :meth:`_report`), defines how images
    are scored (:meth:`places`), and makes a network into which a state fits (:meth:`empty`).
    """

    Options: ClassVar[type[DetectorOptions]] = TrainedOptions
    options: TrainedOptions

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._network: nn.Module | None = None
        self._device = torch.device("cpu")
        self._about: dict[str, Any] = {}

    @abstractmethod
    def places(self, images: Tensor) -> Tensor:
        """Score the places of RGB images, float32 (N, 3, S, S) in [0, 1]: (N, m, m)."""

    @abstractmethod
    def empty(self, state: State) -> nn.Module:
        """Return a network whose tensors have the names and shapes of the state's."""

    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places of tiles; see :meth:`Detector.score_places`."""
        self.network().eval()
        with torch.inference_mode():
            scores = [
                self.places(images(on_device(tiles[i : i + SCORE_BATCH], self._device)))
                for i in range(0, len(tiles), SCORE_BATCH)
            ]
        if not scores:
            return np.zeros((0, 1, 1), np.float32)
        return torch.cat(scores).float().cpu().numpy()

    def embed_images(self, function: Callable[[Tensor], Tensor], tiles: Tiles) -> Embedding:
        """Return vectors (N, D) of tiles, by a function of images (N, 3, S, S) in [0, 1]."""
        self.network().eval()
        return in_batches(
            lambda part: function(images(part)), tiles, self._device, batch=SCORE_BATCH
        )

    def state(self) -> State:
        """Return the tensors of the network."""
        tensors = self.network().state_dict()
        return State(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            dict(self._about),
        )

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector."""
        try:
            network = self.empty(state)
            network.load_state_dict(state.tensors)
        except (LookupError, TypeError, RuntimeError, ValueError, WsiadError) as error:
            raise DetectorError(f"the state is not that of this detector ({error})") from error
        self._device, self._about = device, dict(state.values)
        self._network = self._placed(network)

    def network(self) -> nn.Module:
        """Return the network.

        Raises
        ------
        DetectorError
            The detector is not fitted yet.
        """
        if self._network is None:
            raise DetectorError("the detector is not fitted yet")
        return self._network

    def network_as(self, kind: type[M]) -> M:
        """Return the fitted network, which is of a kind.

        Raises
        ------
        DetectorError
            The detector is not fitted yet.
        """
        found = self.network()
        assert isinstance(found, kind)
        return found

    def _placed(self, module: M) -> M:
        module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def _healthy_windows(
        self, tiles: TileSource, most: int, *, seed: int, stream: int
    ) -> Iterator[Tensor]:
        """Yield batches of random windows, uint8 (N, S, S, 3), of at most so many healthy tiles.

        They follow from the seed, and from the stream that keeps them apart from other draws.
        """
        _, batches = sample(tiles, most, batch=self.options.batch, seed=seed)
        for index, part in enumerate(batches):
            whole = on_device(part, self._device)
            yield random_crops(whole, self.spec.size, seed=seed, step=stream + index)

    def _train(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        tiles: HealthyTiles,
        context: FitContext,
        identity: dict[str, Any],
        recipe: Recipe,
        options: LoopOptions | None = None,
        started: float | None = None,
        size: int | None = None,
    ) -> TrainingResult:
        """Train a part of the network; see :class:`~wsiad.learning.loop.Training`.

        Windows have the size of the input, or ``size`` if it is larger.
        """
        training = Training(
            module,
            loss,
            tiles=tiles,
            size=size or self.spec.size,
            options=options or self.options,
            context=context,
            identity=identity,
            started=time.monotonic() if started is None else started,
            recipe=recipe,
            whole=context.whole if isinstance(context, PartContext) else None,
        )
        return training.run()

    def _report(self, result: TrainingResult, module: nn.Module) -> FitReport:
        """Return the report on the training of a module."""
        notes = {
            **self._about,
            "parameters": sum(p.numel() for p in module.parameters()),
            "best_step": result.best_step,
            "best_stop_loss": result.best_loss,
            "training_seconds": round(result.seconds, 1),
        }
        return FitReport(ended_by=result.ended_by, steps=result.steps, notes=notes)


@dataclass(frozen=True, slots=True)
class PartContext(FitContext):
    """Context of a training before the last one, with that of the complete fit, ``whole``."""

    whole: FitContext | None = None


def before_the_last(context: FitContext, name: str, *, share: float = 0.5) -> PartContext:
    """Return the context of a training before the last one, with a folder of its own.

    It has a share of the time, half of it by default.
    """
    folder = context.folder / name
    folder.mkdir(exist_ok=True)
    minutes = context.budget.max_minutes
    budget = replace(context.budget, max_minutes=minutes and minutes * share)
    same = {one.name: getattr(context, one.name) for one in fields(FitContext)}
    return PartContext(**same | {"folder": folder, "budget": budget}, whole=context)


def after(before: TrainingResult, context: FitContext) -> FitContext:
    """Return the context of the last training, which has the time that is left."""
    minutes = context.budget.max_minutes
    left = minutes and max(minutes - before.seconds / 60, 1e-9)
    return replace(context, budget=replace(context.budget, max_minutes=left))


def about_training(result: TrainingResult) -> dict[str, Any]:
    """Return the facts about a training before the last one that a run records, as JSON values."""
    return {
        "ended_by": result.ended_by,
        "steps": result.steps,
        "best_stop_loss": result.best_loss,
    }


def images(windows: Tensor) -> Tensor:
    """Turn windows, uint8 (N, S, S, 3), into images (N, 3, S, S) in [0, 1], channels last."""
    return windows.permute(0, 3, 1, 2).float() / 255


def group(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a state whose names begin with ``prefix.``, without this prefix."""
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in state.tensors.items() if k.startswith(start)}


_Count = Annotated[int, pydantic.Field(ge=1)]


_TEACHER = "teacher.network."


class DistilledOptions(BackboneOptions, TrainedOptions):
    """Options of every detector with a student and a teacher."""

    backbone: str = AUTO
    """Teacher network: a torchvision classification network, such as squeezenet1_1 or resnet18, or
    one of timm, such as timm/convnext_atto. ``auto`` is as for all detectors on frozen features."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is learnt, from the finest. Default: the ends of SqueezeNet's three
    resolutions, or ``layer1``, ``layer2`` and ``layer3`` of a ResNet."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    combine: Combine = "product"
    """Way in which the distances of the layers at a place are combined."""
    batch: BatchSize = 32
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = (
        TrainedOptions.scoring_only | BackboneOptions.scoring_only | {"places", "combine"}
    )

    default_layers: ClassVar[DefaultLayers] = THREE_DEPTHS
    """The layers that the method uses by default."""

    def chosen_layers(self) -> tuple[str, ...]:
        """Return the chosen layers, or the backbone's defaults."""
        return self.layers or self.default_layers.of(self.backbone)

    def for_encoder(self, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
        """Return the options that depend on the encoder; see :class:`BackboneOptions`."""
        layers = self.layers or (stage_layers(encoder, names) if names else None)
        return super().for_encoder(encoder, names) | {"layers": layers}


class DistilledDetector(TrainedDetector):
    """A detector that scores a place by the distance between a student and its teacher there.

    A subclass makes the student (:meth:`distillation`), and defines what it minimises
    (:meth:`distances`) and how (:meth:`recipe`).
    """

    Options: ClassVar[type[DetectorOptions]] = DistilledOptions
    options: DistilledOptions

    @abstractmethod
    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with a student whose weights are drawn from a seed."""

    @abstractmethod
    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss (N,) of every layer, from features (N, C, h, w)."""

    @abstractmethod
    def recipe(self) -> Recipe:
        """Return the recipe by which the student is trained."""

    def prepared(
        self, teacher: BackboneFeatures, tiles: HealthyTiles, context: FitContext
    ) -> dict[str, Any]:
        """Choose what the student needs to know of healthy features; return it for the record."""
        return {}

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the student on random windows; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The backbone or a layer is unknown, the tiles or features are too small, or the
            training diverged.
        WeightsError
            The teacher's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device = context.device
        self.options, found = _backbone.settled(self.options, context, self.spec)
        options = self.options
        padding = features.stated_padding(found.metadata)
        source = None if found.random else found.source
        teacher = self._teacher(found.tensors, padding, source=source)
        known = self.prepared(teacher, tiles, context)
        distillation = self._placed(self.distillation(teacher, seed=context.seed))
        self._network = distillation

        def loss(windows: Tensor) -> Tensor:
            distances = self.distances(*distillation(images(windows)))
            return sum(distances[1:], start=distances[0])

        self._about = {
            **_backbone.about(found, teacher, options, edge=self.spec.size),
            "layers": list(options.chosen_layers()),
            "padding": padding,
            **known,
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
        return self.embed_images(self.network_as(Distillation).directions, tiles)

    def state(self) -> State:
        """Return the tensors of the student, and of the teacher if the run holds them."""
        state = super().state()
        if _backbone.carried(state.values):
            return state
        own = {n: tensor for n, tensor in state.tensors.items() if not n.startswith(_TEACHER)}
        return State(own, state.values)

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector; see :meth:`FeatureDetector.load_state`."""
        found = _backbone.found_again(self.options, state.values)
        if found is not None:
            self.options = _backbone.restored(self.options, state.values)
            teacher = self._teacher(found.tensors, state.values["padding"], source=found.source)
            tensors = {_TEACHER + n: one for n, one in teacher.network.state_dict().items()}
            state = State(state.tensors | tensors, state.values)
        super().load_state(state, device)
        teacher = self.network_as(Distillation).teacher
        _backbone.check_same(teacher, state.values, edge=self.spec.size)

    def empty(self, state: State) -> Distillation:
        """Return a teacher and a student of the state's shapes."""
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
            encoder=options.encoder,
        )
        teacher.check_places(self.spec.size)
        return teacher
