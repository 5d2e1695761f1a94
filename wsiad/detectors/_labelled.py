"""The base of detectors that learn from labelled anomalous tiles.

It holds features and cross-validation folds: of labelled tiles, to choose by, and of lessons, so
that a slide can be scored without what it taught.
"""

from __future__ import annotations

import copy
import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import Progress
from wsiad.detectors._features import (
    MIDDLE,
    DefaultLayers,
    FeatureDetector,
    FeatureOptions,
)
from wsiad.detectors._stored import Vectors
from wsiad.learning.batches import centre_crops, on_device
from wsiad.learning.checkpoint import (
    CHECKPOINT,
    FOLDS,
    SLIDES,
    Checkpoint,
    read_checkpoint,
)
from wsiad.learning.detector import (
    BY_QUARTERS,
    AnomalousTiles,
    Detector,
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Lessons,
    State,
    TileSource,
    turned,
)
from wsiad.learning.feature_source import Statistics
from wsiad.networks.encoder import Encoder
from wsiad.networks.weights import SHIPPED

_BATCH = 64
_LEAST_DEVIATION = 0.01  # of the median channel's
_FOLD = re.compile(r"fold(\d+)\.(.+)")
_FOLD_OF = "fold_of"

Bools = npt.NDArray[np.bool_]

