"""The objective of the Deep Perceptual Autoencoder, at one resolution or growing.

The module also loads the perceptual network: its weights, their padding and the facts that a run
records. The statistics of its channels are measured on windows at the resolution at which a
layer is used.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.core.images import cut_window, is_picture
from wsiad.detectors.dpa.dpa_options import PerceptualOptions
from wsiad.learning.batches import on_device, random_crops, sample
from wsiad.learning.detector import TileSource
from wsiad.learning.stages import Stage
from wsiad.networks import vgg
from wsiad.networks.autoencoder import Autoencoder, images_of
from wsiad.networks.growing import GrowingAutoencoder, GrowingDistance, faded, shrunk
from wsiad.networks.perceptual import ChannelStatistics, RelativePerceptualL1, channel_statistics
from wsiad.networks.vgg import Vgg19
from wsiad.networks.vgg_statistics import (
    IMAGENET_SOURCE,
    check_channels,
    imagenet_statistics,
    read_statistics,
)
from wsiad.networks.weights import Weights


class Objective:
    """The distance between images and their reconstructions, as a loss.

    A call with windows, uint8 (N, S, S, 3), returns the loss of each, float32 (N,).

    Parameters
    ----------
    autoencoder : Autoencoder or GrowingAutoencoder
        Autoencoder; a growing one receives the resolution and the share of the stage.
    distances : mapping of int to RelativePerceptualL1
        Distance for each resolution, pixels.
    size : int
        Edge of the windows, pixels.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | GrowingAutoencoder,
        distances: Mapping[int, RelativePerceptualL1],
        *,
        size: int,
    ) -> None:
        self._autoencoder = autoencoder
        growing = isinstance(autoencoder, GrowingAutoencoder)
        self._distance: nn.Module = GrowingDistance(distances) if growing else distances[size]

    def __call__(self, windows: Tensor, stage: Stage | None = None) -> Tensor:
        """Return the distance of each window to its reconstruction."""
        return self.distance(*self.images(windows, stage), stage)

    def images(self, windows: Tensor, stage: Stage | None = None) -> tuple[Tensor, Tensor]:
        """Return images at the stage's resolution and their reconstructions."""
        x = images_of(windows)
        if stage is None:
            return x, self._autoencoder(x)
        x = faded(x, px=stage.px, alpha=stage.alpha)
        return x, self._autoencoder(x, px=stage.px, alpha=stage.alpha)

    def distance(self, original: Tensor, made: Tensor, stage: Stage | None = None) -> Tensor:
        """Return the distance of each image to its reconstruction."""
        found: Tensor = (
            self._distance(original, made, px=stage.px, alpha=stage.alpha)
            if stage
            else self._distance(original, made)
        )
        return found


logger = logging.getLogger(__name__)

INVERTED = (
    "trained through the network that comes with wsiad, dpa scored tumour of lymph node lower than "
    "healthy tissue (docs/pretrain.md): give VGG19's ImageNet weights by --weights, or use knn"
)
"""Warning where a distance is taken in the features of that network."""


def padding_of(options: PerceptualOptions, found: Weights) -> vgg.Padding:
    """Return the padding of the perceptual network: as in the options, or its weights.

    Raises
    ------
    DetectorError
        The weights state an unknown padding.
    """
    stated = options.padding or found.metadata.get("padding", "zeros")
    if stated not in ("zeros", "reflect"):
        raise DetectorError(
            f"the weights state the unknown padding {stated!r}",
            subject=found.source,
            remedy="Set padding to zeros or reflect.",
        )
    return cast(vgg.Padding, stated)


def note_of(found: Weights) -> dict[str, Any]:
    """Return the facts about its weights that a run records, as JSON; warn of bad results."""
    note = found.note()
    if found.shipped:
        logger.warning(INVERTED)
        note["warning"] = INVERTED
    return note


_BATCH = 128
_STREAM = 1 << 32  # keeps its draws apart from those of the training

Statistics = dict[int, dict[str, ChannelStatistics]]
"""Statistics by resolution in pixels, then by layer."""

_Windows = Callable[[], Iterator[Tensor]]
"""Function that yields windows, uint8 (N, size, size, 3), the same ones each time."""


def statistics_by_px(
    options: PerceptualOptions,
    networks: Mapping[int, Vgg19],
    tiles: TileSource,
    *,
    size: int,
    seed: int,
    device: torch.device,
) -> tuple[Statistics, str]:
    """Return the statistics at every resolution, and a description of their source.

    Parameters
    ----------
    options : PerceptualOptions
    networks : mapping of int to Vgg19
        Perceptual network for each resolution, pixels.
    tiles : TileSource
        Healthy tiles of the fit.
    size : int
        Edge of the windows at the full resolution, pixels.
    seed : int
    device : torch.device

    Raises
    ------
    DetectorError
        There is no source of statistics, or its values do not fit.
    InputError
        A picture cannot be read.
    """
    if options.statistics == "imagenet" or options.statistics_file:
        path = options.statistics_file
        source = str(path) if path else IMAGENET_SOURCE
        found = {}
        for px, network in networks.items():
            layers = network.layers
            found[px] = read_statistics(path, layers) if path else imagenet_statistics(layers)
            features = network(torch.zeros(1, 3, px, px, device=device))
            check_channels(found[px], {k: v.shape[1] for k, v in features.items()}, source)
        return found, source
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
    """Return windows of one picture each, which are drawn once and kept, as they are small."""
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
