"""The two networks of DRAEM: one restores an image, the other finds where it had to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError

_RESTORING = (1, 2, 4, 8, 8)  # widths of the blocks, as multiples of the first
_FINDING = (1, 2, 4, 8, 8, 8)
_GAMMA = 2  # of the focal loss


def _convolutions(*widths: int) -> nn.Sequential:
    """Return 3 × 3 convolutions, each with a batch normalisation and a ReLU."""
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*modules)


class _Down(nn.Module):
    """Blocks of two convolutions, with the maximum of 2 × 2 between them."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _convolutions(before, after, after) for before, after in pairwise((channels, *widths))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of all blocks, from the finest."""
        found: list[Tensor] = []
        for block in self.blocks:
            x = block(functional.max_pool2d(x, 2) if found else x)
            found.append(x)
        return found


class ImageRestorer(nn.Module):
    """An autoencoder without skips: a row of halvings, and as many enlargements.

    Parameters
    ----------
    width : int
        Number of channels of the first block; 128 as published.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * times for times in _RESTORING]
        self.down = _Down(3, widths)
        ends = [width * times for times in (4, 2, 1, 1)]
        starts = [widths[-1], *ends[:-1]]
        self.enlarged = nn.ModuleList(_convolutions(start, start) for start in starts)
        self.blocks = nn.ModuleList(
            _convolutions(start, start, end) for start, end in zip(starts, ends, strict=True)
        )
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, S, S) to restored ones."""
        found = self.down(x)[-1]
        for enlarged, block in zip(self.enlarged, self.blocks, strict=True):
            found = block(enlarged(_doubled(found)))
        image: Tensor = self.out(found)
        return image


class AnomalyFinder(nn.Module):
    """A U-Net that sees an image and its restored form, and classifies each pixel.

    Parameters
    ----------
    width : int
        Number of channels of the first block; 64 as published.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * times for times in _FINDING]
        self.down = _Down(6, widths)
        ends = [width * times for times in (8, 4, 2, 1, 1)]
        starts = [widths[-1], *ends[:-1]]
        self.enlarged = nn.ModuleList(
            _convolutions(start, end) for start, end in zip(starts, ends, strict=True)
        )
        self.blocks = nn.ModuleList(
            _convolutions(end + skip, end, end)
            for end, skip in zip(ends, reversed(widths[:-1]), strict=True)
        )
        self.out = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, pair: Tensor) -> Tensor:
        """Map an image and its restored form, (N, 6, S, S), to logits (N, 2, S, S)."""
        *skips, found = self.down(pair)
        for enlarged, block, skip in zip(self.enlarged, self.blocks, reversed(skips), strict=True):
            found = block(torch.cat([enlarged(_doubled(found)), skip], dim=1))
        logits: Tensor = self.out(found)
        return logits


class AnomalySegmenter(nn.Module):
    """Both networks, one after the other.

    Parameters
    ----------
    image_px : int
        Edge of the images, pixels: a multiple of 32.
    restoring, finding : int
        Widths of the two networks.

    Raises
    ------
    DetectorError
        The images cannot be halved five times.
    """

    def __init__(self, image_px: int, restoring: int, finding: int) -> None:
        super().__init__()
        if image_px % 2 ** (len(_FINDING) - 1):
            raise DetectorError(
                f"an input of {image_px} px cannot be halved {len(_FINDING) - 1} times",
                remedy="Set input_px to a multiple of 32.",
            )
        self.restorer, self.finder = ImageRestorer(restoring), AnomalyFinder(finding)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (N, 3, S, S) in [0, 1] to restored ones and logits (N, 2, S, S)."""
        restored = self.restorer(images)
        return restored, self.finder(torch.cat([images, restored], dim=1))

    def deepest(self, images: Tensor) -> Tensor:
        """Return the finder's deepest features, averaged over each image, (N, C)."""
        pair = torch.cat([images, self.restorer(images)], dim=1)
        found: Tensor = self.finder.down(pair)[-1].mean(dim=(2, 3))
        return found


def focal(logits: Tensor, mask: Tensor) -> Tensor:
    """Return −(1 − p)² log p of the right class at each pixel, (N, S, S).

    Parameters
    ----------
    logits : Tensor, (N, 2, S, S)
    mask : Tensor of int64, (N, S, S)
        1 where the image is changed.
    """
    logs = functional.log_softmax(logits, dim=1).gather(1, mask[:, None])[:, 0]
    return -((1 - logs.exp()) ** _GAMMA) * logs


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
