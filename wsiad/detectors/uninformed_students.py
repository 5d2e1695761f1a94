"""Uninformed students: ensembles of students that know the teacher on healthy patches alone."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.detectors._patch_teachers import PatchTeacherDetector, PatchTeacherOptions, signed_images
from wsiad.learning.checkpoint import Recipe, adam, descend
from wsiad.learning.detector import DetectorOptions, FitContext, HealthyTiles
from wsiad.learning.loop import TrainingResult
from wsiad.learning.training_options import BatchSize, ValInterval
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.patch_students import (
    PatchNetwork,
    PatchStudents,
    TaughtPatches,
    decorrelation,
    triplet,
)
from wsiad.networks.weights import Weights

_PATCHES: Final = 0x70617463
_SHIFT: Final = 8  # a near patch is shifted by at most this part of its edge
_NOISE: Final = 0.05

_Count = Annotated[int, pydantic.Field(ge=1)]
_Weight = Annotated[float, pydantic.Field(ge=0)]


class UninformedStudentsOptions(PatchTeacherOptions):
    """Options of ``uninformed-students``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules of the backbone whose output, averaged over the patch, the teachers learn. Default:
    the deepest features."""
    patches: Annotated[tuple[Literal[17, 33, 65], ...], pydantic.Field(min_length=1)] = (17, 33, 65)
    """Edges of the patches that the networks see, pixels; a teacher for each."""
    students: Annotated[int, pydantic.Field(ge=2)] = 3
    """Number of students of each teacher."""
    dimensions: _Count = 128
    """Number of outputs of each network."""
    backbone_px: Annotated[int, pydantic.Field(ge=16, le=512)] = 128
    """Edge to which patches are enlarged for the backbone, pixels."""
    teacher_steps: _Count = 50_000
    """Maximum number of steps in which the teachers learn the backbone."""
    teacher_learning_rate: Annotated[float, pydantic.Field(gt=0)] = 2e-4
    """Learning rate of the teachers."""
    triplet_weight: _Weight = 1.0
    """Weight of the distance of near patches against others in the teachers' loss."""
    decorrelation_weight: _Weight = 1.0
    """Weight of the correlations of outputs in the teachers' loss."""
    batch: BatchSize = 16
    val_interval: ValInterval = 500

    @pydantic.model_validator(mode="after")
    def _each_size_once(self) -> Self:
        if len(set(self.patches)) != len(self.patches):
            raise ValueError("patches names a size twice")
        return self


