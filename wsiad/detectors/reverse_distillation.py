"""Reverse distillation: strange features cannot be restored from a code of healthy ones.

A one-class bottleneck makes the code, and a decoder that mirrors the encoder restores its
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.detectors._features import CODED, DefaultLayers
from wsiad.detectors._trained import DistilledDetector, DistilledOptions
from wsiad.learning.checkpoint import Recipe, adam
from wsiad.learning.detector import DetectorOptions
from wsiad.learning.training_options import BatchSize
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.distillation import Combine, Distillation, whole_distances
from wsiad.networks.features import BackboneFeatures

Shape = tuple[int, int, int]
"""Channels, height and width of features."""

Resampling = Literal["none", "halve", "double"]

_BOTTLENECK_BLOCKS = 3
_DECODER_BLOCKS = 2  # a stage, where the encoder is no ResNet


@dataclass(frozen=True, slots=True)
class Blocks:
    """Kind and number of residual blocks.

    Parameters
    ----------
    inner : float or None
        Width of the 3 × 3 convolution between two 1 × 1 ones, as a share of the block's width;
        ``None`` for blocks of two 3 × 3 convolutions.
    counts : tuple of int
        Number of blocks in each stage of the decoder, from the coarsest.
    """

    inner: float | None
    counts: tuple[int, ...]

    @classmethod
    def of(cls, encoder: BackboneFeatures) -> Blocks:
        """Return the blocks of a ResNet's stages, and a default for other networks."""
        modules = dict(encoder.network.named_modules())
        if not all(f"{layer}.0.conv2" in modules for layer in encoder.layers):
            return cls(None, (_DECODER_BLOCKS,) * len(encoder.layers))
        last = modules.get(f"{encoder.layers[0]}.0.conv3")
        inner = last.in_channels / last.out_channels if isinstance(last, nn.Conv2d) else None
        # As published, the decoder's coarsest stage has as many as the encoder's finest.
        return cls(inner, tuple(len(list(modules[n].children())) for n in encoder.layers))


class ReverseStudent(nn.Module):
    """A student that restores the teacher's features of all layers from a narrow code of them.

    Features of the finer layers are halved by 3 × 3 convolutions of stride 2 down to the size
    of the coarsest. All are concatenated, and residual blocks halve them once more to the code.
    Stages of residual blocks, the first of each with a transposed convolution of stride 2, lead
    from the code to the coarsest layer's features, then to the next finer ones, and so on. If a
    layer is not exactly half as large as the one before, as in SqueezeNet, features are
    resampled bilinearly to the required size.

    Parameters
    ----------
    shapes : sequence of (C, h, w)
        Shapes of the teacher's features, from the finest.
    blocks : Blocks
        Blocks of the decoder; those of the bottleneck are of the same kind.

    Notes
    -----
    Deng & Li, *Anomaly Detection via Reverse Distillation from One-Class Embedding*,
    CVPR 2022 (arXiv 2201.10703), section 3.
    """

    def __init__(self, shapes: Sequence[Shape], blocks: Blocks) -> None:
        super().__init__()
        self._sizes = [shape[1:] for shape in shapes]
        channels = [shape[0] for shape in shapes]
        self.halvings = nn.ModuleList(
            nn.ModuleList(_halving(fine, coarse) for fine, coarse in pairwise(channels[index:]))
            for index in range(len(channels) - 1)
        )
        code = 2 * channels[-1]
        self.bottleneck = _stage(
            len(channels) * channels[-1],
            code,
            count=_BOTTLENECK_BLOCKS,
            inner=blocks.inner,
            first="halve",
        )
        widths = pairwise((code, *reversed(channels)))
        self.decoder = nn.ModuleList(
            _stage(above, below, count=count, inner=blocks.inner, first="double")
            for (above, below), count in zip(widths, blocks.counts, strict=True)
        )

    def forward(self, images: Tensor, taught: Sequence[Tensor]) -> list[Tensor]:
        """Return the restored features, from the finest; the images are not used."""
        x = self.bottleneck(torch.cat(self._halved(taught), dim=1))
        found: list[Tensor] = []
        for stage, size in zip(self.decoder, reversed(self._sizes), strict=True):
            x = _sized(stage(x), size)
            found.append(x)
        return found[::-1]

    def _halved(self, taught: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of all layers at the size of the coarsest."""
        found = []
        for index, path in enumerate(self.halvings):
            assert isinstance(path, nn.ModuleList)
            x = taught[index]
            for halving, size in zip(path, self._sizes[index + 1 :], strict=True):
                x = _sized(halving(x), size)
            found.append(x)
        return [*found, taught[-1]]


class ResidualBlock(nn.Module):
    """A ResNet's block that can halve the features, or double them as its mirror image.

    Parameters
    ----------
    inputs, outputs : int
        Number of channels.
    inner : float or None
        Width of the inner convolution; see :class:`Blocks`.
    resampling : {"none", "halve", "double"}
    """

    def __init__(
        self, inputs: int, outputs: int, *, inner: float | None, resampling: Resampling
    ) -> None:
        super().__init__()
        if inner is None:
            convolutions = [
                _spatial(inputs, outputs, resampling),
                _spatial(outputs, outputs, "none"),
            ]
        else:
            width = round(inner * outputs)
            convolutions = [
                nn.Conv2d(inputs, width, 1, bias=False),
                _spatial(width, width, resampling),
                nn.Conv2d(width, outputs, 1, bias=False),
            ]
        modules: list[nn.Module] = []
        for convolution in convolutions:
            modules += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
        self.main = nn.Sequential(*modules[:-1])
        self.skip: nn.Module = nn.Identity()
        if resampling != "none" or inputs != outputs:
            self.skip = nn.Sequential(_direct(inputs, outputs, resampling), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C', h', w')."""
        return torch.relu(self.main(x) + self.skip(x))


def _stage(
    inputs: int, outputs: int, count: int, inner: float | None, first: Resampling
) -> nn.Sequential:
    rest = [
        ResidualBlock(outputs, outputs, inner=inner, resampling="none") for _ in range(count - 1)
    ]
    return nn.Sequential(ResidualBlock(inputs, outputs, inner=inner, resampling=first), *rest)


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_spatial(inputs, outputs, "halve"), nn.BatchNorm2d(outputs), nn.ReLU())


