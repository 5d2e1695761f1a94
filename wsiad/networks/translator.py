"""A network that translates images to a domain, and the critic that names their domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsiad.networks.conv_stack import Critic, Decoder, Encoder
from wsiad.networks.stack_shape import Level, StackShape

_SLOPE = 0.01


def translator_shape(image_px: int, *, width: int, blocks: int) -> StackShape:
    """Return the shape of a translator: two halvings, residual blocks, and their mirror.

    Parameters
    ----------
    image_px : int
        Edge of the images, pixels.
    width : int
        Number of channels at the image's resolution; doubled at each halving.
    blocks : int
        Number of residual blocks of the encoder, and of the decoder.

    Raises
    ------
    DetectorError
        The edge cannot be halved twice.
    """
    deep = 4 * width
    inner = [Level(deep, kernel=3, stride=1, residual=True)] * blocks
    return StackShape(
        image_px,
        (Level(2 * width), Level(deep), *inner),
        latent="spatial",
        image_channels=4,  # three colours, and the domain
        stem=width,
        norm="instance",
        activation="relu",
        bias=False,
        out_kernel=7,
    )


def domain_critic_shape(image_px: int, *, width: int, levels: int) -> StackShape:
    """Return the shape of a critic of patches whose levels double the width.

    Raises
    ------
    DetectorError
        The edge cannot be halved so often.
    """
    return StackShape(
        image_px,
        tuple(Level(width * 2**number) for number in range(levels)),
        latent="spatial",
        latent_channels=1,
        norm="none",
        activation="leaky",
        slope=_SLOPE,
    )


class Translator(nn.Module):
    """A network that adds to an image what brings it into a domain, healthy or anomalous.

    Parameters
    ----------
    shape : StackShape
        Shape from images of four channels; see :func:`translator_shape`.

    Notes
    -----
    The published translator bounds its result by tanh, x̂ = tanh(x + δ), which can return no
    image unchanged; here x̂ = x + δ, and δ = 0 is the fixed point.
    """

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape, image_channels=3)

    def encoded(self, x: Tensor, healthy: Tensor) -> Tensor:
        """Return the innermost features of images that shall come into a domain, (N, C, m, m)."""
        domain = healthy.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        found: Tensor = self.encoder(torch.cat([x, domain], dim=1))
        return found

    def forward(self, x: Tensor, healthy: Tensor) -> Tensor:
        """Translate images.

        Parameters
        ----------
        x : Tensor, (N, 3, S, S)
            Images in [−1, 1].
        healthy : Tensor, (N,)
            1 for images that shall be healthy, 0 for those that shall be anomalous.
        """
        change: Tensor = self.decoder(self.encoded(x, healthy))
        return x + change


class DomainCritic(nn.Module):
    """A critic that judges patches, and names the domain of an image.

    Parameters
    ----------
    shape : StackShape
        See :func:`domain_critic_shape`.
    """

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.critic = Critic(shape)
        self.domain = nn.Conv2d(shape.deepest, 1, shape.latent_px, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the judgement of all patches, (N · m²,), and the logits of "healthy", (N,)."""
        features = self.critic.features(x)
        return self.critic.judged(features), self.domain(features).flatten()
