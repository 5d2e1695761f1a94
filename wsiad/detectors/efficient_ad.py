"""EfficientAD: a student and an autoencoder that know a small teacher on healthy tiles alone."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.core.labels import LabelsOf
from wsiad.detectors._end_to_end import LabelledWindows
from wsiad.detectors._features import TWO_DEPTHS, DefaultLayers
from wsiad.detectors._patch_teachers import (
    PatchTeacherDetector,
    PatchTeacherOptions,
    signed_images,
)
from wsiad.detectors._trained import images
from wsiad.learning.checkpoint import Recipe, adam, descend
from wsiad.learning.detector import DetectorOptions, FitContext, HealthyTiles
from wsiad.learning.devices import drawing
from wsiad.learning.loop import TrainingResult
from wsiad.learning.training_options import BatchSize, MaxSteps, Schedule
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.patch_description import EfficientNetworks, Size, patch_targets
from wsiad.networks.patch_students import TaughtPatches, channel_statistics
from wsiad.networks.weights import Weights

_DRAWN: Final = 0x656666  # keeps the draws of colours and dropout apart from others
_STRENGTH: Final = 0.2  # most by which brightness, contrast or saturation are changed
_GREY_SHARE: Final = 0.3  # of the penalised pictures
_GREY: Final = (0.299, 0.587, 0.114)
_OUTPUT_PX: Final = 4  # distance of the patches of neighbouring outputs

_Count = Annotated[int, pydantic.Field(ge=1)]


class EfficientAdOptions(PatchTeacherOptions):
    """Options of ``efficient-ad``."""

    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules of the backbone whose output the teacher learns. Default: the ends of SqueezeNet's
    first two resolutions, of the equally coarse ones of a VGG19, or ``layer2`` and ``layer3`` of a
    ResNet."""
    network: Size = "small"
    """Size of teacher and student: PDN-S or PDN-M."""
    dimensions: _Count = 384
    """Number of outputs of the teacher; the student has twice as many."""
    backbone_px: Annotated[int, pydantic.Field(ge=16, le=1024)] = 128
    """Edge to which windows are enlarged for the backbone, pixels."""
    teacher_steps: _Count = 60_000
    """Maximum number of steps in which the teacher learns the backbone."""
    teacher_batch: _Count = 16
    """Number of tiles in a step of the teacher."""
    teacher_learning_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-4
    """Learning rate of the teacher, which is constant."""
    hard_quantile: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
    """Quantile of the squared differences from the teacher at a window above which the student
    learns them."""
    penalty: Literal["none", "outside"] = "none"
    """Penalise what the student says as the teacher on pictures of elsewhere, those of
    ``--anomalies`` (outside), or not at all."""
    batch: BatchSize = 1
    lr_schedule: Schedule = "drop"
    max_steps: MaxSteps = 70_000

    default_layers: ClassVar[DefaultLayers] = TWO_DEPTHS