def _spatial(inputs: int, outputs: int, resampling: Resampling) -> nn.Conv2d | nn.ConvTranspose2d:
    if resampling == "double":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    stride = 2 if resampling == "halve" else 1
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _direct(inputs: int, outputs: int, resampling: Resampling) -> nn.Module:
    if resampling == "double":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    stride = 2 if resampling == "halve" else 1
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def _sized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.shape[2:] == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ReverseDistillationOptions(DistilledOptions):
    """Options of ``reverse-distillation``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is restored, from the finest. Default: the ends of SqueezeNet's first
    two resolutions (a code of all three would need 80 million weights), or ``layer1``, ``layer2``
    and ``layer3`` of a ResNet."""
    combine: Combine = "sum"
    """Way in which the distances of the layers at a place are combined."""
    batch: BatchSize = 16
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 5e-3
    """Learning rate of Adam, whose moments decay by 0.5 and 0.999."""

    default_layers: ClassVar[DefaultLayers] = CODED


class ReverseDistillation(DistilledDetector):
    """Distance between a network's features and those restored from a one-class code.

    A bottleneck squeezes the features of all layers into a code, and a decoder that mirrors the
    frozen encoder restores them. Both are trained on healthy tiles. The loss is 1 − cos between
    a layer's features and the restored ones, each taken as one vector, summed over the layers.
    The score of a place is 1 − cos there, summed likewise.

    Notes
    -----
    RD4AD: Deng & Li, *Anomaly Detection via Reverse Distillation from One-Class
    Embedding*, CVPR 2022 (arXiv 2201.10703), with the loss of the authors' code (eq. 2 averages
    over places). The published method uses wide_resnet50_2 at 256 px, 200 epochs, a map smoothed
    with σ = 4 px, and the strangest place as the image's score.
    """

    Options: ClassVar[type[DetectorOptions]] = ReverseDistillationOptions
    options: ReverseDistillationOptions

    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with an untrained bottleneck and decoder."""
        shapes = teacher.check_places(self.spec.size)
        with drawing_weights(seed):
            student = ReverseStudent(shapes, Blocks.of(teacher))
        return Distillation(teacher, student)

    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the distance of the complete features of every layer."""
        return whole_distances(taught, found)

    def recipe(self) -> Recipe:
        """Return the recipe by which the student is trained."""
        return Recipe(adam(betas=(0.5, 0.999)))
