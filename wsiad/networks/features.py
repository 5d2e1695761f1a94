"""Frozen networks of torchvision or timm as feature extractors on a grid of places.

If the user names no network or no weights, :func:`settle` chooses them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError, WeightsError
from wsiad.networks import _timm, encoder_files, encoder_network, feature_network, vgg, weights
from wsiad.networks.encoder import RESERVED, Encoder, Precision, table
from wsiad.networks.encoder_images import fingerprint, picture, resized
from wsiad.networks.pixel_features import PIXELS, PixelPatches
from wsiad.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, Padding, stretched
from wsiad.networks.weights import SHIPPED, Weights, naming

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
DEFAULT: Final = "squeezenet1_1"

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of RGB in [0, 1]."""

_TO_ONE: Final = ((0.5,) * 3, (0.5,) * 3)
"""The normalisation by which RGB becomes −1 to 1."""

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


class BackboneFeatures(nn.Module):
    """Features of chosen layers of a network, pooled to m × m places.

    The network is cut after the deepest requested layer. The features of each layer are
    averaged to the grid of places (adaptive average pooling) and concatenated.

    Parameters
    ----------
    backbone : str
        Name of a torchvision classification model, such as ``"squeezenet1_1"`` or
        ``"resnet18"``; of one of timm, such as ``"timm/convnext_atto"``; or ``"wsiad"`` for a
        network of ``wsiad pretrain``, with torchvision's names of VGG19; or ``"pixels"``, which
        has no weights (:mod:`wsiad.networks.pixel_features`).
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
        Arguments of a timm network's constructor; see :func:`wsiad.networks._timm.build`. Those
        of pixels are :class:`~wsiad.networks.pixel_features.PixelArguments`.
    normalisation : Normalisation, optional
        Mean and deviation of the images on which the network was trained; by default ImageNet's,
        or for a network of timm those that timm states for its name, and for pixels 0.5.
    source : str, optional
        Source of a user's tensors, which errors name. Assumptions about such tensors are
        logged.
    encoder : Encoder, optional
        Encoder that the backbone names. Its network, normalisation and size of images are used,
        and the tensors have the names of :func:`wsiad.networks.encoder_network.fitting`.
    precision : {"fp32", "bf16", "fp16"}
        Precision of :meth:`forward`. Where a feature of a lower precision is not finite, the
        images are computed again in fp32, with a warning.

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
        encoder: Encoder | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.layers, self.places, self.neighbourhood = tuple(layers), places, neighbourhood
        self.padding, self.arguments = padding, dict(arguments or {})
        self.backbone, self.contrast = backbone, contrast
        self.encoder, self.precision = encoder, precision
        self.left_off: list[str] = []
        with naming(source):
            if encoder is not None:
                whole = encoder_network.loaded(encoder, tensors)
                self.network = feature_network.cut(whole, backbone, self.layers, of_timm=True)
                normalisation = encoder.mean, encoder.std
            elif backbone == PIXELS:
                self.network = PixelPatches(self.layers, places, self.arguments)
                self.arguments = self.network.arguments()
                normalisation = normalisation or _TO_ONE
            else:
                self.network, self.left_off = feature_network.loaded(
                    backbone, self.layers, tensors, padding=padding, arguments=self.arguments
                )
        self.normalisation = normalisation or _usual_normalisation(backbone, self.network)
        if source is not None and normalisation is None and backbone.startswith(_timm.PREFIX):
            logger.warning(ONLY_BY_NAME, backbone, *self.normalisation)
            if encoders := feature_network.encoders_of(backbone):
                logger.warning(
                    "%s is the network of the encoders %s: choose one by name if these are its "
                    "weights",
                    *(backbone, ", ".join(encoders)),
                )
        mean, std = stretched(*self.normalisation, contrast)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return feature vectors, float32 (N, m, m, C), of RGB images (N, 3, H, W).

        Images are float in [0, 1], or uint8, which gives the same features to the bit.

        Raises
        ------
        DetectorError
            The images are too small for this many places.
        """
        if images.dtype != torch.uint8:
            normalised = self.normalised(images)
        elif self._has_table(images):
            normalised = self._looked_up(images)
        else:
            normalised = self.normalised(images.float() / 255)
        found = self._computed(normalised)
        self._check_finest(found, images.shape[2])
        pooled = [
            nn.functional.adaptive_avg_pool2d(self._smoothed(features), self.places)
            for features in found
        ]
        return torch.cat(pooled, dim=1).permute(0, 2, 3, 1)

    def _has_table(self, images: Tensor) -> bool:
        """Tell whether images are normalised by a table: on a CPU, if they are not resized.

        They are tiles in memory, whose channels come last.
        """
        tiles = images.permute(0, 2, 3, 1)
        return (
            images.device.type == "cpu"
            and self.encoder is None
            and tiles.is_contiguous()
            and tiles.numel() > 0
        )

    def _looked_up(self, images: Tensor) -> Tensor:
        """Return images, uint8, normalised by a table of 256 values a channel.

        One look-up for a value is a fifth of the time of its division, subtraction and division,
        and the table has their results.
        """
        values = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
        table = self.normalised(values.expand(1, 3, 1, 256).float() / 255)
        tiles = images.permute(0, 2, 3, 1)
        count, height, width, channels = tiles.shape
        rows = tiles.numpy().reshape(count * height, width, channels)
        found = cv2.LUT(rows, table[0].permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(found).view(tiles.shape).permute(0, 3, 1, 2)

    def fingerprint(self, edge: int) -> list[float]:
        """Return values by which these features are recognised, on any device.

        Parameters
        ----------
        edge : int
            Edge of the built-in picture whose features are taken, pixels.
        """
        image = picture(edge).to(self.mean.device)
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            found = self._computed(self.normalised(image))
        return fingerprint(torch.cat([features.mean(dim=(2, 3))[0] for features in found]))

    def _computed(self, normalised: Tensor) -> list[Tensor]:
        """Return the features, float32 (N, C, h, w), of normalised images, in the precision."""
        if self.precision != "fp32":
            low = torch.bfloat16 if self.precision == "bf16" else torch.float16
            with torch.autocast(normalised.device.type, dtype=low):
                found = [features.float() for features in self.maps(normalised)]
            # The sum is not finite if any is not, and takes a fiftieth of asking each.
            if all(bool(features.sum().isfinite()) for features in found):
                return found
            logger.warning(
                "%s: features in %s are not finite; these images are computed again in fp32",
                *(self.backbone, self.precision),
            )
        return [features.float() for features in self.maps(normalised)]

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
            "precision": self.precision,
        } | ({"encoder": self.encoder.constitution()} if self.encoder else {})

    def normalised(self, images: Tensor) -> Tensor:
        """Return RGB images (N, 3, H, W) in [0, 1], normalised as in the network's training.

        Images of an encoder are first resized as it requires.
        """
        if self.encoder is not None:
            images = resized(images, self.encoder)
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
            found = self.maps(self.normalised(torch.zeros(1, 3, edge, edge, device=device)))
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
        return dict(feature_network.build(backbone, arguments or {}).state_dict())


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
    encoder: Encoder | None = None,
) -> nn.Module:
    """Return an untrained network cut after the deepest of the layers, for training.

    It maps normalised images to the features by layer, a dict of (N, C, h, w). Its widths are
    those of ``like``, another network of that name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if encoder is not None:
            positions = like.state_dict().get("pos_embed")
            whole = encoder_network.build(encoder, positions=positions)
            return feature_network.cut(whole, backbone, tuple(layers), of_timm=True)
        whole = feature_network.whole(backbone, like=like.state_dict(), arguments=arguments or {})
        return feature_network.cut(whole, backbone, tuple(layers))


def _usual_normalisation(backbone: str, network: nn.Module) -> Normalisation:
    if backbone.startswith(_timm.PREFIX):
        return _timm.normalisation(network)
    return IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network by name, and its weights.

    Parameters
    ----------
    name : str
        Name of the network, as for :class:`~wsiad.networks.features.BackboneFeatures`.
    weights : Weights
    encoder : Encoder, optional
        Encoder of that name, if it is one.
    """

    name: str
    weights: Weights
    encoder: Encoder | None = None


