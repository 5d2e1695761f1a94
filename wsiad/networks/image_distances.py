"""Distances of two images by pixel: absolute, squared, structural, and of edges.

Each function maps two batches of images, float (N, C, S, S), to a map (N, S, S). The mean of the
map is the distance of an image, which losses and scores use alike. Images are in [−1, 1], and may
exceed it. Structural distances are published for [0, 1]: they map the images there, and their
constants keep their meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SSIM_EDGE, _SSIM_SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for images in [0, 1]
_GMS_CONSTANT = 0.0026  # for images in [0, 1]: 170 / 255²
_SCALES = 4
_LEAST = 1e-12  # the root of 0 has no gradient


def absolute(x: Tensor, y: Tensor) -> Tensor:
    """Return |x − y|, averaged over channels."""
    return (x - y).abs().mean(dim=1)


def squared(x: Tensor, y: Tensor) -> Tensor:
    """Return (x − y)², averaged over channels."""
    return (x - y).square().mean(dim=1)


def dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 − SSIM in a Gaussian window of 11 px (σ 1.5), averaged over channels.

    Images are mapped to [0, 1] and clamped. They are padded by reflection, so that the map is
    as large as the image: at 64 px the window covers a sixth of the edge.

    Raises
    ------
    ValueError
        The images are smaller than 6 px.

    Notes
    -----
    Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", 2004; K1 = 0.01, K2 = 0.03. Without padding, the first published
    autoencoder of this loss (Bergmann et al. 2018) has a smaller map.
    """
    x, y = _unit(x).clamp(0, 1), _unit(y).clamp(0, 1)
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    var_x = _gaussian(x * x) - mean_x**2
    var_y = _gaussian(y * y) - mean_y**2
    both = _gaussian(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * both + _C2) / (var_x + var_y + _C2)
    return 1 - (light * structure).mean(dim=1)


def edge_difference(x: Tensor, y: Tensor, scales: int = _SCALES) -> Tensor:
    """Return 1 − the similarity of gradient magnitudes, averaged over scales.

    Images are averaged over their channels and filtered by a 3 × 3 median; the gradient is
    Prewitt's. Each scale halves the image, and is enlarged again without interpolation, so that
    the mean of the map is the mean over scales.

    Parameters
    ----------
    x, y : Tensor, float (N, C, S, S)
    scales : int
        Number of scales; less if the image cannot be halved as often.

    Notes
    -----
    Xue, Zhang, Mou & Bovik, "Gradient Magnitude Similarity Deviation", 2014; over four scales
    in Zavrtanik, Kristan & Skočaj, "Reconstruction by Inpainting for Visual Anomaly
    Detection", Pattern Recognition 2021.
    """
    x, y, edge = _unit(x), _unit(y), x.shape[-1]
    total, count = torch.zeros((), device=x.device), 0
    for _ in range(scales):
        found = 1 - _gradient_similarity(x, y)
        total = total + functional.interpolate(found[:, None], size=(edge, edge))[:, 0]
        count += 1
        if x.shape[-1] % 2 or x.shape[-1] < 2 * 3:
            break
        x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    return total / count


def mean_filtered(maps: Tensor, edge: int) -> Tensor:
    """Return maps (N, S, S) averaged over squares of an odd edge, padded by reflection."""
    around = min(edge // 2, maps.shape[-1] - 1)
    if around == 0:
        return maps
    padded = functional.pad(maps[:, None], [around] * 4, mode="reflect")
    return functional.avg_pool2d(padded, 2 * around + 1, stride=1)[:, 0]


def pooled(maps: Tensor, places: int) -> Tensor:
    """Return the means of pixel maps (N, S, S) over places, (N, places, places)."""
    return functional.adaptive_avg_pool2d(maps[:, None], places)[:, 0]


def _unit(x: Tensor) -> Tensor:
    return x * 0.5 + 0.5


def _gaussian(x: Tensor) -> Tensor:
    around = _SSIM_EDGE // 2
    if x.shape[-1] <= around:
        raise ValueError(f"images of {x.shape[-1]} px are too small for SSIM")
    at = torch.arange(_SSIM_EDGE, device=x.device, dtype=x.dtype) - around
    weights = torch.exp(-(at**2) / (2 * _SSIM_SIGMA**2))
    weights = weights / weights.sum()
    channels = x.shape[1]
    padded = functional.pad(x, [around] * 4, mode="reflect")
    rows = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    columns = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    return functional.conv2d(
        functional.conv2d(padded, rows, groups=channels), columns, groups=channels
    )


def _gradient_similarity(x: Tensor, y: Tensor) -> Tensor:
    first, second = _gradient(x), _gradient(y)
    return (2 * first * second + _GMS_CONSTANT) / (first.square() + second.square() + _GMS_CONSTANT)


def _gradient(x: Tensor) -> Tensor:
    """Return the magnitude of Prewitt's gradient of grey images, (N, S, S)."""
    grey = x.mean(dim=1, keepdim=True)
    smooth = _windows(grey).median(dim=1, keepdim=True).values
    edge = grey.shape[-1]
    around = _windows(smooth).view((len(grey), 3, 3, edge, edge))
    across = (around[:, :, 2] - around[:, :, 0]).sum(dim=1) / 3
    down = (around[:, 2] - around[:, 0]).sum(dim=1) / 3
    return (across.square() + down.square() + _LEAST).sqrt()


def _windows(grey: Tensor) -> Tensor:
    """Return the 3 × 3 neighbours of each pixel of images (N, 1, S, S): (N, 9, S, S)."""
    edge = grey.shape[-1]
    padded = functional.pad(grey, [1] * 4, mode="reflect")
    return functional.unfold(padded, 3).view(len(grey), 9, edge, edge)
