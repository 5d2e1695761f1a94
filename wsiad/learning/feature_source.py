"""Features that a source of tiles offers, so that no network computes them a second time.

A detector on frozen features has two steps: the vectors of a tile, and the distance of vectors
from healthy ones. A source can have the vectors already (``wsiad embed``). The detector then asks
the source for the features of its *identity*, JSON values on which they depend: the network, its
weights, the layers, the places, and all that was done to the pixels before. A source that has
features of exactly this identity returns them, and every other one returns ``None``: the network
then computes as ever.

Features are kept of complete tiles in stated orientations. A window inside a larger tile has none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from wsiad.learning.detector import (
    Detector,
    Embedding,
    Embeds,
    FitContext,
    Scores,
    Tiles,
    TileSource,
)

if TYPE_CHECKING:
    from torch import Tensor

    from wsiad.networks.encoder import Precision

logger = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]
"""Positions of tiles in the order of their source."""

Statistics = Literal["places", "mean", "mean-std"]
"""Features that are kept of a tile: those of its places, (m, m, C), their mean (C,), or mean and
deviation (2 C,)."""

_SERVED_BY: dict[Statistics, tuple[Statistics, ...]] = {
    "places": ("places",),
    "mean": ("mean", "mean-std", "places"),
    "mean-std": ("mean-std", "places"),
}


class Features(Protocol):
    """Features of the tiles of a source."""

    def __len__(self) -> int: ...

    def take(self, positions: Positions) -> npt.NDArray[np.float32]:
        """Return the features of the tiles at these positions, float32 (N, ...)."""
        ...


@runtime_checkable
class OffersFeatures(Protocol):
    """Capability of a :class:`TileSource` to return features that were computed before."""

    def features(self, identity: Mapping[str, Any]) -> Features | None:
        """Return the features of all tiles; ``None`` if those of one of them are missing."""
        ...

    def why_no_features(self, identity: Mapping[str, Any]) -> str:
        """Return why there are features, but not these; empty if there are none at all."""
        ...

    def shuffled_positions(self, *, seed: int, epoch: int) -> Positions:
        """Return the order of ``shuffled``, as positions in that of ``ordered``."""
        ...


class ComputesFeatures(Protocol):
    """The part of a detector that computes the features of tiles."""

    def kept(self, *, orientations: int) -> list[dict[str, Any]]:
        """Return the identities of the features to keep, for at least so many orientations."""
        ...

    def encode(self, tiles: Tiles, identity: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Return the features of tiles, uint8 (N, S, S, 3), as one of the identities states."""
        ...


@runtime_checkable
class ReadsFeatures(Protocol):
    """Capability of a detector to be fitted and to score from features of a source."""

    def opened(self, context: FitContext) -> Sequence[ComputesFeatures]:
        """Load the networks without fitting anything, and return what computes the features."""
        ...

    def reads(self, source: TileSource) -> bool:
        """Tell whether a source has features that spare this fitted detector a network."""
        ...

    def maps(self, source: TileSource, *, batch: int) -> Iterator[Scores]:
        """Yield the scores of places of all complete tiles of a source, as ``score_map`` does."""
        ...

    def embeddings(self, source: TileSource, *, batch: int) -> Iterator[Embedding]:
        """Yield the features of all complete tiles of a source, as ``embed`` does."""
        ...


@runtime_checkable
class ComputesIn(Protocol):
    """Capability of a detector to compute its features in another precision than in its fit."""

    def compute_in(self, precision: Precision) -> None:
        """Compute features in this precision from now on.

        Raises
        ------
        DetectorError
            The detector has no network of frozen features.
        """
        ...


@runtime_checkable
class ScoresBatches(Protocol):
    """Capability of a detector to score several batches of tiles together, for speed."""

    def score_maps(self, batches: Iterable[Tiles]) -> Iterator[Scores]:
        """Yield the ``score_map`` of each batch of one tile or more, in order.

        Batches are taken ahead of the scores that were yielded.
        """
        ...


def batch_maps(detector: Detector, batches: Iterable[Tiles]) -> Iterator[Scores]:
    """Yield the ``score_map`` of each batch of one tile or more; together where that is faster."""
    if isinstance(detector, ScoresBatches):
        return detector.score_maps(batches)
    return map(detector.score_map, batches)


def pooled(places: Tensor, statistics: Statistics) -> Tensor:
    """Return what is kept of the features of places, (N, P, C): (N, C) or (N, 2 C)."""
    mean = places.mean(dim=1)
    if statistics == "mean":
        return mean
    import torch

    # PyTorch warns of too few values where there are no tiles.
    deviation = places.std(dim=1, correction=0) if len(places) else mean
    return torch.cat([mean, deviation], dim=1)


