"""The interface of a detector: fit on healthy tiles, score tiles, keep its state.

A detector knows tiles (uint8, N × H × W × 3) and nothing of slides, stores, heatmaps
or command lines. Every detector scores *places*: an m × m map within the tile, with
m = 1 where the method has no map. How the places of a tile are pooled into the tile's
score is a choice of the user, not of the method, and therefore lives here.

The eight ways in which a square tile can lie: turned by right angles and mirrored.

What some detectors can do besides scoring: show what they see in a tile.

A detector has a capability by having its methods: ``isinstance(detector, Embeds)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    overload,
    runtime_checkable,
)

import numpy as np
import numpy.typing as npt
import pydantic
import torch

from wsiad.core.config import Config
from wsiad.core.geometry import Mpp, TilePx
from wsiad.learning.ranks import Ranks

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
"""Steps down and across (-1 mirrors), and whether it is transposed then. The first 1, 2, 4 and 8
are groups: as it lies, half a turn, mirrored either way, and all."""

BY_QUARTERS = (0, 7, 1, 6, 4, 3, 5, 2)
"""The eight ways in another order: quarter turns against the clock, 0 to 3, and these mirrored."""


@overload
def turned(squares: npt.NDArray[T], way: int) -> npt.NDArray[T]: ...


@overload
def turned(squares: torch.Tensor, way: int) -> torch.Tensor: ...


def turned(squares: npt.NDArray[T] | torch.Tensor, way: int) -> npt.NDArray[T] | torch.Tensor:
    """Lay squares, (N, S, S, ...), as the given one of the eight ways says; a copy."""
    down, across, transposed = _WAYS[way]
    if isinstance(squares, torch.Tensor):
        mirrored = [axis for axis, step in ((1, down), (2, across)) if step < 0]
        moved = squares.flip(mirrored)
        return moved.transpose(1, 2) if transposed else moved
    found = squares[:, ::down, ::across]
    return np.ascontiguousarray(found.swapaxes(1, 2) if transposed else found)


def turned_back(squares: npt.NDArray[T], way: int) -> npt.NDArray[T]:
    """Undo :func:`turned`; a copy."""
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
        Edge of its square input, pixels.
    mpp : Mpp
        Scale of its input, µm/px.
    """

    size: TilePx
    mpp: Mpp


class TileSource(Protocol):
    """Tiles that a detector may draw from; they may be larger than its input."""

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
    """Healthy tiles by their use; disjoint by slide where there are slides enough.

    Parameters
    ----------
    fit : TileSource
        To fit on.
    stop : TileSource
        Held out, to know when to stop.
    """

    fit: TileSource
    stop: TileSource


@dataclass(frozen=True, slots=True)
class AnomalyType:
    """Labelled anomalous tiles of one type.

    Parameters
    ----------
    name : str
        What they show, such as ``"tumor"``.
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
    """A few labelled anomalous tiles; no slide of theirs is held out among the healthy ones.

    Parameters
    ----------
    types : tuple of AnomalyType
        By name; at least one.
    """

    types: tuple[AnomalyType, ...]

    def __len__(self) -> int:
        return sum(len(kind.tiles) for kind in self.types)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a fit may take; what is reached first ends it."""

    max_steps: int | None = None
    max_minutes: float | None = None


