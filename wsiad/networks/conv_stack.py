"""One description of a convolution stack, and the networks that are built from it.

Most published autoencoders and adversarial networks are the same stack with other numbers: a row
of levels that lower the resolution, a latent, and the mirror image of both.
:class:`~wsiad.networks.stack_shape.StackShape` states these numbers. From it are built an
:class:`Encoder` (image to latent), a :class:`Decoder` (latent to image, which is also a
generator), and a :class:`Critic` (image to number).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.overrides import TorchFunctionMode

from wsiad.core.errors import DetectorError
from wsiad.networks.stack_shape import Activation, Level, Norm, Output, StackShape

M = TypeVar("M", bound=nn.Module)

_MOST_NUMBERS = 1 << 30
_LEAST_COUNTED = 1 << 13  # numbers as which a tensor counts at least, for its object
_MAKERS = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye}
)


class BoundedNumbers(TorchFunctionMode):
    """A context in which a network is made, unless it has more numbers than memory should hold.

    The tensors that a network is made of are counted before they take any memory.

    Raises
    ------
    DetectorError
        There are more than 2³⁰ numbers, which take 4 GiB, or 16 GiB in a training by Adam; or more
        than 2¹⁷ tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the numbers of a new tensor, then make it."""
        if func in _MAKERS:
            self._numbers += max(_LEAST_COUNTED, _numbers(func, args, kwargs or {}))
            if self._numbers > _MOST_NUMBERS:
                raise DetectorError(
                    f"a network of more than {_MOST_NUMBERS:,} numbers is too large",
                    remedy="Set smaller widths, or fewer levels, blocks or steps.",
                )
        return func(*args, **(kwargs or {}))


def _numbers(func: Any, args: Any, kwargs: Any) -> int:
    """Return how many numbers a function will make."""
    if func is torch.eye:
        return int(args[0]) * int(args[1] if len(args) > 1 else args[0])
    size = kwargs.get("size", args[0] if args else ())
    if not isinstance(size, tuple | list):
        size = [one for one in args if isinstance(one, int)]
    return prod(size)


@contextmanager
def drawing_weights(seed: int) -> Iterator[None]:
    """Draw the weights of a network from a seed, and leave other draws as they are.

    Raises
    ------
    DetectorError
        The network is too large; see :class:`BoundedNumbers`.
    """
    with torch.random.fork_rng(devices=[]), BoundedNumbers():
        torch.manual_seed(seed)
        yield


def seeded(build: Callable[[], M], *seed: int) -> M:
    """Return a network whose weights follow from the numbers of a seed alone.

    Parameters
    ----------
    build : callable
        Function that makes the network.
    *seed : int
        One number, or several if a seed has several networks.

    Raises
    ------
    DetectorError
        The network is too large; see :class:`BoundedNumbers`.
    """
    number = seed[0] if len(seed) == 1 else int(np.random.default_rng(seed).integers(2**63))
    with drawing_weights(number):
        return build()


def activated(kind: Activation, slope: float) -> nn.Module:
    """Return an activation."""
    match kind:
        case "relu":
            return nn.ReLU()
        case "leaky":
            return nn.LeakyReLU(slope)
        case "elu":
            return nn.ELU()
        case "none":
            return nn.Identity()


def bounded(kind: Output) -> nn.Module:
    """Return an activation that bounds its output, or an identity."""
    return {"none": nn.Identity, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[kind]()


def normalised(kind: Norm, channels: int, *, flat: bool = False) -> nn.Module:
    """Return a normalisation of maps (N, C, h, w), or of vectors (N, C) if ``flat``."""
    match kind:
        case "batch":
            return nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "instance":
            return nn.Identity() if flat else _InstanceNorm(channels, affine=True)
        case "none":
            return nn.Identity()


class _InstanceNorm(nn.InstanceNorm2d):
    """An instance normalisation that accepts a batch without images."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image."""
        return super().forward(x) if len(x) else x


