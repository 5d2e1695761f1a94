"""Colour distance: strange is tissue whose colour is unlike that of healthy tissue."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import pydantic
import torch

from wsiad.core.errors import DetectorError
from wsiad.learning.batches import sample, windows
from wsiad.learning.detector import (
    Detector,
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    Scores,
    State,
    Tiles,
)

_BATCH = 128
_LEAST_VARIANCE = 1e-6  # squared optical density: eight bits tell no finer colours apart


class ColourDistanceOptions(DetectorOptions):
    """Options of ``colour-distance``."""

    places: Annotated[int, pydantic.Field(ge=1)] = 4
    """Edge of the grid of places in a tile."""
    fit_tiles: Annotated[int, pydantic.Field(ge=2)] = 2_000
    """The most healthy tiles that are fitted on."""


class ColourDistance(Detector):
    """The Mahalanobis distance of a place's mean colour to the colours of healthy places.

    Colours are mean optical densities, −log((I + 1) / 256), of red, green and blue.
    """

    Options: ClassVar[type[DetectorOptions]] = ColourDistanceOptions
    options: ColourDistanceOptions
    _mean: npt.NDArray[np.float64] | None = None
    _whitening: npt.NDArray[np.float64]

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Measure the mean and the covariance of healthy colours."""
        _, batches = sample(tiles.fit, self.options.fit_tiles, batch=_BATCH, seed=context.seed)
        found = np.concatenate([self._colours(windows(part, self.spec.size)) for part in batches])
        colours = found.reshape(-1, 3)
        covariance = np.cov(colours, rowvar=False) + _LEAST_VARIANCE * np.eye(3)
        self._mean = colours.mean(axis=0)
        self._whitening = np.linalg.cholesky(np.linalg.inv(covariance))
        return FitReport(ended_by="fitted", notes={"places": len(colours)})

    def score_places(self, tiles: Tiles) -> Scores:
        """Return the distance of each place, float32 (N, places, places)."""
        mean, whitening = self._fitted()
        away = (self._colours(tiles) - mean) @ whitening
        return np.sqrt(np.square(away).sum(axis=3)).astype(np.float32)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the mean colour of whole tiles, float32 (N, 3), in which distances are alike."""
        _, whitening = self._fitted()
        return (self._colours(tiles).mean(axis=(1, 2)) @ whitening).astype(np.float32)

    def state(self) -> State:
        """Return the mean colour and what makes all directions of colour alike."""
        mean, whitening = self._fitted()
        return State({"mean": torch.from_numpy(mean), "whitening": torch.from_numpy(whitening)}, {})

    def load_state(self, state: State, device: torch.device) -> None:
        """Become the detector whose state this is."""
        shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
        if shapes != {"mean": (3,), "whitening": (3, 3)}:
            raise DetectorError(f"the state is not that of this detector: it holds {shapes}")
        self._mean, self._whitening = (state.tensors[n].numpy() for n in ("mean", "whitening"))

    def _fitted(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        if self._mean is None:
            raise DetectorError("the detector is not fitted yet")
        return self._mean, self._whitening

    def _colours(self, tiles: Tiles) -> npt.NDArray[np.float64]:
        """Return the mean optical density of each place, float64 (N, places, places, 3)."""
        count, edge, places = len(tiles), self.spec.size, self.options.places
        if edge % places:
            raise DetectorError(
                f"tiles of {edge} px have no {places} equal places a side",
                remedy="Choose another number of places.",
            )
        density = -np.log((tiles.astype(np.float64) + 1) / 256)
        part = edge // places
        return density.reshape(count, places, part, places, part, 3).mean(axis=(2, 4))
