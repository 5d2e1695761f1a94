"""Encoders of small patches, trained by where patches lie to each other: Patch-SVDD."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""The eight directions, down and across, in which a second patch can lie."""

SMALL = 32
_WIDTHS = (32, 64, 128, 128, 64, 32, 32)
_SLOPE = 0.1
_JOINED = 128
_HIDDEN = 128


class SmallPatchEncoder(nn.Sequential):
    """Eight 3 × 3 convolutions without padding, the first of stride 2: a patch of 32 px to a code.

    Parameters
    ----------
    length : int
        Length D of a code, whose values are in [−1, 1].
    """

    def __init__(self, length: int) -> None:
        modules: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((3, *_WIDTHS, length))):
            modules.append(nn.Conv2d(before, after, 3, stride=1 if number else 2))
            modules.append(nn.LeakyReLU(_SLOPE))
        super().__init__(*modules[:-1], nn.Tanh(), nn.Flatten())


class PatchEncoders(nn.Module):
    """Encoders of patches of 32 px, and of 64 px by the codes of their quarters; position heads.

    Every layer is trained. The authors' code normalises the weights of its last layer without
    gradients, so that this layer never learns.

    Parameters
    ----------
    length : int
        Length D of a code.
    edges : sequence of int
        Edges of the patches, pixels: 32, or 32 and 64.
    """

    def __init__(self, length: int, edges: Sequence[int]) -> None:
        super().__init__()
        self.edges, self.length = tuple(edges), length
        self.small = SmallPatchEncoder(length)
        self.joined = None
        if set(edges) - {SMALL}:
            self.joined = nn.Sequential(
                nn.Conv2d(length, _JOINED, 2),
                nn.LeakyReLU(_SLOPE),
                nn.Conv2d(_JOINED, length, 1),
                nn.Tanh(),
                nn.Flatten(),
            )
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(length, _HIDDEN),
                nn.LeakyReLU(_SLOPE),
                nn.Linear(_HIDDEN, _HIDDEN),
                nn.LeakyReLU(_SLOPE),
                nn.Linear(_HIDDEN, len(DIRECTIONS)),
            )
            for _ in edges
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Return the codes (N, D) of patches (N, 3, K, K) in [0, 1]."""
        values = patches * 2 - 1
        if patches.shape[2] == SMALL:
            small: Tensor = self.small(values)
            return small
        assert self.joined is not None
        quarters = cut(values, SMALL, SMALL)
        codes = self.small(quarters.flatten(0, 1)).view(len(patches), 2, 2, self.length)
        joined: Tensor = self.joined(codes.permute(0, 3, 1, 2))
        return joined

    def directions(self, first: Tensor, second: Tensor, level: int) -> Tensor:
        """Return the logits (N, 8) of the direction from first to second codes of a level."""
        found: Tensor = self.heads[level](first - second)
        return found


def cut(images: Tensor, edge: int, stride: int) -> Tensor:
    """Return all patches (N, G, 3, edge, edge) of images (N, 3, S, S), row by row."""
    found = images.unfold(2, edge, stride).unfold(3, edge, stride)
    return found.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def patch(images: Tensor, top: Tensor, left: Tensor, edge: int) -> Tensor:
    """Return one patch (N, 3, edge, edge) of each image, from its own corner (N,)."""
    along = torch.arange(edge, device=images.device)
    rows = (top.to(images.device)[:, None] + along)[:, :, None]
    columns = (left.to(images.device)[:, None] + along)[:, None, :]
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows, columns].permute(0, 3, 1, 2)


def spread(scores: Tensor, edge: int, stride: int, size: int) -> Tensor:
    """Return at each pixel the mean score of the patches that cover it, (N, size, size).

    Parameters
    ----------
    scores : Tensor, (N, g, g)
        Scores of the patches of a grid.
    edge, stride, size : int
        Edge and distance of the patches, and edge of the image, pixels. The last pixels, which no
        patch covers if the edge of the image is no multiple of the stride, have their neighbours'.
    """
    weights = torch.ones(1, 1, edge, edge, device=scores.device)
    both = torch.stack([scores, torch.ones_like(scores)], dim=1).flatten(0, 1)[:, None]
    total = functional.conv_transpose2d(both, weights, stride=stride)
    sums, counts = total.view(len(scores), 2, *total.shape[2:]).unbind(dim=1)
    means = (sums / counts)[:, None]
    lacking = size - means.shape[2]  # the last pixels, of which no patch begins a stride further
    return functional.pad(means, (0, lacking, 0, lacking), mode="replicate")[:, 0]
