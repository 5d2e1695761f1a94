"""Channel statistics of a VGG19's layers that come from elsewhere: ImageNet's, or a file's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from wsiad.core.errors import DetectorError
from wsiad.networks.perceptual import ChannelStatistics

_SHIPPED = Path(__file__).parent / "shipped" / "vgg19_imagenet_statistics.safetensors"
IMAGENET_SOURCE: Final = "ImageNet (ILSVRC2012), as in the code of Shvetsova et al. 2021"
"""Description of the shipped statistics in a run."""
_SHORT = re.compile(r"(conv|relu|pool)(\d)(?:_(\d))?")
_MOST_BYTES = 16 << 20


def imagenet_statistics(layers: Sequence[str]) -> dict[str, ChannelStatistics]:
    """Return the statistics of layers of torchvision's VGG19 over ImageNet.

    Notes
    -----
    The numbers are those of the code of Shvetsova et al. (github.com/ninatu/anomaly_detection,
    Apache-2.0), to six decimals. The file there calls the standard deviations variances; that
    they are deviations follows from the layers before and after the ReLU.

    Raises
    ------
    DetectorError
        A layer is not of VGG19.
    """
    shipped = load_file(_SHIPPED)
    if unknown := [layer for layer in layers if f"{layer}.mean" not in shipped]:
        raise DetectorError(
            f"there are no statistics of ImageNet for {unknown[0]}",
            remedy="Use a convB_N, reluB_N or poolB of VGG19.",
        )
    return {
        layer: ChannelStatistics(shipped[f"{layer}.mean"], shipped[f"{layer}.std"])
        for layer in layers
    }


def read_statistics(path: Path, layers: Sequence[str]) -> dict[str, ChannelStatistics]:
    """Read the statistics of layers from a JSON file.

    The file has ``mean`` and ``std`` of each layer, a number for each channel. Short names of
    layers are accepted too, ``r42`` for ``relu4_2``, and ``std_named_var`` for ``std``.

    Raises
    ------
    DetectorError
        The file cannot be read, lacks a layer, or holds what are no finite numbers.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)  # what is longer is cut off, and is not JSON then
        values = json.loads(data)
        return {layer: _of_layer(values, layer) for layer in layers}
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DetectorError(
            f"no statistics of the layers {', '.join(layers)} ({error!r})",
            subject=str(path),
            remedy='Write JSON: {"relu4_2": {"mean": [...], "std": [...]}}.',
        ) from error


def _of_layer(values: dict[str, Any], layer: str) -> ChannelStatistics:
    found = _SHORT.fullmatch(layer)
    short = f"{found[1][0]}{found[2]}{found[3] or ''}" if found else layer
    stored = values[layer] if layer in values else values[short]
    spread = stored["std"] if "std" in stored else stored["std_named_var"]
    mean, std = (torch.tensor(numbers, dtype=torch.float32) for numbers in (stored["mean"], spread))
    if mean.ndim != 1 or mean.shape != std.shape:
        raise ValueError(f"{layer} has not one mean and one deviation for each channel")
    if not bool(mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
        raise ValueError(f"{layer} has numbers that are not finite, or negative deviations")
    return ChannelStatistics(mean, std)


def check_channels(
    statistics: dict[str, ChannelStatistics], channels: dict[str, int], source: str
) -> None:
    """Check that statistics have as many channels as the layers of a network.

    Raises
    ------
    DetectorError
        They do not.
    """
    for layer, count in channels.items():
        if (found := len(statistics[layer].mean)) != count:
            raise DetectorError(
                f"the statistics of {layer} ({source}) have {found} channels, and the network has "
                f"{count}",
                remedy="Use the network that they were measured with, or set "
                "--option statistics=tiles and no statistics_file.",
            )
