"""An energy of features that is trained by removing noise from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.networks.density_model import DensityModel, normal


class EnergyModel(DensityModel):
    """The energy E(x) = ½|x − b|² − Σ h, where h is the last layer of a softplus network of x.

    Its gradient reads back through the network with the same weights: with one layer W and
    bias c, x − ∇E is b + Wᵀσ(Wx + c). The training removes normal noise: it lowers the squared
    distance of x to x̃ − ∇E(x̃), where x̃ is x with noise.

    Parameters
    ----------
    shape : tuple of int
        Shape (C, h, w) of the maps.
    widths : sequence of int
        Channels of the convolutions; none for the quadratic term alone.
    kernel, stride : int
        Edge and stride of the convolutions.
    dense : int or None
        Units of a last layer that sees the complete map, after a 2 × 2 maximum.
    noise : float
        Standard deviation of the noise.
    reconstruction : bool
        Score by |∇E|², the squared distance of x to its reconstruction, in place of E.

    Notes
    -----
    Zhai, Cheng, Lu & Zhang, *Deep Structured Energy Based Models for Anomaly Detection*, ICML
    2016. A widely used implementation sums the outputs of the mirrored network in place of the
    last layer's, which is another energy for more than one layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        widths: Sequence[int],
        kernel: int = 1,
        stride: int = 1,
        dense: int | None = None,
        noise: float = 1.0,
        reconstruction: bool = False,
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape if dense else (shape[0], 1, 1)))
        channels = [shape[0], *widths]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2)
            for before, after in pairwise(channels)
        )
        self.dense: nn.Linear | None = None
        if dense:
            with torch.no_grad():
                inputs = self._pooled(torch.zeros(1, *shape))
            self.dense = nn.Linear(inputs.shape[1], dense)
        self._noise, self._reconstruction = noise, reconstruction

    def energy(self, maps: Tensor) -> Tensor:
        """Return the energy of each place, (N, h, w); its sum is that of the map.

        The part of layers that are coarser than the map is divided evenly among its places.
        """
        local = 0.5 * (maps - self.bias).square().sum(dim=1)
        hidden = self._hidden(maps)
        if hidden is None:
            return local
        fine = functional.interpolate(hidden[:, None], size=local.shape[1:], mode="nearest")[:, 0]
        total = hidden.sum(dim=(1, 2), keepdim=True)
        return local - fine * (total / fine.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12))

    def reconstructed(self, maps: Tensor) -> Tensor:
        """Return x − ∇E(x), (N, C, h, w); gradients pass through it while training."""
        differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = maps if maps.requires_grad else maps.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self._total(x).sum(), x, create_graph=differentiable)
            found = x - gradient
        return found if differentiable else found.detach()

    def draw(self, maps: Tensor, rng: np.random.Generator) -> Tensor:
        """Return normal noise of deviation 1."""
        return normal(maps, rng)

    def losses(self, maps: Tensor, drawn: Tensor | None) -> Tensor:
        """Return the mean squared distance of each map to that without its noise, (N,)."""
        noisy = maps if drawn is None else maps + self._noise * drawn
        return (maps - self.reconstructed(noisy)).square().mean(dim=(1, 2, 3))

    def scores(self, maps: Tensor) -> Tensor:
        """Return the energy of each place, or |∇E|² there, (N, h, w)."""
        if self._reconstruction:
            return (maps - self.reconstructed(maps)).square().sum(dim=1)
        return self.energy(maps)

    def _total(self, maps: Tensor) -> Tensor:
        """Return the energy of each map, (N,)."""
        total = 0.5 * (maps - self.bias).square().sum(dim=(1, 2, 3))
        hidden = self._hidden(maps)
        return total if hidden is None else total - hidden.sum(dim=(1, 2))

    def _hidden(self, maps: Tensor) -> Tensor | None:
        """Return the sum of the last layer at each of its places, (N, h', w')."""
        if self.dense is not None:
            last = functional.softplus(self.dense(self._pooled(maps)))
            return last.sum(dim=1)[:, None, None]
        if not self.layers:
            return None
        return self._convolved(maps).sum(dim=1)

    def _convolved(self, maps: Tensor) -> Tensor:
        for layer in self.layers:
            maps = functional.softplus(layer(maps))
        return maps

    def _pooled(self, maps: Tensor) -> Tensor:
        return functional.max_pool2d(self._convolved(maps), 2).flatten(1)