class EfficientAd(PatchTeacherDetector):
    """Difference of a student from its teacher, and from an autoencoder of the whole tile.

    A small network, the teacher, first learns the features of a backbone: each of its outputs
    sees a patch of 33 px. Its outputs are standardised by those of healthy tiles. A student of
    the same architecture learns them from its hardest differences, so that it is not trained
    further on what it knows, and an autoencoder learns them through a narrow code of the tile.
    With as many outputs more, the student learns the autoencoder. A place is scored by the mean
    squared differences of student and teacher (what no healthy patch looks like) and of student
    and autoencoder (what no healthy tile is composed of): each minus its quantile 0.9 over
    held-out healthy places, in tenths of the way from there to the quantile 0.995, then averaged.

    With ``penalty: outside``, the student's mean square on other pictures is minimised too, so
    that it learns the teacher on healthy tissue alone. The pictures are the tiles of
    ``--anomalies``, of which three tenths are shown in grey.

    Notes
    -----
    Batzner, Heckler & König, *EfficientAD: Accurate Visual Anomaly Detection at
    Millisecond-Level Latencies*, WACV 2024 (arXiv 2303.14535). There, the teacher learns a
    WideResNet-101 on ImageNet, on images extended by zeros, some of them grey, and the penalised
    pictures are ImageNet's. Images are normalised by ImageNet's channels; here they are in
    [−1, 1]. ``uninformed-students`` is the method that it follows.
    """

    Options: ClassVar[type[DetectorOptions]] = EfficientAdOptions
    options: EfficientAdOptions
    labels_for: ClassVar[str] = "penalty: outside"
    labels_of: ClassVar[LabelsOf] = "reference"

    def drawn(self, seed: int) -> EfficientNetworks:
        """Return an untrained teacher, student and autoencoder."""
        options = self.options
        with drawing_weights(seed):
            return EfficientNetworks(
                options.network,
                edge=self.spec.size,
                dimensions=options.dimensions,
                width=options.width,
                hard=options.hard_quantile,
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
        """Train the teacher on the backbone's features of enlarged windows."""
        options, backbone = self.options, self._backbone_of(found)
        backbone.check_places(options.backbone_px)
        teacher = network.teachers[0]
        with torch.no_grad():
            edge = self.spec.size
            size = teacher(torch.zeros(1, 3, edge, edge, device=self._device)).shape[2]

        def targets(windows: Tensor) -> Tensor:
            return self._targets(backbone, windows, size)

        mean, deviation = (
            values[:, None, None]
            for values in channel_statistics(
                (targets(windows) for windows in self._statistics(tiles.fit, context)),
                of="backbones",
            )
        )

        def loss(windows: Tensor) -> Tensor:
            own: Tensor = teacher(signed_images(windows))
            return (own - (targets(windows) - mean) / deviation).square().mean(dim=(1, 2, 3))

        return self._train_teachers(
            teacher,
            loss,
            tiles=tiles,
            context=context,
            started=started,
            sha256=found.sha256,
            recipe=Recipe(adam(weight_decay=options.weight_decay)),
            changes={
                "max_steps": options.teacher_steps,
                "batch": options.teacher_batch,
                "learning_rate": options.teacher_learning_rate,
                "lr_schedule": "constant",
            },
        )

    def recipe(self, network: TaughtPatches, context: FitContext) -> tuple[Recipe, dict[str, Any]]:
        """Return a recipe with changed colours for the autoencoder, and the penalty if any."""
        assert isinstance(network, EfficientNetworks)
        options, device = self.options, self._device
        outside = self._outside(context)

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            plain = images(windows)
            with drawing(device, context.seed, _DRAWN, step):
                changed = recoloured(plain, *_colours(len(plain)))
                loss = network.losses(2 * plain - 1, 2 * changed - 1).mean()
                if outside is not None:
                    others = images(outside.drawn(len(windows), step))
                    loss = loss + network.penalty(2 * _some_grey(others) - 1).mean()
                descend(optimiser, loss, clip=options.grad_clip)
            return loss

        identity = {"outside": outside.identity()} if outside else {}
        return Recipe(adam(weight_decay=options.weight_decay), update), identity

    def _outside(self, context: FitContext) -> LabelledWindows | None:
        """Return the pictures of elsewhere, if they are penalised."""
        if self.options.penalty == "none":
            return None
        if context.anomalies is None:
            raise DetectorError(
                "the penalty outside needs pictures of elsewhere, and there are none",
                remedy="Pass a store of them with --anomalies, or set --option penalty=none.",
            )
        return LabelledWindows(context, self.spec.size)

    @torch.no_grad()
    def _targets(self, backbone: BackboneFeatures, windows: Tensor, size: int) -> Tensor:
        """Return what the teacher should say of windows, (N, D, size, size), before scaling."""
        options = self.options
        edge = options.backbone_px
        enlarged = functional.interpolate(images(windows), size=(edge, edge), mode="bilinear")
        return patch_targets(
            backbone.maps(backbone.normalised(enlarged)),
            grid=-(-windows.shape[1] // _OUTPUT_PX),
            size=size,
            dimensions=options.dimensions,
        )


def recoloured(images: Tensor, kinds: Tensor, factors: Tensor) -> Tensor:
    """Return images with another brightness (kind 0), contrast (1) or saturation (2).

    Parameters
    ----------
    images : Tensor, (N, 3, H, W)
        RGB in [0, 1].
    kinds : Tensor of int64, (N,)
    factors : Tensor, (N,)
        Factors of the difference from black, from the mean grey, or from the grey of each pixel.

    Returns
    -------
    Tensor, (N, 3, H, W)
    """
    grey = _grey(images)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    others = torch.stack([torch.zeros_like(grey), mean.expand_as(grey), grey])
    other = others[kinds.to(images.device), torch.arange(len(images), device=images.device)]
    times = factors.to(images.device)[:, None, None, None]
    return (times * images + (1 - times) * other).clamp(0, 1)


def _colours(count: int) -> tuple[Tensor, Tensor]:
    """Draw changes of colours for :func:`recoloured` by the global generator."""
    kinds = torch.randint(3, (count,))
    return kinds, 1 + _STRENGTH * (2 * torch.rand(count) - 1)


def _some_grey(images: Tensor) -> Tensor:
    """Return images of which some, drawn by the global generator, are grey."""
    chosen = (torch.rand(len(images)) < _GREY_SHARE).to(images.device)
    return torch.where(chosen[:, None, None, None], _grey(images), images)


def _grey(images: Tensor) -> Tensor:
    """Return the grey of each pixel, (N, 1, H, W)."""
    weights = images.new_tensor(_GREY)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)
