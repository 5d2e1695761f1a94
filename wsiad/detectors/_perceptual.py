"""The perceptual distance of ``dpa`` for other detectors: made for a fit, or for a state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._trained import group
from wsiad.detectors.dpa.dpa_options import PerceptualOptions
from wsiad.detectors.dpa.objective import note_of, padding_of, statistics_by_px
from wsiad.learning.detector import FitContext, State, TileSource
from wsiad.networks import vgg, weights
from wsiad.networks.perceptual import ChannelStatistics, RelativePerceptualL1


@dataclass(frozen=True, slots=True)
class FittedDistance:
    """A perceptual distance with what a run and a checkpoint record of it.

    Parameters
    ----------
    distance : RelativePerceptualL1
    about : dict
        JSON values for the state: weights, padding and source of the statistics.
    identity : dict
        JSON values that a checkpoint must agree with.
    """

    distance: RelativePerceptualL1
    about: dict[str, Any]
    identity: dict[str, Any]


def fitted_distance(
    options: PerceptualOptions, tiles: TileSource, context: FitContext, *, size: int
) -> FittedDistance:
    """Return the distance with statistics of healthy tiles, on the context's device.

    Raises
    ------
    DetectorError
        Images of this size have no such features.
    WeightsError
        The perceptual network's weights are not on this machine.
    """
    seed = context.seed
    found = weights.resolve(
        context.weights, model="vgg19", random_tensors=lambda: vgg.random_tensors(seed)
    )
    padding = padding_of(options, found)
    with weights.naming(found.source):
        network = _network(options, found.tensors, padding, size=size)
    network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    statistics, source = statistics_by_px(
        options, {size: network}, tiles, size=size, seed=seed, device=context.device
    )
    distance = RelativePerceptualL1(
        network, statistics[size], options.layers, relative=options.relative
    )
    common = {"padding": padding, "statistics": source}
    return FittedDistance(
        distance, {"weights": note_of(found), **common}, {"weights": found.sha256, **common}
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
        options, group(state, f"{prefix}.network"), state.values["padding"], size=size
    )
    statistics = {
        layer: ChannelStatistics(
            own[f"mean_{layer}"].flatten().clone(), own[f"scale_{layer}"].flatten().clone()
        )
        for layer in _layers(options.layers)
    }
    return RelativePerceptualL1(network, statistics, options.layers, relative=options.relative)


def _layers(layers: Iterable[str]) -> list[str]:
    return list(layers)


def _network(
    options: PerceptualOptions, tensors: dict[str, Tensor], padding: vgg.Padding, *, size: int
) -> vgg.Vgg19:
    layers = _layers(options.layers)
    if size < (least := vgg.least_px(layers, padding=padding)):
        raise DetectorError(
            f"images of {size} px have no features at {', '.join(layers)}",
            remedy=f"They need {least} px: choose shallower layers.",
        )
    return vgg.Vgg19(tensors, layers, padding=padding, contrast=options.contrast)
