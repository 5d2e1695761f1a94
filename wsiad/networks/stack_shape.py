"""The numbers that describe a convolution stack: its levels, its latent and its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsiad.core.errors import DetectorError

Norm = Literal["none", "batch", "layer", "instance"]
Activation = Literal["relu", "leaky", "elu", "none"]
Output = Literal["none", "tanh", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a stack: a convolution that can lower the resolution.

    Parameters
    ----------
    width : int
        Number of channels.
    kernel : int
        Edge of the convolution, pixels; odd if the level keeps the resolution.
    stride : int
        Factor by which the level lowers the resolution, 1 or 2.
    pool : {"none", "max", "mean"}
        Way in which the resolution is lowered: by the convolution's stride, or by pooling
        after it.
    repeats : int
        Number of further 3 × 3 convolutions at the level's resolution.
    residual : bool
        True for a pre-activation residual block: norm, activation, convolution, twice. The
        image is averaged in both branches on the way down, and enlarged on the way up.
    """

    width: int
    kernel: int = 4
    stride: int = 2
    pool: Literal["none", "max", "mean"] = "none"
    repeats: int = 0
    residual: bool = False


@dataclass(frozen=True, slots=True)
class StackShape:
    """Sizes and layers of a convolution stack and of its mirror image.

    Parameters
    ----------
    image_px : int
        Edge of the square image, pixels.
    levels : tuple of Level
        Levels from the image to the latent.
    latent : {"conv", "dense", "spatial"}
        Vector by a convolution over all places, vector by dense layers, or a map.
    latent_channels : int or None
        Length of the vector, or number of channels of the map; ``None`` for a map that is the
        output of the last level.
    image_channels : int
        Number of channels of the image.
    stem : int or None
        Width of a 3 × 3 convolution at the image's resolution before the levels.
    hidden : tuple of int
        Widths of dense layers before a vector by dense layers.
    norm : {"none", "batch", "layer", "instance"}
        Normalisation after each convolution (before it in residual levels). ``"layer"`` is over
        all channels and places of an image, with a scale and a shift for each channel.
    norm_first, norm_hidden : bool
        False to leave out the normalisation of the encoder's first level, or of dense layers.
    active_start : bool
        True to normalise and activate what the decoder's dense layers make of a vector, before
        its first level.
    activation, up_activation : {"relu", "leaky", "elu", "none"}
        Activation of the encoder and the decoder; the decoder's is the encoder's by default.
    slope : float
        Slope of leaky ReLU below 0.
    bias : bool
        True for convolutions with biases.
    up : {"transposed", "nearest", "bilinear"}
        Way in which the decoder raises the resolution: by transposed convolutions, or by
        enlarging before a convolution.
    latent_activation, output : {"none", "tanh", "sigmoid"}
        Activations of the latent and of the decoder's image.
    out_kernel : int or None
        Edge of a last convolution to the image; ``None`` if the mirrored first level makes it.
    skips : bool
        True to concatenate the encoder's features to the decoder's, as in a U-Net.
    spectral : bool
        True for spectral normalisation of the encoder's and critic's layers.
    dropout : float
        Share of values that are dropped after each activation in training.
    initial : {"torch", "normal", "kaiming"}
        Law of the first weights: PyTorch's, that of DCGAN (N(0, 0.02); norms N(1, 0.02)), or
        Kaiming's normal law (fan-out).

    Raises
    ------
    DetectorError
        The sizes do not fit together.
    """

    image_px: int
    levels: tuple[Level, ...]
    latent: Literal["conv", "dense", "spatial"]
    latent_channels: int | None = None
    image_channels: int = 3
    stem: int | None = None
    hidden: tuple[int, ...] = ()
    norm: Norm = "batch"
    norm_first: bool = True
    norm_hidden: bool = True
    active_start: bool = False
    activation: Activation = "leaky"
    up_activation: Activation | None = None
    slope: float = 0.2
    bias: bool = True
    up: Literal["transposed", "nearest", "bilinear"] = "transposed"
    latent_activation: Output = "none"
    output: Output = "none"
    out_kernel: int | None = None
    skips: bool = False
    spectral: bool = False
    dropout: float = 0.0
    initial: Literal["torch", "normal", "kaiming"] = "torch"

    def __post_init__(self) -> None:
        if not self.levels:
            raise DetectorError("a stack needs a level", remedy="Set one width or more.")
        edge = self.image_px
        for level in self.levels:
            if edge % level.stride or edge // level.stride < 1:
                raise DetectorError(
                    f"an input of {self.image_px} px cannot be halved by all {len(self.levels)} "
                    "levels",
                    remedy="Choose another input_px, or fewer levels.",
                )
            if level.stride == 1 and level.kernel % 2 == 0:
                raise DetectorError(
                    f"a convolution of {level.kernel} px without a stride changes the resolution",
                    remedy="Choose an odd kernel.",
                )
            edge //= level.stride
        if self.latent != "spatial" and self.latent_channels is None:
            raise DetectorError("a vector needs a length", remedy="Set latent_channels.")
        if self.makes_image_by_level and self.levels[0].residual:
            raise DetectorError(
                "a residual level cannot make the image", remedy="Set out_kernel, such as 3."
            )

    @property
    def latent_px(self) -> int:
        """Edge of the last level's output, pixels."""
        edge = self.image_px
        for level in self.levels:
            edge //= level.stride
        return edge

    @property
    def deepest(self) -> int:
        """Number of channels of the last level."""
        return self.levels[-1].width

    @property
    def makes_image_by_level(self) -> bool:
        """True if the mirrored first level, and not another convolution, makes the image."""
        return self.out_kernel is None and self.stem is None

    @property
    def first_width(self) -> int:
        """Number of channels that the first level receives."""
        return self.stem or self.image_channels

    @property
    def code_channels(self) -> int:
        """Number of channels of the latent."""
        return self.latent_channels or self.deepest
