"""Distillation: a student learns the features of a frozen teacher on healthy tiles only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

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
