"""What the tests of detectors on frozen features share."""

from __future__ import annotations

import numpy as np
import torch

from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, FitContext, HealthyTiles, InputSpec
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
TILES = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)


def detector(name: str, *, seed: int = 0, **options) -> Detector:
    """Return an unfitted detector of 64 px."""
    cls = registry.load(name)
    found = cls(cls.Options(**options), InputSpec(TilePx(64), Mpp(1)))
    found._seed = seed
    return found


def fitted_on_tiles(name: str, folder, *, seed: int = 1, **options) -> Detector:
    """Return a detector fitted on noise, with random weights."""
    found = detector(name, **options)
    context = FitContext(seed=seed, device=CPU, folder=folder, weights="random", quiet=True)
    found.fit(HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)), context)
    return found


def mixed(count: int, channels: int, *, seed: int = 0) -> np.ndarray:
    """Return correlated vectors away from the origin, float32 (count, channels)."""
    # One mixing for all seeds: draws of other seeds are of the same distribution.
    mixing = np.random.default_rng(99).normal(size=(channels, channels))
    values = np.random.default_rng(seed).normal(size=(count, channels))
    return (values @ mixing + 3).astype(np.float32)


def distances(found: Detector, healthy: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the scores of vectors by a detector fitted on others."""
    return found.distance(torch.from_numpy(asked), found.fit_vectors(healthy)).numpy()
