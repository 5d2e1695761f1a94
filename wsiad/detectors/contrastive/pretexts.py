"""Pretexts by which encoders learn healthy tiles: views, shifted forms, positions, pastes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.learning.batches import ViewOptions, random_views
from wsiad.learning.contrastive import ContrastiveNetwork, checksum, contrast
from wsiad.networks.patch_encoder import DIRECTIONS, PatchEncoders, patch
from wsiad.networks.synthetic_anomalies import cut_paste, scars
from wsiad.networks.torchvision_models import torchvision_models

Shifts = Literal["cutperm", "turns"]

SHIFTS = 4
"""Number of shifted forms of an image, itself included."""

_NOISE = 0.02  # deviation of the colour shift and of the noise of a patch, RGB in [0, 1]


def shifted(images: Tensor, number: int, by: Shifts) -> Tensor:
    """Return images (N, 3, S, S) in one of four shifted forms; form 0 is unchanged.

    ``cutperm`` swaps the upper and lower halves, the left and right halves, or both, which no
    symmetry of tissue does. ``turns`` turns by quarters.
    """
    if by == "turns":
        return torch.rot90(images, number, (2, 3))
    height, width = images.shape[2] // 2, images.shape[3] // 2
    return torch.roll(images, (height * (number // 2), width * (number % 2)), (2, 3))


class ShiftEncoder(nn.Module):
    """An encoder with a projection head, and a head that tells how an image was shifted.

    Parameters
    ----------
    body : {"blocks", "resnet18"}
        Blocks of VGG19 with batch normalisation, as ``wsiad pretrain`` trains them, or a
        ResNet-18.
    widths : sequence of int
        Number of channels of each block.
    projection : int
        Length of the vectors that are compared.
    shifts : int
        Number of shifted forms; with 1 there is no head for them.
    """

    def __init__(
        self,
        body: Literal["blocks", "resnet18"],
        widths: Sequence[int],
        projection: int,
        shifts: int,
    ) -> None:
        super().__init__()
        if body == "resnet18":
            self.body: nn.Module = torchvision_models().resnet18(weights=None)
            self.body.fc = nn.Identity()
            channels = 512
        else:
            blocks = ContrastiveNetwork(widths).blocks
            self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            channels = widths[-1]
        self.head = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, projection)
        )
        self.shift = nn.Linear(channels, shifts) if shifts > 1 else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (N, C), before the head, of images (N, 3, H, W) in [0, 1]."""
        found: Tensor = self.body(images * 2 - 1)
        return found


def contrastive_losses(
    encoder: ShiftEncoder,
    windows: Tensor,
    *,
    views: ViewOptions,
    temperature: float,
    shifts: Shifts | None,
) -> Tensor:
    """Return how badly two views of each window match, (N,), and how badly shifts are told.

    Shifted forms are images of their own, so that a view must not match another form of the same
    window. The draws follow from the windows.

    Parameters
    ----------
    encoder : ShiftEncoder
    windows : Tensor of uint8, (N, S, S, 3)
    views : ViewOptions
    temperature : float
    shifts : {"cutperm", "turns"} or None
        ``None`` for SimCLR, without shifted forms.
    """
    generator = torch.Generator().manual_seed(checksum(windows))
    count, forms = len(windows), SHIFTS if shifts else 1
    seen = []
    for _ in range(2):
        view = random_views(windows, views, generator)
        seen += [shifted(view, form, shifts) if shifts else view for form in range(forms)]
    features = encoder(torch.cat(seen).contiguous(memory_format=torch.channels_last))
    vectors = functional.normalize(encoder.head(features), dim=1)
    first, second = vectors.chunk(2)
    losses = contrast(first, second, temperature).view(forms, count).mean(dim=0)
    if encoder.shift is None:
        return losses
    form = torch.arange(forms, device=windows.device).repeat_interleave(count).repeat(2)
    told = functional.cross_entropy(encoder.shift(features), form, reduction="none")
    return losses + told.view(2 * forms, count).mean(dim=0)


CUT_FORMS = 3
"""Forms that CutPaste tells apart: an image, with a pasted rectangle, with a pasted scar."""


def cut_losses(encoder: ShiftEncoder, windows: Tensor) -> Tensor:
    """Return how badly an image, one with a pasted rectangle and one with a scar are told, (N,).

    The draws follow from the windows.
    """
    generator = torch.Generator().manual_seed(checksum(windows))
    images = windows.permute(0, 3, 1, 2).float() / 255
    seen = torch.cat([images, cut_paste(images, generator), scars(images, generator)])
    assert encoder.shift is not None
    logits = encoder.shift(encoder(seen.contiguous(memory_format=torch.channels_last)))
    form = torch.arange(CUT_FORMS, device=windows.device).repeat_interleave(len(windows))
    told = functional.cross_entropy(logits, form, reduction="none")
    return told.view(CUT_FORMS, len(windows)).mean(dim=0)


def position_losses(encoders: PatchEncoders, windows: Tensor, *, weight: float) -> Tensor:
    """Return the loss of positions and of neighbours of Patch-SVDD, (N,), added over the levels.

    For each edge K, two patches lie 3K/4 to K apart in one of eight directions, each with a shift
    of its colour and noise; their direction is told from their codes. Two patches at most K/32
    apart have near codes: the term is the length of the difference, not its square.

    Parameters
    ----------
    encoders : PatchEncoders
    windows : Tensor of uint8, (N, S, S, 3)
        Windows of at least twice the largest edge.
    weight : float
        Weight of the neighbours.
    """
    images = windows.permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(checksum(windows))
    total = torch.zeros(len(images), device=images.device)
    for level, edge in enumerate(encoders.edges):
        first, second, which = _apart(images, edge, generator)
        codes = [encoders(_disturbed(part, generator)) for part in (first, second)]
        logits = encoders.directions(codes[0], codes[1], level)
        total = total + functional.cross_entropy(logits, which.to(images.device), reduction="none")
        near = [encoders(part) for part in _neighbours(images, edge, generator)]
        total = total + weight * (near[0] - near[1]).norm(dim=1)
    return total


def _apart(images: Tensor, edge: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches, other ones in a direction of them, and the numbers of the directions."""
    count, room = len(images), images.shape[2] - edge
    which = torch.randint(len(DIRECTIONS), (count,), generator=generator)
    signs = torch.tensor(DIRECTIONS)[which]
    away = edge * 3 // 4 + torch.randint(max(1, edge // 4), (count, 2), generator=generator)
    steps = signs * away
    free = room - steps.abs()
    starts = (torch.rand(count, 2, generator=generator) * (free + 1)).floor().long()
    starts = starts.clamp(max=free) - steps.clamp(max=0)
    first = patch(images, starts[:, 0], starts[:, 1], edge)
    ends = starts + steps
    return first, patch(images, ends[:, 0], ends[:, 1], edge), which


def _neighbours(images: Tensor, edge: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return patches, and others at most a 32nd of their edge away."""
    count, room, most = len(images), images.shape[2] - edge, max(1, edge // 32)
    starts = torch.randint(room + 1, (count, 2), generator=generator)
    steps = torch.randint(-most, most + 1, (count, 2), generator=generator)
    ends = (starts + steps).clamp(0, room)
    first = patch(images, starts[:, 0], starts[:, 1], edge)
    return first, patch(images, ends[:, 0], ends[:, 1], edge)


def _disturbed(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Return patches with another colour and noise."""
    colour = torch.randn(len(patches), 3, 1, 1, generator=generator)
    noise = torch.randn(patches.shape, generator=generator)
    return patches + _NOISE * (colour + noise).to(patches.device)
