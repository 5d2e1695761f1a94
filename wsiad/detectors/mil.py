"""Multiple-instance learning: slides have labels, and nobody has marked where the anomaly is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.core.labels import LabelsOf
from wsiad.core.terminal import Progress
from wsiad.detectors._features import FeatureDetector
from wsiad.detectors._labelled import LabelledOptions, standardisation
from wsiad.detectors._stored import Vectors, finite
from wsiad.learning.batches import centre_crops, on_device
from wsiad.learning.detector import (
    AnomalousTiles,
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    TileSource,
)
from wsiad.learning.feature_source import Statistics
from wsiad.learning.slide_labels import anomalous_bags, healthy_bags
from wsiad.learning.training_options import LearningRate
from wsiad.learning.training_progress import TrainingProgress
from wsiad.networks.bag_pooling import (
    AttentionOfBag,
    BagClassifier,
    ExtremesOfBag,
    HighestOfBag,
)
from wsiad.networks.conv_stack import BoundedNumbers

_AT_ONCE = 64
_PREFIX = "network."
_Count = Annotated[int, pydantic.Field(ge=1)]


class MilOptions(LabelledOptions):
    """Options of ``mil``."""

    pool: Literal["max", "minmax", "attention"] = "max"
    """Way in which tiles decide their slide's label: by the highest (MIL of Campanella), by the
    highest and lowest (CHOWDER), or by gated attention (ABMIL)."""
    top: _Count = 1
    """Number of a slide's highest tiles that decide, for ``max``."""
    extremes: _Count = 5
    """Number of a slide's highest, and of its lowest tiles that decide, for ``minmax``."""
    hidden: Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)] | None = None
    """Widths of the hidden layers. Default: 200 and 100 for ``minmax``, 512 for ``attention``
    (one width); ``max`` has none."""
    attention: _Count = 128
    """Number of channels of the attention, for ``attention``."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    """Share of hidden units that are left out in training, for ``minmax``."""
    bag_tiles: _Count = 1_000
    """Maximum number of tiles of a slide to learn from, drawn by the seed."""
    steps: _Count = 500
    """Number of optimiser steps; the run's ``--max-steps`` can set a smaller limit."""
    batch: Annotated[int, pydantic.Field(ge=2)] = 10
    """Number of slides in a step, half of them anomalous."""
    learning_rate: LearningRate = 1e-3
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-4
    """Decoupled weight decay of Adam."""
    augment: Literal[False] = False
    """Tiles are learnt in their stored orientation alone."""

    @pydantic.model_validator(mode="after")
    def _widths_fit(self) -> MilOptions:
        if self.hidden is not None and self.pool == "max":
            raise ValueError("`hidden` is not for `pool: max`, which is linear")
        if self.hidden is not None and self.pool == "attention" and len(self.hidden) != 1:
            raise ValueError("`hidden` is one width for `pool: attention`")
        return self

    def network(self, width: int) -> BagClassifier:
        """Return an untrained classifier of bags of vectors with ``width`` channels."""
        match self.pool:
            case "max":
                return HighestOfBag(width, top=self.top)
            case "minmax":
                return ExtremesOfBag(
                    width,
                    extremes=self.extremes,
                    hidden=self.hidden or (200, 100),
                    dropout=self.dropout,
                )
            case "attention":
                hidden = self.hidden[0] if self.hidden else 512
                return AttentionOfBag(width, hidden=hidden, attention=self.attention)


