"""The nearest healthy features: the score is the distance to them."""

from __future__ import annotations

from typing import Annotated, ClassVar

import pydantic
import torch
from torch import Tensor

from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import check_count, nearest
from wsiad.learning.detector import DetectorOptions, Pooling


class KnnOptions(FeatureOptions):
    """Options of ``knn``."""

    neighbours: Annotated[int, pydantic.Field(ge=1)] = 1
    """Number of nearest healthy vectors over which the distance is averaged."""
    pooling: Pooling = "quantile"


class NearestNeighbours(FeatureDetector):
    """Euclidean distance of frozen features to the nearest features of healthy tiles.

    The method is like SPADE (Cohen & Hoshen 2020) and PatchCore (Roth et al. 2022), with a bank
    that is drawn at random instead of a coreset.
    """

    Options: ClassVar[type[DetectorOptions]] = KnnOptions
    options: KnnOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the bank of healthy vectors, (B, C)."""
        neighbours = self.options.neighbours
        check_count(vectors, neighbours, f"{neighbours} neighbours")
        return {"bank": torch.from_numpy(vectors)}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the mean distance of each vector to its nearest vectors in the bank."""
        return nearest(vectors, fitted["bank"], self.options.neighbours)[0].mean(dim=1)
