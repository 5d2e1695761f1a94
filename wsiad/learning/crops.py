"""Cut tiles to a detector's input: at random to train, fixed windows to score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError


def check_size(tile_px: int, input_px: int) -> None:
    """Check that tiles hold a detector's input.

    Raises
    ------
    DetectorError
        They are smaller.
    """
    if tile_px < input_px:
        raise DetectorError(
            f"tiles of {tile_px} px are smaller than the detector's input of {input_px} px",
            remedy="Tile again with larger tiles, or set a smaller input_px.",
        )


def on_device(tiles: npt.NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Copy tiles to a device as they are; uint8 is a quarter of the way float32 goes.

    Nothing waits for a GPU to finish what it was given before.
    """
    return on_host(tiles).to(device, non_blocking=True)


def on_host(tiles: npt.NDArray[np.uint8] | Tensor, *, pinned: bool = False) -> Tensor:
    """Return tiles as a tensor, in memory that a GPU reads by itself if ``pinned``."""
    if not isinstance(tiles, Tensor):
        # torch wants memory that it may write to.
        tiles = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
    return tiles.pin_memory() if pinned else tiles


def random_crops(
    tiles: Tensor,
    size: int,
    *,
    seed: int,
    step: int,
    rows: npt.NDArray[np.int64] | None = None,
    total: int | None = None,
    flips: bool = True,
) -> Tensor:
    """Cut one random window out of every tile and flip it at random in both directions.

    Windows and flips are a pure function of ``seed`` and ``step``, so that a training
    that was interrupted goes on exactly as it would have.

    Parameters
    ----------
    tiles : Tensor of uint8, (N, S, S, 3)
        On any device.
    size : int
        Edge of the windows, pixels.
    seed, step : int
        Name the draw.
    rows : ndarray of int64, (N,), optional
        Which rows of a larger batch these tiles are, whose draws are taken.
    total : int, optional
        Tiles of that batch.
    flips : bool
        Without, windows stay as they lie.

    Returns
    -------
    Tensor of uint8, (N, size, size, 3)
    """
    count, edge = tiles.shape[0], tiles.shape[1]
    check_size(edge, size)
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, edge - size + 1, size=(2, total or count))
    flipped = rng.integers(0, 2, size=(2, total or count)).astype(bool) & flips
    if rows is not None:
        starts, flipped = starts[:, rows], flipped[:, rows]
    along = np.arange(size)
    positions = np.where(flipped[:, :, None], along[::-1], along) + starts[:, :, None]
    y, x = _sent(positions, tiles.device)
    image = torch.arange(count, device=tiles.device)
    return tiles[image[:, None, None], y[:, :, None], x[:, None, :]]


def _sent(numbers: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    host = torch.from_numpy(numbers)
    if device.type == "cuda":  # from other memory, the copy would wait for the GPU
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def centre_crops(tiles: Tensor, size: int) -> Tensor:
    """Cut the central window out of every tile, uint8 (N, S, S, 3) to (N, size, size, 3)."""
    edge = tiles.shape[1]
    check_size(edge, size)
    start = (edge - size) // 2
    return tiles[:, start : start + size, start : start + size]


def windows(tiles: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Cut tiles into all windows of a centred grid without overlap.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, S, S, 3)
    size : int
        Edge of the windows, pixels.

    Returns
    -------
    ndarray of uint8, (N · k², size, size, 3)
        With k = ⌊S / size⌋ windows a side; those of a tile follow each other.
    """
    edge = tiles.shape[1]
    check_size(edge, size)
    side = edge // size
    start = (edge - side * size) // 2
    grid = tiles[:, start : start + side * size, start : start + side * size]
    cut = grid.reshape(len(tiles), side, size, side, size, 3).swapaxes(2, 3)
    return np.ascontiguousarray(cut.reshape(-1, size, size, 3))
