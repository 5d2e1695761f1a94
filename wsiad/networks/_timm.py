"""Networks of timm, an optional dependency, as extractors of the features of their layers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from wsiad.errors import DetectorError
from wsiad.networks import _torchvision

PREFIX = "timm/"


class _FoundAllError(Exception):
    """All layers have been seen: what lies deeper need not be computed."""


def build(backbone: str) -> nn.Module:
    """Return an untrained network without its classifier; nothing is downloaded.

    Parameters
    ----------
    backbone : str
        ``"timm/…"``.

    Raises
    ------
    DetectorError
        timm is not installed, or has no such network.
    """
    timm, name = _timm(backbone), backbone.removeprefix(PREFIX)
    if name not in timm.list_models():
        near = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise DetectorError(
            f"timm has no network {name!r}",
            remedy=f"Choose one of timm.list_models(), such as {', '.join(near) or 'resnet18'}.",
        )
    try:
        # Transformers have an embedding of each position, which this fits to other sizes.
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, dynamic_img_size=True
        )
    except TypeError:
        network = timm.create_model(name, pretrained=False, num_classes=0)
    return network.eval()


def normalisation(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation by which a network's images are normalised."""
    about: Any = network.pretrained_cfg
    return tuple(about["mean"]), tuple(about["std"])


def give_features(network: nn.Module, layers: Sequence[str], backbone: str) -> nn.Module:
    """Let a network return the features (N, C, h, w) by layer in place of its output.

    Hooks look at the layers, and the rest is left out. Tokens of a transformer become a
    map of its patches; those of no patch are dropped.
    """
    found: dict[str, Tensor] = {}

    def hook(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[layer] = _as_map(output, network, layer)
            if len(found) == len(set(layers)):
                raise _FoundAllError

        return look

    modules, whole = dict(network.named_modules()), network.forward
    for layer in layers:
        modules[layer].register_forward_hook(hook(layer))

    def forward(images: Tensor) -> dict[str, Tensor]:
        found.clear()
        try:
            whole(images)
        except _FoundAllError:
            return dict(found)
        except AssertionError as error:
            raise DetectorError(
                f"{backbone} does not take images of {images.shape[2]} px ({error})",
                remedy="Choose a network that takes any size, or another input_px.",
            ) from error
        missing = ", ".join(layer for layer in layers if layer not in found)
        raise DetectorError(f"{missing} of {backbone} is not used for images")

    network.forward = forward
    return network


def _as_map(output: Any, network: nn.Module, layer: str) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if channels_last else output
    if isinstance(output, Tensor) and output.ndim == 3:
        patches = output[:, getattr(network, "num_prefix_tokens", 0) :]
        edge = math.isqrt(patches.shape[1])
        if edge**2 == patches.shape[1]:
            return patches.transpose(1, 2).reshape(len(patches), -1, edge, edge)
    raise DetectorError(f"the output of {layer} is no map of features", remedy="Choose another.")


def _timm(backbone: str) -> ModuleType:
    _torchvision.models()  # timm imports torchvision, which may need help
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise DetectorError(
            f"timm is not installed ({error})",
            subject=backbone,
            remedy="Install it with `pip install wsiad[timm]`, or choose one of torchvision's "
            "networks.",
        ) from error
