"""EfficientAD: a patch description network, its student, and an autoencoder of its outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.networks.patch_students import Layer, PatchNetwork, TaughtPatches

PATCH: Final = 33
"""Edge of the patch that an output of a patch description network sees, pixels."""

Size = Literal["small", "medium"]

_LAYERS: Final[dict[Size, tuple[Layer, ...]]] = {
    "small": (Layer(4, 128, True), Layer(4, 256, True), Layer(3, 256), Layer(4, 0)),
    "medium": (
        *(Layer(4, 256, True), Layer(4, 512, True), Layer(1, 512), Layer(3, 512)),
        *(Layer(4, 0), Layer(1, 0)),
    ),
}

_STEM: Final = (32, 32, 64, 64, 64)  # channels of the autoencoder, whose image is halved each time
_CODE: Final = 64
_INNERMOST: Final = 8  # edge of the map that one convolution turns into the code
_DROPOUT: Final = 0.2

_FIRST, _LAST, _UNIT = 0.9, 0.995, 0.1  # quantiles of healthy maps, and their distance in scores
_LEAST: Final = 1e-6

_POOLED: Final = 1_024  # channels of each layer of the backbone, before all are pooled together
_NEAR: Final = 3  # edge of the neighbourhood whose features describe a place


class PatchDescription(PatchNetwork):
    """A patch description network (PDN) of four or six convolutions, one output for every 4 px.

    Parameters
    ----------
    size : {"small", "medium"}
        PDN-S or PDN-M.
    dimensions : int
        Number of outputs.
    width : float
        Share of the published channels.
    """

    def __init__(self, size: Size, *, dimensions: int, width: float = 1.0) -> None:
        super().__init__(PATCH, dimensions=dimensions, width=width, layers=_LAYERS[size])


class OutputAutoencoder(nn.Module):
    """A network that gives the outputs of a teacher through a narrow code of the image.

    The published network is for images of 256 px; smaller ones are halved less often. Sizes of
    the maps of the decoder are the published ones, from the finest.

    Parameters
    ----------
    edge : int
        Edge of the images, pixels.
    dimensions : int
        Number of outputs.
    width : float
        Share of the published channels.
    """

    def __init__(self, edge: int, *, dimensions: int, width: float = 1.0) -> None:
        super().__init__()
        stages = min(len(_STEM), max(0, int(math.log2(edge / _INNERMOST))))
        modules: list[nn.Module] = []
        channels = 3
        for stem in _STEM[:stages]:
            outputs = _scaled(stem, width)
            modules += [nn.Conv2d(channels, outputs, 4, stride=2, padding=1), nn.ReLU()]
            channels = outputs
        code = _scaled(_CODE, width)
        modules.append(nn.Conv2d(channels, code, edge >> stages))
        self.encoder = nn.Sequential(*modules)
        self.sizes = [_edge_of(edge, halved) for halved in range(stages + 1, 0, -1)]
        self.decoder = nn.ModuleList(nn.Conv2d(code, code, 4, padding=2) for _ in self.sizes)
        self.last = nn.Sequential(
            nn.Conv2d(code, code, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(code, dimensions, 3, padding=1),
        )
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, images: Tensor, size: int) -> Tensor:
        """Return the outputs, (N, D, size, size), of images (N, 3, S, S)."""
        x = self.encoder(images)
        for edge, convolution in zip(self.sizes, self.decoder, strict=True):
            x = self.dropout(functional.relu(convolution(_resized(x, edge))))
        found: Tensor = self.last(_resized(x, size))
        return found


class EfficientNetworks(TaughtPatches):
    """A teacher, a student with twice its outputs, and an autoencoder.

    The first half of the student's outputs learns the teacher, the second half the autoencoder,
    which learns the teacher too.

    Parameters
    ----------
    size : {"small", "medium"}
        Size of teacher and student.
    edge : int
        Edge of the images, pixels.
    dimensions : int
        Number of outputs of the teacher.
    width : float
        Share of the published channels.
    hard : float
        Quantile of the squared differences from the teacher above which they are learnt.
    """

    healthy: Tensor

    def __init__(
        self, size: Size, *, edge: int, dimensions: int, width: float, hard: float
    ) -> None:
        students = nn.ModuleDict(
            {
                "student": PatchDescription(size, dimensions=2 * dimensions, width=width),
                "autoencoder": OutputAutoencoder(edge, dimensions=dimensions, width=width),
            }
        )
        super().__init__([PatchDescription(size, dimensions=dimensions, width=width)], students)
        self._register(0, dimensions)
        self.hard = hard
        # Quantiles of the difference from the teacher, then of that from the autoencoder.
        self.register_buffer("healthy", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def losses(self, images: Tensor, changed: Tensor | None = None) -> Tensor:
        """Return the loss of each image, (N,), without a penalty.

        It is the mean of the hardest squared differences between student and teacher, plus the
        mean squared differences between autoencoder and teacher, and between student and
        autoencoder. The last two are of the images with changed colours, if there are any.
        """
        taught, (own, of_code) = self.taught(images)[0], self._student(images)
        hard = hard_features((taught - own).square(), self.hard)
        if changed is not None:
            taught, (_, of_code) = self.taught(changed)[0], self._student(changed)
            images = changed
        coded = self.students.get_submodule("autoencoder")(images, taught.shape[2])
        errors = (taught - coded).square() + (coded - of_code).square()
        return hard + errors.mean(dim=(1, 2, 3))

    def penalty(self, images: Tensor) -> Tensor:
        """Return the mean square of what the student says as the teacher, (N,)."""
        return self._student(images)[0].square().mean(dim=(1, 2, 3))

    def differences(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's mean squared differences from teacher and autoencoder, (N, h, w)."""
        own, of_code = self._student(images)
        coded = self.students.get_submodule("autoencoder")(images, own.shape[2])
        local = (self.taught(images)[0] - own).square().mean(dim=1)
        return local, (coded - of_code).square().mean(dim=1)

    def scores(self, images: Tensor) -> list[Tensor]:
        """Return both differences, scaled by their healthy quantiles, (N, h, w)."""
        return [
            _UNIT * (found - first) / (last - first).clamp_min(_LEAST)
            for found, (first, last) in zip(self.differences(images), self.healthy, strict=True)
        ]

    @torch.no_grad()
    def normalise(self, parts: Sequence[Tensor]) -> None:
        """Set the quantiles 0.9 and 0.995 of both differences from those of healthy images."""
        found = [self.differences(images) for images in parts]
        for number, maps in enumerate(zip(*found, strict=True)):
            values = torch.cat([one.flatten() for one in maps]).double().cpu().numpy()
            levels = np.quantile(values, [_FIRST, _LAST])
            self.healthy[number] = torch.from_numpy(levels).to(self.healthy)

    def _student(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the student says as the teacher and as the autoencoder, (N, D, h, w)."""
        first, second = self.students.get_submodule("student")(images).chunk(2, dim=1)
        return first, second


def hard_features(squares: Tensor, quantile: float) -> Tensor:
    """Return the mean of the squared differences of each image at or above a quantile of them.

    Parameters
    ----------
    squares : Tensor, (N, D, h, w)
    quantile : float

    Returns
    -------
    Tensor, (N,)
    """
    flat = squares.flatten(1)
    count = flat.shape[1]
    below = math.ceil(quantile * (count - 1) - _LEAST)
    return flat.topk(count - below, dim=1, sorted=False).values.mean(dim=1)


def patch_targets(maps: Sequence[Tensor], *, grid: int, size: int, dimensions: int) -> Tensor:
    """Return what a patch description network learns of a backbone's features of images.

    Each layer is described by its neighbourhoods of 3 × 3, averaged to 1,024 channels and sampled
    to a grid over the image; the channels of all layers are averaged to the outputs.

    Parameters
    ----------
    maps : sequence of Tensor, (N, C, h, w)
        Features at each layer.
    grid : int
        Edge of the grid over the whole image.
    size : int
        Edge of the part in its middle that is returned, whose patches the network sees.
    dimensions : int
        Number of outputs.

    Returns
    -------
    Tensor, (N, dimensions, size, size)
    """
    first = (grid - size) // 2
    layers = []
    for layer in maps:
        near = functional.unfold(layer, _NEAR, padding=_NEAR // 2).transpose(1, 2)
        pooled = functional.adaptive_avg_pool1d(near, _POOLED).transpose(1, 2)
        sampled = _resized(pooled.reshape(*pooled.shape[:2], *layer.shape[2:]), grid)
        layers.append(sampled[:, :, first : first + size, first : first + size])
    every = torch.cat(layers, dim=1).flatten(2).transpose(1, 2)
    found = functional.adaptive_avg_pool1d(every, dimensions).transpose(1, 2)
    return found.reshape(*found.shape[:2], size, size)


def _edge_of(edge: int, halved: int) -> int:
    """Return the edge of a map of the decoder: 127, 63, 32, 15, 8 or 3 px of 256."""
    return (edge >> halved) - (halved not in (3, 5))


def _scaled(channels: int, width: float) -> int:
    return max(1, round(width * channels))


def _resized(maps: Tensor, edge: int) -> Tensor:
    return functional.interpolate(maps, size=(edge, edge), mode="bilinear", align_corners=False)
