"""Teachers: larger networks, whose view of healthy tiles a small network learns.

``wsiad pretrain --teacher`` trains in this way, without the contrastive loss. See Romero et al.:
FitNets, ICLR 2015, and Beyer et al.: Knowledge distillation: A good teacher is patient and
consistent, CVPR 2022: teachers and student see the same views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.learning.batches import on_device, random_views, sample
from wsiad.learning.contrastive import ContrastiveNetwork, ContrastiveOptions, checksum
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.learning.loop import Training
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.weights import Weights

FINE_PX, COARSE_PX = 8, 16
"""Edges of the places, pixels, at which fine and coarse features are compared."""

_BASIS_TILES = 1024
_BATCH = 128
_SPREADS = 4.0  # of a principal component, by which it is kept above the rectifier's zero


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen network whose features a student learns.

    Parameters
    ----------
    name : str
        Name of the network.
    weights : Weights
    fine, coarse : str
        Layers with features of small and of larger surroundings.
    """

    name: str
    weights: Weights
    fine: str
    coarse: str

    def note(self) -> dict[str, str]:
        """Return the facts about a teacher that the record of a training states."""
        return {
            "name": self.name,
            "source": self.weights.source,
            "sha256": self.weights.sha256,
            "fine": self.fine,
            "coarse": self.coarse,
        }


