"""The mean loss over held-out healthy tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsiad.learning.crops import centre_crops, on_device
from wsiad.learning.detector import TileSource
from wsiad.learning.sampling import sample


def held_out_loss(
    losses: Callable[[Tensor], Tensor],
    source: TileSource,
    *,
    size: int,
    most: int | None,
    batch: int,
    seed: int,
    device: torch.device,
) -> float:
    """Return the mean loss of the central windows of tiles; the same tiles each time.

    Parameters
    ----------
    losses : callable
        Maps windows, uint8 (N, size, size, 3), to the loss of each, (N,).
    source : TileSource
    size : int
        Edge of the windows, pixels.
    most : int or None
        Look at no more tiles; see :func:`~wsiad.learning.sampling.sample`.
    batch : int
    seed : int
    device : torch.device
    """
    count, batches = sample(source, most, batch=batch, seed=seed)
    total = 0.0
    for tiles in batches:
        found = losses(centre_crops(on_device(tiles, device), size))
        total += float(found.double().sum())
    return total / count
