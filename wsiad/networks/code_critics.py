"""Critics of codes, alone or together with the images that they belong to.

They complete the critics of images that :mod:`~wsiad.networks.conv_stack` builds. A pair of an
image and a code is one row of numbers (:func:`joined`), so that a game sees it like any other
input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from wsiad.networks.conv_stack import Encoder
from wsiad.networks.stack_shape import StackShape

_SLOPE = 0.2


def dense_layers(
    inputs: int, widths: Sequence[int], *, slope: float = _SLOPE, dropout: float = 0.0
) -> list[nn.Module]:
    """Return dense layers, each with leaky ReLU, and with dropout if there is any."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(slope)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return layers


class LatentCritic(nn.Module):
    """Dense layers from a code, flattened to (N, D), to a number each, (N,).

    Parameters
    ----------
    inputs : int
        Number D of values in a code.
    widths : sequence of int
        Widths of the hidden layers.
    dropout : float
        Share of values that are dropped after each hidden layer in training.
    """

    def __init__(self, inputs: int, widths: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = dense_layers(inputs, widths, dropout=dropout)
        last = widths[-1] if widths else inputs
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(last, 1))

    def forward(self, code: Tensor) -> Tensor:
        """Judge codes; a higher number is nearer to the prior."""
        judged: Tensor = self.layers(code)
        return judged.flatten()


def joined(images: Tensor, codes: Tensor) -> Tensor:
    """Return pairs of images (N, C, S, S) and codes (N, L) as rows, (N, C · S² + L)."""
    return torch.cat([images.flatten(1), codes], dim=1)


class PairCritic(nn.Module):
    """A critic of pairs of an image and its code: a number each, (N,).

    Convolutions see the image and dense layers the code. Further dense layers see both.

    Parameters
    ----------
    shape : StackShape
        Levels of the convolutions; their latent is a map and the output of the last level.
    latent : int
        Number of values in a code.
    code_widths : sequence of int
        Widths of the layers that see the code alone; without any, it is passed on.
    widths : sequence of int
        Widths of the layers that see both, at least one; the output of the last one are the
        features of a pair.
    dropout : float
        Share of values that are dropped after each dense layer in training.
    """

    def __init__(
        self,
        shape: StackShape,
        latent: int,
        *,
        code_widths: Sequence[int],
        widths: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        slope = shape.slope
        self._image_shape = (shape.image_channels, shape.image_px, shape.image_px)
        self._latent = latent
        self.image = Encoder(shape)
        self.code = nn.Sequential(*dense_layers(latent, code_widths, slope=slope, dropout=dropout))
        both = shape.code_channels * shape.latent_px**2 + (
            code_widths[-1] if code_widths else latent
        )
        self.both = nn.Sequential(*dense_layers(both, widths, slope=slope, dropout=dropout))
        self.end = nn.Linear(widths[-1], 1)

    def features(self, pairs: Tensor) -> Tensor:
        """Return the features (N, W) of pairs, rows as :func:`joined` makes them."""
        images, codes = pairs.tensor_split([pairs.shape[1] - self._latent], dim=1)
        seen = self.image(images.reshape(-1, *self._image_shape)).flatten(1)
        found: Tensor = self.both(torch.cat([seen, self.code(codes)], dim=1))
        return found

    def forward(self, pairs: Tensor) -> Tensor:
        """Judge pairs; a higher number is more like an image with its own code."""
        judged: Tensor = self.end(self.features(pairs))
        return judged.flatten()


def normalise_by_spectrum(network: nn.Module) -> None:
    """Add spectral normalisation to all layers of a network but the last one.

    Notes
    -----
    Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018. The
    last layer stays as it is in the encoder and the critics of ALAD's released code.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers[:-1]:
        spectral_norm(layer)
