"""The interface of a detector: fit on healthy tiles, score tiles, keep its state.

A detector knows tiles (uint8, N × H × W × 3) and nothing of slides, stores, heatmaps or command
lines. Every detector scores *places*: an m × m map within the tile (m = 1 without a map). The user
chooses how they are pooled; the pooling and the eight orientations of a square tile are here.

``isinstance(detector, Embeds)`` tells whether a detector can also show what it sees in a tile.
"""

from __future__ import annotations

import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
import pydantic

from wsiad.core.config import UsedOptions
from wsiad.core.geometry import Mpp, TilePx
from wsiad.core.labels import LabelsOf
from wsiad.learning.devices import Ranks
from wsiad.learning.metrics import MetricsFollower

if typing.TYPE_CHECKING:
    import torch

T = TypeVar("T", bound=np.generic)

_WAYS = (
    (1, 1, False),
    (-1, -1, False),
    (-1, 1, False),
    (1, -1, False),
    (1, 1, True),
    (-1, -1, True),
    (-1, 1, True),
    (1, -1, True),
)
"""Steps down and across (-1 mirrors), and whether the tile is transposed afterwards. The first
1, 2, 4 and 8 are groups: unchanged, half a turn, mirrored either way, and all."""

BY_QUARTERS = (0, 7, 1, 6, 4, 3, 5, 2)
"""The eight orientations in another order: quarter turns counter-clockwise, then these mirrored."""


@overload
def turned(squares: npt.NDArray[T], way: int) -> npt.NDArray[T]: ...


@overload
def turned(squares: torch.Tensor, way: int) -> torch.Tensor: ...


def turned(squares: npt.NDArray[T] | torch.Tensor, way: int) -> npt.NDArray[T] | torch.Tensor:
    """Return squares, (N, S, S, ...), in one of the eight orientations; a copy."""
    down, across, transposed = _WAYS[way]
    if not isinstance(squares, np.ndarray):
        mirrored = [axis for axis, step in ((1, down), (2, across)) if step < 0]
        moved = squares.flip(mirrored)
        return moved.transpose(1, 2) if transposed else moved
    found = squares[:, ::down, ::across]
    return np.ascontiguousarray(found.swapaxes(1, 2) if transposed else found)


def turned_back(squares: npt.NDArray[T], way: int) -> npt.NDArray[T]:
    """Return squares in their original orientation, the inverse of :func:`turned`; a copy."""
    down, across, transposed = _WAYS[way]
    found = squares.swapaxes(1, 2) if transposed else squares
    return np.ascontiguousarray(found[:, ::down, ::across])


Tiles = npt.NDArray[np.uint8]
"""RGB tiles, uint8 (N, H, W, 3)."""

Scores = npt.NDArray[np.float32]
"""Anomaly scores; higher is stranger."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The input of a detector: size and scale of its windows.

    Parameters
    ----------
    size : TilePx
        Edge of the square input, pixels.
    mpp : Mpp
        Scale of the input, µm/px.
    """

    size: TilePx
    mpp: Mpp


class TileSource(Protocol):
    """Tiles that a detector can draw from; they can be larger than its input."""

    @property
    def tile(self) -> TilePx:
        """Edge of the square tiles, pixels."""
        ...

    def __len__(self) -> int: ...

    def ordered(self, batch: int) -> Iterator[Tiles]:
        """Yield every tile once in a fixed order, in batches of at most ``batch``."""
        ...

    def shuffled(self, batch: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Tiles]:
        """Yield full batches, from batch ``start`` of an order that seed and epoch decide."""
        ...


@dataclass(frozen=True, slots=True)
class HealthyTiles:
    """Healthy tiles to fit on, and held-out ones that show when to stop.

    They are disjoint by slide if there are enough slides.
    """

    fit: TileSource
    stop: TileSource


@dataclass(frozen=True, slots=True)
class AnomalyType:
    """Labelled anomalous tiles of one type.

    Parameters
    ----------
    name : str
        Name of what they show, such as ``"tumor"``.
    tiles : TileSource
        The tiles.
    slides : tuple of str
        Slide of each tile, in the order of ``tiles.ordered``.
    """

    name: str
    tiles: TileSource
    slides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnomalousTiles:
    """A few labelled anomalous tiles; none of their slides is held out among the healthy ones.

    Parameters
    ----------
    types : tuple of AnomalyType
        Types in the order of their names; at least one.
    """

    types: tuple[AnomalyType, ...]

    def __len__(self) -> int:
        return sum(len(kind.tiles) for kind in self.types)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a fit; the one that is reached first ends it."""

    max_steps: int | None = None
    max_minutes: float | None = None


@dataclass(frozen=True, slots=True)
class FitContext:
    """Circumstances of a fit that do not depend on the method.

    Parameters
    ----------
    seed : int
        Seed; with the same data it gives the same result on the same machine.
    device : torch.device
        Device to compute on.
    folder : Path
        Folder of metrics and checkpoints; a fit that finds its own checkpoint there continues
        from it.
    budget : Budget
        Limits of the fit.
    weights : str or None
        Pretrained weights: a file, ``"random"`` or ``None`` for the method's default.
    quiet : bool
        True for no progress output.
    anomalies : AnomalousTiles or None
        Labelled anomalous tiles, only for methods that declare that they use them.
    ranks : Ranks
        Processes that fit together; more than one only for methods that declare that they can.
    accept_inverted : bool
        True to fit also what is known to be inverted.
    follower : MetricsFollower or None
        Log elsewhere that repeats the metrics.
    """

    seed: int
    device: torch.device
    folder: Path
    budget: Budget = field(default_factory=Budget)
    weights: str | None = None
    quiet: bool = False
    anomalies: AnomalousTiles | None = None
    ranks: Ranks = field(default_factory=Ranks)
    accept_inverted: bool = False
    follower: MetricsFollower | None = None

    def averaged(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        return self.ranks.average_of(value, self.device)

    def agreed(self, value: float) -> float:
        """Return the first process's value, so that all processes continue alike."""
        return self.ranks.agreed(value, self.device)


