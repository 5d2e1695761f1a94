"""Frozen networks of torchvision or timm as feature extractors on a grid of places."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from wsiad.errors import DetectorError, WeightsError
from wsiad.networks import _timm, _torchvision, vgg
from wsiad.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, Padding, stretched
from wsiad.networks.weights import SHIPPED


class BackboneFeatures(nn.Module):
    """Features of chosen layers of a network, pooled to m × m places.

    The network is cut after the deepest layer asked for. The features of each layer are
    averaged to the grid of places (adaptive average pooling) and concatenated.

    Parameters
    ----------
    backbone : str
        Name of a torchvision classification model: ``"squeezenet1_1"``, ``"resnet18"``, …;
        or of one of timm: ``"timm/convnext_atto"``; or ``"wsiad"`` for one that ``wsiad
        pretrain`` made, with torchvision's names of VGG19.
    layers : sequence of str
        Names of modules, such as ``"features.4"`` or ``"layer2"``.
    places : int
        Edge m of the grid; 1 averages over the whole tile.
    tensors : mapping of str to Tensor
        State dict with torchvision's or timm's keys; of torchvision's networks, what lies
        deeper is not needed, and a VGG's widths are those of its tensors.
    neighbourhood : int
        Odd edge of the square over which features are averaged first, within the tile;
        1 leaves them as they are.
    padding : {"zeros", "reflect"}
        Of all convolutions, as the weights were trained.
    contrast : float
        Stretch images about white so many times; see :func:`~wsiad.networks.vgg.stretched`.

    Raises
    ------
    DetectorError
        The backbone or a layer is unknown.
    WeightsError
        A tensor is missing or does not fit.
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
    ) -> None:
        super().__init__()
        self.layers, self.places, self.neighbourhood = tuple(layers), places, neighbourhood
        self.padding = padding
        self.network = _cut(backbone, self.layers, like=tensors, padding=padding)
        _load(self.network, tensors, backbone)
        mean: tuple[float, ...] = IMAGENET_MEAN
        std: tuple[float, ...] = IMAGENET_STD
        if backbone.startswith(_timm.PREFIX):
            mean, std = _timm.normalisation(self.network)
        mean, std = stretched(mean, std, contrast)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return feature vectors, float32 (N, m, m, C), of RGB images (N, 3, H, W) in [0, 1].

        Raises
        ------
        DetectorError
            The images are too small for that many places.
        """
        found = self.maps(self.normalised(images))
        self._check_finest(found, images.shape[2])
        pooled = [
            nn.functional.adaptive_avg_pool2d(self._smoothed(features), self.places)
            for features in found
        ]
        return torch.cat(pooled, dim=1).permute(0, 2, 3, 1).float()

    def normalised(self, images: Tensor) -> Tensor:
        """Return RGB images (N, 3, H, W) in [0, 1] as the network was trained on them."""
        return (images - self.mean) / self.std

    def maps(self, normalised: Tensor) -> list[Tensor]:
        """Return the features (N, C, h, w) of normalised images at every layer as they are."""
        found = self.network(normalised)
        return [found[layer] for layer in self.layers]

    def check_places(self, edge: int) -> list[tuple[int, int, int]]:
        """Check that images have features for the places; return the shapes of the features.

        Parameters
        ----------
        edge : int
            Of the images, pixels.

        Returns
        -------
        list of tuple
            (C, h, w) a layer.

        Raises
        ------
        DetectorError
            The images are too small for that many places.
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
                f"{self.places} × {self.places} places were asked for, but the features of a tile "
                f"of {edge} px have {finest} × {finest}",
                remedy="Choose fewer places, larger tiles or a shallower layer.",
            )

    def _smoothed(self, features: Tensor) -> Tensor:
        edge = self.neighbourhood
        if edge == 1:
            return features
        # What lies outside of the tile is left out, not taken as zero.
        return nn.functional.avg_pool2d(features, edge, 1, edge // 2, count_include_pad=False)


def random_tensors(backbone: str, seed: int) -> dict[str, Tensor]:
    """Return the weights of a freshly made network, drawn from a seed."""
    if backbone == SHIPPED:
        return vgg.random_tensors(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(_build(backbone).state_dict())


def stated_padding(metadata: Mapping[str, str]) -> Padding:
    """Return the padding that the metadata of a weights file state; zeros if none.

    Raises
    ------
    WeightsError
        It is an unknown one.
    """
    match metadata.get("padding", "zeros"):
        case "zeros":
            return "zeros"
        case "reflect":
            return "reflect"
        case other:
            raise WeightsError(f"the weights state the unknown padding {other!r}")


def seeded_network(
    backbone: str, layers: Sequence[str], seed: int, *, like: nn.Module
) -> nn.Module:
    """Return an untrained network cut after the deepest of the layers, to be trained.

    It maps normalised images to the features by layer, a dict of (N, C, h, w). Widths are
    those of ``like``, another one of that name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _cut(backbone, tuple(layers), like=like.state_dict())


def _build(backbone: str) -> nn.Module:
    if backbone.startswith(_timm.PREFIX):
        return _timm.build(backbone)
    if backbone == SHIPPED:
        backbone = "vgg19"
    models = _torchvision.models()
    known = models.list_models(module=models)
    if backbone not in known:
        raise DetectorError(
            f"torchvision has no network {backbone!r}",
            remedy=f"Choose one of {', '.join(known)}.",
        )
    # GoogLeNet and Inception would otherwise draw weights for minutes, and warn.
    extra = {"init_weights": True} if backbone in {"googlenet", "inception_v3"} else {}
    network: nn.Module = models.get_model(backbone, weights=None, **extra)
    return network.eval()


def _cut(
    backbone: str,
    layers: tuple[str, ...],
    *,
    like: Mapping[str, Tensor],
    padding: Padding = "zeros",
) -> nn.Module:
    is_vgg = backbone.startswith("vgg") or backbone == SHIPPED
    # Drawing the weights of a VGG's classifier would take most of the time, for nothing.
    with torch.device("meta") if is_vgg else nullcontext():
        network = _build(backbone)
        if is_vgg:
            _fit_widths(network, like)
    if padding != "zeros":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = padding
    names = dict(network.named_modules())
    for layer in layers:
        if layer not in names or not layer:
            top = [name for name in names if name and name.count(".") <= 1]
            raise DetectorError(
                f"{backbone} has no layer {layer!r}", remedy=f"It has {', '.join(top)}."
            )
    if not layers:
        raise DetectorError(f"no layer of {backbone} was chosen")
    if backbone.startswith(_timm.PREFIX):
        return _timm.give_features(network, layers, backbone)
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    cut: nn.Module = extraction.create_feature_extractor(
        network, {layer: layer for layer in layers}
    )
    if is_vgg:
        _draw(cut)
    return cut.eval()


def _draw(network: nn.Module) -> None:
    """Draw the weights of a network that has shapes only."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()


def _fit_widths(vgg: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the convolutions of a VGG the widths of tensors, so that slim ones can be used."""
    features = vgg.get_submodule("features")
    for name, module in list(features.named_children()):
        weight = tensors.get(f"features.{name}.weight")
        if weight is None or weight.shape == getattr(module, "weight", weight).shape:
            continue
        if isinstance(module, nn.Conv2d) and weight.shape[2:] == module.weight.shape[2:]:
            setattr(features, name, nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
        elif isinstance(module, nn.BatchNorm2d):
            setattr(features, name, nn.BatchNorm2d(len(weight)).eval())


def _keys(backbone: str) -> str:
    return "timm's" if backbone.startswith(_timm.PREFIX) else "torchvision's"


def _load(network: nn.Module, tensors: Mapping[str, Tensor], backbone: str) -> None:
    own = network.state_dict()
    for key, tensor in own.items():
        if key not in tensors:
            held = [other for other in own if other in tensors]
            if held and held == list(own)[: len(held)]:
                raise WeightsError(
                    f"the weights end with {held[-1]}: a chosen layer of {backbone} lies beyond",
                    remedy="Choose layers that are not as deep, or give whole weights.",
                )
            raise WeightsError(
                f"{key} is missing: these are not the weights of {backbone}",
                remedy=f"Give weights with {_keys(backbone)} keys for {backbone}.",
            )
        if tensors[key].shape != tensor.shape:
            raise WeightsError(
                f"{key} has the shape {tuple(tensors[key].shape)}, not {tuple(tensor.shape)}",
                remedy=f"Give weights with {_keys(backbone)} keys for {backbone}.",
            )
    network.load_state_dict({key: tensors[key] for key in own})
