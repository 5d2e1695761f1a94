"""Options of a convolution stack, as a configuration states them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from wsiad.core.config import UsedOptions
from wsiad.core.errors import DetectorError
from wsiad.core.terminal import by_number, counted
from wsiad.networks.stack_shape import Activation, Level, Norm, Output, StackShape

_Count = Annotated[int, pydantic.Field(ge=1)]
_Counts = Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)]


class StackOptions(UsedOptions):
    """Options of the levels of a network; the decoder mirrors the encoder.

    ``kernel`` and ``stride`` are one number for all levels, or one for each.
    """

    widths: _Counts = (16, 32, 64, 64)
    """Number of channels of each level, from the image to the latent."""
    kernel: _Count | _Counts = 4
    """Edge of the convolutions, pixels."""
    stride: Annotated[int, pydantic.Field(ge=1, le=2)] | _Counts = 2
    """Factor by which a level lowers the resolution, 1 or 2."""
    pool: Literal["none", "max", "mean"] = "none"
    """Lower the resolution by the stride of the convolutions, or by pooling after them."""
    repeats: Annotated[int, pydantic.Field(ge=0)] = 0
    """Number of further 3 × 3 convolutions in a level."""
    residual: bool = False
    """Use pre-activation residual blocks as levels."""
    stem: _Count | None = None
    """Width of a 3 × 3 convolution before the first level; by default there is none."""
    hidden: tuple[_Count, ...] = ()
    """Widths of dense layers between the levels and a vector as latent."""
    vector: Literal["dense", "conv"] = "dense"
    """Make a vector by dense layers, or by one convolution over all places."""
    norm: Norm = "batch"
    """Normalisation after each convolution."""
    norm_first: bool = True
    """Normalise the output of the first level too."""
    norm_hidden: bool = True
    """Normalise the outputs of the dense layers too."""
    active_start: bool = False
    """Normalise and activate what the decoder's dense layers make of a vector, too."""
    activation: Activation = "relu"
    """Activation of the encoder."""
    up_activation: Activation | None = None
    """Activation of the decoder; by default that of the encoder."""
    slope: Annotated[float, pydantic.Field(ge=0)] = 0.2
    """Slope of leaky ReLU below 0."""
    bias: bool = True
    """Use convolutions with biases."""
    up: Literal["transposed", "nearest", "bilinear"] = "transposed"
    """Raise the resolution by transposed convolutions, or by enlarging before a convolution."""
    latent_activation: Output = "none"
    """Activation of the latent."""
    output: Output = "none"
    """Activation of the image that the decoder makes; images are in [−1, 1]."""
    out_kernel: _Count | None = None
    """Edge of a last convolution to the image, pixels; by default the last level makes the
    image."""
    skips: bool = False
    """Pass the encoder's features to the decoder, as in a U-Net."""
    spectral: bool = False
    """Use spectral normalisation in the encoder."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of values that are dropped after each activation in training."""
    initial: Literal["torch", "normal", "kaiming"] = "torch"
    """Law of the first weights: PyTorch's, DCGAN's N(0, 0.02), or Kaiming's normal law."""

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something, in a network of any kind."""
        residual = (not self.residual, "residual: true")
        dense = (self.vector == "dense", f"vector: {self.vector}")
        norm, strides = (self.norm != "none", "norm: none"), self.stride
        lowers = max((strides,) if isinstance(strides, int) else strides) > 1
        flat = (self.norm in ("batch", "layer"), f"norm: {self.norm}")
        return super().uses() | {
            "pool": _all(residual, (lowers, "stride: 1")),
            "repeats": residual,
            "up": residual,
            "norm_first": _all(residual, norm),
            "hidden": dense,
            "active_start": dense,
            "norm_hidden": _all(dense, flat),
        }

    def uses_in(
        self, name: str, *, sees: bool, makes: bool, vector: bool, slope: bool = False
    ) -> dict[str, tuple[bool, str]]:
        """Return which options do something in the networks of a method.

        Parameters
        ----------
        name : str
            Name of these options among those of the method, which begins theirs.
        sees, makes : bool
            True if they describe a network that sees images, and one that makes some.
        vector : bool
            True if the latent is a vector.
        slope : bool
            True if other layers have their slope too.

        Returns
        -------
        dict of str to (bool, str)
            See :meth:`UsedOptions.uses`.
        """
        image, seen = (makes, "a network that makes no image"), (sees, "a network that sees none")
        single = (vector, "a map as latent")
        active = sees or self.up_activation is None
        leaky = (active and self.activation == "leaky") or (makes and self.up_activation == "leaky")
        starts = makes and self.active_start
        dense = vector and self.vector == "dense" and bool(self.hidden)
        uses = {
            **dict.fromkeys(("output", "out_kernel", "skips", "up", "up_activation"), image),
            **dict.fromkeys(("spectral", "latent_activation", "norm_first"), seen),
            **dict.fromkeys(("vector", "hidden"), single),
            "norm_hidden": _all(single, (bool(self.hidden) or starts, "hidden: []")),
            "active_start": _all(image, single),
            "activation": (active, f"up_activation: {self.up_activation} and {seen[1]}"),
            "slope": (
                slope or leaky or self.initial == "kaiming",
                "activations that are not leaky",
            ),
            "dropout": (not self.residual or dense or makes, "residual: true and no hidden"),
        }
        return {f"{name}.{option}": use for option, use in uses.items()}

    @pydantic.model_serializer(mode="wrap")
    def _without_later_options(
        self, whole: pydantic.SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out an option of a later version that changes nothing: old runs stay equal."""
        values: dict[str, Any] = whole(self)
        return {name: v for name, v in values.items() if name != "active_start" or v}

    def shape(self, image_px: int, *, latent_channels: int | None, spatial: bool) -> StackShape:
        """Return the sizes of the network for images of an edge.

        Parameters
        ----------
        image_px : int
            Edge of the images, pixels.
        latent_channels : int or None
            Length of a vector, or channels of a map; ``None`` for the last level's output.
        spatial : bool
            True for a map as latent.

        Raises
        ------
        DetectorError
            The sizes do not fit together.
        """
        count = len(self.widths)
        kernels, strides = _each("kernel", self.kernel, count), _each("stride", self.stride, count)
        levels = tuple(
            Level(
                width,
                kernel,
                stride,
                pool=self.pool if stride > 1 else "none",
                repeats=self.repeats,
                residual=self.residual,
            )
            for width, kernel, stride in zip(self.widths, kernels, strides, strict=True)
        )
        return StackShape(
            image_px,
            levels,
            latent="spatial" if spatial else self.vector,
            latent_channels=latent_channels,
            stem=self.stem,
            hidden=self.hidden,
            norm=self.norm,
            norm_first=self.norm_first,
            norm_hidden=self.norm_hidden,
            active_start=self.active_start,
            activation=self.activation,
            up_activation=self.up_activation,
            slope=self.slope,
            bias=self.bias,
            up=self.up,
            latent_activation=self.latent_activation,
            output=self.output,
            out_kernel=self.out_kernel,
            skips=self.skips,
            spectral=self.spectral,
            dropout=self.dropout,
            initial=self.initial,
        )


def _all(*uses: tuple[bool, str]) -> tuple[bool, str]:
    """Return the first condition that does not hold; the last one if all do."""
    return next((use for use in uses if not use[0]), uses[-1])


def _each(name: str, value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    if len(value) != count:
        raise DetectorError(
            f"{counted(len(value), 'number')} {by_number(len(value), 'was', 'were')} given as "
            f"{name} "
            f"for {counted(count, 'level')}",
            remedy="Set one number for all levels, or one for each.",
        )
    return value
