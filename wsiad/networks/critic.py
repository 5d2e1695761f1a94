"""The critic of reconstructions: one number an image, at every resolution of a training."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from wsiad.networks.autoencoder import AutoencoderShape, encoder, from_image, initialise
from wsiad.networks.growing import encoded, growing_edges

_STREAM = 1  # keeps the draws of its weights apart from the autoencoder's


class Critic(nn.Module):
    """A critic of images at every resolution of a growing training.

    It is an encoder of the autoencoder's kind down to one number, and grows as the
    encoder of :class:`GrowingAutoencoder` does.

    Parameters
    ----------
    shape : AutoencoderShape
        Sizes of the encoder at the final resolution, with one number as its latent.
    start_px : int
        Resolution to begin with, pixels.

    Raises
    ------
    DetectorError
        The encoder has no such resolution.
    """

    def __init__(self, shape: AutoencoderShape, start_px: int) -> None:
        super().__init__()
        self.edges = growing_edges(shape, start_px)
        self._blocks = shape.blocks_per_edge
        self.encoder = nn.Sequential(*encoder(shape))
        widths = dict(zip(self.edges[::-1], shape.channels, strict=False))
        self.from_image = nn.ModuleDict(
            {str(px): nn.Sequential(*from_image(shape, widths[px])) for px in self.edges[:-1]}
        )
        initialise(self)

    def forward(self, x: Tensor, *, px: int, alpha: float = 1.0) -> Tensor:
        """Judge images of ``px``, float (N, C, px, px) in [−1, 1]; float (N,)."""
        layers = list(self.encoder)
        return encoded(
            x, layers, self.from_image, self.edges, blocks=self._blocks, px=px, alpha=alpha
        ).flatten()


def seeded_critic(
    image_px: int,
    start_px: int,
    seed: int,
    *,
    channels: int,
    blocks: Literal["residual18", "residual9"],
) -> Critic:
    """Return a critic whose weights follow from the seed alone; others than the autoencoder's.

    Parameters
    ----------
    image_px, start_px : int
        Final and first resolution, pixels; the same where nothing grows.
    seed : int
    channels : int
        Width at every resolution.
    blocks : {"residual18", "residual9"}

    Raises
    ------
    DetectorError
        It cannot halve these resolutions down to 4 px.
    """
    widths = (channels,) * len(AutoencoderShape.edges(image_px, 1))
    shape = AutoencoderShape(image_px, 1, widths, latent_channels=1, blocks=blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng([seed, _STREAM]).integers(2**63)))
        return Critic(shape, start_px)
