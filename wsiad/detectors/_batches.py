"""Tiles sent through a network in batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsiad.learning.crops import on_device
from wsiad.learning.detector import Tiles


def in_batches(
    function: Callable[[Tensor], Tensor], tiles: Tiles, device: torch.device, *, batch: int
) -> npt.NDArray[np.float32]:
    """Apply a function to tiles, uint8 (N, S, S, 3), on a device; its results as float32.

    The function is called at least once, so that no tiles give a result of its shape.
    """
    with torch.inference_mode():
        found = [
            function(on_device(tiles[start : start + batch], device)).float().cpu()
            for start in range(0, max(1, len(tiles)), batch)
        ]
    return np.asarray(torch.cat(found).numpy(), np.float32)
