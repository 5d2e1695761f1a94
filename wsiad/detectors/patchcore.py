"""PatchCore: the distance to the nearest of a coreset of healthy features."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from wsiad.core.compiled import compiled
from wsiad.detectors._bank import Bank, BankDetector, BankOptions
from wsiad.detectors._cells import square_distance
from wsiad.detectors._features import TWO_DEPTHS, DefaultLayers
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import check_count
from wsiad.learning.detector import DetectorOptions, Pooling

_NEIGHBOURS = 9


class PatchCoreOptions(BankOptions):
    """Options of ``patchcore``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is used. Default: the ends of SqueezeNet's first two resolutions,
    ``features.17`` and ``features.26`` of VGG19 and of wsiad's network, or ``layer2`` and
    ``layer3`` of a ResNet."""
    neighbourhood: Literal[1, 3, 5, 7] = 3
    """Edge of the square over which features are averaged before they are assigned to places."""
    coreset: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.1
    """Share of the healthy vectors that is kept; 1 keeps all."""
    projection: Annotated[int, pydantic.Field(ge=1)] | None = 128
    """Dimensions of the random projection in which the coreset is chosen; null for none."""
    reweight: bool = False
    """Weight a place's distance by how strange its nearest healthy vector is among its own nine
    nearest."""
    pooling: Pooling = "quantile"

    default_layers: ClassVar[DefaultLayers] = TWO_DEPTHS


class PatchCore(BankDetector):
    """Distance of frozen features to the nearest of a coreset of healthy ones.

    In PatchCore (Roth et al. 2022), features of two layers, averaged over 3 × 3 neighbours, are
    concatenated. A tenth of the healthy ones is kept, chosen greedily so that none is far from
    the ones kept. Here features are resampled to the grid of ``places``, not to that of the
    finer layer.

    PatchCore scores an image by its strangest place (``pooling: max``), times
    1 − exp(d) / Σ exp(dᵢ). d is the distance to the nearest healthy vector, and dᵢ are the
    distances to the nine vectors nearest to that one, itself included. With ``reweight``, all
    places are weighted in this way before the pooling. The coreset is chosen from at most
    ``fit_vectors`` vectors.
    """

    Options: ClassVar[type[DetectorOptions]] = PatchCoreOptions
    remembers_tiles: ClassVar[bool] = True
    options: PatchCoreOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the coreset, ``bank`` (B, C), its neighbours in it, ``around`` (B, 9), and cells.

        Neighbours are kept for ``reweight``, and cells for ``probes``.
        """
        check_count(vectors, 2, "a coreset")
        return self._kept(self._coreset(vectors))

    def extended(self, vectors: Vectors, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the coreset, at its end that of further vectors, with all that is kept of it."""
        return self._kept(torch.cat([fitted["bank"], self._coreset(vectors)]))

    def _coreset(self, vectors: Vectors) -> Tensor:
        """Return the share of vectors that is kept."""
        options, every = self.options, torch.from_numpy(vectors)
        count = max(1, round(options.coreset * len(vectors)))
        return every[greedy_coreset(every, count, seed=self._seed, projection=options.projection)]

    def _kept(self, bank: Tensor) -> dict[str, Tensor]:
        found = {"bank": bank, **self.kept_cells(bank)}
        if not self.options.reweight:
            return found
        purpose = f"the weights of {_NEIGHBOURS} neighbours"
        remedy = "set a larger coreset, or reweight: false"
        check_count(bank, _NEIGHBOURS, purpose, otherwise=remedy)
        return {**found, "around": Bank(bank).nearest(bank, _NEIGHBOURS)[1]}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the distance of each vector to its nearest vector in the coreset."""
        bank = fitted["bank"]
        distances, indices = (found[:, 0] for found in self.nearest_of_bank(vectors, fitted, 1))
        if not self.options.reweight:
            return distances
        around = fitted["around"][indices].T
        others = torch.stack([(vectors - bank[column]).norm(dim=1) for column in around])
        return distances * (1 - torch.exp(distances - others.logsumexp(dim=0)))


def greedy_coreset(
    vectors: Tensor, count: int, *, seed: int, projection: int | None = None
) -> Tensor:
    """Choose vectors to which all others are near: each is the farthest from those chosen before.

    No choice of as many vectors has a largest distance of less than half of this one's
    (k-centre; Gonzalez, Theoretical Computer Science 38, 1985).

    Parameters
    ----------
    vectors : Tensor of float32, (N, C)
        Vectors to choose from.
    count : int
        Number of vectors to choose; fewer are returned if the rest are copies.
    seed : int
        Seed of the first vector and of the projection.
    projection : int or None
        Number of random directions in which vectors are compared, instead of all C channels.

    Returns
    -------
    Tensor of int64, (count,)
        Indices, in the order in which they were chosen.
    """
    rng = np.random.default_rng([seed, len(vectors)])
    points = vectors
    if projection is not None and projection < vectors.shape[1]:
        directions = rng.normal(size=(vectors.shape[1], projection)) / np.sqrt(projection)
        points = vectors @ torch.from_numpy(directions.astype(np.float32))
    rows = np.ascontiguousarray(points.numpy(), np.float32)
    chosen = np.zeros(min(count, len(rows)), np.int64)
    chosen[0] = rng.integers(len(rows))
    return torch.from_numpy(chosen[: _farthest(rows, chosen)])


@compiled
def _farthest(points: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64]) -> int:
    """Choose points, each the farthest from those before; return how many differ.

    ``chosen`` holds the number of the first, and receives the others. A point whose own chosen
    point (the nearest so far) is twice as far from a new one as from it cannot be nearer to that.
    """
    own = np.zeros(len(points), np.int64)  # places in ``chosen``
    squares = np.empty(len(points))
    for i in range(len(points)):
        squares[i] = square_distance(points[i], points[chosen[0]])
    apart = np.empty(len(chosen))
    for place in range(1, len(chosen)):
        new = int(np.argmax(squares))
        if squares[new] == 0:
            return place
        chosen[place] = new
        for before in range(place):
            apart[before] = square_distance(points[new], points[chosen[before]])
        for i in range(len(points)):
            if apart[own[i]] > 4.000001 * squares[i]:
                continue
            square = square_distance(points[i], points[new])
            if square < squares[i]:
                squares[i] = square
                own[i] = place
    return len(chosen)
