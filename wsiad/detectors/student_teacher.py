"""Student and teacher: a student that learnt healthy tiles differs from its teacher on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import pydantic
from torch import Tensor

from wsiad.detectors._trained import DistilledDetector, DistilledOptions
from wsiad.learning.checkpoint import Recipe, adam, sgd
from wsiad.learning.detector import DetectorOptions
from wsiad.networks.distillation import Distillation, LikeTeacher, place_distances
from wsiad.networks.features import BackboneFeatures


class StudentTeacherOptions(DistilledOptions):
    """Options of ``student-teacher``."""

    optimiser: Literal["adam", "sgd"] = "adam"
    """Optimiser. The published one is ``sgd`` with ``learning_rate`` 0.4, for ResNet-18 with its
    batch normalisation. Networks without it, such as SqueezeNet, diverge with these settings."""
    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.9
    """Momentum of ``sgd``."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-4
    """Weight of the squared weights in the loss."""


class StudentTeacher(DistilledDetector):
    """Distance between the features of a frozen network and those of its student.

    The student has the teacher's architecture and random initial weights. It learns to give the
    same features as the teacher on healthy tiles. The loss is ½|u − v|² between features of
    length 1, averaged over the places of a layer and summed over the layers. The score of a
    place is the product of the layers' ½|u − v|² there.

    Notes
    -----
    STFPM: Wang, Han, Ding & Huang, *Student-Teacher Feature Pyramid Matching for Anomaly
    Detection*, BMVC 2021 (arXiv 2103.04257). The published method uses ResNet-18 at 256 px, and
    the strangest place as the image's score.
    """

    Options: ClassVar[type[DetectorOptions]] = StudentTeacherOptions
    options: StudentTeacherOptions

    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with an untrained copy of its architecture."""
        return Distillation(teacher, LikeTeacher(self.options.backbone, teacher, seed=seed))

    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean distance over the places of every layer."""
        return [distances.mean(dim=(1, 2)) for distances in place_distances(taught, found)]

    def recipe(self) -> Recipe:
        """Return the recipe by which the student is trained."""
        decay = self.options.weight_decay
        if self.options.optimiser == "sgd":
            return Recipe(sgd(momentum=self.options.momentum, weight_decay=decay))
        return Recipe(adam(weight_decay=decay))
