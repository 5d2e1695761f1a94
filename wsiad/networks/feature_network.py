"""Networks of torchvision and timm by name, cut after the layers whose features are used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.networks import _timm
from wsiad.networks.encoder import table
from wsiad.networks.pixel_features import PIXELS
from wsiad.networks.state_dict import Fit, fitted, left_off, unwrapped
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.networks.vgg import Padding
from wsiad.networks.weights import SHIPPED

_HEADS = frozenset({"fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits"})
"""Parts of torchvision's networks that come after the features."""


def build(backbone: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network by name.

    Parameters
    ----------
    backbone : str
        Name of a network of torchvision or timm, or ``"wsiad"``.
    arguments : mapping of str to value
        Arguments of a timm network's constructor.

    Raises
    ------
    DetectorError
        There is no network of that name, or it does not accept the arguments.
    """
    if backbone.startswith(_timm.PREFIX):
        return _timm.build(backbone, arguments)
    if backbone == PIXELS:
        raise DetectorError(
            f"{PIXELS} are no network that could be trained", remedy="Choose a network."
        )
    if arguments:
        raise DetectorError(
            f"backbone_args are for networks of timm, and {backbone!r} is not one",
            remedy="Leave them out, or choose a backbone timm/….",
        )
    if backbone == SHIPPED:
        backbone = "vgg19"
    check_name(backbone)
    # GoogLeNet and Inception would otherwise draw weights for minutes, and warn.
    extra = {"init_weights": True} if backbone in {"googlenet", "inception_v3"} else {}
    network: nn.Module = torchvision_models().get_model(backbone, weights=None, **extra)
    return network.eval()


def check_name(backbone: str) -> None:
    """Refuse a network that torchvision does not have."""
    models = torchvision_models()
    known = models.list_models(module=models)
    if backbone in known:
        return
    if "/" in backbone or Path(backbone).suffix:
        remedy = "Pass a file of weights by --weights; the backbone is the name of its network."
    else:
        remedy = f"Choose one of {', '.join(known)}."
    encoders = table().names
    near = difflib.get_close_matches(backbone, [*known, *encoders], n=1)
    remedy += f" Encoders of pathology by name: {', '.join(encoders)}."
    raise DetectorError(
        f"torchvision has no network {backbone!r}"
        + (f" (did you mean {near[0]!r}?)" if near else ""),
        remedy=remedy,
    )


def _is_vgg(backbone: str) -> bool:
    return backbone.startswith("vgg") or backbone == SHIPPED


def whole(backbone: str, *, like: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network; a VGG has the tensors' widths and no values."""
    # Drawing the weights of a VGG's classifier would take most of the time, for nothing.
    with torch.device("meta") if _is_vgg(backbone) else nullcontext():
        network = build(backbone, arguments)
        if _is_vgg(backbone):
            _fit_widths(network, like)
    return network


def loaded(
    backbone: str,
    layers: tuple[str, ...],
    tensors: Mapping[str, Tensor],
    *,
    padding: Padding,
    arguments: Mapping[str, Any],
) -> tuple[nn.Module, list[str]]:
    """Return a network with its weights, cut after the layers, and the keys that were left off."""
    # Of a VGG the names alone are known before its widths.
    network = whole(backbone, like={}, arguments=arguments)
    tensors = unwrapped(tensors, network.state_dict())
    if _is_vgg(backbone):
        network = whole(backbone, like=tensors, arguments=arguments)
    every = network.state_dict()
    shortened = cut(network, backbone, layers, padding=padding)
    own = shortened.state_dict()
    if not backbone.startswith(_timm.PREFIX):
        named = {key: t for key, t in every.items() if key.partition(".")[0] in _HEADS}
        of_head = {key: t for key, t in named.items() if key not in own}
    else:
        of_head = {} if every.keys() >= tensors.keys() else _timm.head(backbone, arguments)
    if _is_vgg(backbone):  # as wide as it is
        of_head = {key: tensors.get(key, t) for key, t in of_head.items()}
    of_timm = backbone.startswith(_timm.PREFIX)
    remedy = f"Use weights with {'timm' if of_timm else 'torchvision'}'s keys for {backbone}."
    to = Fit(
        name=backbone,
        whole=every,
        needed=tuple(own),
        head=of_head,
        remedy=remedy,
        of_timm=of_timm,
        encoders=encoders_of(backbone),
    )
    shortened.load_state_dict({**own, **fitted(tensors, to)})
    return shortened, left_off(tensors, to)


def encoders_of(backbone: str) -> tuple[str, ...]:
    """Return the names of published encoders whose network has this name in timm."""
    if not backbone.startswith(_timm.PREFIX):
        return ()
    plain = backbone.removeprefix(_timm.PREFIX).partition(".")[0]
    return tuple(encoder.name for encoder in table().encoders if encoder.network == plain)


def cut(
    network: nn.Module,
    backbone: str,
    layers: tuple[str, ...],
    *,
    padding: Padding = "zeros",
    of_timm: bool | None = None,
) -> nn.Module:
    """Return a network that maps images to the features of its layers, and computes no more.

    Parameters
    ----------
    network : nn.Module
    backbone : str
        Its name, for errors.
    layers : tuple of str
        Names of its modules.
    padding : {"zeros", "reflect"}
        Padding of all convolutions.
    of_timm : bool, optional
        True if the network is one of timm; by default its name decides.

    Raises
    ------
    DetectorError
        There is no such layer, or none was chosen.
    """
    if padding != "zeros":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = padding
    of_timm = backbone.startswith(_timm.PREFIX) if of_timm is None else of_timm
    names = dict(network.named_modules())
    for layer in layers:
        called = _timm.module_of(layer) if of_timm else layer
        if called not in names or not called:
            top = [name for name in names if name and name.count(".") <= 1]
            raise DetectorError(
                f"{backbone} has no layer {layer!r}",
                remedy=f"Set --option layers=null for the method's own, or some of "
                f"{', '.join(top)}.",
            )
    if not layers:
        raise DetectorError(f"no layer of {backbone} was chosen")
    if of_timm:
        return _timm.give_features(network, layers, backbone)
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    shortened: nn.Module = extraction.create_feature_extractor(
        network, {layer: layer for layer in layers}
    )
    if _is_vgg(backbone):
        _draw(shortened)
    return shortened.eval()


def _draw(network: nn.Module) -> None:
    """Draw the weights of a network that has only shapes."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()


def _fit_widths(vgg: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Change the convolutions of a VGG to the widths of tensors, so that slim ones fit."""
    features = vgg.get_submodule("features")
    for name, module in list(features.named_children()):
        weight = tensors.get(f"features.{name}.weight")
        if weight is None or weight.shape == getattr(module, "weight", weight).shape:
            continue
        if isinstance(module, nn.Conv2d) and weight.shape[2:] == module.weight.shape[2:]:
            setattr(features, name, nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
        elif isinstance(module, nn.BatchNorm2d):
            setattr(features, name, nn.BatchNorm2d(len(weight)).eval())