class MultipleInstances(FeatureDetector):
    """Logit of a tile from a classifier of slides, which has seen the labels of slides alone.

    All tiles of a healthy slide are healthy; of a slide with an anomaly, some tile shows it, and
    nobody knows which. A classifier of bags of frozen features learns to tell the slides apart
    (binary cross-entropy, as many healthy as anomalous ones in a step). The score of a tile is
    the logit of a bag that holds it alone. Where the source of the healthy tiles does not know
    their slides, they are dealt into bags as large as the anomalous ones.

    Notes
    -----
    Campanella et al., Nature Medicine 2019 (``max``); Courtiol et al. 2018, arXiv 1802.02212
    (``minmax``); Ilse, Tomczak & Welling, ICML 2018, arXiv 1802.04712 (``attention``). Here the
    features are frozen, standardised by the healthy tiles, and of a window of each tile.
    """

    Options: ClassVar[type[DetectorOptions]] = MilOptions
    options: MilOptions
    uses_anomalies: ClassVar[bool | Literal["needed"]] = "needed"
    labels_of: ClassVar[LabelsOf] = "slides"
    at_once: ClassVar[int] = _AT_ONCE

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Refuse: these methods learn from labels of slides."""
        raise DetectorError("this detector cannot learn from healthy vectors alone")

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Learn from healthy slides and from slides with an anomaly somewhere.

        Raises
        ------
        DetectorError
            There are no anomalous slides, the backbone or a layer does not fit, or the training
            diverged.
        WeightsError
            The backbone's weights are not on this machine.
        """
        if context.anomalies is None:
            raise DetectorError("learns from labels of slides, and there are no anomalous slides")
        about = self._open(context)
        bags = self._bags(tiles, context.anomalies, context)
        healthy = torch.cat([bag for bag, strange in bags if not strange]).numpy()
        mean, deviation = standardisation(healthy)
        parts = tuple(
            [(bag - mean) / deviation for bag, strange in bags if strange == wanted]
            for wanted in (False, True)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            with BoundedNumbers():
                network = self.options.network(healthy.shape[1])
            steps, ended_by, loss = self._train(network, parts[0], parts[1], context=context)
        weights = {_PREFIX + name: value.detach() for name, value in network.state_dict().items()}
        fitted = {"mean": mean, "deviation": deviation, **weights}
        self._fitted = {name: tensor.to(self._device) for name, tensor in fitted.items()}
        self._about = {
            **about,
            "layers": list(self.options.chosen_layers()),
            "tiles": len(healthy),
            "anomalous_slides": len(parts[1]),
            "healthy_slides": len(parts[0]),
            "unlabelled_tiles": sum(map(len, parts[1])),
            "channels": healthy.shape[1],
            "loss": loss,
        }
        return FitReport(ended_by=ended_by, steps=steps, notes=dict(self._about))

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the logit of each vector, as the only one of its slide."""
        network = self.options.network(vectors.shape[1]).to(vectors.device).eval()
        found = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in fitted.items()
            if name.startswith(_PREFIX)
        }
        network.load_state_dict(found)
        with torch.inference_mode():
            return network.alone((vectors - fitted["mean"]) / fitted["deviation"])

    def _wanted(self) -> Statistics:
        return self.options.statistics

    def _embedded(self) -> Statistics:
        return self.options.statistics

    def _bags(
        self, tiles: HealthyTiles, anomalies: AnomalousTiles, context: FitContext
    ) -> list[tuple[Tensor, bool]]:
        """Return the vectors of each slide, (n, D), and whether it has an anomaly; by name."""
        most, seed = self.options.bag_tiles, context.seed
        strange = anomalous_bags(anomalies, most=most, seed=seed)
        usual = sum(len(bag) for bag in strange) / len(strange)
        healthy = healthy_bags(tiles.fit, most=most, usual=round(usual), seed=seed)
        total = sum(len(bag) for bag in (*healthy, *strange))
        found = []
        with Progress("features", total=total, unit="tile", quiet=context.quiet) as progress:
            for part, label in ((healthy, False), (strange, True)):
                for source in {id(bag.source): bag.source for bag in part}.values():
                    mine = [bag for bag in part if bag.source is source]
                    positions = np.unique(np.concatenate([bag.positions for bag in mine]))
                    vectors = torch.cat(list(self._vectors(source, positions, progress)))
                    finite(vectors.numpy())
                    for bag in mine:
                        rows = torch.from_numpy(np.searchsorted(positions, bag.positions))
                        found.append((bag.name, vectors[rows], label))
        return [(vectors, label) for _, vectors, label in sorted(found, key=_name)]

    def _vectors(
        self, source: TileSource, positions: npt.NDArray[np.int64], progress: Progress
    ) -> Iterator[Tensor]:
        """Yield the vectors of tiles at sorted positions: stored ones, or of central windows."""
        if (offer := self._offer(source, self.options.statistics)) is not None:
            for vectors in offer.batches(_AT_ONCE, positions):
                progress.update(len(vectors))
                yield vectors
            return
        start = 0
        for part in source.ordered(_AT_ONCE):
            inside = positions[(positions >= start) & (positions < start + len(part))] - start
            start += len(part)
            if len(inside):
                windows = centre_crops(on_device(part[inside], self._device), self.spec.size)
                progress.update(len(inside))
                yield self.whole(windows).cpu()

    def _train(
        self,
        network: BagClassifier,
        healthy: Sequence[Tensor],
        anomalous: Sequence[Tensor],
        *,
        context: FitContext,
    ) -> tuple[int, str, float]:
        """Train on the CPU, where so small a network is fastest and every result is repeatable."""
        options, budget = self.options, context.budget
        limit = min(options.steps, budget.max_steps or options.steps)
        end = time.monotonic() + 60 * (budget.max_minutes or float("inf"))
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        rng = np.random.default_rng([context.seed, len(anomalous)])
        half = options.batch // 2
        target = torch.cat([torch.zeros(half), torch.ones(half)])
        last = 0.0
        network.train()
        with TrainingProgress(limit, budget=budget, quiet=context.quiet) as progress:
            for step in range(limit):
                if step and time.monotonic() > end:
                    return step, "max-minutes", last
                chosen = [
                    bags[number]
                    for bags in (healthy, anomalous)
                    for number in rng.integers(0, len(bags), half)
                ]
                loss = nn.functional.binary_cross_entropy_with_logits(network(chosen), target)
                if not bool(torch.isfinite(loss)):
                    raise DetectorError(
                        f"the loss is not finite at step {step}",
                        remedy="Set a smaller learning_rate.",
                    )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                last = float(loss.detach())
                progress.took(loss=last)
        return limit, "max-steps", last


def _name(found: tuple[str, Any, bool]) -> tuple[bool, str]:
    return found[2], found[0]
