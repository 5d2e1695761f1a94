"""The network of ``reconstruction``: encoder, latent and decoder, and the distances of images.

With several scales it is an autoencoder for each band of a Laplacian pyramid. With a structure,
the decoder also sees a map that follows from the image alone, through an encoder of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.detectors.reconstruction.latent_models import (
    AutoregressiveLatent,
    Code,
    LatentModel,
    MemoryLatent,
    PlainLatent,
    QuantisedLatent,
    VariationalLatent,
)
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.restoration_tasks import Made, View
from wsiad.networks.conv_stack import Critic, Decoder, Encoder, bounded
from wsiad.networks.image_distances import (
    absolute,
    dissimilarity,
    edge_difference,
    mean_filtered,
    pooled,
    squared,
)
from wsiad.networks.image_parts import (
    check_scales,
    collapsed,
    gaussian_pyramid,
    laplacian_pyramid,
    nuclei_difference,
    nuclei_map,
)
from wsiad.networks.perceptual import RelativePerceptualL1
from wsiad.networks.stack_shape import StackShape

_MOST_LOG = 10.0  # flat background would drive the variance to 0


class ImageTerms(nn.Module):
    """A weighted sum of distances between images and what a network made of them.

    Parameters
    ----------
    loss, judged : mapping of str to float
        Distances of the loss and of the score, with their weights.
    reduction : {"mean", "sum"}
        Reduction over the values of an image in the loss; a score is always a mean.
    distance : RelativePerceptualL1, optional
        Perceptual distance, if it is among them.
    """

    def __init__(
        self,
        loss: Mapping[str, float],
        judged: Mapping[str, float],
        *,
        reduction: Literal["mean", "sum"] = "mean",
        distance: RelativePerceptualL1 | None = None,
    ) -> None:
        super().__init__()
        self._loss, self._judged, self._reduction = dict(loss), dict(judged), reduction
        self.distance = distance

    def losses(self, view: View) -> Tensor:
        """Return the loss of each image, (N,); that of several scales is their sum."""
        first, *others = [self._losses(one) for one in by_scale(view)]
        return sum(others, start=first)

    def _losses(self, view: View) -> Tensor:
        made, target = view
        total = torch.zeros(len(target), device=target.device)
        for name, weight in self._loss.items():
            if name == "perceptual":
                assert self.distance is not None
                total = total + weight * self.distance(target, made.image)
                continue
            map_ = _map(name, made, target)
            if name == "uncertainty":
                assert made.log_variance is not None
                map_ = map_ + made.log_variance.mean(dim=1)
            total = total + weight * map_.mean(dim=(1, 2))
        return total * (target[0].numel() if self._reduction == "sum" else 1)

    def pixels(self, view: View) -> Tensor:
        """Return the scored distance at every pixel, (N, S, S), without the perceptual one.

        Coarser scales are enlarged without interpolation and added.
        """
        total = torch.zeros_like(view.target[:, 0])
        for made, target in by_scale(view):
            for name, weight in self._judged.items():
                if name != "perceptual":
                    found = weight * _map(name, made, target)
                    if found.shape != total.shape:
                        found = functional.interpolate(found[:, None], total.shape[-2:])[:, 0]
                    total = total + found
        return total

    def places(self, view: View, places: int, *, smooth: int = 1) -> Tensor:
        """Return the scored distance at every place, (N, places, places)."""
        made, target = view
        found = pooled(mean_filtered(self.pixels(view), smooth), places)
        if weight := self._judged.get("perceptual"):
            assert self.distance is not None
            found = found + weight * pooled(self.distance.places(target, made.image), places)
        return found


def by_scale(view: View) -> list[View]:
    """Return an answer and its target at each scale that the network makes, from the finest."""
    made, target = view
    if not made.coarser:
        return [view]
    targets = gaussian_pyramid(target, 1 + len(made.coarser))
    images = (made.image, *made.coarser)
    return [
        View(made._replace(image=image, coarser=()), one)
        for image, one in zip(images, targets, strict=True)
    ]


def _map(name: str, made: Made, target: Tensor) -> Tensor:
    match name:
        case "l1":
            return absolute(target, made.image)
        case "l2":
            return squared(target, made.image)
        case "ssim":
            return dissimilarity(target, made.image)
        case "msgms":
            return edge_difference(target, made.image)
        case "nuclei":
            return nuclei_difference(target, made.image)
        case "uncertainty":
            assert made.log_variance is not None
            square = (target - made.image).square()
            return (square * (-made.log_variance).exp()).mean(dim=1)
        case _:
            raise ValueError(f"there is no distance {name!r}")


class Band(nn.Module):
    """An autoencoder of a band of frequencies.

    Parameters
    ----------
    shape : StackShape
    """

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of a band, (N, 3, S, S)."""
        found = self.encoder.features(x)
        made: Tensor = self.decoder(self.encoder.head(found[-1]), found)
        return made