@dataclass(frozen=True, slots=True)
class FitContext:
    """Circumstances of a fit that are not the method's own.

    Parameters
    ----------
    seed : int
        Same seed and data, same result on the same machine.
    device : torch.device
        Where to compute.
    folder : Path
        Where metrics and checkpoints go; a fit that finds its own checkpoint there
        goes on from it.
    budget : Budget
        Bounds on the fit.
    weights : str or None
        Pretrained weights: a file, ``"random"`` or ``None`` for the method's default.
    quiet : bool
        No progress output.
    anomalies : AnomalousTiles or None
        Labelled anomalous tiles; only for methods that declare that they use them.
    ranks : Ranks
        More than one process only for methods that declare that they use them.
    """

    seed: int
    device: torch.device
    folder: Path
    budget: Budget = field(default_factory=Budget)
    weights: str | None = None
    quiet: bool = False
    anomalies: AnomalousTiles | None = None
    ranks: Ranks = field(default_factory=Ranks)

    def averaged(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        return self.ranks.average_of(value, self.device)

    def agreed(self, value: float) -> float:
        """Return what the first process finds, so that all go on alike."""
        return self.ranks.agreed(value, self.device)


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a fit ended.

    Parameters
    ----------
    ended_by : str
        ``"fitted"`` for methods in closed form, else ``"early-stopping"``,
        ``"max-steps"`` or ``"max-minutes"``.
    steps : int
        Optimiser steps taken; 0 for methods in closed form.
    notes : dict
        JSON values that the run should tell its reader, such as the weights' source.
    """

    ended_by: str
    steps: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


Pooling = Annotated[
    Literal["mean", "max", "quantile"],
    pydantic.Field(
        description="How the scores of the places within a tile become the tile's score."
    ),
]
"""How a score of a tile is made of those of its places; a method chooses its default alone."""


class DetectorOptions(Config):
    """Options that every detector has; a detector adds its own."""

    input_px: Annotated[int, pydantic.Field(ge=8)] | None = None
    """Edge of the input in pixels at the store's µm/px; by default the method's own."""
    pooling: Pooling = "mean"
    pooling_quantile: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    """Which quantile of the places, with ``pooling: quantile``."""
    orientations: Literal[1, 2, 4, 8] = 1
    """Score every tile in so many orientations and take the mean of each place, since tissue has no
    upside: 2 adds half a turn, 4 mirrors too, 8 are all; scoring takes so many times longer."""

    scoring_only: ClassVar[frozenset[str]] = frozenset(
        {"pooling", "pooling_quantile", "orientations", "input_px"}
    )
    """Options on which what is fitted does not depend, so that they may change between parts."""


@dataclass(frozen=True, slots=True)
class State:
    """All that a fitted detector is: tensors for safetensors, values for JSON."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


class Detector(ABC):
    """A method that learns what healthy tiles look like.

    Parameters
    ----------
    options : DetectorOptions
        Of the subclass's own ``Options`` class.
    spec : InputSpec
        Size and scale of the input.
    """

    Options: ClassVar[type[DetectorOptions]] = DetectorOptions
    default_input_px: ClassVar[int | None] = None
    """Input size where the options give none; ``None`` for that of the stored tiles."""
    uses_anomalies: ClassVar[bool | Literal["needed"]] = False
    """Whether :attr:`FitContext.anomalies` is used, or even needed."""
    uses_ranks: ClassVar[bool] = False
    """Whether several processes can fit it together."""

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        self.options = options
        self.spec = spec

    @classmethod
    def learns_from_anomalies(cls, options: DetectorOptions) -> bool | Literal["needed"]:
        """Return what :attr:`uses_anomalies` says, where options decide of these options."""
        return cls.uses_anomalies

    @abstractmethod
    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Learn from healthy tiles.

        Raises
        ------
        DetectorError
            The tiles do not allow it: too few, too small.
        WeightsError
            Pretrained weights are not at hand.
        """

    @abstractmethod
    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places within tiles as they lie.

        Callers want :meth:`score_map`, in as many orientations as the options say.

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
        """Return what :meth:`load_state` needs to make an equal detector."""

    @abstractmethod
    def load_state(self, state: State, device: torch.device) -> None:
        """Become the detector whose state this is.

        Raises
        ------
        DetectorError
            The state is not of this method.
        """

    def score_map(self, tiles: Tiles) -> Scores:
        """Score the places within tiles, float32 (N, m, m): the mean over their orientations.

        As :meth:`score_places`; but with several ``orientations`` a tile that is turned in one
        of them has the same map, turned likewise. Averaging over such views is the usual
        test-time augmentation (Krizhevsky, Sutskever & Hinton, NIPS 2012, section 4.1).
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
            case "mean":
                return flat.mean(axis=1, dtype=np.float64).astype(np.float32)
            case "max":
                return flat.max(axis=1)
            case "quantile":
                return np.quantile(flat, self.options.pooling_quantile, axis=1).astype(np.float32)


Embedding = npt.NDArray[np.float32]
"""One feature vector a tile, float32 (N, D)."""


@runtime_checkable
class Embeds(Protocol):
    """Describes tiles by the features that its scores come from.

    Tiles with near vectors (Euclidean) look alike to the detector; that says nothing of
    what is to blame for the score of one of them.
    """

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the detector's own features of whole tiles.

        Parameters
        ----------
        tiles : ndarray of uint8, (N, size, size, 3)
            RGB at the input size and scale of the detector.

        Returns
        -------
        ndarray of float32, (N, D)
            What they are is the method's; D is the same for all tiles.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """Makes a healthy image of every tile, and scores what differs from it."""

    def reconstruct(self, tiles: Tiles) -> Tiles:
        """Return what the detector makes of tiles, uint8 (N, size, size, 3).

        Values that a picture cannot hold are cut off; the score is of the whole ones.
        """
        ...

    def difference(self, tiles: Tiles) -> Scores:
        """Return where tiles and reconstructions differ to the detector, float32 (N, h, w).

        The map that is pooled to the score, in its unit.
        """
        ...
