"""The networks of ``gan``: a generator, its critics, and an encoder if there is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from wsiad.detectors.gan.gan_options import GanOptions
from wsiad.networks.code_critics import LatentCritic, PairCritic, joined, normalise_by_spectrum
from wsiad.networks.conv_stack import Critic, Decoder, Encoder

IMAGE, PAIR, IMAGES, CODE, CODES = "image", "pair", "images", "code", "codes"
"""Names of the critics: of an image; an image with its code; an image next to its reconstruction;
a code; a code next to that of its image."""


class GanModel(nn.Module):
    """A generator G of images, critics, and an encoder E of images.

    Parameters
    ----------
    options : GanOptions
    image_px : int
        Edge of the images, pixels.

    Attributes
    ----------
    generator : Decoder
    encoder : Encoder or None
    critics : ModuleDict
        Critics by their names.

    Raises
    ------
    DetectorError
        The sizes do not fit together.
    """

    def __init__(self, options: GanOptions, image_px: int) -> None:
        super().__init__()
        self.options = options
        latent = options.latent_channels
        shape = options.network.shape(image_px, latent_channels=latent, spatial=False)
        self.generator: nn.Module = Decoder(shape)
        self.encoder: nn.Module | None = None
        if options.inversion != "descent":
            shape = options.encoder_network.shape(image_px, latent_channels=latent, spatial=False)
            self.encoder = Encoder(shape)
        self.critics = nn.ModuleDict(_critics(options, image_px))
        if options.spectral:
            for network in filter(None, (self.encoder, *self.critics.values())):
                normalise_by_spectrum(network)

    def code(self, x: Tensor) -> Tensor:
        """Return the codes (N, L) that the encoder gives to images (N, 3, S, S) in [−1, 1]."""
        assert self.encoder is not None
        found: Tensor = self.encoder(x)
        bound = self.options.encoder_bound
        if bound is None or self.options.inversion != "encoder":
            return found
        return bound * found.tanh()

    def made(self, z: Tensor) -> Tensor:
        """Return the images (N, 3, S, S) that the generator makes of codes (N, L)."""
        image: Tensor = self.generator(z)
        return image

    def seen(self, x: Tensor, z: Tensor, shown: Tensor) -> Tensor:
        """Return the critic's features of an image that takes the place of another one.

        Parameters
        ----------
        x : Tensor, (N, 3, S, S)
            Images.
        z : Tensor, (N, L)
            Their codes.
        shown : Tensor, (N, 3, S, S)
            Images that are shown to the critic: the same, or reconstructions.

        Returns
        -------
        Tensor, (N, C, m, m) or (N, C)
            Features f(x̂) of a critic of images, f(x̂, z) of one of pairs with a code, or
            f(x, x̂) of one of reconstructions.
        """
        if PAIR in self.critics and IMAGES not in self.critics:
            pair = self.critics[PAIR]
            assert isinstance(pair, PairCritic)
            return pair.features(joined(shown, z))
        images = self.critics[IMAGES if IMAGES in self.critics else IMAGE]
        assert isinstance(images, Critic)
        return images.features(torch.cat([x, shown], 1) if IMAGES in self.critics else shown)

    def judged(self, x: Tensor, z: Tensor, made: Tensor) -> Tensor:
        """Return the critic's number (N,) for images, with their codes and reconstructions.

        It is D(x) for a critic of images, D(G(z), z) for one of pairs with a code, and D(x, G(z))
        for one of reconstructions.
        """
        if IMAGES in self.critics:
            found: Tensor = self.critics[IMAGES](torch.cat([x, made], 1))
        elif PAIR in self.critics:
            found = self.critics[PAIR](joined(made, z))
        else:
            found = self.critics[IMAGE](x)
        return found

    def drawn(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return codes (count, L) drawn from the prior, on the device of the generator."""
        shape = (count, self.options.latent_channels)
        if self.options.prior == "uniform":
            found = rng.random(shape, dtype=np.float32) * 2 - 1
        else:
            found = rng.standard_normal(shape, dtype=np.float32)
        like = next(self.generator.parameters())
        return torch.from_numpy(found).to(like)


def _critics(options: GanOptions, image_px: int) -> dict[str, nn.Module]:
    latent, dropout = options.latent_channels, options.critic_dropout
    if not options.plays("bigan", "alad"):
        judged = options.critic_network.shape(image_px, latent_channels=1, spatial=False)
        found: dict[str, nn.Module] = {IMAGE: Critic(judged)}
        if options.plays("alpha"):
            widths = options.latent_critic_widths
            found[CODE] = LatentCritic(latent, widths, dropout=dropout)
        return found
    seen = options.critic_network.shape(image_px, latent_channels=None, spatial=True)
    found = {
        PAIR: PairCritic(
            seen,
            latent,
            code_widths=options.code_widths,
            widths=options.pair_widths,
            dropout=dropout,
        )
    }
    if options.plays("alad"):
        shape = options.pair_network.shape(image_px, latent_channels=1, spatial=False)
        colours = 2 * shape.image_channels
        found[IMAGES] = Critic(replace(shape, image_channels=colours))
        widths = options.latent_critic_widths
        found[CODES] = LatentCritic(2 * latent, widths, dropout=dropout)
    return found
