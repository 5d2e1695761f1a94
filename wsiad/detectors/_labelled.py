"""The base of detectors that learn from labelled anomalous tiles.

It holds features and cross-validation folds, and small networks on frozen features that are
trained on balanced batches of both classes.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import Progress
from wsiad.detectors._features import (
    MIDDLE,
    DefaultLayers,
    FeatureDetector,
    FeatureOptions,
)
from wsiad.detectors._stored import Vectors
from wsiad.learning.batches import centre_crops, on_device, sample
from wsiad.learning.detector import (
    BY_QUARTERS,
    AnomalousTiles,
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    TileSource,
    turned,
)
from wsiad.learning.feature_source import Statistics, sampled_positions
from wsiad.learning.training_options import LearningRate
from wsiad.networks.encoder import Encoder
from wsiad.networks.weights import SHIPPED

_BATCH = 64
_LEAST_DEVIATION = 0.01  # of the median channel's

Bools = npt.NDArray[np.bool_]


class LabelledOptions(FeatureOptions):
    """Options of every detector that learns from labelled tiles on frozen features."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is used, concatenated. Default: ``features.7`` and ``features.10``
    of SqueezeNet, ``features.17`` and ``features.26`` of VGG19 and of wsiad's network,
    ``features.transition2`` and ``features.transition3`` of a DenseNet, or ``layer2`` and
    ``layer3`` of a ResNet."""
    magnify: Annotated[float, pydantic.Field(ge=1, le=8)] | None = None
    """Factor by which tiles are enlarged before the network. Default: 2, because networks of
    ImageNet know larger objects than nuclei, and 1 for wsiad's network."""
    statistics: Literal["mean", "mean-std"] = "mean-std"
    """Statistics of a tile's features: their mean over its places, or mean and deviation.
    With ``mean``, a linear method scores every place."""
    fit_tiles: Annotated[int, pydantic.Field(ge=2)] = 4_000
    """Maximum number of healthy tiles to fit on."""
    augment: bool = True
    """Use every anomalous tile in its eight orientations."""

    default_layers: ClassVar[DefaultLayers] = MIDDLE

    def enlarged_by(self) -> float:
        """Return the factor by which tiles are enlarged, including the default."""
        return self.magnify or (1 if self.encoder or self.backbone == SHIPPED else 2)

    def for_imported(self) -> Self:
        """Return the options for imported features: one vector in one orientation."""
        update = {"statistics": "mean", "augment": False}
        return super().for_imported().model_copy(update=update)

    def for_encoder(self, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
        """Return the options that depend on the encoder; one vector has no deviation."""
        update = super().for_encoder(encoder, names)
        return update | ({"statistics": "mean"} if update.get("places") == 1 else {})


@dataclass(frozen=True, slots=True)
class LabelledVectors:
    """Feature vectors to learn from.

    Parameters
    ----------
    healthy, held_out : ndarray of float32, (N, D) and (M, D)
        Vectors of healthy tiles to fit on, and of others (of other slides, if there are enough).
    anomalous : ndarray of float32, (A, D)
        Vectors of anomalous tiles in all their orientations; those of a tile follow each other.
    groups : ndarray of int64, (A,)
        Group of each anomalous vector, which a fold must not split: its slide, or its tile if
        all tiles are of one slide.
    upright : ndarray of bool, (A,)
        True for tiles in their stored orientation.
    """

    healthy: Vectors
    held_out: Vectors
    anomalous: Vectors
    groups: npt.NDArray[np.int64]
    upright: Bools

    def folds(self, most: int, *, seed: int) -> Iterator[tuple[Bools, Bools]]:
        """Yield (fit on, test on) masks over the anomalous vectors; no group is in both.

        There are as many folds as groups, but at most ``most``. The seed decides which groups a
        fold gets. With a single group there are no folds.
        """
        names = np.unique(self.groups)
        count = min(most, len(names))
        if count < 2:
            return
        order = np.random.default_rng([seed, len(names)]).permutation(names)
        for fold in range(count):
            test = np.isin(self.groups, order[fold::count])
            yield ~test, test & self.upright


class LabelledDetector(FeatureDetector):
    """A detector that distinguishes anomalous from healthy tiles by frozen features.

    A subclass learns from feature vectors of complete tiles (:meth:`fit_labelled`) and scores
    them (:meth:`distance`).
    """

    Options: ClassVar[type[DetectorOptions]] = LabelledOptions
    options: LabelledOptions
    uses_anomalies: ClassVar[bool | Literal["needed"]] = "needed"
    at_once: ClassVar[int] = _BATCH
    linear: ClassVar[bool] = False
    """True if the mean of the scores of places is the score of the mean of the places."""

    @abstractmethod
    def fit_labelled(
        self, vectors: LabelledVectors, context: FitContext
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what is kept, float32 tensors on the CPU, and notes for the run."""

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Refuse: these methods learn from labels."""
        raise DetectorError("this detector cannot learn from healthy vectors alone")

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Learn from healthy and anomalous tiles.

        Of a tile larger than the input, one window is used: the central one of an anomalous tile,
        a random one of a healthy tile.

        Raises
        ------
        DetectorError
            There are no anomalous tiles, or the tiles, the backbone or a layer do not fit.
        WeightsError
            The backbone's weights are not on this machine.
        """
        if context.anomalies is None:
            raise DetectorError("learns from labelled anomalous tiles, and there are none")
        about = self._open(context)
        vectors = self._labelled(tiles, context.anomalies, context)
        fitted, notes = self.fit_labelled(vectors, context)
        self._fitted = {name: tensor.to(self._device) for name, tensor in fitted.items()}
        self._about = {
            **about,
            "layers": list(self.options.chosen_layers()),
            "tiles": len(vectors.healthy),
            "anomalous_tiles": int(vectors.upright.sum()),
            "channels": vectors.healthy.shape[1],
            **notes,
        }
        ended_by, steps = notes.get("ended_by", "fitted"), notes.get("steps", 0)
        return FitReport(ended_by=ended_by, steps=steps, notes=dict(self._about))

    def _wanted(self) -> Statistics:
        """Return the features of places if the method is linear in their means, else of tiles."""
        by_place = self.linear and self.options.statistics == "mean"
        return "places" if by_place else self.options.statistics

    def _embedded(self) -> Statistics:
        """Return the vectors that are learnt: mean, and deviation, of each tile's features."""
        return self.options.statistics

    def _check_fitted(self, fitted: dict[str, Tensor]) -> None:
        shape = (1, self.spec.size, self.spec.size, 3)
        vectors = self.whole(torch.zeros(shape, dtype=torch.uint8, device=self._device))
        self.distance(vectors, {name: tensor.to(self._device) for name, tensor in fitted.items()})

    def _labelled(
        self, tiles: HealthyTiles, anomalies: AnomalousTiles, context: FitContext
    ) -> LabelledVectors:
        healthy = self._healthy(tiles.fit, context, self.options.fit_tiles)
        held_out = self._healthy(tiles.stop, context, max(2, self.options.fit_tiles // 4))
        ways = BY_QUARTERS if self.options.augment else BY_QUARTERS[:1]
        anomalous = np.concatenate([self._turned(kind.tiles, ways) for kind in anomalies.types])
        slides = [slide for kind in anomalies.types for slide in kind.slides]
        result = LabelledVectors(
            healthy=healthy,
            held_out=held_out,
            anomalous=anomalous,
            groups=np.repeat(_groups(slides), len(ways)),
            upright=np.arange(len(anomalous)) % len(ways) == 0,
        )
        for name in ("healthy", "held_out", "anomalous"):
            if not np.isfinite(getattr(result, name)).all():
                raise DetectorError("features are not finite; the weights are damaged")
        return result

    def _turned(self, tiles: TileSource, ways: Sequence[int]) -> Vectors:
        """Return the vectors of tiles in some orientations; those of a tile follow each other."""
        found: dict[int, list[Tensor]] = {}
        for way in ways:
            offer = self._offer(tiles, self.options.statistics, orientation=way)
            if offer is not None:
                found[way] = list(offer.batches(_BATCH))
        missing = [way for way in ways if way not in found]
        for part in tiles.ordered(_BATCH) if missing else ():
            windows = centre_crops(on_device(part, self._device), self.spec.size)
            for way in missing:
                found.setdefault(way, []).append(self.whole(turned(windows, way)).cpu())
        vectors = [torch.cat(found[way]) for way in ways]
        return torch.stack(vectors, dim=1).flatten(0, 1).numpy()

    def _healthy(self, tiles: TileSource, context: FitContext, most: int) -> Vectors:
        offer = self._offer(tiles, self.options.statistics)
        if offer is not None:
            positions = sampled_positions(tiles, most, batch=_BATCH, seed=context.seed)
            order = np.argsort(positions, kind="stable")  # of reading
            read = torch.cat(list(offer.batches(_BATCH, positions[order])))
            return read[torch.from_numpy(np.argsort(order, kind="stable"))].numpy()
        count, batches = sample(tiles, most, batch=_BATCH, seed=context.seed)
        found = []
        with Progress("features", total=count, unit="tile", quiet=context.quiet) as progress:
            for step, part in enumerate(batches):
                windows = self._windows(part, context.seed, step)
                found.append(self.whole(windows).cpu().numpy())
                progress.update(len(part))
        return np.concatenate(found)


def standardisation(vectors: Vectors) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of healthy vectors, (D,) each.

    A channel that hardly varies over healthy tiles is not amplified: no deviation is smaller
    than a hundredth of their median.

    Raises
    ------
    DetectorError
        All healthy tiles are alike.
    """
    exact = vectors.astype(np.float64)
    deviation = exact.std(axis=0)
    usual = float(np.median(deviation[deviation > 0])) if deviation.any() else 0.0
    if usual <= 1e-9 * np.abs(exact).max():
        raise DetectorError("the features of all healthy tiles are alike")
    return (
        torch.from_numpy(exact.mean(axis=0).astype(np.float32)),
        torch.from_numpy(deviation.clip(_LEAST_DEVIATION * usual).astype(np.float32)),
    )


def _groups(slides: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return a group number for each tile: that of its slide, or its own if there is one slide."""
    groups = np.unique(np.asarray(slides), return_inverse=True)[1].astype(np.int64)
    return groups if len(set(slides)) > 1 else np.arange(len(slides), dtype=np.int64)


_Count = Annotated[int, pydantic.Field(ge=1)]
_PREFIX = "network."


class HeadOptions(LabelledOptions):
    """Options of the small networks on frozen features."""

    hidden: _Count = 64
    """Number of units in the hidden layer."""
    steps: _Count = 200
    """Number of optimiser steps; the run's ``--max-steps`` can set a smaller limit."""
    batch: Annotated[int, pydantic.Field(ge=2)] = 64
    """Number of vectors in a step, half of them anomalous."""
    learning_rate: LearningRate = 1e-4
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-2
    """Decoupled weight decay of Adam."""


class HeadDetector(LabelledDetector):
    """A network with one hidden layer on the standardised features of complete tiles.

    A subclass defines the outputs: their number, whether layers have biases, the loss
    (:meth:`loss`), and the score (:meth:`strangeness`).
    """

    Options: ClassVar[type[DetectorOptions]] = HeadOptions
    options: HeadOptions
    bias: ClassVar[bool] = True

    @abstractmethod
    def outputs(self) -> int:
        """Return the number of outputs."""

    @abstractmethod
    def loss(self, healthy: Tensor, anomalous: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the loss of the outputs of a batch, (B, outputs) of each class."""

    @abstractmethod
    def strangeness(self, outputs: Tensor, fixed: dict[str, Tensor]) -> Tensor:
        """Return the score (N,) of outputs (N, outputs)."""

    def fixed(self, network: nn.Module, healthy: Tensor, *, seed: int) -> dict[str, Tensor]:
        """Return tensors that are set before the training and kept."""
        return {}

    def fit_labelled(
        self, vectors: LabelledVectors, context: FitContext
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train on the CPU, where so small a network is fastest and every result is repeatable."""
        mean, deviation = standardisation(vectors.healthy)
        healthy, anomalous = (
            (torch.from_numpy(part) - mean) / deviation
            for part in (vectors.healthy, vectors.anomalous)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            network = _network(healthy.shape[1], self.options.hidden, self.outputs(), self.bias)
        fixed = self.fixed(network, healthy, seed=context.seed)
        steps, ended_by = self._train(
            network, healthy, anomalous=anomalous, fixed=fixed, context=context
        )
        weights = {_PREFIX + name: value.detach() for name, value in network.state_dict().items()}
        fitted = {"mean": mean, "deviation": deviation, **fixed, **weights}
        return fitted, {"steps": steps, "ended_by": ended_by}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the score of each vector; see :meth:`strangeness`."""
        values = (vectors - fitted["mean"]) / fitted["deviation"]
        with torch.inference_mode():
            inner = nn.functional.relu(self._layer(values, fitted, "0"))
            return self.strangeness(self._layer(inner, fitted, "2"), fitted)

    def _layer(self, values: Tensor, fitted: dict[str, Tensor], name: str) -> Tensor:
        bias = fitted[f"{_PREFIX}{name}.bias"] if self.bias else None
        return nn.functional.linear(values, fitted[f"{_PREFIX}{name}.weight"], bias)

    def _train(
        self,
        network: nn.Module,
        healthy: Tensor,
        anomalous: Tensor,
        fixed: dict[str, Tensor],
        context: FitContext,
    ) -> tuple[int, str]:
        options, budget = self.options, context.budget
        limit = min(options.steps, budget.max_steps or options.steps)
        end = time.monotonic() + 60 * (budget.max_minutes or float("inf"))
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        rng = np.random.default_rng([context.seed, len(anomalous)])
        half = options.batch // 2
        for step in range(limit):
            if step and time.monotonic() > end:
                return step, "max-minutes"
            parts = [
                network(values[torch.from_numpy(rng.integers(0, len(values), half))])
                for values in (healthy, anomalous)
            ]
            loss = self.loss(parts[0], parts[1], fixed)
            if not bool(torch.isfinite(loss)):
                raise DetectorError(
                    f"the loss is not finite at step {step}", remedy="Set a smaller learning_rate."
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return limit, "max-steps"


def _network(inputs: int, hidden: int, outputs: int, bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, outputs, bias=bias)
    )
