"""The base of detectors that are a head on frozen features, or a network trained from end to end.

The head is the default. The option ``end_to_end`` holds the options of the other training, which is
the published one, and a detector of its own does it. Here is also what such a training draws from:
the labelled anomalous windows.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._heads import HeadDetector, HeadOptions
from wsiad.detectors._trained import TrainedDetector
from wsiad.learning.batches import centre_crops, check_size, on_device, random_crops
from wsiad.learning.detector import (
    AnomalousTiles,
    DetectorOptions,
    Embedding,
    Embeds,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Lessons,
    Scores,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.feature_source import IMPORTED, ComputesFeatures
from wsiad.learning.training_options import LoopOptions

_READ = 64  # anomalous tiles read at once
_STREAM = 1 << 34  # keeps the draws of anomalous windows apart from those of healthy ones
_FIELD = "end_to_end"


def _switched(value: Any) -> Any:
    """Accept true for the defaults of the training, and false for none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


SWITCH = pydantic.BeforeValidator(_switched)
"""Validator of the option ``end_to_end``."""


class EndToEndOptions(HeadOptions):
    """Options of a head, with those of a training from end to end."""

    end_to_end: Annotated[LoopOptions | None, SWITCH] = None
    """Options of a training from end to end; true for its defaults, null for a head."""

    also_end_to_end: ClassVar[frozenset[str]] = frozenset()
    """Options of the method that hold for both networks."""

    @property
    def keep(self) -> Literal["best", "last"]:
        """Weights that are kept, as in :class:`~wsiad.learning.training_options.LoopOptions`."""
        return self.end_to_end.keep if self.end_to_end else "last"

    @pydantic.model_serializer(mode="wrap")
    def _without_what_is_not_set(
        self, whole: pydantic.SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out ``end_to_end`` of a head, as in runs of before there was a choice."""
        values: dict[str, Any] = whole(self)
        return {k: v for k, v in values.items() if k != _FIELD or v is not None}

    @pydantic.model_validator(mode="after")
    def _of_one_network(self) -> Self:
        if self.end_to_end is None:
            return self
        if self.backbone.startswith(IMPORTED):
            raise ValueError("end_to_end trains on tiles, and imported features have none")
        both = {*DetectorOptions.model_fields, *self.also_end_to_end, _FIELD}
        others = [
            name
            for name, field in type(self).model_fields.items()
            if name not in both
            and getattr(self, name) != field.get_default(call_default_factory=True)
        ]
        if others:
            raise ValueError(
                f"{', '.join(others)}: of a head on frozen features; end_to_end has options of its "
                "own"
            )
        return self


class EndToEndDetector(HeadDetector):
    """A head on frozen features, or the network of another detector, by the option ``end_to_end``.

    A subclass makes that other detector (:meth:`whole_network`), which then does everything.
    """

    Options: ClassVar[type[DetectorOptions]] = EndToEndOptions
    options: EndToEndOptions
    network_unless: ClassVar[str] = "end_to_end"
    """Option with which the method needs no pretrained network; empty if it may need one."""
    trained_input_px: ClassVar[int] = 64
    """Edge of the input of a network that is trained from end to end, pixels."""

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._trained = self.whole_network() if self.options.end_to_end else None

    @abstractmethod
    def whole_network(self) -> TrainedDetector:
        """Return the detector whose network is trained from end to end; it embeds tiles too."""

    @classmethod
    def input_size(cls, options: DetectorOptions, *, tile_px: int, mpp: float) -> int:
        """Return the edge of the input; that of a trained network is 64 px by default."""
        if getattr(options, _FIELD) is not None:
            return options.input_px or cls.trained_input_px
        return super().input_size(options, tile_px=tile_px, mpp=mpp)

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Fit the head, or train the network; see the detector of that network."""
        if self._trained is None:
            return super().fit(tiles, context)
        report = self._trained.fit(tiles, context)
        backbone = getattr(self._trained.options, "backbone", self.options.backbone)
        self.options = self.options.model_copy(update={"backbone": backbone})
        return report

    def fit_by_fold(self, tiles: HealthyTiles, lessons: Lessons, context: FitContext) -> FitReport:
        """Fit the head; see :meth:`~wsiad.detectors._labelled.LabelledDetector.fit_by_fold`."""
        self._only_head("a second look would train it once for each fold and once more")
        return super().fit_by_fold(tiles, lessons, context)

    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places of tiles; see :meth:`Detector.score_places`."""
        return self._trained.score_places(tiles) if self._trained else super().score_places(tiles)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the features that are scored, of the backbone or of the trained network."""
        if self._trained is None:
            return super().embed(tiles)
        assert isinstance(self._trained, Embeds)
        return self._trained.embed(tiles)

    def state(self) -> State:
        """Return the state of the head, or of the network."""
        return self._trained.state() if self._trained else super().state()

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector."""
        if self._trained is not None:
            self._trained.load_state(state, device)
        else:
            super().load_state(state, device)

    def feature_identity(self) -> dict[str, Any]:
        """Return the identity of the frozen features; see :class:`StoredFeatureDetector`."""
        self._only_head("its features change with every step")
        return super().feature_identity()

    def opened(self, context: FitContext) -> list[ComputesFeatures]:
        """Load the frozen network; see :class:`StoredFeatureDetector`."""
        self._only_head("there are no features to store")
        return list(super().opened(context))

    def reads(self, source: TileSource) -> bool:
        """Tell whether a source has the features that are scored; a trained network reads tiles."""
        return self._trained is None and super().reads(source)

    def _only_head(self, why: str) -> None:
        if self._trained is not None:
            raise DetectorError(
                f"trains its network from end to end: {why}",
                remedy="Leave out the option end_to_end, for a head on frozen features.",
            )

    def _given(self, names: frozenset[str]) -> dict[str, Any]:
        """Return the values of options that hold for both networks."""
        both = {*DetectorOptions.model_fields, *names}
        return {name: getattr(self.options, name) for name in sorted(both)}


class LabelledWindows:
    """The central windows of anomalous tiles, drawn from in each step of a training.

    Draws are a function of the seed and the step, so that a killed training resumes exactly.

    Parameters
    ----------
    context : FitContext
        Anomalous tiles, seed and device.
    size : int
        Edge of the windows, pixels.

    Raises
    ------
    DetectorError
        There are no anomalous tiles, or they are smaller than the windows.
    """

    def __init__(self, context: FitContext, size: int) -> None:
        if context.anomalies is None:
            raise DetectorError("learns from labelled anomalous tiles, and there are none")
        self._seed, self._device, self._size = context.seed, context.device, size
        self.windows = central_windows(context.anomalies, size)

    def __len__(self) -> int:
        return len(self.windows)

    def identity(self) -> str:
        """Return a digest of the windows, in their order."""
        return hashlib.sha256(self.windows.numpy().tobytes()).hexdigest()

    def drawn(self, count: int, step: int) -> Tensor:
        """Return windows of a step, uint8 (count, S, S, 3), flipped at random, on the device."""
        rng = np.random.default_rng([self._seed, _STREAM, step])
        chosen = torch.from_numpy(rng.integers(0, len(self.windows), count))
        windows = on_device(self.windows[chosen], self._device)
        return random_crops(windows, self._size, seed=self._seed, step=_STREAM + step)

    def mixed(self, windows: Tensor, step: int, *, share: float) -> tuple[Tensor, Tensor]:
        """Return a batch in which each window is, with a probability, replaced by an anomalous one.

        Parameters
        ----------
        windows : Tensor of uint8, (N, S, S, 3)
            Healthy windows on the device.
        step : int
        share : float
            Probability of each.

        Returns
        -------
        windows : Tensor of uint8, (N, S, S, 3)
        anomalous : Tensor of bool, (N,)
        """
        rng = np.random.default_rng([self._seed, _STREAM, step, 1])
        replaced = torch.from_numpy(rng.random(len(windows)) < share)
        count = int(replaced.sum())
        if count:
            windows = windows.clone()
            replaced = replaced.to(windows.device)
            windows[replaced] = self.drawn(count, step)
        return windows, replaced.to(windows.device)


def central_windows(anomalies: AnomalousTiles, size: int) -> Tensor:
    """Return the centres of all anomalous tiles, uint8 (A, size, size, 3), on the CPU."""
    for kind in anomalies.types:
        check_size(kind.tiles.tile, size)
    cpu = torch.device("cpu")
    parts = (part for kind in anomalies.types for part in kind.tiles.ordered(_READ))
    return torch.cat([centre_crops(on_device(part, cpu), size).contiguous() for part in parts])
