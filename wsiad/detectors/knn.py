"""The nearest healthy features: the score is the distance to them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from wsiad.core.terminal import counted
from wsiad.detectors._bank import BankDetector, BankOptions
from wsiad.detectors._stored import BATCH, Vectors, finite
from wsiad.detectors._vectors import check_count, nearest
from wsiad.learning.detector import DetectorOptions, FitContext, Pooling, TileSource
from wsiad.learning.feature_source import Statistics


class KnnOptions(BankOptions):
    """Options of ``knn``."""

    neighbours: Annotated[int, pydantic.Field(ge=1)] = 1
    """Number of nearest healthy vectors over which the distance is averaged."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of two vectors: Euclidean, or 1 − cos of their angle."""
    candidates: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Number of healthy tiles that a tile is compared with, those nearest by the mean of their
    features; without it, every place is compared with places of all tiles."""
    candidate_layer: str | None = None
    """Layer, one of ``layers``, whose mean finds the candidates; the others are compared at the
    places. By default all layers serve both."""
    compare: Literal["places", "tiles"] = "places"
    """Score every place by the places of the candidates, or the tile by the mean distance to the
    candidates."""
    pooling: Pooling = "quantile"

    @pydantic.model_validator(mode="after")
    def _with_candidates(self) -> Self:
        if self.candidates is None:
            if self.compare == "tiles" or self.candidate_layer is not None:
                raise ValueError("compare: tiles and candidate_layer need candidates")
            return self
        if self.probes is not None:
            raise ValueError("probes are for a bank of all places, without candidates")
        if self.candidate_layer is not None and self.compare == "places":
            others = [layer for layer in self.layers or () if layer != self.candidate_layer]
            if not others or len(others) == len(self.layers or ()):
                raise ValueError("candidate_layer must be one of several layers")
        return self


class NearestNeighbours(BankDetector):
    """Distance of frozen features to the nearest features of healthy tiles.

    The method is like PatchCore (Roth et al. 2022), with a bank that is drawn at random instead
    of a coreset. With ``metric: cosine`` and ``pooling: top`` it is AnomalyDINO (Damm et al.
    2025), whose image score is the mean of the strangest hundredth of the places.

    With ``candidates`` it is SPADE (Cohen & Hoshen 2020): the K healthy tiles nearest to a tile,
    by the mean of their features, are found first. SPADE's score of an image is the mean distance
    to them (``compare: tiles``), and its map has the distance of each place to the nearest place
    of theirs (``compare: places``). Complete tiles are kept then, as many as have
    ``fit_vectors`` places.
    """

    Options: ClassVar[type[DetectorOptions]] = KnnOptions
    remembers_tiles: ClassVar[bool] = True
    options: KnnOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the bank of healthy vectors, (B, C), and its cells if they are probed.

        With candidates, ``means`` are those of T complete tiles, (T, C), and ``bank`` are their
        places, (T, P, C), if these are compared. ``span`` are the first channel of the means and
        the one after the last, (0, 0) for all.
        """
        options = self.options
        if options.candidates is None:
            purpose = f"{options.neighbours} neighbours"
            check_count(vectors, options.neighbours, purpose, otherwise="set fewer neighbours")
            every = self._scaled(torch.from_numpy(vectors))
            return {"bank": every, **self.kept_cells(every)}
        span = torch.tensor(self._span())
        if options.compare == "tiles":
            means, bank = torch.from_numpy(vectors), None
        else:
            bank = torch.from_numpy(vectors).reshape(-1, self._grid() ** 2, vectors.shape[1])
            means = bank.mean(dim=1)
        check_count(
            means,
            options.candidates,
            counted(options.candidates, "candidate"),
            noun="healthy tile",
            otherwise="set fewer candidates, or more fit_vectors",
        )
        fitted = {"means": self._scaled(_inside(means, span)).contiguous(), "span": span}
        if bank is not None:
            fitted["bank"] = self._scaled(_outside(bank, span)).contiguous()
        return fitted

    def extended(self, vectors: Vectors, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the bank with further vectors at its end, and its cells."""
        if self.options.candidates is not None:
            return super().extended(vectors, fitted)
        bank = torch.cat([fitted["bank"], self._scaled(torch.from_numpy(vectors))])
        return {"bank": bank, **self.kept_cells(bank)}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the mean distance of each vector to its nearest vectors in the bank.

        With candidates, vectors are the means of tiles or the places of complete tiles.
        """
        options = self.options
        if options.candidates is None:
            found = self.nearest_of_bank(self._scaled(vectors), fitted, options.neighbours)
            return self._mean(found[0])
        span = fitted["span"]
        if options.compare == "tiles":
            means = self._scaled(_inside(vectors, span))
            return self._nearest(means, fitted["means"], options.candidates)[0]
        bank = fitted["bank"]
        places = vectors.reshape(-1, bank.shape[1], vectors.shape[1])
        means = self._scaled(_inside(places.mean(dim=1), span))
        chosen = self._nearest(means, fitted["means"], options.candidates)[1]
        own = self._scaled(_outside(places, span))
        return torch.cat(
            [
                self._nearest(tile, bank[candidates].flatten(0, 1), options.neighbours)[0]
                for tile, candidates in zip(own, chosen, strict=True)
            ]
        )

    def _scaled(self, vectors: Tensor) -> Tensor:
        if self.options.metric == "euclidean":
            return vectors
        return torch.nn.functional.normalize(vectors, dim=-1)

    def _nearest(self, vectors: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the mean distance to the nearest of a bank (N,), and who they are."""
        distances, indices = nearest(vectors, bank, count)
        return self._mean(distances), indices

    def _mean(self, distances: Tensor) -> Tensor:
        """Return the mean over neighbours of distances by the metric, (N, K) to (N,)."""
        if self.options.metric == "cosine":  # of vectors of length 1: 1 − cos = |u − v|² / 2
            distances = distances.square() / 2
        return distances.mean(dim=1)

    def _span(self) -> tuple[int, int]:
        """Return the channels of the candidate layer, from and to; (0, 0) for those of all."""
        layer = self.options.candidate_layer
        if layer is None:
            return 0, 0
        assert self._backbone is not None
        widths = [shape[0] for shape in self._backbone.check_places(self._edge())]
        at = self.options.chosen_layers().index(layer)
        return sum(widths[:at]), sum(widths[: at + 1])

    def _by_tile(self) -> bool:
        return self.options.candidates is not None and self.options.compare == "tiles"

    def _wanted(self) -> Statistics:
        """Return the features of a tile that are compared."""
        return "mean" if self._by_tile() else super()._wanted()

    def _sample(self, tiles: TileSource, context: FitContext) -> tuple[Vectors, int]:
        if not self._by_tile():
            return super()._sample(tiles, context)
        found = self._of_tiles(
            tiles, context, most=self.options.fit_tiles, statistics="mean", batch=BATCH
        )
        return finite(found), len(found)

    def _drawn(self, tiles: int, most: int, *, seed: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the vectors to fit on; with candidates, those of complete tiles."""
        if self.options.candidates is None:
            return super()._drawn(tiles, most, seed=seed)
        places = self._grid() ** 2
        count = min(tiles, max(1, most // places))
        rng = np.random.default_rng([seed, tiles])
        chosen = np.sort(rng.choice(tiles, count, replace=False))
        found: npt.NDArray[np.int64] = (chosen[:, None] * places + np.arange(places)).ravel()
        return found


def _inside(vectors: Tensor, span: Tensor) -> Tensor:
    """Return the channels of a span, or all for (0, 0)."""
    first, end = span.tolist()
    return vectors[..., first:end] if end else vectors


def _outside(vectors: Tensor, span: Tensor) -> Tensor:
    """Return the channels outside of a span."""
    first, end = span.tolist()
    return torch.cat([vectors[..., :first], vectors[..., end:]], dim=-1)
