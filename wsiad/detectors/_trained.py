"""What the detectors share whose network is trained by the common loop: fit, scores, state."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError, WsiadError
from wsiad.detectors._batches import in_batches
from wsiad.learning.capabilities import Embedding
from wsiad.learning.crops import on_device
from wsiad.learning.detector import (
    Detector,
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Scores,
    State,
    Tiles,
)
from wsiad.learning.loop import Training
from wsiad.learning.recipe import Recipe
from wsiad.learning.result import TrainingResult
from wsiad.learning.step import Loss
from wsiad.learning.training_options import LoopOptions

SCORE_BATCH = 128

M = TypeVar("M", bound=nn.Module)


class TrainedOptions(DetectorOptions, LoopOptions):
    """Options of every detector whose network is trained."""

    def identity(self, *, limit: int) -> dict[str, Any]:
        """Return the values on which the weights after a given step depend, as JSON."""
        own = type(self).model_fields.keys() - LoopOptions.model_fields.keys()
        values = self.model_dump(mode="json", include=set(own) - self.scoring_only)
        return {**super().identity(limit=limit), **values}


class TrainedDetector(Detector):
    """A detector that is one network, some of it trained.

    A subclass fits (:meth:`fit`, with :meth:`_train` and :meth:`_report`), says how images
    are scored (:meth:`places`), and makes a network that takes up a state (:meth:`empty`).
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
        """Return a network that holds tensors of the state's names and shapes."""

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
        """Return vectors of tiles by a function of images (N, 3, S, S) in [0, 1]: (N, D)."""
        self.network().eval()
        return in_batches(
            lambda part: function(images(part)), tiles, self._device, batch=SCORE_BATCH
        )

    def state(self) -> State:
        """Return the network."""
        tensors = self.network().state_dict()
        return State(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            dict(self._about),
        )

    def load_state(self, state: State, device: torch.device) -> None:
        """Become the detector whose state this is."""
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
            There is none before the fit.
        """
        if self._network is None:
            raise DetectorError("the detector is not fitted yet")
        return self._network

    def _placed(self, module: M) -> M:
        module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

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

        Windows are those of the input, or larger ones.
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
        )
        return training.run()

    def _report(self, result: TrainingResult, module: nn.Module) -> FitReport:
        """Return how the training of a module ended."""
        notes = {
            **self._about,
            "parameters": sum(p.numel() for p in module.parameters()),
            "best_step": result.best_step,
            "best_stop_loss": result.best_loss,
            "training_seconds": round(result.seconds, 1),
        }
        return FitReport(ended_by=result.ended_by, steps=result.steps, notes=notes)


def images(windows: Tensor) -> Tensor:
    """Turn windows, uint8 (N, S, S, 3), into images (N, 3, S, S) in [0, 1], channels last."""
    return windows.permute(0, 3, 1, 2).float() / 255


def group(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a state whose names begin with ``prefix.``, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in state.tensors.items() if k.startswith(start)}
