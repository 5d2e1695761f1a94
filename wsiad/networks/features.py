"""Frozen networks of torchvision or timm as feature extractors on a grid of places.

If the user names no network or no weights, :func:`settle` chooses them.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError, WeightsError
from wsiad.networks import _timm, vgg, weights
from wsiad.networks.state_dict import Fit, fitted, left_off, unwrapped
from wsiad.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, Padding, stretched
from wsiad.networks.weights import SHIPPED, Weights, naming, torchvision_models

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
DEFAULT: Final = "squeezenet1_1"

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of RGB in [0, 1]."""

ONLY_BY_NAME = (
    "%s: images are normalised by mean %s and deviation %s, which timm states for that name; "
    "weights of other origin may need others: set the options mean and std"
)
"""Warning where a normalisation depends only on the name of a network."""

_MARKS = {
    "features.3.squeeze.weight": DEFAULT,
    "features.2.weight": "vgg19",
    "features.denseblock3.denselayer48.conv2.weight": "densenet201",
    "features.denseblock3.denselayer36.conv2.weight": "densenet161",
    "features.denseblock3.denselayer32.conv2.weight": "densenet169",
    "features.denseblock3.denselayer24.conv2.weight": "densenet121",
}
"""Keys by which weights are recognised, and their networks; the first key that occurs decides."""
_HEADS = frozenset({"fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits"})
"""Parts of torchvision's networks that come after the features."""


