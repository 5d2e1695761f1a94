"""The convolutions of VGG19 from a plain state dict, with any channel widths and any depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError, WeightsError
from wsiad.networks.state_dict import Fit, fitted, unwrapped

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Numbers = tuple[float, ...]


def stretched(mean: Numbers, std: Numbers, contrast: float) -> tuple[Numbers, Numbers]:
    """Return the mean and deviation by which images of a larger contrast are normalised.

    They normalise intensities x in [0, 1] to the same values as the given ones do
    1 − contrast · (1 − x). White stays white, and darker intensities become darker by the
    factor ``contrast``, even below black.
    """
    return (
        tuple((value - 1 + contrast) / contrast for value in mean),
        tuple(value / contrast for value in std),
    )


Padding = Literal["zeros", "reflect"]

_CONVOLUTIONS = (2, 2, 4, 4, 4)  # in each of the five blocks of VGG19
_RANDOM_WIDTHS = (16, 32, 64, 128, 128)


def _positions() -> dict[str, int]:
    """Return the index in torchvision's ``features`` for each layer name."""
    positions: dict[str, int] = {}
    index = 0
    for block, count in enumerate(_CONVOLUTIONS, start=1):
        for number in range(1, count + 1):
            positions[f"conv{block}_{number}"] = index
            positions[f"relu{block}_{number}"] = index + 1
            index += 2
        positions[f"pool{block}"] = index
        index += 1
    return positions


LAYERS = _positions()
"""Layer names (``conv4_2``, ``relu4_2``, ``pool4``) and their index in ``features``."""


class Vgg19(nn.Module):
    """Frozen features of VGG19 at named layers, with ImageNet's normalisation.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        State dict with torchvision's keys (``features.N.weight``, ``features.N.bias``);
        Layers deeper than the requested ones can be missing, and there must be no other keys
        than a VGG19's. Channel widths are read from the shapes.
    layers : sequence of str
        Layers whose features are returned; see :data:`LAYERS`.
    padding : {"zeros", "reflect"}
        Padding of the convolutions: ``"zeros"`` for torchvision's weights.
    contrast : float
        Factor by which images are stretched around white; see :func:`stretched`.

    Raises
    ------
    DetectorError
        A layer is unknown, or none is chosen.
    WeightsError
        A tensor is missing or its shape does not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        layers: Sequence[str],
        *,
        padding: Padding = "zeros",
        contrast: float = 1,
    ) -> None:
        super().__init__()
        if unknown := [layer for layer in layers if layer not in LAYERS]:
            raise DetectorError(
                f"VGG19 has no layer {unknown[0]!r}", remedy="Use names such as 'relu4_2'."
            )
        if not layers:
            raise DetectorError("no layer of the perceptual network was chosen")
        self.layers = tuple(layers)
        self._names = {LAYERS[layer]: layer for layer in layers}
        tensors = _whole(tensors, self.layers)
        self.features = nn.Sequential(*_modules(tensors, max(self._names), padding))
        mean, std = stretched(IMAGENET_MEAN, IMAGENET_STD, contrast)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of RGB images, float (N, 3, H, W) in [0, 1], by layer."""
        x = (images - self.mean) / self.std
        found: dict[str, Tensor] = {}
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self._names:
                found[self._names[index]] = x
        return found


def _modules(tensors: Mapping[str, Tensor], deepest: int, padding: Padding) -> list[nn.Module]:
    modules: list[nn.Module] = []
    channels = 3
    for name, index in LAYERS.items():
        if index > deepest:
            break
        if name.startswith("relu"):
            modules.append(nn.ReLU())
        elif name.startswith("pool"):
            modules.append(nn.MaxPool2d(2))
        else:
            weight, bias = _convolution(tensors, index, channels)
            channels = weight.shape[0]
            conv = nn.Conv2d(weight.shape[1], channels, 3, padding=1, padding_mode=padding)
            with torch.no_grad():
                conv.weight.copy_(weight)
                conv.bias.copy_(bias)  # type: ignore[union-attr]
            modules.append(conv)
    return modules


def _convolution(tensors: Mapping[str, Tensor], index: int, channels: int) -> tuple[Tensor, Tensor]:
    keys = (f"features.{index}.weight", f"features.{index}.bias")
    weight, bias = tensors[keys[0]], tensors[keys[1]]
    if weight.ndim != 4 or tuple(weight.shape[1:]) != (channels, 3, 3):
        raise WeightsError(
            f"{keys[0]} has the shape {tuple(weight.shape)}, not (any, {channels}, 3, 3)",
            remedy="Use weights with torchvision's keys for vgg19 (not vgg19_bn).",
        )
    if tuple(bias.shape) != (weight.shape[0],):
        raise WeightsError(f"{keys[1]} has the shape {tuple(bias.shape)}, not ({weight.shape[0]},)")
    return weight, bias


def _whole(tensors: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """Check that tensors are those of a VGG19 of any widths; return the needed ones."""
    every = needed_keys(list(LAYERS))
    head = [f"classifier.{index}.{part}" for index in (0, 3, 6) for part in ("weight", "bias")]
    tensors = unwrapped(tensors, [*every, *head])
    none = torch.empty(0, device="meta")
    to = Fit(
        "a VGG19",
        whole={key: tensors.get(key, none) for key in every},
        needed=needed_keys(layers),
        head={key: tensors.get(key, none) for key in head},
        remedy="Use weights with torchvision's keys for vgg19 (not vgg19_bn), or choose a "
        "shallower layer.",
    )
    return fitted(tensors, to)


def needed_keys(layers: Sequence[str]) -> list[str]:
    """Return the state-dict keys that :class:`Vgg19` reads for these layers."""
    deepest = max(LAYERS[layer] for layer in layers)
    return [
        f"features.{index}.{part}"
        for name, index in LAYERS.items()
        if name.startswith("conv") and index <= deepest
        for part in ("weight", "bias")
    ]


def least_px(layers: Sequence[str], *, padding: Padding = "zeros") -> int:
    """Return the smallest edge of an image that has features at all of the layers, pixels."""
    deepest = max(LAYERS[layer] for layer in layers)
    pools = sum(name.startswith("pool") and index <= deepest for name, index in LAYERS.items())
    # Reflection takes two pixels; after a pooling that comes last, one is enough.
    last_is_pool = any(layer.startswith("pool") and LAYERS[layer] == deepest for layer in layers)
    reflects = padding == "reflect" and not last_is_pool
    return int(2 ** (pools + reflects))


def random_tensors(seed: int) -> dict[str, Tensor]:
    """Return weights of a VGG19 with a quarter of the channels, drawn from a seed.

    They serve to try a pipeline out; nothing has been learnt.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    channels = 3
    for name, index in LAYERS.items():
        if not name.startswith("conv"):
            continue
        width = _RANDOM_WIDTHS[int(name[4]) - 1]
        scale = (2 / (9 * channels)) ** 0.5
        draw = torch.randn(width, channels, 3, 3, generator=generator)
        tensors[f"features.{index}.weight"] = draw * scale
        tensors[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    return tensors