def settle(
    name: str,
    asked: str | None,
    *,
    seed: int,
    arguments: Mapping[str, Any] | None = None,
    encoder: Encoder | None = None,
    trained: bool = False,
) -> Backbone:
    """Return a backbone with its weights.

    Parameters
    ----------
    name : str
        A network of torchvision or timm, ``"pixels"``, an encoder of
        :func:`wsiad.networks.encoder.table`, or ``"wsiad"`` for one that ``wsiad pretrain`` made.
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
    encoder : Encoder, optional
        Encoder to use in place of the name.
    trained : bool
        True if the network is trained further.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or belong to a network that must be named.
    DetectorError
        There is no network of that name.
    """
    if encoder is None and name not in RESERVED:
        encoder = table().get(name)
    if encoder is not None:
        return Backbone(
            encoder.name, _of_encoder(encoder, asked, seed=seed, trained=trained), encoder
        )
    if name == PIXELS:
        return Backbone(name, _of_pixels(asked))
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
        feature_network.check_name(name)
    found = weights.resolve(
        asked,
        model=name,
        random_tensors=lambda: random_tensors(name, seed, arguments=arguments),
        trained=trained,
    )
    return Backbone(name, found)


def _of_pixels(asked: str | None) -> Weights:
    if asked not in (None, weights.RANDOM):
        raise WeightsError(
            f"the backbone {PIXELS} has no weights, and {asked} was requested",
            remedy="Leave --weights out, or choose a network as the backbone.",
        )
    return Weights({}, f"none: {PIXELS}", weights.tensors_sha256({}), {})


def _of_encoder(encoder: Encoder, asked: str | None, *, seed: int, trained: bool) -> Weights:
    if asked == weights.RANDOM:
        weights.warn_of_random(encoder.name, trained=trained)
        tensors = encoder_network.random_tensors(encoder, seed)
        return Weights(tensors, weights.RANDOM, weights.tensors_sha256(tensors), {})
    if asked in (weights.IMAGENET, weights.SHIPPED):
        raise WeightsError(
            f"{asked} is not the name of weights of an encoder",
            subject=encoder.name,
            remedy="Leave --weights out, or pass the encoder's file.",
        )
    return encoder_files.read(encoder, asked)


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