@dataclass(frozen=True, slots=True)
class Offer:
    """Features of a source, as a detector wants them.

    Parameters
    ----------
    features : Features
        Stored features.
    stored, wanted : str
        Statistics that are stored, and those that the detector wants.
    """

    features: Features
    stored: Statistics
    wanted: Statistics

    def __len__(self) -> int:
        return len(self.features)

    def take(self, positions: Positions) -> Tensor:
        """Return the features of tiles, float32 (N, P, C) for places, else (N, D)."""
        import torch

        found = torch.from_numpy(self.features.take(positions))
        if self.stored == "places":
            places = found.flatten(1, 2)
            return places if self.wanted == "places" else pooled(places, self.wanted)
        if self.stored != self.wanted:  # the mean, of mean and deviation
            return found[:, : found.shape[1] // 2].contiguous()
        return found

    def batches(self, batch: int, positions: Positions | None = None) -> Iterator[Tensor]:
        """Yield the features of tiles, by default all in their order, in batches."""
        if positions is None:
            positions = np.arange(len(self), dtype=np.int64)
        for start in range(0, len(positions), batch):
            yield self.take(positions[start : start + batch])


def kept_identity(
    identity: Mapping[str, Any], statistics: Statistics, orientation: int
) -> dict[str, Any]:
    """Return the identity of kept features: that of the features, and what is kept of them."""
    return {**identity, "statistics": statistics, "orientation": orientation}


IMPORTED = "features/"
"""Beginning of the name of a backbone whose features were imported: there is no network."""


def imported_identity(encoder: str, *, input_px: int, input_mpp: float) -> dict[str, Any]:
    """Return the identity of features that another program computed.

    Parameters
    ----------
    encoder : str
        Name of the network, as the user states it.
    input_px, input_mpp : int, float
        Edge of the tiles, pixels, and their scale, µm/px.
    """
    return {
        "backbone": f"{IMPORTED}{encoder}",
        "input_px": int(input_px),
        "input_mpp": float(input_mpp),
    }


def offered(
    source: TileSource,
    identity: Mapping[str, Any],
    wanted: Statistics,
    *,
    size: int,
    orientation: int = 0,
) -> Offer | None:
    """Return the features of complete tiles that a source has; ``None`` if it has not all of them.

    Where a source has features that cannot be used, the reason is logged once.

    Parameters
    ----------
    source : TileSource
    identity : mapping
        Identity of the features, without what is kept of them.
    wanted : str
        Statistics that the detector wants.
    size : int
        Edge of the detector's input; the features of smaller windows than tiles are not kept.
    orientation : int
        Number of the orientation, see :func:`wsiad.learning.detector.turned`.
    """
    if not isinstance(source, OffersFeatures):
        return None
    asked = kept_identity(identity, wanted, orientation)
    if source.tile != size:
        if source.why_no_features(asked):
            _say(
                f"the stored features are of complete tiles of {source.tile} px, and windows of "
                f"{size} px are wanted"
            )
        return None
    for stored in _SERVED_BY[wanted]:
        found = source.features(kept_identity(identity, stored, orientation))
        if found is not None:
            return Offer(found, stored, wanted)
    if why := source.why_no_features(asked):
        _say(why)
    return None


_SAID: set[str] = set()


def _say(why: str) -> None:
    """Log why stored features are not used, once per process and reason."""
    if why not in _SAID:
        _SAID.add(why)
        logger.warning("features are computed by the network: %s", why)


def sampled_positions(source: TileSource, most: int | None, *, batch: int, seed: int) -> Positions:
    """Return the tiles of a sample as positions, the same as :func:`wsiad.learning.batches.sample`.

    Parameters
    ----------
    source : TileSource
        Source that offers features.
    most : int or None
        Maximum number of tiles.
    batch, seed : int
        Number of tiles in a batch, and the seed of the draw.
    """
    count = len(source)
    if most is None or count <= most:
        return np.arange(count, dtype=np.int64)
    assert isinstance(source, OffersFeatures)
    batch = min(batch, most)
    return source.shuffled_positions(seed=seed, epoch=0)[: most // batch * batch]


def unchanged(tiles: Tiles) -> Tiles:
    """Return tiles that are windows already."""
    return tiles


def score_maps(
    detector: Detector,
    source: TileSource,
    *,
    batch: int,
    cut: Callable[[Tiles], Tiles] = unchanged,
) -> Iterator[Scores]:
    """Yield the scores of places of a source's tiles in their order, from features if it has them.

    Parameters
    ----------
    detector : Detector
        Fitted detector.
    source : TileSource
    batch : int
        Maximum number of tiles at a time.
    cut : callable
        Function that cuts tiles into windows of the detector's input.

    Yields
    ------
    ndarray of float32, (N, m, m)
    """
    if isinstance(detector, ReadsFeatures) and detector.reads(source):
        yield from detector.maps(source, batch=batch)
        return
    yield from batch_maps(detector, map(cut, source.ordered(batch)))


def embeddings(detector: Embeds, source: TileSource, *, batch: int) -> Iterator[Embedding]:
    """Yield a detector's features of complete tiles in their order, stored ones if there are."""
    if isinstance(detector, ReadsFeatures) and detector.reads(source):
        yield from detector.embeddings(source, batch=batch)
        return
    for tiles in source.ordered(batch):
        yield detector.embed(tiles)