@dataclass(frozen=True, slots=True)
class FitReport:
    """The end of a fit, and what it has to report.

    Parameters
    ----------
    ended_by : str
        ``"fitted"`` for methods in closed form, otherwise ``"early-stopping"``,
        ``"max-steps"`` or ``"max-minutes"``.
    steps : int
        Number of optimiser steps; 0 for methods in closed form.
    notes : dict
        JSON values that the run reports, such as the source of the weights.
    """

    ended_by: str
    steps: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


Pooling = Annotated[
    Literal["mean", "max", "quantile", "top"],
    pydantic.Field(
        description="Way in which the scores of the places within a tile become the tile's score."
    ),
]
"""Way in which the scores of places become a tile's score; a method sets only the default."""


class DetectorOptions(UsedOptions):
    """Options that every detector has; a detector adds its own."""

    input_px: Annotated[int, pydantic.Field(ge=8)] | None = None
    """Edge of the input in pixels at the store's µm/px; by default the method's own."""
    pooling: Pooling = "mean"
    pooling_quantile: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    """Quantile of the places' scores, for ``pooling: quantile``."""
    pooling_top: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.01
    """Share of the places, the strangest (at least one), for ``pooling: top``."""
    orientations: Literal[1, 2, 4, 8] = 1
    """Number of orientations in which every tile is scored; the mean of each place is taken, since
    tissue has no upside. 2 adds half a turn, 4 also the mirror images, 8 are all. Scoring takes as
    many times longer."""

    scoring_only: ClassVar[frozenset[str]] = frozenset(
        {"pooling", "pooling_quantile", "pooling_top", "orientations", "input_px"}
    )
    """Options on which the fitted state does not depend, so that they can differ between parts."""

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        ways = {"pooling_quantile": "quantile", "pooling_top": "top"}
        why = f"pooling: {self.pooling}"
        return super().uses() | {name: (self.pooling == ways[name], why) for name in ways}

    def own_input_px(self, *, tile_px: int, mpp: float) -> int | None:
        """Return the edge of windows, pixels, that these options call for; ``None`` for any.

        Tiles have an edge of ``tile_px`` pixels at ``mpp`` µm/px.
        """
        return None

    def known_inverted(self) -> str:
        """Return the measurement in which these options were inverted; empty if there is none."""
        return ""