class BackboneFeatures(nn.Module):
    """Features of chosen layers of a network, pooled to m × m places.

    The network is cut after the deepest requested layer. The features of each layer are
    averaged to the grid of places (adaptive average pooling) and concatenated.

    Parameters
    ----------
    backbone : str
        Name of a torchvision classification model, such as ``"squeezenet1_1"`` or
        ``"resnet18"``; of one of timm, such as ``"timm/convnext_atto"``; or ``"wsiad"`` for a
        network of ``wsiad pretrain``, with torchvision's names of VGG19.
    layers : sequence of str
        Names of modules, such as ``"features.4"`` or ``"layer2"``.
    places : int
        Edge m of the grid; 1 averages over the complete tile.
    tensors : mapping of str to Tensor
        State dict with torchvision's or timm's keys. Deeper layers of torchvision's networks
        can be missing, and a VGG has the widths of its tensors.
    neighbourhood : int
        Odd edge of the square over which features are averaged first, within the tile;
        1 leaves them unchanged.
    padding : {"zeros", "reflect"}
        Padding of all convolutions, as when the weights were trained.
    contrast : float
        Factor by which images are stretched around white; see
        :func:`~wsiad.networks.vgg.stretched`.
    arguments : mapping of str to value, optional
        Arguments of a timm network's constructor; see :func:`wsiad.networks._timm.build`.
    normalisation : Normalisation, optional
        Mean and deviation of the images on which the network was trained; by default ImageNet's,
        or for a network of timm those that timm states for its name.
    source : str, optional
        Source of a user's tensors, which errors name. Assumptions about such tensors are
        logged.

    Attributes
    ----------
    normalisation : Normalisation
        Normalisation in use, before the contrast.
    left_off : list of str
        Keys of the classifier that the tensors hold.

    Raises
    ------
    DetectorError
        The backbone or a layer is unknown, or the backbone does not accept the arguments.
    WeightsError
        The tensors are not exactly those of the network, complete and without others; see
        :func:`wsiad.networks.state_dict.fitted`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str],
        places: int,
        tensors: Mapping[str, Tensor],
        *,
        neighbourhood: int = 1,
        padding: Padding = "zeros",
        contrast: float = 1,
        arguments: Mapping[str, Any] | None = None,
        normalisation: Normalisation | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.places, self.neighbourhood = tuple(layers), places, neighbourhood
        self.padding, self.arguments = padding, dict(arguments or {})
        self.backbone, self.contrast = backbone, contrast
        with naming(source):
            self.network, self.left_off = _loaded(
                backbone, self.layers, tensors, padding=padding, arguments=self.arguments
            )
        self.normalisation = normalisation or _usual_normalisation(backbone, self.network)
        if source is not None and normalisation is None and backbone.startswith(_timm.PREFIX):
            logger.warning(ONLY_BY_NAME, backbone, *self.normalisation)
        mean, std = stretched(*self.normalisation, contrast)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return feature vectors, float32 (N, m, m, C), of RGB images (N, 3, H, W) in [0, 1].

        Raises
        ------
        DetectorError
            The images are too small for this many places.
        """
        found = self.maps(self.normalised(images))
        self._check_finest(found, images.shape[2])
        pooled = [
            nn.functional.adaptive_avg_pool2d(self._smoothed(features), self.places)
            for features in found
        ]
        return torch.cat(pooled, dim=1).permute(0, 2, 3, 1).float()

    def identity(self) -> dict[str, Any]:
        """Return all on which the features of an image depend but the weights, as JSON values."""
        mean, std = self.normalisation
        return {
            "backbone": self.backbone,
            "arguments": self.arguments,
            "layers": list(self.layers),
            "places": self.places,
            "neighbourhood": self.neighbourhood,
            "padding": self.padding,
            "contrast": self.contrast,
            "mean": list(mean),
            "std": list(std),
            "precision": "fp32",
        }

    def normalised(self, images: Tensor) -> Tensor:
        """Return RGB images (N, 3, H, W) in [0, 1], normalised as in the network's training."""
        return (images - self.mean) / self.std

    def maps(self, normalised: Tensor) -> list[Tensor]:
        """Return the features (N, C, h, w) of normalised images at every layer, unpooled."""
        found = self.network(normalised)
        return [found[layer] for layer in self.layers]

    def check_places(self, edge: int) -> list[tuple[int, int, int]]:
        """Check that images have features for the places; return the shapes of the features.

        Parameters
        ----------
        edge : int
            Edge of the images, pixels.

        Returns
        -------
        list of tuple
            Shape (C, h, w) of each layer.

        Raises
        ------
        DetectorError
            The images are too small for this many places.
        """
        device = self.mean.device
        with torch.no_grad():
            found = self.maps(torch.zeros(1, 3, edge, edge, device=device))
        self._check_finest(found, edge)
        return [(f.shape[1], f.shape[2], f.shape[3]) for f in found]

    def _check_finest(self, found: Sequence[Tensor], edge: int) -> None:
        finest = max(min(features.shape[2:]) for features in found)
        if finest < self.places:
            raise DetectorError(
                f"{self.places} × {self.places} places were requested, but the features of a tile "
                f"of {edge} px have {finest} × {finest}",
                remedy="Choose fewer places, larger tiles or a shallower layer.",
            )

    def _smoothed(self, features: Tensor) -> Tensor:
        edge = self.neighbourhood
        if edge == 1:
            return features
        # What lies outside of the tile is left out, not taken as zero.
        return nn.functional.avg_pool2d(features, edge, 1, edge // 2, count_include_pad=False)


def random_tensors(
    backbone: str, seed: int, *, arguments: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Return the weights of a new network, drawn from a seed."""
    if backbone == SHIPPED:
        return vgg.random_tensors(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(_build(backbone, arguments or {}).state_dict())


def stated_padding(metadata: Mapping[str, str]) -> Padding:
    """Return the padding that the metadata of a weights file state; zeros if none.

    Raises
    ------
    WeightsError
        The metadata state an unknown padding.
    """
    match metadata.get("padding", "zeros"):
        case "zeros":
            return "zeros"
        case "reflect":
            return "reflect"
        case other:
            raise WeightsError(f"the weights state the unknown padding {other!r}")


def seeded_network(
    backbone: str,
    layers: Sequence[str],
    seed: int,
    *,
    like: nn.Module,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return an untrained network cut after the deepest of the layers, for training.

    It maps normalised images to the features by layer, a dict of (N, C, h, w). Its widths are
    those of ``like``, another network of that name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = _whole(backbone, like=like.state_dict(), arguments=arguments or {})
        return _cut(whole, backbone, tuple(layers))


def _usual_normalisation(backbone: str, network: nn.Module) -> Normalisation:
    if backbone.startswith(_timm.PREFIX):
        return _timm.normalisation(network)
    return IMAGENET_MEAN, IMAGENET_STD


def _build(backbone: str, arguments: Mapping[str, Any]) -> nn.Module:
    if backbone.startswith(_timm.PREFIX):
        return _timm.build(backbone, arguments)
    if arguments:
        raise DetectorError(
            f"backbone_args are for networks of timm, and {backbone!r} is not one",
            remedy="Leave them out, or choose a backbone timm/….",
        )
    if backbone == SHIPPED:
        backbone = "vgg19"
    _check_name(backbone)
    # GoogLeNet and Inception would otherwise draw weights for minutes, and warn.
    extra = {"init_weights": True} if backbone in {"googlenet", "inception_v3"} else {}
    network: nn.Module = torchvision_models().get_model(backbone, weights=None, **extra)
    return network.eval()


def _check_name(backbone: str) -> None:
    """Refuse a network that torchvision does not have."""
    models = torchvision_models()
    known = models.list_models(module=models)
    if backbone in known:
        return
    if "/" in backbone or Path(backbone).suffix:
        remedy = "Pass a file of weights by --weights; the backbone is the name of its network."
    else:
        remedy = f"Choose one of {', '.join(known)}."
    near = difflib.get_close_matches(backbone, known, n=1)
    raise DetectorError(
        f"torchvision has no network {backbone!r}"
        + (f" (did you mean {near[0]!r}?)" if near else ""),
        remedy=remedy,
    )


def _is_vgg(backbone: str) -> bool:
    return backbone.startswith("vgg") or backbone == SHIPPED


def _whole(backbone: str, *, like: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network; a VGG has the tensors' widths and no values."""
    # Drawing the weights of a VGG's classifier would take most of the time, for nothing.
    with torch.device("meta") if _is_vgg(backbone) else nullcontext():
        network = _build(backbone, arguments)
        if _is_vgg(backbone):
            _fit_widths(network, like)
    return network


def _loaded(
    backbone: str,
    layers: tuple[str, ...],
    tensors: Mapping[str, Tensor],
    *,
    padding: Padding,
    arguments: Mapping[str, Any],
) -> tuple[nn.Module, list[str]]:
    """Return a network with its weights, cut after the layers, and the keys that were left off."""
    # Of a VGG the names alone are known before its widths.
    network = _whole(backbone, like={}, arguments=arguments)
    tensors = unwrapped(tensors, network.state_dict())
    if _is_vgg(backbone):
        network = _whole(backbone, like=tensors, arguments=arguments)
    every = network.state_dict()
    cut = _cut(network, backbone, layers, padding=padding)
    own = cut.state_dict()
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
        name=backbone, whole=every, needed=tuple(own), head=of_head, remedy=remedy, of_timm=of_timm
    )
    cut.load_state_dict({**own, **fitted(tensors, to)})
    return cut, left_off(tensors, to)


def _cut(
    network: nn.Module, backbone: str, layers: tuple[str, ...], *, padding: Padding = "zeros"
) -> nn.Module:
    if padding != "zeros":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = padding
    of_timm = backbone.startswith(_timm.PREFIX)
    names = dict(network.named_modules())
    for layer in layers:
        called = _timm.module_of(layer) if of_timm else layer
        if called not in names or not called:
            top = [name for name in names if name and name.count(".") <= 1]
            raise DetectorError(
                f"{backbone} has no layer {layer!r}", remedy=f"It has {', '.join(top)}."
            )
    if not layers:
        raise DetectorError(f"no layer of {backbone} was chosen")
    if of_timm:
        return _timm.give_features(network, layers, backbone)
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    cut: nn.Module = extraction.create_feature_extractor(
        network, {layer: layer for layer in layers}
    )
    if _is_vgg(backbone):
        _draw(cut)
    return cut.eval()


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


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network by name, and its weights.

    Parameters
    ----------
    name : str
        Name of the network, as for :class:`~wsiad.networks.features.BackboneFeatures`.
    weights : Weights
    """

    name: str
    weights: Weights


def settle(
    name: str, asked: str | None, *, seed: int, arguments: Mapping[str, Any] | None = None
) -> Backbone:
    """Return a backbone with its weights.

    Parameters
    ----------
    name : str
        A network of torchvision or timm, or ``"wsiad"`` for one that ``wsiad pretrain`` made.
        ``"auto"`` is the network of the weights: for a file, SqueezeNet 1.1, VGG19 (of any
        widths), a DenseNet or the network of ``wsiad pretrain``. Without a file it is ImageNet's
        SqueezeNet 1.1, or the network that comes with wsiad if those weights are not on this
        machine.
    asked : str or None
        Weights that were requested; see :func:`wsiad.networks.weights.resolve`.
    seed : int
        Seed of random weights.
    arguments : mapping of str to value, optional
        Arguments of a timm network's constructor.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or belong to a network that must be named.
    DetectorError
        There is no network of that name.
    """
    if name == AUTO and asked is None:
        try:
            return Backbone(DEFAULT, weights.official(DEFAULT))
        except WeightsError as error:
            logger.warning(weights.NOT_AT_HAND, DEFAULT, error.problem)
            return Backbone(weights.SHIPPED, weights.shipped())
    if name == AUTO and asked not in (weights.RANDOM, weights.IMAGENET):
        found = (
            weights.shipped() if asked == weights.SHIPPED else weights.read_file(Path(asked or ""))
        )
        return Backbone(_recognised(found), found)
    name = DEFAULT if name == AUTO else name
    if name != weights.SHIPPED and not name.startswith(_timm.PREFIX):
        _check_name(name)
    found = weights.resolve(
        asked,
        model=name,
        random_tensors=lambda: random_tensors(name, seed, arguments=arguments),
    )
    return Backbone(name, found)


def _recognised(found: Weights) -> str:
    if found.metadata.get("made_by", "").startswith("wsiad pretrain"):
        return weights.SHIPPED
    for mark, name in _MARKS.items():
        if any(key == mark or key.endswith(f".{mark}") for key in found.tensors):
            return name
    raise WeightsError(
        "belong neither to a SqueezeNet 1.1 nor to a VGG19 nor to a DenseNet",
        subject=found.source,
        remedy="Name their network, for example with --option backbone=resnet50.",
    )