class _Residual(nn.Module):
    """A pre-activation residual block that averages or enlarges the image in both branches."""

    def __init__(self, shape: StackShape, inputs: int, level: Level, *, down: bool) -> None:
        super().__init__()
        kind = shape.activation if down else shape.up_activation or shape.activation
        outputs, inner = level.width, inputs if down else level.width
        lowers, odd = level.stride > 1, level.kernel | 1
        resample: nn.Module = nn.Identity()
        if lowers:
            resample = nn.AvgPool2d(level.stride) if down else nn.Upsample(scale_factor=2)
        self.main = nn.Sequential(
            normalised(shape.norm, inputs),
            activated(kind, shape.slope),
            *([] if down else [resample]),
            nn.Conv2d(inputs, inner, odd, padding=odd // 2, bias=shape.bias),
            normalised(shape.norm, inner),
            activated(kind, shape.slope),
            nn.Conv2d(inner, outputs, odd, padding=odd // 2, bias=shape.bias),
            *([resample] if down else []),
        )
        joined = inputs == outputs
        self.skip = nn.Sequential(
            resample, nn.Identity() if joined else nn.Conv2d(inputs, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C', h', w')."""
        made: Tensor = self.skip(x) + self.main(x)
        return made


def _after(
    shape: StackShape, width: int, *, norm: bool = True, down: bool, flat: bool = False
) -> list[nn.Module]:
    kind = shape.activation if down else shape.up_activation or shape.activation
    found: list[nn.Module] = []
    if norm and shape.norm != "none":
        found.append(normalised(shape.norm, width, flat=flat))
    if kind != "none":
        found.append(activated(kind, shape.slope))
    if shape.dropout:
        found.append(nn.Dropout(shape.dropout))
    return found


def _repeated(shape: StackShape, inputs: int, level: Level, *, down: bool) -> list[nn.Module]:
    found: list[nn.Module] = []
    for number in range(level.repeats):
        before = inputs if number == 0 else level.width
        found.append(nn.Conv2d(before, level.width, 3, padding=1, bias=shape.bias))
        found += _after(shape, level.width, down=down)
    return found


def _down(shape: StackShape, inputs: int, level: Level, *, norm: bool) -> nn.Module:
    if level.residual:
        return _Residual(shape, inputs, level, down=True)
    strided = level.pool == "none"
    kernel = level.kernel if strided else level.kernel | 1
    layers: list[nn.Module] = [
        nn.Conv2d(
            inputs,
            level.width,
            kernel,
            stride=level.stride if strided else 1,
            padding=(kernel - 1) // 2,
            bias=shape.bias,
        )
    ]
    layers += _after(shape, level.width, norm=norm, down=True)
    layers += _repeated(shape, level.width, level, down=True)
    if not strided:
        layers.append((nn.MaxPool2d if level.pool == "max" else nn.AvgPool2d)(level.stride))
    return nn.Sequential(*layers)


def _up(shape: StackShape, inputs: int, level: Level, outputs: int, *, last: bool) -> nn.Module:
    """Return the mirror of a level: it receives ``inputs`` and makes ``outputs`` channels."""
    if level.residual:
        mirrored = Level(outputs, level.kernel, level.stride, residual=True)
        return _Residual(shape, inputs, mirrored, down=False)
    layers = _repeated(shape, inputs, level, down=False)
    inputs = level.width if layers else inputs
    if shape.up == "transposed" and level.pool == "none":
        padding = (level.kernel - 1) // 2
        layers.append(
            nn.ConvTranspose2d(
                inputs,
                outputs,
                level.kernel,
                stride=level.stride,
                padding=padding,
                output_padding=level.stride - level.kernel + 2 * padding,
                bias=shape.bias,
            )
        )
    else:
        if level.stride > 1:
            mode = "bilinear" if shape.up == "bilinear" else "nearest"
            layers.append(nn.Upsample(scale_factor=level.stride, mode=mode))
        kernel = level.kernel | 1
        layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=shape.bias))
    if not last:
        layers += _after(shape, outputs, down=False)
    return nn.Sequential(*layers)


def _dense(
    shape: StackShape, widths: Sequence[int], *, down: bool, active_end: bool = False
) -> list[nn.Module]:
    found: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), start=2):
        found.append(nn.Linear(before, after))
        if number < len(widths) or active_end:
            found += _after(shape, after, norm=shape.norm_hidden, down=down, flat=True)
    return found


