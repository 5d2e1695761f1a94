"""Student and teacher: a student that learnt healthy tiles differs from its teacher on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._trained import DistilledDetector, DistilledOptions
from wsiad.learning.checkpoint import Recipe, adam, sgd
from wsiad.learning.detector import DetectorOptions
from wsiad.networks.distillation import (
    Distillation,
    LikeTeacher,
    SlimStudent,
    combined,
    place_distances,
    share_distances,
)
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
    student_width: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Channels of a student of a VGG where its features are not compared; published for MKD: 16.
    Default: the student has the teacher's architecture."""
    distance: Literal["places", "whole"] = "places"
    """Take the feature vector of each place for itself, at length 1, or all features of a layer
    as one vector."""
    value_weight: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Weight of the mean squared difference of features beside that of their directions."""
    scored_layers: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Number of the last layers that are scored, where the first ones are only learnt. Default:
    all."""

    scoring_only: ClassVar[frozenset[str]] = DistilledOptions.scoring_only | {"scored_layers"}
    later: ClassVar[Mapping[str, Any]] = {
        "student_width": None,
        "distance": "places",
        "value_weight": 0.0,
        "scored_layers": None,
    }


class StudentTeacher(DistilledDetector):
    """Distance between the features of a frozen network and those of its student.

    The student has the teacher's architecture and random initial weights. It learns to give the
    same features as the teacher on healthy tiles. The loss is ½|u − v|² between features of
    length 1, averaged over the places of a layer and summed over the layers. The score of a
    place is the product of the layers' ½|u − v|² there.

    With ``distance: whole``, u and v are all features of a layer, as one vector, and a place has
    its share: the mean over the places, with ``combine: sum``, is the distance of the tile.
    ``value_weight`` adds the mean squared difference of the features themselves.

    Notes
    -----
    STFPM: Wang, Han, Ding & Huang, *Student-Teacher Feature Pyramid Matching for Anomaly
    Detection*, BMVC 2021 (arXiv 2103.04257). The published method uses ResNet-18 at 256 px, and
    the strangest place as the image's score. MKD: Salehi et al., *Multiresolution Knowledge
    Distillation for Anomaly Detection*, CVPR 2021 (arXiv 2011.11108), whose student is slim, whose
    loss has value and direction, and whose score has three of four layers. The published map is
    a smoothed gradient of the score by the pixels; here it is the shares of the places.
    """

    Options: ClassVar[type[DetectorOptions]] = StudentTeacherOptions
    options: StudentTeacherOptions

    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with an untrained student.

        Raises
        ------
        DetectorError
            More layers are to be scored than there are.
        """
        layers = len(self.options.chosen_layers())
        if (self.options.scored_layers or 0) > layers:
            raise DetectorError(
                f"scored_layers: there are only {layers} layers",
                subject="student-teacher",
                remedy="Set fewer, or name more layers.",
            )
        if width := self.options.student_width:
            return Distillation(teacher, SlimStudent(teacher, width, seed=seed))
        return Distillation(teacher, LikeTeacher(self.options.backbone, teacher, seed=seed))

    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean distance over the places of every layer."""
        return [distances.mean(dim=(1, 2)) for distances in self._by_place(taught, found)]

    def places(self, images: Tensor) -> Tensor:
        """Return the distance between student and teacher at every place."""
        options = self.options
        taught, found = self.network()(images)
        last = -(options.scored_layers or len(taught))
        maps = self._by_place(taught[last:], found[last:])
        return combined(maps, options.places, options.combine)

    def recipe(self) -> Recipe:
        """Return the recipe by which the student is trained."""
        decay = self.options.weight_decay
        if self.options.optimiser == "sgd":
            return Recipe(sgd(momentum=self.options.momentum, weight_decay=decay))
        return Recipe(adam(weight_decay=decay))

    def _by_place(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the distance at every place of every layer, (N, h, w)."""
        by_place = share_distances if self.options.distance == "whole" else place_distances
        maps = by_place(taught, found)
        if not (weight := self.options.value_weight):
            return maps
        return [
            distances + weight * (t - f).square().mean(dim=1)
            for distances, t, f in zip(maps, taught, found, strict=True)
        ]
