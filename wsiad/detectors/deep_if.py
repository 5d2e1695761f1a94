"""Deep IF: an isolation forest on frozen features."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.detectors._features import (
    DEEPEST,
    DefaultLayers,
    FeatureDetector,
    FeatureOptions,
)
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import check_count, float32, in_blocks, random_state
from wsiad.learning.detector import DetectorOptions


class DeepIfOptions(FeatureOptions):
    """Options of ``deep-if``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is used. Default: the last block, ``features.12`` of SqueezeNet or
    ``layer4`` of a ResNet."""
    places: Annotated[int, pydantic.Field(ge=1)] = 1
    """Edge of the grid of places in a tile; 1 averages the features over the complete tile."""
    trees: Annotated[int, pydantic.Field(ge=1)] = 100
    """Number of trees in the forest."""
    max_samples: Annotated[int, pydantic.Field(ge=2)] = 256
    """Maximum number of healthy vectors for each tree."""

    default_layers: ClassVar[DefaultLayers] = DEEPEST
    inverted_auroc: ClassVar[str] = "0.404"


class DeepIsolationForest(FeatureDetector):
    """Isolation forest (Liu, Ting & Zhou, ICDM 2008) on frozen features: ``deep-if``.

    This is a baseline of Shvetsova et al., IEEE Access 2021: features averaged over the tile,
    of the last block or of several layers, in a forest of 100 trees of 256 samples each. They
    took the features from an Inception-ResNet-v2, of tiles enlarged to 299 px. Here ``backbone``
    is any network of torchvision or timm, and ``magnify``, 1 by default, enlarges the tiles; the
    presets ``deep-if`` and ``deep-if-tuned`` set both as published.

    The score is 2^(−h / c), where h is the mean number of splits that isolate a vector, and c
    the expected number for as many samples. It equals scikit-learn's ``score_samples`` with
    its sign changed. Trees are kept as tables and evaluated all at the same time.
    """

    Options: ClassVar[type[DetectorOptions]] = DeepIfOptions
    options: DeepIfOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the trees as tables of T × nodes, and ``expected``, the c of the score.

        ``feature``, ``threshold``, ``left`` and ``right`` describe the splits; a leaf is its
        own child. ``path`` is the number of splits to a leaf, plus the number that its samples
        would still need.
        """
        from sklearn.ensemble import IsolationForest

        check_count(vectors, 2, "an isolation forest")
        forest = IsolationForest(
            n_estimators=self.options.trees,
            max_samples=min(self.options.max_samples, len(vectors)),
            random_state=random_state(self._seed),
        ).fit(vectors)
        trees = [_table(estimator.tree_) for estimator in forest.estimators_]
        nodes = max(len(tree["path"]) for tree in trees)
        tables = {
            name: np.stack([np.resize(tree[name], nodes) for tree in trees]) for name in trees[0]
        }
        return {
            "feature": torch.from_numpy(tables["feature"]),
            "threshold": float32(tables["threshold"]),
            "left": torch.from_numpy(tables["left"]),
            "right": torch.from_numpy(tables["right"]),
            "path": float32(tables["path"]),
            "expected": float32(_isolating_splits(np.array([forest.max_samples_]))),
        }

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the anomaly score of each vector, between 0 and 1."""
        # As scikit-learn grows them: no deeper than the samples need on average.
        depth = math.ceil(math.log2(self.options.max_samples))
        trees = len(fitted["feature"])
        return in_blocks(lambda part: _score(part, fitted, depth), vectors, 4 * trees)


def _isolating_splits(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean number of splits that isolate one of ``samples`` (Liu et al., eq. 1)."""
    n = np.maximum(samples, 2).astype(np.float64)
    mean = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(samples > 2, mean, np.where(samples == 2, 1.0, 0.0))


def _table(tree: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return one tree of scikit-learn as arrays of its nodes."""
    left, right = tree.children_left, tree.children_right
    own = np.arange(tree.node_count)
    leaf = left < 0
    depth = np.zeros(tree.node_count)
    for node in np.flatnonzero(~leaf):  # parents come before their children
        depth[[left[node], right[node]]] = depth[node] + 1
    return {
        "feature": np.where(leaf, 0, tree.feature).astype(np.int64),
        "threshold": _rounded_down(np.where(leaf, 0.0, tree.threshold)),
        "left": np.where(leaf, own, left).astype(np.int64),
        "right": np.where(leaf, own, right).astype(np.int64),
        "path": depth + _isolating_splits(tree.n_node_samples),
    }


def _rounded_down(thresholds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return float32 thresholds that split float32 values exactly as the float64 ones do."""
    found = thresholds.astype(np.float32)
    return np.where(found > thresholds, np.nextafter(found, np.float32(-np.inf)), found)


def _score(vectors: Tensor, fitted: dict[str, Tensor], depth: int) -> Tensor:
    """Evaluate all trees together: ``node`` (T, N) is the current node of a vector in a tree."""
    columns = vectors.T.contiguous()
    node = torch.zeros(
        len(fitted["feature"]), len(vectors), dtype=torch.int64, device=vectors.device
    )
    for _ in range(depth):
        value = columns.gather(0, fitted["feature"].gather(1, node))
        below = value <= fitted["threshold"].gather(1, node)
        node = torch.where(below, fitted["left"].gather(1, node), fitted["right"].gather(1, node))
    return torch.exp2(-fitted["path"].gather(1, node).mean(dim=0) / fitted["expected"])
