"""Normalising flows: invertible maps of features to numbers of a normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.networks.density_model import DensityModel, uniform

_LOG_2_PI = math.log(2 * math.pi)
Limit = Literal["atan", "tanh"]
"""Limit of log-scales; see :class:`Coupling`."""


class Coupling(nn.Module):
    """A step of a flow: half of the channels scale and shift the others.

    Channels are first scaled and shifted by numbers of their own and put into a fixed random
    order. A small network of the first half then returns log-scales, limited to −``clamp`` to
    ``clamp``, and shifts of the second half. It starts as the identity, but for the order.

    Parameters
    ----------
    channels : int
        Number of channels, at least 2.
    kernel : int
        Edge of the network's two convolutions.
    hidden_ratio : float
        Width of the network's hidden layer, relative to its inputs.
    clamp : float
    limit : {"atan", "tanh"}
        ``"tanh"``: the network's outputs are divided by ten, and log-scales are clamp · tanh of
        them, which is steadier: the ``AllInOneBlock`` of FrEIA 0.2, which the code of CFLOW-AD
        and anomalib's FastFlow use. ``"atan"``: log-scales follow the outputs while they are
        small.

    Notes
    -----
    Dinh, Sohl-Dickstein & Bengio, *Density estimation using Real NVP*, ICLR 2017.
    """

    order: Tensor

    def __init__(
        self,
        channels: int,
        *,
        kernel: int,
        hidden_ratio: float,
        clamp: float,
        limit: Limit = "atan",
    ) -> None:
        super().__init__()
        self._kept = channels // 2
        changed = channels - self._kept
        hidden = max(1, round(hidden_ratio * self._kept))
        padding = kernel // 2
        self.register_buffer("order", torch.randperm(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.network = nn.Sequential(
            nn.Conv2d(self._kept, hidden, kernel, padding=padding),
            nn.ReLU(),
            nn.Conv2d(hidden, 2 * changed, kernel, padding=padding),
        )
        for parameter in self.network[2].parameters():
            nn.init.zeros_(parameter)
        self._clamp, self._limit = clamp, limit

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (N, C, h, w) and log |det| of each place, (N, h, w)."""
        x = (x * self.log_scale.exp()[:, None, None] + self.shift[:, None, None])[:, self.order]
        kept, changed = x[:, : self._kept], x[:, self._kept :]
        log_scale, shift = self._scale_and_shift(kept)
        found = torch.cat([kept, changed * log_scale.exp() + shift], dim=1)
        return found, log_scale.sum(dim=1) + self.log_scale.sum()

    def inverse(self, z: Tensor) -> Tensor:
        """Return the inputs of outputs, (N, C, h, w)."""
        kept, changed = z[:, : self._kept], z[:, self._kept :]
        log_scale, shift = self._scale_and_shift(kept)
        x = torch.cat([kept, (changed - shift) / log_scale.exp()], dim=1)
        x = x[:, torch.argsort(self.order)]
        return (x - self.shift[:, None, None]) / self.log_scale.exp()[:, None, None]

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.network(kept).chunk(2, dim=1)
        if self._limit == "tanh":
            return self._clamp * torch.tanh(0.1 * log_scale), 0.1 * shift
        limited = self._clamp * (2 / math.pi) * torch.atan(log_scale / self._clamp)
        return limited, shift


class Flow(DensityModel):
    """A flow of coupling steps; a place is scored by −log of its density.

    Parameters
    ----------
    channels : int
    steps : int
        Number of coupling steps.
    kernels : sequence of int
        Edges of the convolutions of the steps, in turn: (3, 1) alternates.
    hidden_ratio, clamp, limit : float, float, str
        See :class:`Coupling`.
    squeezes : int
        Number of times that 2 × 2 neighbours become channels before the steps.
    noise : float
        Width of the uniform noise that is added in the training: the distance of two values of
        features that are not continuous, such as pixels.
    probability : bool
        Score by −exp(−½ mean z²), without the determinant, as FastFlow's code does.
    """

    def __init__(
        self,
        channels: int,
        *,
        steps: int,
        kernels: Sequence[int] = (1,),
        hidden_ratio: float = 1.0,
        clamp: float = 2.0,
        limit: Limit = "atan",
        squeezes: int = 0,
        noise: float = 0.0,
        probability: bool = False,
    ) -> None:
        super().__init__()
        width = channels * 4**squeezes
        if width < 2:
            raise DetectorError(
                "a flow needs at least two channels", remedy="Set squeezes, or other layers."
            )
        self.steps = nn.ModuleList(
            Coupling(
                width,
                kernel=kernels[step % len(kernels)],
                hidden_ratio=hidden_ratio,
                clamp=clamp,
                limit=limit,
            )
            for step in range(steps)
        )
        self._squeeze = 2**squeezes
        self._noise, self._probability = noise, probability

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, (N, C', h', w'), and log |det| of each place, (N, h', w').

        Raises
        ------
        DetectorError
            The maps cannot be squeezed.
        """
        if maps.shape[2] % self._squeeze or maps.shape[3] % self._squeeze:
            raise DetectorError(
                f"maps of {maps.shape[2]} × {maps.shape[3]} cannot be divided by {self._squeeze}",
                remedy="Set fewer squeezes, or other places.",
            )
        z = functional.pixel_unshuffle(maps, self._squeeze)
        total = z.new_zeros(len(z), *z.shape[2:])
        for step in self.steps:
            z, logarithm = step(z)
            total = total + logarithm
        return z, total

    def inverse(self, z: Tensor) -> Tensor:
        """Return the maps of z, (N, C, h, w)."""
        for step in reversed(self.steps):
            assert isinstance(step, Coupling)
            z = step.inverse(z)
        return functional.pixel_shuffle(z, self._squeeze)

    def surprise(self, maps: Tensor) -> Tensor:
        """Return −log of the density of each place, (N, h', w'): their sum is that of the map."""
        z, logarithm = self(maps)
        return 0.5 * (z.square() + _LOG_2_PI).sum(dim=1) - logarithm

    def draw(self, maps: Tensor, rng: np.random.Generator) -> Tensor | None:
        """Return uniform noise, if the features are not continuous."""
        return uniform(maps, rng) if self._noise else None

    def losses(self, maps: Tensor, drawn: Tensor | None) -> Tensor:
        """Return −log of the density of each map, per number of the map, (N,)."""
        if drawn is not None:
            maps = maps + self._noise * (drawn - 0.5)
        numbers = maps[0].numel()
        return self.surprise(maps).sum(dim=(1, 2)) / numbers

    def scores(self, maps: Tensor) -> Tensor:
        """Return −log of the density of each place, or minus its probability, (N, h', w')."""
        if not self._probability:
            return self.surprise(maps)
        z, _ = self(maps)
        return -torch.exp(-0.5 * z.square().mean(dim=1))