class UninformedStudents(PatchTeacherDetector):
    """Error and disagreement of students that learnt a teacher on healthy tiles.

    For each size of patches, a small teacher first learns the backbone's features of a patch,
    with near patches near and outputs uncorrelated. Its outputs are standardised by those of
    healthy tiles, and several students, which differ by their first weights, learn them. A place
    is scored by the squared distance of their mean to the teacher, plus their variance, each in
    deviations of held-out healthy places; the sizes are averaged.

    Notes
    -----
    Bergmann, Fauser, Sattlegger & Steger, *Uninformed Students: Student-Teacher Anomaly Detection
    with Discriminative Latent Embeddings*, CVPR 2020. There, teachers learn on ImageNet; here on
    patches of the healthy tiles. Layers, weights of the terms and the triplets (a shift of an
    eighth and noise) are from general knowledge of the paper. ``student-teacher`` is STFPM, in
    which one student learns the backbone's own maps.
    """

    Options: ClassVar[type[DetectorOptions]] = UninformedStudentsOptions
    options: UninformedStudentsOptions

    def drawn(self, seed: int) -> PatchStudents:
        """Return untrained teachers and students."""
        options = self.options
        with drawing_weights(seed):
            return PatchStudents(
                options.patches,
                students=options.students,
                dimensions=options.dimensions,
                width=options.width,
            )

    def distil(
        self,
        network: TaughtPatches,
        found: Weights,
        *,
        tiles: HealthyTiles,
        context: FitContext,
        started: float,
    ) -> TrainingResult:
        """Train the teachers on the backbone's features of patches."""
        options, backbone = self.options, self._backbone_of(found)
        outputs = sum(shape[0] for shape in backbone.check_places(options.backbone_px))
        with drawing_weights(context.seed):
            readers = nn.ModuleList(
                nn.Linear(options.dimensions, outputs) for _ in network.teachers
            )
        learning = nn.ModuleDict({"teachers": network.teachers, "readers": self._placed(readers)})

        def knowledge(number: int, patches: Tensor) -> tuple[Tensor, Tensor]:
            """Return a teacher's outputs of patches, (N, D), and its error, (N,)."""
            teacher = network.teachers[number]
            own = teacher(patches)[:, :, 0, 0]
            with torch.no_grad():
                enlarged = functional.interpolate(
                    (patches + 1) / 2, size=options.backbone_px, mode="bilinear"
                )
                target = backbone(enlarged).flatten(1)
            return own, (readers[number](own) - target).square().mean(dim=1)

        def loss(windows: Tensor) -> Tensor:
            signed = signed_images(windows)
            errors = []
            for number, patch in enumerate(options.patches):
                middle = max(0, (signed.shape[2] - patch) // 2)
                errors.append(knowledge(number, _patches(signed, patch, [middle], [middle]))[1])
            return torch.stack(errors).sum(dim=0)

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            signed = signed_images(windows)
            rng = np.random.default_rng([context.seed, _PATCHES, step])
            total = signed.new_zeros(())
            for number, patch in enumerate(options.patches):
                corners = _corners(signed, patch, rng)
                own, error = knowledge(number, _patches(signed, patch, *corners))
                near, other = self._compared(network.teachers[number], signed, corners, rng)
                total = (
                    total
                    + error.mean()
                    + options.triplet_weight * triplet(own, near, other).mean()
                    + options.decorrelation_weight * decorrelation(own)
                )
            descend(optimiser, total, clip=options.grad_clip)
            return total

        return self._train_teachers(
            learning,
            loss,
            tiles=tiles,
            context=context,
            started=started,
            sha256=found.sha256,
            recipe=Recipe(adam(weight_decay=options.weight_decay), update),
            changes={
                "max_steps": options.teacher_steps,
                "learning_rate": options.teacher_learning_rate,
            },
        )

    def _compared(
        self,
        teacher: nn.Module,
        signed: Tensor,
        corners: tuple[list[int], list[int]],
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return a teacher's outputs of near patches and of those of other tiles, (N, D)."""
        assert isinstance(teacher, PatchNetwork)
        patch = teacher.patch
        shift, last = patch // _SHIFT, max(0, signed.shape[2] - patch)
        moved = [
            [int(np.clip(at + rng.integers(-shift, shift + 1), 0, last)) for at in axis]
            for axis in corners
        ]
        near = _patches(signed, patch, moved[0], moved[1])
        noise = rng.standard_normal(tuple(near.shape), dtype=np.float32)
        near = near + _NOISE * near.new_tensor(noise)
        other = _patches(signed.roll(1, dims=0), patch, *_corners(signed, patch, rng))
        return teacher(near)[:, :, 0, 0], teacher(other)[:, :, 0, 0]


def _corners(signed: Tensor, patch: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return a random upper left corner of a patch in each image."""
    last = max(0, signed.shape[2] - patch)
    drawn: list[list[Any]] = rng.integers(0, last + 1, size=(2, len(signed))).tolist()
    return drawn[0], drawn[1]


def _patches(signed: Tensor, patch: int, rows: list[int], columns: list[int]) -> Tensor:
    """Return a patch of each image, (N, 3, p, p), or all of it if it is smaller.

    One corner can stand for all.
    """
    if signed.shape[2] <= patch:
        return signed
    rows, columns = (one * (len(signed) // len(one)) for one in (rows, columns))
    return torch.stack(
        [
            image[:, y : y + patch, x : x + patch]
            for image, y, x in zip(signed, rows, columns, strict=True)
        ]
    )
