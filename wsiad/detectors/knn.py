"""The nearest healthy features: the score is the distance to them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from wsiad.detector import DetectorOptions
from wsiad.detectors._features import FeatureDetector, FeatureOptions, Vectors
from wsiad.errors import DetectorError

_BLOCK_VALUES = 1 << 24  # distances held at once: 64 MiB


class KnnOptions(FeatureOptions):
    """Options of ``knn``."""

    neighbours: Annotated[int, pydantic.Field(ge=1)] = 1
    """Mean distance to so many nearest healthy vectors."""
    pooling: Literal["mean", "max", "quantile"] = "quantile"
    """How the scores of the places within a tile become the tile's score."""


class NearestNeighbours(FeatureDetector):
    """Euclidean distance of frozen features to the nearest ones of healthy tiles.

    Like SPADE (Cohen & Hoshen 2020) and PatchCore (Roth et al. 2022), with a bank drawn
    at random instead of a coreset.
    """

    Options: ClassVar[type[DetectorOptions]] = KnnOptions
    options: KnnOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the bank of healthy vectors, (B, C)."""
        if len(vectors) < self.options.neighbours:
            raise DetectorError(
                f"{len(vectors)} healthy vectors are too few for {self.options.neighbours} "
                "neighbours",
                remedy="Fit on more tiles, or set fewer neighbours.",
            )
        return {"bank": torch.from_numpy(vectors)}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the mean distance of each vector to its nearest ones in the bank."""
        bank = fitted["bank"]
        squares = bank.square().sum(dim=1)
        rows = max(1, _BLOCK_VALUES // len(bank))
        return torch.cat(
            [self._nearest(part, bank, squares) for part in torch.split(vectors, rows)]
        )

    def _nearest(self, vectors: Tensor, bank: Tensor, squares: Tensor) -> Tensor:
        # |v − b|² up to the constant |v|²: one matrix product finds who is nearest, but
        # cancels digits when it is close; its distance is then taken directly.
        ranks = torch.addmm(squares, vectors, bank.T, beta=1, alpha=-2)
        nearest = ranks.topk(self.options.neighbours, dim=1, largest=False).indices
        return (vectors[:, None] - bank[nearest]).norm(dim=2).mean(dim=1)