Fitted = tuple[dict[str, Tensor], dict[str, Any]]
"""Result of learning from vectors: tensors that a method keeps, and notes for the run."""


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

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._folds: tuple[dict[str, Tensor], ...] = ()
        self._fold_of: dict[str, int] = {}

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
        return self._learnt(vectors, context, about=about)

    def fit_by_fold(self, tiles: HealthyTiles, lessons: Lessons, context: FitContext) -> FitReport:
        """Learn from healthy tiles and from the lessons of slides, once for each fold and once all.

        Lessons are used in their stored orientation; healthy ones count with the healthy tiles.
        Features and finished fits are kept in the folder of the context, so that an interrupted
        fit continues there with the same result.

        Raises
        ------
        DetectorError
            The lessons are not of two folds at least that have anomalous windows, or the tiles,
            the backbone or a layer do not fit.
        RunError
            The folder has a damaged checkpoint, or that of another fit.
        WeightsError
            The backbone's weights are not on this machine.
        """
        count = 1 + max(lessons.fold_of.values(), default=0)
        if len(np.unique(lessons.folds[lessons.anomalous])) < 2:
            raise DetectorError("anomalous lessons of one fold leave nothing to learn from without")
        about = self._open(context)
        kept = _Finished(context.folder, self._fit_identity(tiles, lessons, context))
        healthy, held_out, taught = kept.vectors(
            lambda: (
                self._healthy(tiles.fit, context, self.options.fit_tiles),
                self._healthy(tiles.stop, context, max(2, self.options.fit_tiles // 4)),
                self._taught(lessons, context),
            )
        )

        def without(fold: int | None) -> LabelledVectors:
            used = np.ones(len(taught), np.bool_) if fold is None else lessons.folds != fold
            strange = used & lessons.anomalous
            return LabelledVectors(
                healthy=np.concatenate([healthy, taught[used & ~lessons.anomalous]]),
                held_out=held_out,
                anomalous=taught[strange],
                groups=lessons.folds[strange],
                upright=np.ones(int(strange.sum()), np.bool_),
            )

        heads, silent = [], replace(context, quiet=True)  # the folds are counted
        with Progress("folds", total=count, unit="fold", quiet=context.quiet) as progress:
            for fold in range(count):
                part = functools.partial(self.fit_labelled, without(fold), silent)
                heads.append(self._on_device(kept.fit(str(fold), part)[0]))
                progress.update()
        every = without(None)
        found = kept.fit("all", lambda: self.fit_labelled(every, context))
        report = self._reported(every, found, about=about)
        self._folds, self._fold_of = tuple(heads), dict(sorted(lessons.fold_of.items()))
        return report

    def held_out(self, fingerprint: str) -> Detector:
        """Return the detector that a slide did not teach; itself for a slide without lessons."""
        fold = self._fold_of.get(fingerprint)
        if fold is None:
            return self
        other = copy.copy(self)
        other._fitted, other._folds, other._fold_of = self._folds[fold], (), {}
        return other

    def _learnt(
        self, vectors: LabelledVectors, context: FitContext, *, about: dict[str, Any]
    ) -> FitReport:
        """Fit on vectors, and report."""
        return self._reported(vectors, self.fit_labelled(vectors, context), about=about)

    def _reported(
        self, vectors: LabelledVectors, found: Fitted, *, about: dict[str, Any]
    ) -> FitReport:
        """Take what was learnt from vectors as the state, and report."""
        fitted, notes = found
        self._fitted = self._on_device(fitted)
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

    def _on_device(self, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in fitted.items()}

    def _fit_identity(
        self, tiles: HealthyTiles, lessons: Lessons, context: FitContext
    ) -> dict[str, Any]:
        """Return the JSON values that must be equal for a fit by fold to be continued."""
        return {
            "options": self.options.model_dump(mode="json"),
            "input_px": self.spec.size,
            "seed": context.seed,
            "number of tiles": [len(tiles.fit), len(tiles.stop)],
            SLIDES: [getattr(part, "fingerprint", "") for part in (tiles.fit, tiles.stop)],
            "features": self.feature_identity(),
            "lessons": [lessons.digest, len(lessons.anomalous), dict(lessons.fold_of)],
        }

    def _taught(self, lessons: Lessons, context: FitContext) -> Vectors:
        total = len(lessons.anomalous)
        found = []
        with Progress("lessons", total=total, unit="window", quiet=context.quiet) as progress:
            for part in lessons.batches():
                windows = centre_crops(on_device(part, self._device), self.spec.size)
                vectors = [self.whole(some) for some in torch.split(windows, _BATCH)]
                found.append(torch.cat(vectors).cpu().numpy())
                progress.update(len(part))
        return np.concatenate(found)

    def state(self) -> State:
        """Return the state, with that of each fold if there are any."""
        found = super().state()
        if not self._folds:
            return found
        folds = {
            f"fold{number}.{name}": tensor.cpu().contiguous()
            for number, head in enumerate(self._folds)
            for name, tensor in head.items()
        }
        return State({**found.tensors, **folds}, {**found.values, _FOLD_OF: self._fold_of})

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector."""
        heads: dict[int, dict[str, Tensor]] = {}
        tensors = {}
        for key, tensor in state.tensors.items():
            if part := _FOLD.fullmatch(key):
                heads.setdefault(int(part[1]), {})[part[2]] = tensor.to(device)
            else:
                tensors[key] = tensor
        values = dict(state.values)
        fold_of = values.pop(_FOLD_OF, {})
        super().load_state(State(tensors, values), device)
        try:
            folds = tuple(heads[number] for number in range(len(heads)))
            for head in folds:
                self._check_fitted(head)
            for fold in fold_of.values():
                heads[fold]
        except (LookupError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise DetectorError(f"the state is not that of this detector ({error})") from error
        self._folds, self._fold_of = folds, dict(fold_of)

    def _wanted(self) -> Statistics:
        """Return the features of places if the method is linear in their means, else of tiles."""
        by_place = self.linear and self.options.statistics == "mean"
        return "places" if by_place else self.options.statistics

    def _embedded(self) -> Statistics:
        """Return the vectors that are learnt: mean, and deviation, of each tile's features."""
        return self.options.statistics

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
        statistics = self.options.statistics
        return self._of_tiles(tiles, context, most=most, statistics=statistics, batch=_BATCH)


class _Finished:
    """The finished parts of a fit by fold, in its folder, so that a killed one can be continued.

    Parameters
    ----------
    folder : Path
        Folder of the fit.
    identity : dict
        JSON values that must be equal for a fit to continue from what is there.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity
        found = read_checkpoint(folder / FOLDS, identity)
        self._tensors = dict(found.tensors) if found else {}
        self._notes = dict(found.values) if found else {}

    def vectors(self, make: Callable[[], Sequence[Vectors]]) -> list[Vectors]:
        """Return the kept vectors; where there are none, make and keep them.

        Raises
        ------
        DetectorError
            Vectors are not finite.
        RunError
            The kept ones are damaged, or of another fit.
        """
        path = self._folder / CHECKPOINT
        if found := read_checkpoint(path, self._identity):
            return [found.tensors[name].numpy() for name in sorted(found.tensors)]
        made = list(make())
        if not all(np.isfinite(part).all() for part in made):
            raise DetectorError("features are not finite; the weights are damaged")
        tensors = {f"{number}": torch.from_numpy(part) for number, part in enumerate(made)}
        Checkpoint(tensors, {}, self._identity).write(path)
        return made

    def fit(self, name: str, make: Callable[[], Fitted]) -> Fitted:
        """Return the kept fit of a name; where there is none, make and keep it."""
        start = f"{name}."
        if name not in self._notes:
            fitted, notes = make()
            self._tensors |= {start + key: tensor for key, tensor in fitted.items()}
            self._notes[name] = notes
            Checkpoint(self._tensors, self._notes, self._identity).write(self._folder / FOLDS)
        here = Checkpoint(self._tensors, self._notes, self._identity)
        return here.group(name), dict(self._notes[name])


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
