"""Distillation: a student learns the features of a frozen teacher on healthy tiles only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.features import BackboneFeatures, seeded_network

Combine = Literal["product", "sum"]


class Distillation(nn.Module):
    """A frozen teacher and a student of its features at several layers.

    Parameters
    ----------
    teacher : BackboneFeatures
        Network whose features are to be learnt.
    student : nn.Module
        Network that maps images, normalised as for the teacher, and the teacher's features of
        them, a list of (N, C, h, w), to a list of features of the same shapes.
    """

    def __init__(self, teacher: BackboneFeatures, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's and the student's features of RGB images (N, 3, H, W) in [0, 1]."""
        x = self.teacher.normalised(images)
        with torch.no_grad():
            taught = self.teacher.maps(x)
        return taught, self.student(x, taught)

    def directions(self, images: Tensor) -> Tensor:
        """Return the teacher's features, each of length 1, averaged over the places: (N, D).

        The vectors of the layers follow each other.
        """
        taught = self.teacher.maps(self.teacher.normalised(images))
        return torch.cat(
            [functional.normalize(maps, dim=1).mean(dim=(2, 3)) for maps in taught], dim=1
        )


class LikeTeacher(nn.Module):
    """A student of the teacher's architecture, with weights drawn from a seed."""

    def __init__(self, backbone: str, teacher: BackboneFeatures, *, seed: int) -> None:
        super().__init__()
        self._layers = teacher.layers
        self.network = seeded_network(
            backbone,
            self._layers,
            seed,
            like=teacher.network,
            arguments=teacher.arguments,
            encoder=teacher.encoder,
        )

    def forward(self, images: Tensor, taught: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of normalised images at the layers; ``taught`` is not used."""
        found = self.network(images)
        return [found[layer] for layer in self._layers]


class SlimStudent(nn.Module):
    """A student of a chain of convolutions, such as a VGG, with fewer channels than its teacher.

    It has the teacher's layers one for one. A convolution keeps its number of channels where the
    features that follow it are compared, and has ``width`` of them elsewhere. None has a bias,
    and each is normalised by batch, but for those that are compared or come before a pooling.
    Weights are drawn as Glorot's uniform ones.

    Parameters
    ----------
    teacher : BackboneFeatures
        Teacher whose layers are a VGG's, such as ``features.9``.
    width : int
        Number of channels.
    seed : int

    Raises
    ------
    DetectorError
        The teacher is no such chain.

    Notes
    -----
    Salehi, Sadjadi, Baselizadeh, Rohban & Rabiee, *Multiresolution Knowledge Distillation for
    Anomaly Detection*, CVPR 2021 (arXiv 2011.11108), and the authors' code.
    """

    def __init__(self, teacher: BackboneFeatures, width: int, *, seed: int) -> None:
        super().__init__()
        self._layers = teacher.layers
        chain = _chain(teacher)
        with drawing_weights(seed):
            self.features = nn.ModuleDict(dict(_slim(chain, teacher.layers, width)))

    def forward(self, images: Tensor, taught: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of normalised images at the layers; ``taught`` is not used."""
        found: dict[str, Tensor] = {}
        for name, module in self.features.items():
            images = module(images)
            found[f"features.{name}"] = images
        return [found[layer] for layer in self._layers]


def _chain(teacher: BackboneFeatures) -> dict[int, nn.Module]:
    """Return the modules of a chain of convolutions, by their numbers."""
    features = dict(teacher.network.named_children()).get("features", nn.Identity())
    chain = {int(name): one for name, one in features.named_children() if name.isdecimal()}
    known = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    if not chain or not all(isinstance(module, known) for module in chain.values()):
        raise DetectorError(
            f"student_width is for a VGG, and {teacher.backbone} is not one",
            remedy="Leave it out, or set --option backbone=vgg16.",
        )
    return dict(sorted(chain.items()))


def _slim(
    chain: Mapping[int, nn.Module], layers: Sequence[str], width: int
) -> Iterator[tuple[str, nn.Module]]:
    convolutions = [number for number, one in chain.items() if isinstance(one, nn.Conv2d)]
    channels = 3
    for number, module in chain.items():
        if isinstance(module, nn.Conv2d):
            until = min((other for other in convolutions if other > number), default=len(chain))
            follow = range(number, until)
            compared = any(f"features.{other}" in layers for other in follow)
            pooled = any(isinstance(chain.get(other), nn.MaxPool2d) for other in follow)
            wide = module.out_channels if compared else min(width, module.out_channels)
            convolution = _like(module, channels, wide)
            plain = compared or pooled
            yield (
                str(number),
                convolution if plain else nn.Sequential(convolution, nn.BatchNorm2d(wide)),
            )
            channels = wide
        elif isinstance(module, nn.BatchNorm2d):
            yield str(number), nn.Identity()
        else:
            yield str(number), nn.ReLU() if isinstance(module, nn.ReLU) else module


def _like(module: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution of other widths, without a bias, with Glorot's uniform weights."""
    found = nn.Conv2d(
        inputs,
        outputs,
        module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        padding_mode=module.padding_mode,
        bias=False,
    )
    nn.init.xavier_uniform_(found.weight)
    return found


def place_distances(taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """Return ½|u − v|² of unit vectors at every place and layer: 1 − cos of their angle.

    Parameters
    ----------
    taught, found : sequence of Tensor, (N, C, h, w)

    Returns
    -------
    list of Tensor, (N, h, w)
        Distances from 0 to 2. A vector of length 0 has no direction and is taken as 0.
    """
    return [
        (functional.normalize(t, dim=1) - functional.normalize(f, dim=1)).square().sum(dim=1) / 2
        for t, f in zip(taught, found, strict=True)
    ]


def whole_distances(taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """Return 1 − cos between complete feature maps, each taken as one vector: (N,) per layer."""
    return [
        1 - functional.cosine_similarity(t.flatten(1), f.flatten(1), dim=1)
        for t, f in zip(taught, found, strict=True)
    ]


def share_distances(taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """Return the shares of the places in 1 − cos between complete maps, each of one vector.

    Parameters
    ----------
    taught, found : sequence of Tensor, (N, C, h, w)

    Returns
    -------
    list of Tensor, (N, h, w)
        Shares whose mean over the places is the distance of :func:`whole_distances`, for
        1 − cos is half the squared distance of the vectors at length 1.
    """
    shares = []
    for t, f in zip(taught, found, strict=True):
        pair = [functional.normalize(maps.flatten(1), dim=1).view(maps.shape) for maps in (t, f)]
        places = t.shape[2] * t.shape[3]
        shares.append((pair[0] - pair[1]).square().sum(dim=1) * (places / 2))
    return shares


def combined(maps: Sequence[Tensor], places: int, how: Combine) -> Tensor:
    """Return one map of m × m places from the maps of several layers.

    All maps are sampled bilinearly to the grid of the finest one, multiplied or added there,
    and averaged to the places.

    Parameters
    ----------
    maps : sequence of Tensor, (N, h, w)
    places : int
        Edge m of the grid of places.
    how : {"product", "sum"}

    Returns
    -------
    Tensor, (N, m, m)
    """
    finest = max((m.shape[1:] for m in maps), key=min)
    fine = torch.stack(
        [
            functional.interpolate(m[:, None], size=finest, mode="bilinear", align_corners=False)
            for m in maps
        ]
    )
    at_finest = fine.prod(dim=0) if how == "product" else fine.sum(dim=0)
    return functional.adaptive_avg_pool2d(at_finest, places)[:, 0]
