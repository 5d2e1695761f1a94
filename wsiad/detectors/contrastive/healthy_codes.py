"""Scores by healthy features: Mahalanobis distance to clusters, CSI's product, nearest codes.

Each function that fits returns tensors; each score takes them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import counted
from wsiad.detectors._vectors import check_count, nearest

_LEAST = 1e-6


def fit_clusters(features: Tensor, clusters: int, *, seed: int) -> dict[str, Tensor]:
    """Return mean and deviation of channels, and mean and precision of each cluster.

    Features (N, C) are first scaled to length 1, then standardised by channel.

    Raises
    ------
    DetectorError
        There are fewer tiles than clusters, or all are alike.
    """
    unit = functional.normalize(features.double().cpu(), dim=1)
    check_count(
        unit,
        clusters + 1,
        counted(clusters, "cluster"),
        noun="healthy tile",
        otherwise="set fewer clusters",
    )
    mean, deviation = unit.mean(dim=0), unit.std(dim=0, correction=0)
    if not float(deviation.max()) > 0:
        raise DetectorError("the features of all healthy tiles are alike")
    deviation = torch.where(deviation > _LEAST * deviation.max(), deviation, deviation.max())
    values = (unit - mean) / deviation
    labels = np.zeros(len(values), np.int64)
    if clusters > 1:
        from sklearn.cluster import KMeans

        labels = KMeans(clusters, n_init=4, random_state=seed).fit_predict(values.numpy())
    means, precisions = [], []
    for number in range(clusters):
        own = values[torch.from_numpy(labels == number)]
        means.append(own.mean(dim=0))
        away = own - means[-1]
        precisions.append(torch.linalg.pinv(away.T @ away / len(own), hermitian=True))
    found = {
        "mean": mean,
        "deviation": deviation,
        "means": torch.stack(means),
        "precisions": torch.stack(precisions),
    }
    return {name: tensor.float() for name, tensor in found.items()}


def cluster_distances(features: Tensor, fitted: dict[str, Tensor]) -> Tensor:
    """Return the least (f − m)ᵀ Σ⁺ (f − m) over the clusters, (N,), of features (N, C)."""
    values = (functional.normalize(features, dim=1) - fitted["mean"]) / fitted["deviation"]
    found = [
        ((values - mean) @ precision * (values - mean)).sum(dim=1)
        for mean, precision in zip(fitted["means"], fitted["precisions"], strict=True)
    ]
    return torch.stack(found).amin(dim=0)


def fit_axes(vectors: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
    """Return directions of healthy vectors, and weights of vectors and of shift logits.

    Parameters
    ----------
    vectors : Tensor, (S, M, P)
        Projections of M healthy tiles under S shifts.
    logits : Tensor, (S, M), or None
        Logit of the right shift.
    """
    lengths = vectors.norm(dim=2).mean(dim=1).clamp(min=_LEAST)
    found = {"axes": functional.normalize(vectors, dim=2), "weights": 1 / lengths}
    if logits is not None:
        # By the size of the mean: its sign would turn the score around.
        found["shift_weights"] = 1 / logits.mean(dim=1).abs().clamp(min=_LEAST)
    return found


def axis_scores(vectors: Tensor, logits: Tensor | None, fitted: dict[str, Tensor]) -> Tensor:
    """Return minus the mean over shifts of CSI's score, (N,), which is high for healthy tiles.

    It is max cos(z, healthy) · |z| by its weight, plus the weighted logit of the right shift.

    Parameters
    ----------
    vectors : Tensor, (S, N, P)
    logits : Tensor, (S, N), or None
    fitted : dict of str to Tensor
        Tensors of :func:`fit_axes`.
    """
    cosines = functional.normalize(vectors, dim=2) @ fitted["axes"].transpose(1, 2)
    found = cosines.amax(dim=2) * vectors.norm(dim=2) * fitted["weights"][:, None]
    if logits is not None:
        found = found + logits * fitted["shift_weights"][:, None]
    return -found.mean(dim=0)


def nearest_distances(codes: Tensor, bank: Tensor) -> Tensor:
    """Return the Euclidean distance of codes (N, D) to the nearest of a bank (B, D): (N,)."""
    return nearest(codes, bank, 1)[0][:, 0]
