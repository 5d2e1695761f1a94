"""The base of detectors that read stored features of tiles in place of a network.

A subclass computes the features of places, and scores vectors. Here is the rest: the features that
are kept of a tile, and fitting, scoring and embedding from those that a source has
(:mod:`wsiad.learning.feature_source`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import Progress
from wsiad.detectors._backbone import BackboneOptions
from wsiad.learning.batches import on_device, random_crops, sample
from wsiad.learning.detector import (
    Detector,
    Embedding,
    FitContext,
    Scores,
    Tiles,
    TileSource,
    turned,
    turned_back,
)
from wsiad.learning.devices import windows_at_once
from wsiad.learning.feature_source import (
    ComputesFeatures,
    Offer,
    Positions,
    Statistics,
    kept_identity,
    offered,
    pooled,
    sampled_positions,
)

Vectors = npt.NDArray[np.float32]
"""Feature vectors, float32 (N, C)."""

BATCH = 128

_MOST_ADDED = 20_000
"""Maximum number of vectors that are taken into a fitted detector; drawn evenly by the seed."""


def in_batches(
    function: Callable[[Tensor], Tensor], tiles: Tiles, device: torch.device, *, batch: int
) -> npt.NDArray[np.float32]:
    """Apply a function to tiles, uint8 (N, S, S, 3), on a device; return its results as float32.

    The function is called at least once, so the result has the right shape even for no tiles.
    """
    with torch.inference_mode():
        found = [
            function(on_device(tiles[start : start + batch], device)).float().cpu()
            for start in range(0, max(1, len(tiles)), batch)
        ]
    return np.asarray(torch.cat(found).numpy(), np.float32)


_WITHOUT_NETWORK: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("layers", "mean", "embedding"), (None,)),
    **dict.fromkeys(("contrast", "neighbourhood", "places", "orientations"), (1,)),
    "magnify": (None, 1),
    "l2_normalise": (False,),
    "backbone_args": ({},),
}
"""Values of options that imported features allow."""


def check_imported(options: BackboneOptions) -> None:
    """Check that no option is set that only a network can follow.

    Raises
    ------
    DetectorError
        There is one, and the features were imported.
    """
    for name, allowed in _WITHOUT_NETWORK.items():
        if name in options.model_fields_set and getattr(options, name) not in allowed:
            raise DetectorError(
                f"{name} is not for imported features, which are one vector for each tile",
                subject=options.backbone,
                remedy="Leave it out.",
            )


class StoredFeatureDetector(Detector):
    """A detector whose features of complete tiles can be computed once and stored."""

    at_once: ClassVar[int] = BATCH
    """Maximum number of tiles that the network sees at a time; twice as many are scored."""
    then_trained: bool = False
    """True if the network is trained further after the fit: random weights are a beginning."""

    _device: torch.device
    _fitted: dict[str, Tensor]
    _about: dict[str, Any]

    @abstractmethod
    def feature_identity(self) -> dict[str, Any]:
        """Return all on which the features of a tile depend, as JSON values."""

    @abstractmethod
    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the anomaly scores of vectors, (N, C) to (N,), on their device."""

    @abstractmethod
    def _open(self, context: FitContext) -> dict[str, Any]:
        """Load the network of a fit; return the facts that a run records."""

    @abstractmethod
    def _grid(self) -> int:
        """Return the edge of the grid of places."""

    @abstractmethod
    def _features(self, tiles: Tensor) -> Tensor:
        """Return the vectors of all places, float32 (N · m², C), of tiles uint8 (N, S, S, 3)."""

    def extended(self, vectors: Vectors, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what was fitted, tensors on the CPU, with further healthy vectors (N, C) in it.

        Raises
        ------
        DetectorError
            The method, or these options of it, must be fitted anew.
        """
        del vectors, fitted
        raise DetectorError(
            "takes further healthy windows only where it is fitted anew",
            remedy="Train again, with --healthy-regions.",
        )

    def extend(self, batches: Iterable[Tiles], *, count: int, seed: int) -> int:
        """Take healthy windows into what was fitted, without fitting it anew.

        Parameters
        ----------
        batches : iterable of ndarray of uint8, (N, S, S, 3)
            Windows of the input's size, in batches.
        count : int
            Number of all windows.
        seed : int
            Seed of the draw of vectors, where there are more than `_MOST_ADDED`.

        Returns
        -------
        int
            Number of vectors that were taken.

        Raises
        ------
        DetectorError
            The method, or these options of it, must be fitted anew.
        """
        kept = self._drawn(count, _MOST_ADDED, seed=seed)
        found: list[Vectors] = []
        start = 0
        for tiles in batches:
            for part in self._parts(tiles):
                vectors = self._features(part).cpu().numpy()
                inside = kept[(kept >= start) & (kept < start + len(vectors))] - start
                found.append(vectors[inside])
                start += len(vectors)
        every = finite(np.concatenate(found))
        fitted = {name: tensor.cpu() for name, tensor in self._fitted.items()}
        made = self.extended(every, fitted)
        self._fitted = {name: tensor.to(self._device) for name, tensor in made.items()}
        return len(every)

    def whole(self, tiles: Tensor) -> Tensor:
        """Return the features, float32 (N, D), of complete tiles, uint8 (N, S, S, 3)."""
        return pooled(self._places(tiles), self._embedded())

    def opened(self, context: FitContext) -> Sequence[ComputesFeatures]:
        """Load the network without fitting; see :mod:`wsiad.learning.feature_source`."""
        self._open(context)
        return [self]

    def kept(self, *, orientations: int) -> list[dict[str, Any]]:
        """Return the identities of the features that this detector reads, by orientation."""
        identity = self.feature_identity()
        count = max(orientations, self.options.orientations)
        return [kept_identity(identity, self._wanted(), way) for way in range(count)]

    def encode(self, tiles: Tiles, identity: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Return the features of tiles in an orientation, (N, m, m, C) or (N, D)."""
        edge = self._grid()

        def function(part: Tensor) -> Tensor:
            found = self._seen(turned(part, identity["orientation"]))
            return found.reshape(len(part), edge, edge, -1) if found.ndim == 3 else found

        step = windows_at_once(self.at_once, self._device, edge=tiles.shape[1])
        return in_batches(function, tiles, self._device, batch=step)

    def reads(self, source: TileSource) -> bool:
        """Tell whether a source has the features of all orientations in which it is scored."""
        return self._offers(source) is not None

    def maps(
        self, source: TileSource, *, batch: int, positions: Positions | None = None
    ) -> Iterator[Scores]:
        """Yield the scores of places of complete tiles, from stored features."""
        offers = self._offers(source) or []
        batches = zip(*(offer.batches(batch, positions) for offer in offers), strict=True)
        for parts in batches:
            found = [
                turned_back(self._scored(part.to(self._device)), way)
                for way, part in enumerate(parts)
            ]
            total = sum((one.astype(np.float64) for one in found), start=np.float64(0))
            yield np.asarray(total / len(found), np.float32)

    def embeddings(
        self, source: TileSource, *, batch: int, positions: Positions | None = None
    ) -> Iterator[Embedding]:
        """Yield the features of complete tiles, as :meth:`embed` does, from stored ones."""
        offer = self._offer(source, self._embedded())
        assert offer is not None
        for part in offer.batches(batch, positions):
            yield part.numpy()

    def _wanted(self) -> Statistics:
        """Return the features of a tile that the scores are computed from."""
        return "places"

    def _embedded(self) -> Statistics:
        """Return the features of a tile that :meth:`embed` returns."""
        return "mean"

    def _parts(self, tiles: Tiles) -> Iterator[Tensor]:
        """Yield tiles on the device, as many as the network scores at a time."""
        step = windows_at_once(2 * self.at_once, self._device, edge=self.spec.size)
        for start in range(0, len(tiles), step):
            yield on_device(tiles[start : start + step], self._device)

    def _seen(self, tiles: Tensor) -> Tensor:
        """Return the features that the scores are computed from, (N, P, C) or (N, D)."""
        return self._places(tiles) if self._wanted() == "places" else self.whole(tiles)

    def _scored(self, seen: Tensor) -> Scores:
        """Return the scores of features, float32 (N, m, m) of places or (N, 1, 1)."""
        edge = self._grid() if seen.ndim == 3 else 1
        vectors = seen.flatten(0, 1) if seen.ndim == 3 else seen
        found = self.distance(vectors, self._fitted).cpu().numpy()
        return found.reshape(-1, edge, edge).astype(np.float32)

    def _places(self, tiles: Tensor) -> Tensor:
        """Return the features, float32 (N, m², C), of tiles, uint8 (N, S, S, 3)."""
        found = self._features(tiles)
        return found.reshape(len(tiles), self._grid() ** 2, found.shape[1])

    def _offer(
        self, source: TileSource, wanted: Statistics, *, orientation: int = 0
    ) -> Offer | None:
        """Return the features that a source has; ``None`` if the network must compute them."""
        return offered(
            source,
            self.feature_identity(),
            wanted,
            size=self.spec.size,
            orientation=orientation,
        )

    def _offers(self, source: TileSource) -> list[Offer] | None:
        """Return the features of a source for all orientations; ``None`` unless it has them."""
        found = []
        for way in range(self.options.orientations):
            offer = self._offer(source, self._wanted(), orientation=way)
            if offer is None:
                return None
            found.append(offer)
        return found

    def _windows(self, tiles: Tiles, seed: int, step: int) -> Tensor:
        """Return the window of each healthy tile that is fitted on: a random one, or all of it.

        A complete tile is not mirrored either, so that its features can be computed once.
        """
        flips = tiles.shape[1] != self.spec.size
        part = on_device(tiles, self._device)
        return random_crops(part, self.spec.size, seed=seed, step=step, flips=flips)

    def _of_tiles(
        self,
        tiles: TileSource,
        context: FitContext,
        *,
        most: int,
        statistics: Statistics,
        batch: int,
    ) -> Vectors:
        """Return the features (N, D) of at most so many tiles, stored ones if there are."""
        offer = self._offer(tiles, statistics)
        if offer is not None:
            positions = sampled_positions(tiles, most, batch=batch, seed=context.seed)
            order = np.argsort(positions, kind="stable")  # of reading
            read = torch.cat(list(offer.batches(batch, positions[order])))
            return read[torch.from_numpy(np.argsort(order, kind="stable"))].numpy()
        count, batches = sample(tiles, most, batch=batch, seed=context.seed)
        found = []
        with Progress("features", total=count, unit="tile", quiet=context.quiet) as progress:
            for step, part in enumerate(batches):
                places = self._places(self._windows(part, context.seed, step))
                found.append(pooled(places, statistics).cpu().numpy())
                progress.update(len(part))
        return np.concatenate(found)

    def _drawn(self, tiles: int, most: int, *, seed: int) -> npt.NDArray[np.int64]:
        """Return the sorted numbers of the vectors to fit on, among the places of all tiles."""
        total = tiles * self._grid() ** 2
        if total <= most:
            return np.arange(total)
        rng = np.random.default_rng([seed, total])
        return np.sort(rng.choice(total, most, replace=False))

    def _gathered(
        self, offer: Offer, positions: Positions, kept: npt.NDArray[np.int64], *, quiet: bool
    ) -> Vectors:
        """Return stored vectors of places, and read every tile once.

        Parameters
        ----------
        offer : Offer
            Features of places.
        positions : ndarray of int64, (T,)
            Tiles in the order of the vectors.
        kept : ndarray of int64, (V,)
            Sorted numbers of the wanted vectors among the places of these tiles.
        quiet : bool
            Show no progress.
        """
        places = self._grid() ** 2
        used = np.unique(kept // places)
        used = used[np.argsort(positions[used], kind="stable")]
        bank: Vectors | None = None
        with Progress("stored features", total=len(used), unit="tile", quiet=quiet) as progress:
            for start in range(0, len(used), BATCH):
                part = np.sort(used[start : start + BATCH])
                found = offer.take(positions[part]).flatten(0, 1).numpy()
                if bank is None:
                    bank = np.empty((len(kept), found.shape[1]), np.float32)
                rows = np.flatnonzero(np.isin(kept // places, part))
                at = np.searchsorted(part, kept[rows] // places) * places + kept[rows] % places
                bank[rows] = found[at]
                progress.update(len(part))
        assert bank is not None
        return finite(bank)


def finite(vectors: Vectors) -> Vectors:
    """Return vectors that are all finite.

    Raises
    ------
    DetectorError
        A value is not finite.
    """
    if not np.isfinite(vectors).all():
        raise DetectorError("features are not finite; the weights are damaged")
    return vectors
