"""Geometric transforms of images, and a classifier that tells which one was applied."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.networks.wide_resnet import WideResNet

TRANSFORMS = 72
"""Two flips × three shifts in each direction × four turns."""


class GeometricTransforms(nn.Module):
    """All 72 compositions of a flip, shifts by a quarter and turns by 90°.

    An image is flipped left to right or not; shifted by −¼, 0 or ¼ of its edge across and
    down, what is uncovered showing the mirror image of what is beside; and turned by 0, 90,
    180 or 270 degrees. All only move pixels.

    Parameters
    ----------
    edge : int
        Of the images, pixels.
    """

    sources: Tensor

    def __init__(self, edge: int) -> None:
        super().__init__()
        sources = torch.from_numpy(source_pixels(edge))
        self.register_buffer("sources", sources, persistent=False)

    def forward(self, images: Tensor, which: Tensor) -> Tensor:
        """Transform every image in its own way.

        Parameters
        ----------
        images : Tensor, (N, C, edge, edge)
        which : Tensor of int64, (N,)
            Number of each image's transform, from 0 to 71.

        Returns
        -------
        Tensor, (N, C, edge, edge)
        """
        sources = self.sources[which][:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, sources).view(images.shape)


def source_pixels(edge: int) -> npt.NDArray[np.int64]:
    """Return where every pixel of a transformed image comes from, int64 (72, edge²)."""
    own = np.arange(edge**2).reshape(edge, edge)
    shift = edge // 4
    shifts = (-shift, 0, shift)
    found = []
    for flip, down, across, turns in product((False, True), shifts, shifts, range(4)):
        rows, columns = _mirrored(np.arange(edge) - down), _mirrored(np.arange(edge) - across)
        moved = (own[:, ::-1] if flip else own)[rows[:, None], columns[None, :]]
        found.append(np.rot90(moved, turns).ravel())
    return np.stack(found)


def _mirrored(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Mirror positions outside of an image at its edges, which are doubled."""
    edge = len(positions)
    positions = np.where(positions < 0, -1 - positions, positions)
    return np.where(positions >= edge, 2 * edge - 1 - positions, positions)


class GeometricClassifier(nn.Module):
    """Tells transforms apart, and says how usual its answers are.

    Parameters
    ----------
    classifier : WideResNet
        Maps images (N, 3, e, e) to logits (N, 72).
    edge : int
        Edge e of its images, pixels.
    shrink : int
        Images are averaged over squares of this edge first.

    Attributes
    ----------
    alpha : Tensor, (72, 72)
        Parameters of the Dirichlet distribution of its answers to each transform.
    """

    alpha: Tensor

    def __init__(self, classifier: WideResNet, edge: int, *, shrink: int) -> None:
        super().__init__()
        self.classifier, self._shrink = classifier, shrink
        self.transforms = GeometricTransforms(edge)
        self.register_buffer("alpha", torch.ones(TRANSFORMS, TRANSFORMS))

    def forward(self, images: Tensor, which: Tensor) -> Tensor:
        """Return the logits (N, 72) for images (N, 3, S, S) in [0, 1], each transformed."""
        logits: Tensor = self.classifier(self.transforms(self._small(images), which))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return what the logits are linear in, (N, C), for images that are not transformed."""
        found: Tensor = self.classifier.features(self._small(images))
        return found

    def _small(self, images: Tensor) -> Tensor:
        small = functional.avg_pool2d(images, self._shrink) if self._shrink > 1 else images
        return small * 2 - 1

    def log_answers(self, images: Tensor, number: int) -> Tensor:
        """Return the log probabilities (N, 72) for images under one transform."""
        which = torch.full((len(images),), number, device=images.device)
        return functional.log_softmax(self(images, which).double(), dim=1)

    def unusualness(self, images: Tensor) -> Tensor:
        """Return −mean over t of Σ (α_t − 1) log p(T_t x) for images: (N,).

        One transform is computed at a time.
        """
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for number, alpha in enumerate(self.alpha.double()):
            total -= self.log_answers(images, number) @ (alpha - 1)
        return total / TRANSFORMS
