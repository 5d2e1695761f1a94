"""Options that decide which features of a store's tiles are computed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wsiad.runs.healthy_tiles import MethodOptions
from wsiad.store.feature_options import FeatureStorageOptions


class EmbeddingOptions(FeatureStorageOptions, MethodOptions):
    """Options that decide which features are computed, and how they are stored."""

    detector: str = "knn"
    """Method whose features are computed; all methods with the same network, layers and places
    read the same features. An ensemble has those of all its members."""
    seed: int = 0
    """Seed of random weights; other weights do not depend on it."""
    orientations: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of orientations of each tile. 8 are for the labelled tiles of a method that learns
    from them turned and mirrored (`augment`)."""
