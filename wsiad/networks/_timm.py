"""Networks of timm, an optional dependency, as extractors of the features of their layers."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.networks.torchvision_models import torchvision_models

PREFIX = "timm/"

CLASS_TOKEN = ":cls"  # noqa: S105 - a token of a transformer
"""End of a layer's name that asks for its class token instead of the map of its patches."""

WHOLE_LAYERS = ("pooler", "head")
"""Layers of encoders that give one vector for the complete image: a map of one place."""

_MLP_LAYERS = ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked")

_NOT_THE_NETWORKS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"num_classes", "features_only", "out_indices", "scriptable", "exportable", "no_jit"}
    | {"pretrained_strict", "pretrained_filter_fn", "kwargs_filter", "model_name", "model_cfg"}
)
"""Arguments of timm's factory that are not arguments of a network."""

_AS_IT_IS = {"num_classes": 0, "pretrained": False}
"""Arguments that change nothing here, but are part of the instructions of published encoders."""


class _FoundAllError(Exception):
    """All layers have been seen, so that deeper ones need not be computed."""


def build(backbone: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return an untrained network without its classifier; nothing is downloaded.

    Parameters
    ----------
    backbone : str
        ``"timm/…"``, with or without the tag of its weights (``"timm/resnet50.a1_in1k"``).
    arguments : mapping of str to value, optional
        Arguments of the network's constructor, such as ``{"init_values": 1.0}``.

    Raises
    ------
    DetectorError
        timm is not installed or has no such network or tag, or the network does not accept the
        arguments.
    """
    timm, name = _timm(backbone), backbone.removeprefix(PREFIX)
    plain, _, tag = name.partition(".")
    if plain not in timm.list_models():
        near = difflib.get_close_matches(plain, timm.list_models(), n=3)
        near = near or timm.list_models(f"*{plain.split('_')[0]}*")[:10]
        raise DetectorError(
            f"timm has no network {plain!r}",
            remedy=f"Choose one of timm.list_models(), such as {', '.join(near) or 'resnet18'}.",
        )
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=5, cutoff=0) or ["none"]
        raise DetectorError(
            f"timm knows no weights {tag!r} of {plain}",
            remedy=f"It knows {', '.join(near)}; or leave the tag out.",
        )
    return _made(timm, name, {"num_classes": 0, **checked(arguments or {})}).eval()


def head(backbone: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the tensors that the network of :func:`build` leaves off, by name and with shapes.

    Returns
    -------
    dict of str to Tensor
        Tensors on the device ``meta``, without values.
    """
    timm, name = _timm(backbone), backbone.removeprefix(PREFIX)
    given = checked(arguments or {})
    with torch.device("meta"):
        whole = _made(timm, name, given).state_dict()
        trunk = _made(timm, name, {"num_classes": 0, **given}).state_dict()
    return {key: tensor for key, tensor in whole.items() if key not in trunk}


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for timm, with classes in place of the names of layers.

    Raises
    ------
    DetectorError
        An argument is not the network's own; weights, for example, have an option of their own.
    """
    out = dict(arguments)
    for name, value in arguments.items():
        if name in _AS_IT_IS and value == _AS_IT_IS[name]:
            del out[name]
        elif name in _NOT_THE_NETWORKS:
            raise DetectorError(
                f"{name} is not for backbone_args",
                remedy="Use arguments of the network's constructor, such as init_values; set "
                "weights by --weights.",
            )
        elif name == "mlp_layer":
            if value not in _MLP_LAYERS:
                raise DetectorError(
                    f"{value!r} is not an mlp_layer", remedy=f"Choose {', '.join(_MLP_LAYERS)}."
                )
            out[name] = getattr(importlib.import_module("timm.layers"), value)
    return out


def _made(timm: ModuleType, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        try:
            # Transformers have an embedding of each position, which this fits to other sizes.
            network: nn.Module = timm.create_model(
                name, pretrained=False, **{"dynamic_img_size": True, **arguments}
            )
        except TypeError:
            network = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # a constructor may trip over a value anywhere
        why = " ".join(str(error).split())[:200]
        given = ", ".join(f"{k}: {v!r}" for k, v in arguments.items() if k != "num_classes")
        raise DetectorError(
            f"timm cannot make {name} with {{{given[:200]}}} ({why})",
            remedy="Correct backbone_args: they are the arguments of its constructor.",
        ) from error
    return network


def made(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network of exactly these arguments; nothing is downloaded.

    Raises
    ------
    DetectorError
        timm is not installed, has no such network, or the network does not accept the arguments.
    """
    timm = _timm(PREFIX + name)
    if name not in timm.list_models():
        raise DetectorError(
            f"timm {timm.__version__} has no network {name!r}", remedy="Install a newer timm."
        )
    return _made(timm, name, arguments)


def layer_class(name: str) -> type[nn.Module]:
    """Return a class of layers of PyTorch or timm by its name, such as ``"SwiGLUPacked"``."""
    _timm(PREFIX)
    found: type[nn.Module] = getattr(nn, name, None) or getattr(
        importlib.import_module("timm.layers"), name
    )
    return found


def version() -> str:
    """Return the version of timm."""
    return str(_timm(PREFIX).__version__)


def normalisation(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation by which a network's images are normalised."""
    about: Any = network.pretrained_cfg
    return tuple(about["mean"]), tuple(about["std"])


def give_features(network: nn.Module, layers: Sequence[str], backbone: str) -> nn.Module:
    """Make a network return the features (N, C, h, w) by layer in place of its output.

    Hooks look at the layers, and deeper ones are not computed. Tokens of a transformer become a
    map of its patches. Tokens that belong to no patch are dropped, unless a layer's name asks for
    the class token (``"norm:cls"``), which is a map of one place.
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
        modules[module_of(layer)].register_forward_hook(hook(layer))

    def forward(images: Tensor) -> dict[str, Tensor]:
        found.clear()
        try:
            whole(images)
        except _FoundAllError:
            return dict(found)
        except AssertionError as error:
            raise DetectorError(
                f"{backbone} does not accept images of {images.shape[2]} px ({error})",
                remedy="Choose a network for images of any size, or another input_px.",
            ) from error
        missing = ", ".join(layer for layer in layers if layer not in found)
        raise DetectorError(f"{missing} of {backbone} is not used for images")

    network.forward = forward
    return network


def module_of(layer: str) -> str:
    """Return the name of the module of which a layer is the output."""
    return layer.removesuffix(CLASS_TOKEN)


def _as_map(output: Any, network: nn.Module, layer: str) -> Tensor:
    if layer.endswith(CLASS_TOKEN):
        has_one = getattr(network, "cls_token", None) is not None
        if has_one and isinstance(output, Tensor) and output.ndim == 3:
            return output[:, 0, :, None, None]
        raise DetectorError(
            f"the output of {module_of(layer)} has no class token",
            remedy="Choose a layer of a transformer that has one, or leave :cls out.",
        )
    if layer in WHOLE_LAYERS and isinstance(output, Tensor) and output.ndim == 2:
        return output[:, :, None, None]
    if isinstance(output, Tensor) and output.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if channels_last else output
    if isinstance(output, Tensor) and output.ndim == 3:
        patches = output[:, getattr(network, "num_prefix_tokens", 0) :]
        edge = math.isqrt(patches.shape[1])
        if edge**2 == patches.shape[1]:
            return patches.transpose(1, 2).reshape(len(patches), -1, edge, edge)
    raise DetectorError(f"the output of {layer} is not a map of features", remedy="Choose another.")


def _timm(backbone: str) -> ModuleType:
    torchvision_models()  # timm imports torchvision, which may need help
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise DetectorError(
            f"timm is not installed ({error})",
            subject=backbone,
            remedy="Install it with `pip install wsiad[timm]`, or choose one of torchvision's "
            "networks.",
        ) from error
