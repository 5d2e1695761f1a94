"""Networks whose outputs for healthy tiles are drawn to a centre, and the centre itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError

_LEAST = 0.1  # of a coordinate of the centre: a network could reach 0 by vanishing
_KERNEL = 5
_EPSILON = 1e-4  # of the batch normalisation


def centre_of(outputs: Tensor) -> Tensor:
    """Return the mean (D,) of outputs (N, D), with no coordinate closer to 0 than 0.1.

    Weights of 0 would match a coordinate of 0 trivially (Ruff et al., ICML 2018, section
    3.3).
    """
    centre = outputs.mean(dim=0)
    sign = torch.where(centre < 0, -1.0, 1.0)
    return torch.where(centre.abs() < _LEAST, sign * _LEAST, centre)


def square_distances(outputs: Tensor, centre: Tensor) -> Tensor:
    """Return |φ − c|² (N,) of outputs (N, D)."""
    return (outputs - centre).square().sum(dim=1)


class BiasFreeEncoder(nn.Sequential):
    """Convolutions without biases, then one linear map: images (N, 3, S, S) to (N, D).

    A block is a 5 × 5 convolution, a batch normalisation without its own scale and shift, a
    leaky ReLU and the maximum of 2 × 2. With biases or a bounded activation, all images could
    be mapped to one point.

    Parameters
    ----------
    image_px : int
        Edge S of the images, pixels; each block halves it.
    channels : sequence of int
        Width of every block.
    representation : int
        Number of dimensions D.

    Raises
    ------
    DetectorError
        The images cannot be halved once per block.
    """

    def __init__(self, image_px: int, channels: Sequence[int], representation: int) -> None:
        edge = _last_edge(image_px, channels)
        blocks = [
            nn.Sequential(_convolution(above, below), _norm(below), nn.LeakyReLU(), nn.MaxPool2d(2))
            for above, below in pairwise((3, *channels))
        ]
        last = nn.Linear(channels[-1] * edge**2, representation, bias=False)
        super().__init__(*blocks, nn.Flatten(), last)


class MirrorDecoder(nn.Sequential):
    """A decoder from the representation back to an image in [0, 1], as wide as the encoder."""

    def __init__(self, image_px: int, channels: Sequence[int], representation: int) -> None:
        edge = _last_edge(image_px, channels)
        deepest = channels[-1]
        blocks = [
            nn.Sequential(
                _norm(below),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=2),
                _convolution(below, above),
            )
            for below, above in pairwise((*reversed(channels), 3))
        ]
        super().__init__(
            nn.Linear(representation, deepest * edge**2, bias=False),
            nn.Unflatten(1, (deepest, edge, edge)),
            *blocks,
            nn.Sigmoid(),
        )


class Hypersphere(nn.Module):
    """An encoder with the centre and the radius of the ball around its outputs.

    Attributes
    ----------
    centre : Tensor, (D,)
    square_radius : Tensor, ()
    """

    centre: Tensor
    square_radius: Tensor

    def __init__(self, encoder: nn.Module, representation: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("centre", torch.zeros(representation))
        self.register_buffer("square_radius", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the squared distance (N,) of images (N, 3, S, S) in [0, 1] to the centre."""
        return square_distances(self.encoder(images), self.centre)

    @torch.no_grad()
    def fit_radius(self, distances: Tensor, nu: float) -> None:
        """Set the radius so that a share ``nu`` of squared distances (N,) is outside the ball."""
        self.square_radius.copy_(torch.quantile(distances.float(), 1 - nu))

    def soft_boundary(self, distances: Tensor, nu: float) -> Tensor:
        """Return R² + max(0, |φ − c|² − R²) / ν for squared distances (N,)."""
        return self.square_radius + torch.relu(distances - self.square_radius) / nu


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, _KERNEL, padding=_KERNEL // 2, bias=False)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=_EPSILON, affine=False)


def _last_edge(image_px: int, channels: Sequence[int]) -> int:
    blocks = len(channels)
    if image_px % 2**blocks:
        raise DetectorError(
            f"an input of {image_px} px cannot be halved {blocks} times",
            remedy="Choose another input_px, or fewer channels: one number for each halving.",
        )
    return image_px // 2**blocks