class Encoder(nn.Module):
    """A stack from images (N, C, S, S) to latents, (N, L) or (N, L, m, m).

    Parameters
    ----------
    shape : StackShape
    outputs : int, optional
        Number of channels of the latent if it is not the shape's: two for each dimension of a
        variational latent.
    """

    def __init__(self, shape: StackShape, outputs: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        widths = [shape.first_width, *(level.width for level in shape.levels)]
        self.stem: nn.Module = nn.Identity()
        if shape.stem:
            layers: list[nn.Module] = [
                nn.Conv2d(shape.image_channels, shape.stem, 3, padding=1, bias=shape.bias)
            ]
            if not shape.levels[0].residual:
                layers += _after(shape, shape.stem, norm=shape.norm_first, down=True)
            self.stem = nn.Sequential(*layers)
        self.levels = nn.ModuleList(
            _down(
                shape, width, level, norm=shape.norm_first or number > 0 or shape.stem is not None
            )
            for number, (width, level) in enumerate(zip(widths[:-1], shape.levels, strict=True))
        )
        self.head = nn.Sequential(*self._head(outputs), bounded(shape.latent_activation))
        _drawn(self, shape, spectral=shape.spectral)

    def _head(self, outputs: int | None) -> list[nn.Module]:
        shape, edge = self.shape, self.shape.latent_px
        count = outputs or shape.code_channels
        match shape.latent:
            case "conv":
                return [nn.Conv2d(shape.deepest, count, edge, bias=shape.bias), nn.Flatten()]
            case "dense":
                widths = (shape.deepest * edge**2, *shape.hidden, count)
                return [nn.Flatten(), *_dense(shape, widths, down=True)]
            case "spatial":
                if outputs is None and shape.latent_channels is None:
                    return []
                return [nn.Conv2d(shape.deepest, count, 1, bias=shape.bias)]

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the output of the stem, if there is one, and of every level."""
        found = []
        if self.shape.stem:
            x = self.stem(x)
            found.append(x)
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Map images to latents."""
        latent: Tensor = self.head(self.features(x)[-1])
        return latent


class Decoder(nn.Module):
    """The mirror image of an encoder: latents to images. Alone, it is a generator.

    Parameters
    ----------
    shape : StackShape
    image_channels : int, optional
        Number of channels of the images if it is not the shape's: two for each colour if the
        decoder also gives a variance.
    """

    def __init__(self, shape: StackShape, image_channels: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        colours = image_channels or shape.image_channels
        self.tail = nn.Sequential(*self._tail())
        by_level, kernel = shape.makes_image_by_level, shape.out_kernel or 3
        end = colours if by_level else shape.stem or shape.levels[0].width
        outputs = [end, *(level.width for level in shape.levels[:-1])]
        last = len(shape.levels) - 1
        self.levels = nn.ModuleList(
            _up(
                shape,
                shape.levels[number].width * (2 if shape.skips and number < last else 1),
                shape.levels[number],
                outputs[number],
                last=by_level and number == 0,
            )
            for number in reversed(range(len(shape.levels)))
        )
        out: list[nn.Module] = []
        if not by_level:
            if shape.levels[0].residual:
                out += _after(shape, end, down=False)
            joined = end * 2 if shape.skips and shape.stem else end
            out.append(nn.Conv2d(joined, colours, kernel, padding=kernel // 2, bias=shape.bias))
        self.out = nn.Sequential(*out, bounded(shape.output))
        _drawn(self, shape, spectral=False)

    def _tail(self) -> list[nn.Module]:
        shape, edge = self.shape, self.shape.latent_px
        count, deep = shape.code_channels, shape.deepest
        residual = shape.levels[-1].residual
        match shape.latent:
            case "conv":
                return [
                    nn.Unflatten(1, (count, 1, 1)),
                    nn.ConvTranspose2d(count, deep, edge, bias=shape.bias),
                    *([] if residual else _after(shape, deep, down=False)),
                ]
            case "dense":
                widths = (count, *reversed(shape.hidden), deep * edge**2)
                layers = _dense(shape, widths, down=False, active_end=shape.active_start)
                return [*layers, nn.Unflatten(1, (deep, edge, edge))]
            case "spatial":
                if shape.latent_channels is None:
                    return []
                return [nn.Conv2d(count, deep, 1, bias=shape.bias)]

    def forward(self, latent: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Map latents to images.

        Parameters
        ----------
        latent : Tensor, (N, L) or (N, L, m, m)
        skips : sequence of Tensor
            Features of the encoder from the image down, if the shape has skip connections.
        """
        x = self.tail(latent)
        above = list(skips[:-1]) if self.shape.skips else []
        for level in self.levels:
            x = level(x)
            if above:
                x = torch.cat([x, above.pop()], dim=1)
        image: Tensor = self.out(x)
        return image


class Critic(nn.Module):
    """A stack from images (N, C, S, S) to a number each, (N,), or to one for each place.

    Parameters
    ----------
    shape : StackShape
        Stack whose latent is a vector, of which only the length does not matter; or a map, if
        each place of the last level is judged.
    vector : int, optional
        Length of a vector of features, of which the number is a linear function; by default it
        is one of the last level's output, which is then the features.
    """

    def __init__(self, shape: StackShape, *, vector: int | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(shape, outputs=vector or 1)
        self.judge: nn.Module | None = None
        if vector is not None:
            self.judge = nn.Conv2d(vector, 1, 1, bias=shape.bias)
            _drawn(self.judge, shape, spectral=shape.spectral)

    def features(self, x: Tensor) -> Tensor:
        """Return the features that become a number: (N, C, m, m), or the vector (N, V)."""
        found = self.encoder.features(x)[-1]
        if self.judge is None:
            return found
        vector: Tensor = self.encoder.head(found)
        return vector

    def judged(self, features: Tensor) -> Tensor:
        """Return the number (N,) that features become."""
        if self.judge is not None:
            found: Tensor = self.judge(features[:, :, None, None])
        else:
            found = self.encoder.head(features)
        return found.flatten()

    def places(self, x: Tensor) -> Tensor:
        """Return the numbers of images by place, (N, m, m); with a vector m is 1."""
        judged = self.judged(self.features(x))
        edge = round((len(judged) / max(len(x), 1)) ** 0.5)
        return judged.view(len(x), edge, edge)

    def forward(self, x: Tensor) -> Tensor:
        """Judge images; a higher number is more real.

        The numbers of the places of all images follow each other.
        """
        return self.judged(self.features(x))


def _drawn(network: nn.Module, shape: StackShape, *, spectral: bool) -> None:
    """Draw the first weights, then add the spectral normalisation."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if shape.initial == "normal":
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif shape.initial == "kaiming":
                nn.init.kaiming_normal_(module.weight, a=shape.slope, mode="fan_out")
            if shape.initial != "torch" and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and shape.initial == "normal":
            nn.init.normal_(module.weight, 1.0, 0.02)
        if spectral and isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module)
