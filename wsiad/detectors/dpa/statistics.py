"""Where the perceptual network's channel statistics come from, and what that is called.

A layer is measured on what it will see: the windows at the resolution at which the layer
is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.core.images import cut_window, is_picture
from wsiad.detectors.dpa.dpa_options import PerceptualOptions
from wsiad.learning.crops import on_device, random_crops
from wsiad.learning.detector import TileSource
from wsiad.learning.sampling import sample
from wsiad.networks.growing import shrunk
from wsiad.networks.perceptual import ChannelStatistics, channel_statistics
from wsiad.networks.vgg import Vgg19

_BATCH = 128
_STREAM = 1 << 32  # keeps its draws apart from those of the training

Statistics = dict[int, dict[str, ChannelStatistics]]
"""By resolution in pixels, then by layer."""

_Windows = Callable[[], Iterator[Tensor]]
"""Yields windows, uint8 (N, size, size, 3); the same ones each time."""


def statistics_by_px(
    options: PerceptualOptions,
    networks: Mapping[int, Vgg19],
    tiles: TileSource,
    *,
    size: int,
    seed: int,
    device: torch.device,
) -> tuple[Statistics, str]:
    """Return the statistics at every resolution, and what they were taken from.

    Parameters
    ----------
    options : PerceptualOptions
    networks : mapping of int to Vgg19
        The perceptual network by resolution, pixels.
    tiles : TileSource
        Healthy tiles that are fitted on.
    size : int
        Edge of the windows at the full resolution, pixels.
    seed : int
    device : torch.device

    Raises
    ------
    DetectorError
        There is nothing to take them from, or it does not fit.
    InputError
        A picture cannot be read.
    """
    if path := options.statistics_file:
        text = path.read_text(encoding="utf-8")
        found = {px: _read(text, network.layers, path) for px, network in networks.items()}
        return found, str(path)
    if folder := options.statistics_images:
        windows, source = _of_images(folder, options.statistics_tiles, size=size, seed=seed)
    else:
        windows, source = _of_tiles(tiles, options.statistics_tiles, device, size=size, seed=seed)

    def images(px: int) -> Iterator[Tensor]:
        for batch in windows():
            yield shrunk(batch.to(device).permute(0, 3, 1, 2).float() / 255, px)

    measured = {px: channel_statistics(network, images(px)) for px, network in networks.items()}
    return measured, source


def _of_tiles(
    tiles: TileSource, most: int, device: torch.device, *, size: int, seed: int
) -> tuple[_Windows, str]:
    def windows() -> Iterator[Tensor]:
        _, batches = sample(tiles, most, batch=_BATCH, seed=seed)
        for index, part in enumerate(batches):
            yield random_crops(on_device(part, device), size, seed=seed, step=_STREAM + index)

    count, _ = sample(tiles, most, batch=_BATCH, seed=seed)
    return windows, f"{count} healthy tiles"


def _of_images(folder: Path, most: int, *, size: int, seed: int) -> tuple[_Windows, str]:
    """Windows of one picture each; drawn once, as they are small."""
    if not folder.is_dir():
        raise DetectorError("there is no such folder", subject=str(folder))
    paths = sorted(p for p in folder.rglob("*") if is_picture(p.name) and p.is_file())
    if not paths:
        raise DetectorError(
            "holds no picture to take the channel statistics from",
            subject=str(folder),
            remedy="Name a folder of JPEG, PNG or TIFF files.",
        )
    if len(paths) > most:
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))
        paths = [paths[index] for index in sorted(order[:most].tolist())]
    cut = np.empty((len(paths), size, size, 3), np.uint8)
    for index, path in enumerate(paths):
        cut[index] = cut_window(path, size, seed=(seed, _STREAM, index))
    digest = hashlib.sha256(cut.data).hexdigest()

    def windows() -> Iterator[Tensor]:
        for start in range(0, len(cut), _BATCH):
            yield torch.from_numpy(cut[start : start + _BATCH])

    return windows, f"{len(cut)} images of {folder.name} (windows sha256:{digest[:16]})"


def _read(text: str, layers: tuple[str, ...], path: Path) -> dict[str, ChannelStatistics]:
    try:
        values = json.loads(text)
        return {
            layer: ChannelStatistics(
                torch.tensor(values[layer]["mean"], dtype=torch.float32),
                torch.tensor(values[layer]["std"], dtype=torch.float32),
            )
            for layer in layers
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DetectorError(
            f"no statistics of the layers {', '.join(layers)} ({error!r})",
            subject=str(path),
            remedy='Give JSON: {"relu4_2": {"mean": [...], "std": [...]}}.',
        ) from error