@dataclass(frozen=True, slots=True)
class State:
    """The complete state of a fitted detector: tensors for safetensors, values for JSON."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


class Detector(ABC):
    """A method that learns what healthy tiles look like.

    Parameters
    ----------
    options : DetectorOptions
        Options of the subclass's own ``Options`` class.
    spec : InputSpec
        Size and scale of the input.
    """

    Options: ClassVar[type[DetectorOptions]] = DetectorOptions
    default_input_px: ClassVar[int | None] = None
    """Input size if the options set none; ``None`` for that of the stored tiles."""
    uses_anomalies: ClassVar[bool | Literal["needed"]] = False
    """True if :attr:`FitContext.anomalies` is used, ``"needed"`` if it is required."""
    labels_for: ClassVar[str] = ""
    """Option and value with which they are needed, such as ``objective: compact``."""
    labels_of: ClassVar[LabelsOf] = "tiles"
    """Subject of the labels that it learns from."""
    uses_ranks: ClassVar[bool] = False
    """True if several processes can fit it together."""
    remembers_tiles: ClassVar[bool] = False
    """True if features of the tiles of the fit are kept, so that it finds none of them strange."""

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        self.options = options
        self.spec = spec

    @classmethod
    def learns_from_anomalies(cls, options: DetectorOptions) -> bool | Literal["needed"]:
        """Return :attr:`uses_anomalies`, or an answer that depends on these options."""
        option, _, value = cls.labels_for.partition(": ")
        return "needed" if option and getattr(options, option) == value else cls.uses_anomalies

    @classmethod
    def input_size(cls, options: DetectorOptions, *, tile_px: int, mpp: float) -> int:
        """Return the edge of the input, pixels: that of the options, the method or the tiles."""
        own = options.input_px or options.own_input_px(tile_px=tile_px, mpp=mpp)
        return own or cls.default_input_px or tile_px

    @abstractmethod
    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Learn from healthy tiles.

        Raises
        ------
        DetectorError
            The tiles are too few or too small.
        WeightsError
            Pretrained weights are not on this machine.
        """

    @abstractmethod
    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places within tiles in their own orientation.

        Callers should use :meth:`score_map`, which follows the option ``orientations``.

        Parameters
        ----------
        tiles : ndarray of uint8, (N, size, size, 3)
            RGB at the input size and scale of the detector.

        Returns
        -------
        ndarray of float32, (N, m, m)
            Anomaly scores of m × m equal parts of each tile; higher is stranger.
        """

    @abstractmethod
    def state(self) -> State:
        """Return the state from which :meth:`load_state` makes an equal detector."""

    @abstractmethod
    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector.

        Raises
        ------
        DetectorError
            The state does not belong to this method.
        """

    def score_map(self, tiles: Tiles) -> Scores:
        """Score the places within tiles, float32 (N, m, m): the mean over their orientations.

        With one orientation this is :meth:`score_places`. With several, a tile that is turned
        into one of them has the same map, turned likewise. Averaging over such views is the
        usual test-time augmentation (Krizhevsky, Sutskever & Hinton, NIPS 2012, section 4.1).
        """
        count = self.options.orientations
        if count == 1:
            return self.score_places(tiles)
        maps = (turned_back(self.score_places(turned(tiles, k)), k) for k in range(count))
        total = sum((one.astype(np.float64) for one in maps), start=np.float64(0))
        return np.asarray(total / count, np.float32)

    def score(self, tiles: Tiles) -> Scores:
        """Score tiles, float32 (N,); higher is stranger."""
        return self.pool(self.score_map(tiles))

    def pool(self, places: Scores) -> Scores:
        """Pool the places of each tile, (N, m, m), into its score, float32 (N,)."""
        flat = places.reshape(len(places), math.prod(places.shape[1:]))
        match self.options.pooling:
            case "max":
                return flat.max(axis=1)
            case "quantile":
                return np.quantile(flat, self.options.pooling_quantile, axis=1).astype(np.float32)
            case "top":
                count = max(1, int(self.options.pooling_top * flat.shape[1] + 1e-9))
                flat = np.sort(flat, axis=1)[:, -count:]
        return flat.mean(axis=1, dtype=np.float64).astype(np.float32)


Embedding = npt.NDArray[np.float32]
"""Feature vectors, one for each tile, float32 (N, D)."""


@runtime_checkable
class Embeds(Protocol):
    """Capability to describe tiles by the features that the scores come from.

    Tiles with near vectors (Euclidean) look alike to the detector. This does not show which
    feature causes the score of one of them.
    """

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the detector's own features of complete tiles.

        Parameters
        ----------
        tiles : ndarray of uint8, (N, size, size, 3)
            RGB at the input size and scale of the detector.

        Returns
        -------
        ndarray of float32, (N, D)
            Vectors whose meaning depends on the method; D is the same for all tiles.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """Capability to make a healthy image of every tile, and to score the difference from it."""

    def reconstruct(self, tiles: Tiles) -> Tiles:
        """Return the detector's reconstructions of tiles, uint8 (N, size, size, 3).

        Values that a picture cannot hold are clipped; the score is that of the unclipped ones.
        """
        ...

    def difference(self, tiles: Tiles) -> Scores:
        """Return the difference of tiles and reconstructions at each place, float32 (N, h, w).

        This is the map that is pooled to the score, in the score's unit.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """Windows of slides that are taken for anomalous or healthy, to learn from by fold.

    Parameters
    ----------
    batches : callable
        Function that yields the windows in order, in batches (N, S, S, 3); it is called once.
    anomalous : ndarray of bool, (N,)
        True for windows that are taken for anomalous.
    folds : ndarray of int64, (N,)
        Fold of each window, which is that of its slide.
    fold_of : mapping of str to int
        Fold of each slide by its fingerprint; at least two folds, counted from 0.
    digest : str
        Digest of the windows and their slides: a fit that was interrupted continues with the same.
    """

    batches: Callable[[], Iterator[Tiles]]
    anomalous: npt.NDArray[np.bool_]
    folds: npt.NDArray[np.int64]
    fold_of: Mapping[str, int]
    digest: str = ""


@runtime_checkable
class LearnsByFold(Protocol):
    """Capability to learn from slides, and to score each without what it taught.

    The detector holds one fit on all lessons, for new slides, and one for each fold, which was
    fitted without the slides of that fold.
    """

    def fit_by_fold(self, tiles: HealthyTiles, lessons: Lessons, context: FitContext) -> FitReport:
        """Learn from healthy tiles and from lessons."""
        ...

    def held_out(self, fingerprint: str) -> Detector:
        """Return the detector that a slide did not teach; itself for a slide without lessons."""
        ...
