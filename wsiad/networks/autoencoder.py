"""The residual autoencoder of the Deep Perceptual Autoencoder, "residual18" or "residual9"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.networks.conv_stack import drawing_weights

_SLOPE = 0.2  # of every leaky ReLU
_VECTOR_PX = 4  # a 1 × 1 latent is reached from 4 × 4 by one 4 × 4 convolution


@dataclass(frozen=True, slots=True)
class AutoencoderShape:
    """Sizes of an autoencoder.

    Parameters
    ----------
    image_px : int
        Edge of the square image, pixels; ``latent_px`` times a power of two.
    latent_px : int
        Edge of the latent, pixels; 1 stands for a vector.
    channels : tuple of int
        Width at every resolution from that of the image down to that of the latent
        (down to 4 px for a vector).
    latent_channels : int
        Number of channels of the latent.
    image_channels : int
        Number of channels of the image.
    blocks : {"residual18", "residual9"}
        Two residual blocks or one at each resolution.

    Raises
    ------
    DetectorError
        The sizes do not fit together.
    """

    image_px: int
    latent_px: int
    channels: tuple[int, ...]
    latent_channels: int
    image_channels: int = 3
    blocks: Literal["residual18", "residual9"] = "residual18"

    def __post_init__(self) -> None:
        edges = self.edges(self.image_px, self.latent_px)
        if len(self.channels) != len(edges):
            raise DetectorError(
                f"{len(self.channels)} channel widths were given for the {len(edges)} resolutions "
                f"{', '.join(map(str, edges))} px",
                remedy="Set one width for all, or one for each from the image to the latent.",
            )

    @property
    def blocks_per_edge(self) -> int:
        """Number of residual blocks at each resolution."""
        return 2 if self.blocks == "residual18" else 1

    @staticmethod
    def edges(image_px: int, latent_px: int) -> tuple[int, ...]:
        """Return the resolutions from the image down, pixels.

        Raises
        ------
        DetectorError
            The image is not the latent times a power of two.
        """
        smallest = max(latent_px, _VECTOR_PX) if latent_px == 1 else latent_px
        edges = [image_px]
        while edges[-1] > smallest and edges[-1] % 2 == 0:
            edges.append(edges[-1] // 2)
        if edges[-1] != smallest:
            raise DetectorError(
                f"an input of {image_px} px cannot be halved down to {smallest} px",
                remedy="Choose an input size that is the latent's times 2, 4, 8, …",
            )
        return tuple(edges)


class ResidualBlock(nn.Module):
    """Pre-activation residual block, with the resampling inside both branches.

    The main branch is leaky ReLU, resampling, 3 × 3 convolution, leaky ReLU, 3 × 3
    convolution. The skip branch is resampling, and a 1 × 1 convolution if widths differ. The
    sum is not activated.
    """

    def __init__(
        self, channels_in: int, channels_out: int, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.resample = resample or nn.Identity()
        self.act = nn.LeakyReLU(_SLOPE)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H', W')."""
        main = self.conv2(self.act(self.conv1(self.resample(self.act(x)))))
        skipped: Tensor = self.skip(self.resample(x)) + main
        return skipped


class Autoencoder(nn.Module):
    """Encoder and decoder without normalisation layers and without an output activation.

    Every convolution has a bias, zero padding and stride 1; weights are drawn by
    Kaiming's normal law (fan-out, leaky ReLU of slope 0.2). The latent is neither
    activated nor normalised. With the sizes that were used on CAMELYON16 (64 px,
    4 channels, latent 8 × 8) it has 4 959 parameters.

    Parameters
    ----------
    shape : AutoencoderShape
        Sizes of the autoencoder.

    Notes
    -----
    Shvetsova et al., "Anomaly Detection in Medical Imaging with Deep Perceptual
    Autoencoders", IEEE Access 2021 (arXiv 2006.13265), and the authors' released
    configurations.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = nn.Sequential(*encoder(shape))
        self.decoder = nn.Sequential(*_decoder(shape))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct images, float (N, C, S, S) in [−1, 1]; the result is unbounded."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction


def images_of(windows: Tensor) -> Tensor:
    """Turn windows, uint8 (N, S, S, 3), into images for an autoencoder.

    The images are (N, 3, S, S) in [−1, 1], channels last.
    """
    return windows.permute(0, 3, 1, 2).float() / 127.5 - 1


def seeded_encoder(shape: AutoencoderShape, seed: int) -> nn.Sequential:
    """Return an encoder from images to latents, whose weights follow from the seed."""
    with drawing_weights(seed):
        network = nn.Sequential(*encoder(shape))
        initialise(network)
        return network


def initialise(network: nn.Module) -> None:
    """Draw the weights of every convolution by Kaiming's normal law; biases are unchanged."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu"
            )


def from_image(shape: AutoencoderShape, width: int) -> Iterator[nn.Module]:
    """Yield the modules that turn an image into features of a given width."""
    yield nn.Conv2d(shape.image_channels, width, 3, padding=1)
    for _ in range(shape.blocks_per_edge):
        yield ResidualBlock(width, width)


def to_image(shape: AutoencoderShape, width: int) -> Iterator[nn.Module]:
    """Yield the modules that turn features of a given width into an image."""
    yield nn.LeakyReLU(_SLOPE)
    yield nn.Conv2d(width, shape.image_channels, 3, padding=1)


def encoder(shape: AutoencoderShape) -> Iterator[nn.Module]:
    """Yield the modules that turn an image into its latent."""
    deep = shape.channels[-1]
    yield from from_image(shape, shape.channels[0])
    for above, below in pairwise(shape.channels):
        yield ResidualBlock(above, below, nn.AvgPool2d(2))
        if shape.blocks_per_edge > 1:
            yield ResidualBlock(below, below)
    if shape.latent_px == 1:
        yield nn.LeakyReLU(_SLOPE)
        yield nn.Conv2d(deep, shape.latent_channels, _VECTOR_PX)
    else:
        yield ResidualBlock(deep, shape.latent_channels)


def _decoder(shape: AutoencoderShape) -> Iterator[nn.Module]:
    deep = shape.channels[-1]
    if shape.latent_px == 1:
        yield nn.LeakyReLU(_SLOPE)
        yield nn.Conv2d(shape.latent_channels, deep, _VECTOR_PX, padding=_VECTOR_PX - 1)
    else:
        yield ResidualBlock(shape.latent_channels, deep)
    for below, above in pairwise(reversed(shape.channels)):
        yield ResidualBlock(below, above, nn.Upsample(scale_factor=2, mode="nearest"))
        if shape.blocks_per_edge > 1:
            yield ResidualBlock(above, above)
    yield from to_image(shape, shape.channels[0])


def seeded_autoencoder(shape: AutoencoderShape, seed: int) -> Autoencoder:
    """Return an autoencoder whose weights follow from the seed alone."""
    with drawing_weights(seed):
        return Autoencoder(shape)
