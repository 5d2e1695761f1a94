"""Tiles with a known difference, for the detectors that learn from labels."""

from __future__ import annotations

import numpy as np

from wsiad.learning.detector import AnomalousTiles, AnomalyType, HealthyTiles
from wsiad.store.dataset import ArrayTiles

PX = 32


def tiles(count, *, seed, anomalous=False):
    """Noise around grey; anomalous ones are striped from left to right as well."""
    rng = np.random.default_rng([seed, anomalous])
    made = rng.normal(128, 25, (count, PX, PX, 3)) + rng.normal(0, 4, (count, 1, 1, 3))
    if anomalous:
        made[:, :, ::4] += 70
    return made.clip(0, 255).astype(np.uint8)


def healthy(count=60):
    return HealthyTiles(ArrayTiles(tiles(count, seed=1)), ArrayTiles(tiles(20, seed=2)))


def anomalies(count=6, *, slides=3, name="stripes"):
    made = ArrayTiles(tiles(count, seed=3, anomalous=True))
    return AnomalousTiles((AnomalyType(name, made, tuple(f"a{i % slides}" for i in range(count))),))
