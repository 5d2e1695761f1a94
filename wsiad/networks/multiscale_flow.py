"""Glow: a flow of several scales, with normalised activations and invertible 1 × 1 convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.networks.density_model import DensityModel, uniform

_LOG_2_PI = math.log(2 * math.pi)
_LEAST = 1e-6


class ActNorm(nn.Module):
    """A scale and a shift of each channel, which a first batch sets to mean 0 and variance 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Set both so that the outputs of these inputs have mean 0 and variance 1."""
        deviation = x.std(dim=(0, 2, 3), correction=0) + _LEAST
        self.shift.copy_(-x.mean(dim=(0, 2, 3)))
        self.log_scale.copy_(-deviation.log())

    def forward(self, x: Tensor) -> Tensor:
        """Return (x + shift) · scale; log |det| of a place is the sum of ``log_scale``."""
        return (x + self.shift[:, None, None]) * self.log_scale.exp()[:, None, None]

    def inverse(self, y: Tensor) -> Tensor:
        """Return the inputs of outputs."""
        return y / self.log_scale.exp()[:, None, None] - self.shift[:, None, None]


class GlowStep(nn.Module):
    """A step of Glow: normalised activations, an invertible 1 × 1 convolution, a coupling.

    The convolution begins as a random rotation. A network of the first half of the channels,
    3 × 3, 1 × 1 and 3 × 3 convolutions with ReLU, then returns s and shifts of the second half,
    whose scale is σ(s + 2); its last convolution begins at 0.

    Parameters
    ----------
    channels : int
        Number of channels, at least 2.
    hidden : int
        Channels of the network's hidden layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self._kept = channels // 2
        changed = channels - self._kept
        self.norm = ActNorm(channels)
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        self.weight = nn.Parameter(rotation.contiguous())
        self.network = nn.Sequential(
            nn.Conv2d(self._kept, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            _zeros(hidden, 2 * changed),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (N, C, h, w) and log |det| of each place, (N, h, w)."""
        x = functional.conv2d(self.norm(x), self.weight[:, :, None, None])
        kept, changed = x[:, : self._kept], x[:, self._kept :]
        log_scale, shift = self._scale_and_shift(kept)
        found = torch.cat([kept, (changed + shift) * log_scale.exp()], dim=1)
        everywhere = self.norm.log_scale.sum() + torch.linalg.slogdet(self.weight).logabsdet
        return found, log_scale.sum(dim=1) + everywhere

    def inverse(self, y: Tensor) -> Tensor:
        """Return the inputs of outputs, (N, C, h, w)."""
        kept, changed = y[:, : self._kept], y[:, self._kept :]
        log_scale, shift = self._scale_and_shift(kept)
        x = torch.cat([kept, changed / log_scale.exp() - shift], dim=1)
        turned = functional.conv2d(x, torch.linalg.inv(self.weight)[:, :, None, None])
        return self.norm.inverse(turned)

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(kept).chunk(2, dim=1)
        return functional.logsigmoid(raw + 2), shift


class Glow(DensityModel):
    """A flow of several scales; a place is scored by −log of its density.

    At each scale 2 × 2 neighbours become channels and steps follow. Half of the channels are then
    done: their density is normal, with mean and deviation by a convolution of the other half,
    which goes on to the next scale. All convolutions of mean and deviation begin at 0.

    Parameters
    ----------
    channels : int
    scales : int
        Number of scales.
    steps : int
        Number of steps of each scale.
    hidden : int
        See :class:`GlowStep`.
    noise : float
        Width of the uniform noise that is added in the training; see
        :class:`~wsiad.networks.flow.Flow`.

    Notes
    -----
    Kingma & Dhariwal, *Glow: Generative Flow with Invertible 1×1 Convolutions*, NeurIPS 2018
    (arXiv 1807.03039). The hidden layers of the couplings are not normalised here.
    """

    def __init__(
        self, channels: int, *, scales: int, steps: int, hidden: int, noise: float = 0.0
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        self.priors = nn.ModuleList()
        for number in range(scales):
            channels *= 4
            self.scales.append(nn.ModuleList(GlowStep(channels, hidden) for _ in range(steps)))
            if number < scales - 1:
                kept = channels - channels // 2
                self.priors.append(_zeros(kept, 2 * (channels - kept)))
                channels = kept
        self.last = nn.Parameter(torch.zeros(2, channels, 1, 1))  # mean and log-deviation
        self._noise = noise

    def forward(self, maps: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return standard normal numbers of each scale, and log |det| of its places, (N, h, w).

        Raises
        ------
        DetectorError
            The maps cannot be halved at every scale.
        """
        return self._through(maps, begin=False)

    @torch.no_grad()
    def begin(self, maps: Tensor, drawn: Tensor | None) -> None:
        """Set the normalised activations, step by step, by a first batch of maps."""
        self._through(self._continuous(maps, drawn), begin=True)

    def inverse(self, numbers: Sequence[Tensor]) -> Tensor:
        """Return the maps (N, C, h, w) of the numbers of all scales."""
        mean, log_deviation = self.last
        x = numbers[-1] * log_deviation.exp() + mean
        for number in reversed(range(len(self.scales))):
            if number < len(self.priors):
                mean, log_deviation = self.priors[number](x).chunk(2, dim=1)
                x = torch.cat([x, numbers[number] * log_deviation.exp() + mean], dim=1)
            for step in reversed(self._steps(number)):
                x = step.inverse(x)
            x = functional.pixel_shuffle(x, 2)
        return x

    def surprise(self, maps: Tensor) -> Tensor:
        """Return −log of the density of each place, (N, h/2, w/2): their sum is that of the map.

        The part of a coarser scale is divided evenly among the places that it covers.
        """
        numbers, logarithms = self(maps)
        total = torch.zeros_like(logarithms[0])
        for number, (z, logarithm) in enumerate(zip(numbers, logarithms, strict=True)):
            own = 0.5 * (z.square() + _LOG_2_PI).sum(dim=1) - logarithm
            spread = own.repeat_interleave(2**number, dim=1).repeat_interleave(2**number, dim=2)
            total = total + spread / 4**number
        return total

    def draw(self, maps: Tensor, rng: np.random.Generator) -> Tensor | None:
        """Return uniform noise, if the features are not continuous."""
        return uniform(maps, rng) if self._noise else None

    def losses(self, maps: Tensor, drawn: Tensor | None) -> Tensor:
        """Return −log of the density of each map, per number of the map, (N,)."""
        surprise = self.surprise(self._continuous(maps, drawn))
        return surprise.sum(dim=(1, 2)) / maps[0].numel()

    def scores(self, maps: Tensor) -> Tensor:
        """Return −log of the density of each place, (N, h/2, w/2)."""
        return self.surprise(maps)

    def _continuous(self, maps: Tensor, drawn: Tensor | None) -> Tensor:
        return maps if drawn is None else maps + self._noise * (drawn - 0.5)

    def _steps(self, number: int) -> list[GlowStep]:
        steps = self.scales[number]
        assert isinstance(steps, nn.ModuleList)
        found = list(steps)
        assert all(isinstance(step, GlowStep) for step in found)
        return found  # type: ignore[return-value]

    def _through(self, maps: Tensor, *, begin: bool) -> tuple[list[Tensor], list[Tensor]]:
        least = 2 ** len(self.scales)
        if maps.shape[2] % least or maps.shape[3] % least:
            raise DetectorError(
                f"maps of {maps.shape[2]} × {maps.shape[3]} cannot be halved at "
                f"{len(self.scales)} scales",
                remedy="Set fewer scales, or another input_px.",
            )
        numbers, logarithms, x = [], [], maps
        for number in range(len(self.scales)):
            x = functional.pixel_unshuffle(x, 2)
            total = x.new_zeros(len(x), *x.shape[2:])
            for step in self._steps(number):
                if begin:
                    step.norm.begin(x)
                x, logarithm = step(x)
                total = total + logarithm
            if number < len(self.priors):
                done = x.shape[1] // 2
                x, z = x[:, : x.shape[1] - done], x[:, x.shape[1] - done :]
                mean, log_deviation = self.priors[number](x).chunk(2, dim=1)
            else:
                z = x
                mean, log_deviation = (one.expand_as(z[0])[None] for one in self.last)
            numbers.append((z - mean) * (-log_deviation).exp())
            logarithms.append(total - log_deviation.sum(dim=1))
        return numbers, logarithms


def _zeros(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3 × 3 convolution that begins at 0."""
    found = nn.Conv2d(inputs, outputs, 3, padding=1)
    for parameter in found.parameters():
        nn.init.zeros_(parameter)
    return found
