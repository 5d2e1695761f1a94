"""The perceptual distance of detectors: its options, network and statistics, for a fit or a state.

The statistics of the network's channels are measured on windows at the resolution at which a
layer is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError
from wsiad.core.images import cut_window, is_picture
from wsiad.detectors._trained import group
from wsiad.learning.batches import on_device, random_crops, sample
from wsiad.learning.detector import FitContext, State, TileSource
from wsiad.learning.training_options import check_inverted
from wsiad.networks import vgg, weights
from wsiad.networks.growing import shrunk
from wsiad.networks.perceptual import ChannelStatistics, RelativePerceptualL1, channel_statistics
from wsiad.networks.vgg_statistics import (
    IMAGENET_SOURCE,
    check_channels,
    imagenet_statistics,
    read_statistics,
)

INVERTED = (
    "trained through the network that comes with wsiad, a perceptual distance scored tumour of "
    "lymph node lower than healthy tissue (docs/pretrain.md)"
)
"""Measurement of distances in the features of that network."""

_INSTEAD = "Give VGG19's ImageNet weights (548 MB) by --weights, or use --detector knn"

_BATCH = 128
_STREAM = 1 << 32  # keeps its draws apart from those of the training


def _known_layers(layers: dict[str, float]) -> dict[str, float]:
    if unknown := [layer for layer in layers if layer not in vgg.LAYERS]:
        raise ValueError(f"VGG19 has no layer {unknown[0]!r}; names are such as relu4_2")
    return layers


_Count = Annotated[int, pydantic.Field(ge=1)]
LayerWeights = Annotated[
    dict[str, Annotated[float, pydantic.Field(gt=0)]], pydantic.AfterValidator(_known_layers)
]
"""Layers of the perceptual network and their weights."""

SomeLayers = Annotated[LayerWeights, pydantic.Field(min_length=1)]
"""Layers and their weights, one at least."""


class PerceptualOptions(Config):
    """Options of the relative perceptual L1 distance."""

    layers: SomeLayers = pydantic.Field(default={"relu4_2": 1.0})
    """Layers of the perceptual network and their weights in the loss."""
    padding: Literal["zeros", "reflect"] | None = None
    """Padding of the perceptual network; by default the one in its weights file, or zeros."""
    contrast: Annotated[float, pydantic.Field(gt=0, le=8)] = 1.0
    """Factor by which intensities are stretched around white before the perceptual network; 1
    leaves them unchanged. Tissue on glass is paler than the photographs that the network knows."""
    relative: Literal["tile", "place"] = "tile"
    """Divide the distance by the size of the features over the tile, or at each place."""
    statistics: Literal["tiles", "imagenet"] = "tiles"
    """Source of the mean and deviation of each feature channel: the healthy tiles, or ImageNet,
    as published, for torchvision's VGG19."""
    statistics_tiles: _Count = 2_048
    """Maximum number of healthy tiles that give the mean and deviation of each feature channel."""
    statistics_file: Path | None = None
    """JSON of such statistics instead: ``mean`` and ``std`` of each layer, a number per channel."""
    statistics_images: Path | None = None
    """Folder of pictures from which to take the statistics instead: one random window of each, at
    most ``statistics_tiles``."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> PerceptualOptions:
        imagenet = self.statistics == "imagenet"
        if sum(map(bool, (self.statistics_file, self.statistics_images, imagenet))) > 1:
            raise ValueError(
                "set statistics_file, statistics_images or statistics: imagenet, not two of them"
            )
        return self


@dataclass(frozen=True, slots=True)
class FittedDistances:
    """Perceptual distances with what a run and a checkpoint record of them.

    Parameters
    ----------
    by_px : dict of int to RelativePerceptualL1
        Distance for each resolution, pixels.
    about : dict
        JSON values for the state: weights, padding and source of the statistics.
    identity : dict
        JSON values that a checkpoint must agree with.
    """

    by_px: dict[int, RelativePerceptualL1]
    about: dict[str, Any]
    identity: dict[str, Any]


def fitted_distances(
    options: PerceptualOptions,
    tiles: TileSource,
    context: FitContext,
    *,
    size: int,
    layers_by_px: Mapping[int, Mapping[str, float]] | None = None,
    image_weight: float = 0.0,
) -> FittedDistances:
    """Return distances with statistics of healthy tiles, on the context's device.

    Parameters
    ----------
    options : PerceptualOptions
    tiles : TileSource
        Healthy tiles of the fit.
    context : FitContext
    size : int
        Edge of the windows at the full resolution, pixels.
    layers_by_px : mapping, optional
        Layers and their weights for each resolution; by default those of the options for the full
        one alone.
    image_weight : float
        Weight of the mean absolute difference of pixels.

    Raises
    ------
    DetectorError
        Images of a resolution have no such features, there is no source of statistics, or the
        network is known to make scores inverted, which the context does not accept.
    WeightsError
        The perceptual network's weights are not on this machine.
    """
    seed, layers_by_px = context.seed, layers_by_px or {size: options.layers}
    found = weights.resolve(
        context.weights, model="vgg19", random_tensors=lambda: vgg.random_tensors(seed)
    )
    if found.shipped:
        check_inverted(INVERTED, accepted=context.accept_inverted, instead=_INSTEAD)
    padding = _padding_of(options, found)
    networks = {}
    for px, layers in layers_by_px.items():
        with weights.naming(found.source):
            network = _network(options, layers, found.tensors, padding, px=px)
        network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        networks[px] = network
    statistics, source = statistics_by_px(
        options, networks, tiles, size=size, seed=seed, device=context.device
    )
    by_px = {
        px: RelativePerceptualL1(
            network,
            statistics[px],
            layers_by_px[px],
            relative=options.relative,
            image_weight=image_weight,
        )
        for px, network in networks.items()
    }
    common = {"padding": padding, "statistics": source}
    return FittedDistances(
        by_px, {"weights": _note_of(found), **common}, {"weights": found.sha256, **common}
    )


def restored_distance(
    options: PerceptualOptions, state: State, prefix: str, *, size: int
) -> RelativePerceptualL1:
    """Return a distance into which the tensors of a state fit.

    Parameters
    ----------
    options : PerceptualOptions
    state : State
    prefix : str
        Beginning of the distance's names in the state.
    size : int
        Edge of the images, pixels.
    """
    own = group(state, prefix)
    network = _network(
        options,
        options.layers,
        group(state, f"{prefix}.network"),
        state.values["padding"],
        px=size,
    )
    statistics = {
        layer: ChannelStatistics(
            own[f"mean_{layer}"].flatten().clone(), own[f"scale_{layer}"].flatten().clone()
        )
        for layer in options.layers
    }
    return RelativePerceptualL1(network, statistics, options.layers, relative=options.relative)


def _network(
    options: PerceptualOptions,
    layers: Mapping[str, float],
    tensors: Mapping[str, Tensor],
    padding: vgg.Padding,
    *,
    px: int,
) -> vgg.Vgg19:
    names = list(layers)
    if px < (least := vgg.least_px(names, padding=padding)):
        raise DetectorError(
            f"images of {px} px have no features at {', '.join(names)}",
            remedy=f"They need {least} px: choose shallower layers.",
        )
    return vgg.Vgg19(tensors, names, padding=padding, contrast=options.contrast)


def _padding_of(options: PerceptualOptions, found: weights.Weights) -> vgg.Padding:
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


def _note_of(found: weights.Weights) -> dict[str, Any]:
    """Return the facts about its weights that a run records, as JSON."""
    return found.note() | ({"warning": INVERTED} if found.shipped else {})


Statistics = dict[int, dict[str, ChannelStatistics]]
"""Statistics by resolution in pixels, then by layer."""

_Windows = Callable[[], Iterator[Tensor]]
"""Function that yields windows, uint8 (N, size, size, 3), the same ones each time."""


def statistics_by_px(
    options: PerceptualOptions,
    networks: Mapping[int, vgg.Vgg19],
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
