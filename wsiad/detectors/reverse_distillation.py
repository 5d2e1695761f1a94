"""Reverse distillation: strange is what cannot be restored from a code of healthy features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import pydantic
import torch
from torch import Tensor

from wsiad.detectors._distilled import DistilledDetector, DistilledOptions
from wsiad.detectors._layers import CODED, DefaultLayers
from wsiad.detectors.reverse_distillation_part import Blocks, ReverseStudent
from wsiad.learning.detector import DetectorOptions
from wsiad.learning.recipe import Recipe, adam
from wsiad.networks.distillation import Combine, Distillation, whole_distances
from wsiad.networks.features import BackboneFeatures


class ReverseDistillationOptions(DistilledOptions):
    """Options of ``reverse-distillation``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is restored, from the finest; by default the ends of SqueezeNet's first
    two resolutions (a code of all three would take 80 million weights), or ``layer1``, ``layer2``
    and ``layer3`` of a ResNet."""
    combine: Combine = "sum"
    """How the distances of the layers at a place become one."""
    batch: Annotated[int, pydantic.Field(ge=1)] = 16
    """Tiles a step."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 5e-3
    """Of Adam, whose moments decay by 0.5 and 0.999."""

    default_layers: ClassVar[DefaultLayers] = CODED


class ReverseDistillation(DistilledDetector):
    """Distance between a network's features and those restored from a one-class code.

    A bottleneck squeezes the features of all layers into a code, a decoder that mirrors
    the frozen encoder restores them from it, and both are trained on healthy tiles. The
    loss is 1 − cos between a layer's features and the restored ones, each taken as one
    vector, added over the layers; the score of a place is 1 − cos there, likewise added.

    Notes
    -----
    RD4AD: Deng & Li, *Anomaly Detection via Reverse Distillation from One-Class
    Embedding*, CVPR 2022 (arXiv 2201.10703), with the loss of the authors' code
    (eq. 2 averages over places). Published: wide_resnet50_2 at 256 px, 200 epochs, a map
    smoothed with σ = 4 px, the strangest place as the image's score.
    """

    Options: ClassVar[type[DetectorOptions]] = ReverseDistillationOptions
    options: ReverseDistillationOptions

    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with an untrained bottleneck and decoder."""
        shapes = teacher.check_places(self.spec.size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = ReverseStudent(shapes, Blocks.of(teacher))
        return Distillation(teacher, student)

    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the distance of the whole features of every layer."""
        return whole_distances(taught, found)

    def recipe(self) -> Recipe:
        """Return how the student is trained."""
        return Recipe(adam(betas=(0.5, 0.999)))