class ReconstructionModel(nn.Module):
    """An encoder, a latent and a decoder, with the distances by which they are judged.

    Parameters
    ----------
    options : ReconstructionOptions
    image_px : int
        Edge of the images, pixels.
    distance : RelativePerceptualL1, optional
        Perceptual distance, if the options need it.

    Attributes
    ----------
    held_out : Tensor, (2, 2)
        Lowest and highest distance of held-out healthy tiles, and of their latents' density.

    Raises
    ------
    DetectorError
        The sizes do not fit together.
    """

    held_out: Tensor

    def __init__(
        self,
        options: ReconstructionOptions,
        image_px: int,
        distance: RelativePerceptualL1 | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        shape = stack_shape(options, image_px)
        self.latent = _latent(options, shape)
        factor = self.latent.outputs_per_channel
        self.encoder = Encoder(shape, None if factor == 1 else factor * shape.code_channels)
        self.uncertain = "uncertainty" in options.terms()
        self.structure: Encoder | None = None
        decoded = replace(shape, output="none")
        if options.structure != "none":
            self.structure = Encoder(replace(shape, image_channels=1))
            decoded = replace(decoded, skips=True, latent_channels=2 * shape.code_channels)
        # The variance has no bounds of a picture, so those are set here, on the image alone.
        self.decoder = Decoder(decoded, 6 if self.uncertain else 3)
        check_scales(image_px, options.scales)
        self.coarser = nn.ModuleList(
            Band(coarser_shape(shape, number)) for number in range(1, options.scales)
        )
        self.bound = bounded(shape.output)
        self.terms = ImageTerms(
            options.terms(), options.judged_terms(), reduction=options.reduction, distance=distance
        )
        self.image_critic: Critic | None = None
        if options.image_game != "none":
            judged = options.critic_network.shape(
                image_px, latent_channels=1, spatial=options.critic_by_place
            )
            self.image_critic = Critic(judged)
        self.register_buffer("held_out", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def learnt(self) -> nn.ModuleDict:
        """Return the parts of the autoencoder, which are trained together."""
        parts: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "latent": self.latent,
            "decoder": self.decoder,
        }
        if self.structure is not None:
            parts["structure"] = self.structure
        if len(self.coarser):
            parts["coarser"] = self.coarser
        return nn.ModuleDict(parts)

    def forward(self, x: Tensor, *, draw: bool = False) -> Made:
        """Return what the network makes of images, (N, 3, S, S) in [−1, 1]."""
        finest, *others = laplacian_pyramid(x, 1 + len(self.coarser))
        found = self.encoder.features(finest)
        code = self.latent(self.encoder.head(found[-1]), draw=draw)
        value = code.value
        if self.structure is not None:
            found = self.structure.features(nuclei_map(x))
            value = torch.cat([value, self.structure.head(found[-1])], dim=1)
        made = self.decoded(value, found, code.penalty)
        if not others:
            return made
        bands = [band(one) for band, one in zip(self.coarser, others, strict=True)]
        image, *coarser = collapsed([made.image, *bands])
        return made._replace(image=image, coarser=tuple(coarser))

    def vectors(self, x: Tensor) -> Tensor:
        """Return the deterministic latents of images as vectors, (N, D), from the finest scale."""
        finest, *others = laplacian_pyramid(x, 1 + len(self.coarser))
        found = [self.latent.vectors(self.encoder(finest))]
        for band, one in zip(self.coarser, others, strict=True):
            assert isinstance(band, Band)
            found.append(band.encoder(one).flatten(1))
        return torch.cat(found, dim=1)

    def code(self, x: Tensor, *, draw: bool = False) -> Code:
        """Return the code of images."""
        found: Code = self.latent(self.encoder(x), draw=draw)
        return found

    def decoded(
        self, value: Tensor, skips: list[Tensor] | None = None, penalty: Tensor | None = None
    ) -> Made:
        """Return what the decoder makes of codes."""
        made = self.decoder(value, skips or [])
        nothing = value.new_zeros(len(value)) if penalty is None else penalty
        if not self.uncertain:
            return Made(self.bound(made), None, nothing)
        image, log_variance = made.chunk(2, dim=1)
        return Made(self.bound(image), log_variance.clamp(-_MOST_LOG, _MOST_LOG), nothing)


def stack_shape(options: ReconstructionOptions, image_px: int) -> StackShape:
    """Return the sizes of encoder and decoder."""
    shape = options.network.shape(
        image_px, latent_channels=options.latent_channels, spatial=options.spatial
    )
    if options.latent == "autoregressive":
        return replace(shape, latent_activation="sigmoid")
    return shape


def coarser_shape(shape: StackShape, number: int) -> StackShape:
    """Return the sizes of the autoencoder of a coarser band, from 1 for half the resolution.

    It has as many levels less, so that the latents of all bands have as many places.
    """
    return replace(shape, image_px=shape.image_px // 2**number, levels=shape.levels[:-number])


def _latent(options: ReconstructionOptions, shape: StackShape) -> LatentModel:
    channels = shape.code_channels
    match options.latent:
        case "plain":
            return PlainLatent()
        case "vae":
            return VariationalLatent(options.reduction)
        case "memory":
            return MemoryLatent(
                options.memory_size,
                channels,
                similarity=options.memory_similarity,
                shrink=options.memory_shrink,
            )
        case "quantised":
            return QuantisedLatent(options.codes, channels)
        case "autoregressive":
            return AutoregressiveLatent(
                channels, bins=options.bins, channels=options.estimator_channels
            )