class Teachers(nn.Module):
    """The features of all teachers, each with the same total variance over healthy tiles.

    The fine features of all teachers are reduced together to principal components, so that the
    distances between places remain: those that ``knn`` compares.

    Parameters
    ----------
    teachers : sequence of Teacher
    components : int
        Maximum number of principal components.

    Attributes
    ----------
    mean : Tensor
        Mean of each component over healthy tiles, four of its standard deviations. Rectified
        features of the student reach all but the rarest values.
    """

    basis: Tensor
    centre: Tensor
    mean: Tensor
    coarse_mean: Tensor
    coarse_spread: Tensor

    def __init__(self, teachers: Sequence[Teacher], components: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            BackboneFeatures(
                teacher.name,
                (teacher.fine, teacher.coarse),
                1,
                teacher.weights.tensors,
                source=teacher.weights.source,
            ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for teacher in teachers
        )
        with torch.no_grad():
            fine, coarse = self._maps(torch.zeros(1, 3, 64, 64))
        channels = sum(found.shape[1] for found in fine)
        deep = sum(found.shape[1] for found in coarse)
        self.register_buffer("basis", torch.zeros(channels, min(channels, components)))
        self.register_buffer("centre", torch.zeros(min(channels, components)))
        self.register_buffer("mean", torch.ones(min(channels, components)))
        self.register_buffer("coarse_mean", torch.zeros(deep))
        self.register_buffer("coarse_spread", torch.ones(deep))

    def _maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        edge = images.shape[2]
        fine, coarse = [], []
        for network in self.networks:
            assert isinstance(network, BackboneFeatures)
            first, second = network.maps(network.normalised(images))
            fine.append(nn.functional.adaptive_avg_pool2d(first.float(), edge // FINE_PX))
            coarse.append(nn.functional.adaptive_avg_pool2d(second.float(), edge // COARSE_PX))
        return fine, coarse

    @torch.no_grad()
    def fit(self, views: Sequence[Tensor]) -> None:
        """Set the principal components, and the mean and spread of each coarse channel.

        Parameters
        ----------
        views : sequence of Tensor, (N, 3, H, W)
            Batches of RGB images in [0, 1] of healthy tiles.

        Raises
        ------
        DetectorError
            All places look alike to a teacher.
        """
        found = [self._maps(images) for images in views]
        fine = [torch.cat([_places(maps[i]) for maps, _ in found]) for i in range(len(found[0][0]))]
        coarse = torch.cat([_places(torch.cat(maps, dim=1)) for _, maps in found])
        spreads = [math.sqrt(float(values.var(dim=0).sum())) for values in fine]
        if not min(spreads) > 0:
            raise DetectorError(
                "all healthy tiles look alike to a teacher: there is nothing to learn"
            )
        scales = [1 / spread for spread in spreads]
        both = torch.cat([v * scale for v, scale in zip(fine, scales, strict=True)], dim=1).double()
        values, vectors = torch.linalg.eigh(torch.cov(both.T))
        kept = self.basis.shape[1]
        values, vectors = values[-kept:].flip(0), vectors[:, -kept:].flip(1)
        # All together have a variance of one per component, and each stays positive.
        scale = math.sqrt(kept / float(values.sum()))
        rows = torch.cat([torch.full((v.shape[1],), s) for v, s in zip(fine, scales, strict=True)])
        self.basis.copy_(rows.double()[:, None] * vectors * scale)
        offset = _SPREADS * values.clamp(min=0).sqrt() * scale
        self.centre.copy_(offset - both.mean(dim=0) @ vectors * scale)
        self.mean.copy_(offset)
        self.coarse_mean.copy_(coarse.mean(dim=0))
        self.coarse_spread.copy_(coarse.std(dim=0).clamp(min=1e-6))

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fine and coarse targets, (N, h, w, C), of RGB images (N, 3, H, W)."""
        fine, coarse = self._maps(images)
        deep = torch.cat(coarse, dim=1).permute(0, 2, 3, 1)
        return (
            torch.cat(fine, dim=1).permute(0, 2, 3, 1) @ self.basis + self.centre,
            ((deep - self.coarse_mean) / self.coarse_spread).clamp(-4, 4),
        )


def _places(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


class Student(ContrastiveNetwork):
    """Blocks of VGG19 that learn the features of teachers.

    The third block gives the principal components of the fine features directly, at two depths;
    the fourth gives the coarse features by a linear map, which is left off in the end.

    Parameters
    ----------
    widths : sequence of int
        Number of channels of each of four blocks.
    teachers : Teachers
        Teachers that are fitted.
    """

    def __init__(self, widths: Sequence[int], teachers: Teachers) -> None:
        super().__init__(widths, 8)
        self.heads = nn.ModuleList([nn.Linear(widths[3], len(teachers.coarse_mean))])
        third = self.blocks[2]
        for name in ("norm3_2", "norm3_4"):
            norm = third.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            with torch.no_grad():
                norm.bias[: len(teachers.mean)] = teachers.mean
                norm.weight[: len(teachers.mean)] = teachers.mean / _SPREADS

    def seen(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return fine features at two depths and coarse ones, (N, h, w, C) of (N, 3, H, W)."""
        edge = images.shape[2]
        x = (images - self.image_mean) / self.image_std
        for block in self.blocks[:2]:
            x = block(x)
        fine = []
        for name, module in self.blocks[2].named_children():
            x = module(x)
            if name in ("relu3_2", "relu3_4"):
                fine.append(_pooled(x, edge // FINE_PX))
        return fine, self.heads[0](_pooled(self.blocks[3](x), edge // COARSE_PX))


def _pooled(maps: Tensor, edge: int) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(maps.float(), edge).permute(0, 2, 3, 1)


class DistillationLoss:
    """The loss of windows: the part of the teachers' variance that the student misses.

    Parameters
    ----------
    student : Student
    teachers : Teachers
    options : ContrastiveOptions
    """

    def __init__(self, student: Student, teachers: Teachers, options: ContrastiveOptions) -> None:
        self._student, self._teachers, self._options = student, teachers, options

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the loss of windows, uint8 (N, S, S, 3), as float32 (N,)."""
        options = self._options
        generator = torch.Generator().manual_seed(checksum(windows))
        images = random_views(windows, options.views, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            windows.device.type, dtype=torch.bfloat16, enabled=options.precision == "bfloat16"
        ):
            fine, coarse = self._teachers(images)
            found, deep = self._student.seen(images)
        kept = fine.shape[3]
        pairs = [*((maps[..., :kept], fine) for maps in found), (deep.float(), coarse)]
        missed = [(seen - taught).square().mean(dim=(1, 2, 3)) for seen, taught in pairs]
        return torch.stack(missed).mean(dim=0)


def new_distillation(
    tiles: HealthyTiles,
    teachers: Sequence[Teacher],
    options: ContrastiveOptions,
    context: FitContext,
    *,
    size: int,
) -> tuple[Student, Training]:
    """Make a student from the seed, and its training on complete tiles of an edge of ``size``.

    Raises
    ------
    DetectorError
        The student has another number of blocks than four, the views do not have whole places, or
        all healthy tiles look alike.
    RunError
        The folder holds the checkpoint of another training.
    """
    if len(options.widths) != 4:
        raise DetectorError("a student of teachers has four blocks", remedy="Set four widths.")
    if options.views.view_px % COARSE_PX:
        raise DetectorError(
            f"views of {options.views.view_px} px cannot be compared with those of teachers",
            remedy=f"Set a multiple of {COARSE_PX}, such as --option 'views={{view_px: 64}}'.",
        )
    seen = Teachers(teachers, options.widths[2]).to(context.device)
    generator = torch.Generator().manual_seed(context.seed)
    _, batches = sample(tiles.fit, _BASIS_TILES, batch=_BATCH, seed=context.seed)
    seen.fit(
        [random_views(on_device(b, context.device), options.views, generator) for b in batches]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        student = Student(options.widths, seen)
    student = student.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = options.model_dump(mode="json", include={"widths", "views", "precision"})
    identity["teachers"] = [
        [teacher.name, teacher.weights.sha256, teacher.fine, teacher.coarse] for teacher in teachers
    ]
    training = Training(
        student,
        DistillationLoss(student, seen, options),
        tiles=tiles,
        size=size,
        options=options,
        context=context,
        identity=identity,
    )
    return student, training
