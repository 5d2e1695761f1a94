"""The density of healthy features: what its models have in common, and the features they read."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Standardise = Literal["channels", "tile", "none"]
"""Scaling of features: by the mean and deviation of each channel over healthy tiles, by those of
all features of the tile, or none."""


class DensityModel(nn.Module):
    """A model of the density of maps of features, which is trained on healthy ones."""

    def draw(self, maps: Tensor, rng: np.random.Generator) -> Tensor | None:
        """Return the random numbers of a step of the training; ``None`` if it needs none."""
        return None

    def begin(self, maps: Tensor, drawn: Tensor | None) -> None:
        """Set what a model takes from a first batch of healthy maps, before the training."""

    @abstractmethod
    def losses(self, maps: Tensor, drawn: Tensor | None) -> Tensor:
        """Return the loss of each map, (N, C, h, w) to (N,)."""

    @abstractmethod
    def scores(self, maps: Tensor) -> Tensor:
        """Return how unlikely each place is, (N, C, h, w) to (N, h', w')."""


class HealthyDensity(nn.Module):
    """Models of the features of a backbone, one of each map.

    Parameters
    ----------
    models : sequence of DensityModel
        A model of each layer, or one of all layers at the places.
    channels : sequence of int
        Number of channels of each map.
    standardise : {"channels", "tile", "none"}
    most_deviations : float or None
        Largest magnitude of features that are standardised by channel.
    places : int or None
        Edge of the grid to which all layers are averaged, then concatenated; ``None`` for each
        layer's own.
    """

    def __init__(
        self,
        models: Sequence[DensityModel],
        channels: Sequence[int],
        *,
        standardise: Standardise,
        places: int | None,
        most_deviations: float | None = None,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._standardise, self._places = standardise, places
        self._most = math.inf if most_deviations is None else most_deviations
        for number, count in enumerate(channels):
            self.register_buffer(f"mean{number}", torch.zeros(count))
            self.register_buffer(f"deviation{number}", torch.ones(count))

    def forward(self, images: Tensor, taught: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps whose density is modelled, from a backbone's features (N, C, h, w).

        The images are not used.
        """
        maps = gathered(taught, self._places)
        if self._standardise == "none":
            return maps
        if self._standardise == "tile":
            return [functional.layer_norm(one, one.shape[1:]) for one in maps]
        scaled = (
            (one - self._of(f"mean{number}")) / self._of(f"deviation{number}")
            for number, one in enumerate(maps)
        )
        return [one.clamp(-self._most, self._most) for one in scaled]

    def standardise(self, means: Sequence[Tensor], deviations: Sequence[Tensor]) -> None:
        """Set mean and deviation of the channels of each map, (C,) each."""
        for number, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            self.get_buffer(f"mean{number}").copy_(mean)
            self.get_buffer(f"deviation{number}").copy_(deviation)

    def each(self) -> list[DensityModel]:
        """Return the models in the order of the maps."""
        found = list(self.models)
        assert all(isinstance(one, DensityModel) for one in found)
        return found  # type: ignore[return-value]

    def losses(self, maps: Sequence[Tensor], drawn: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the loss of each model, (N,)."""
        return [
            model.losses(one, numbers)
            for model, one, numbers in zip(self.each(), maps, drawn, strict=True)
        ]

    def draw(self, maps: Sequence[Tensor], rng: np.random.Generator) -> list[Tensor | None]:
        """Return the random numbers of a step of each model."""
        return [model.draw(one, rng) for model, one in zip(self.each(), maps, strict=True)]

    def scores(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return how unlikely each place is by each model, (N, h, w)."""
        return [model.scores(one) for model, one in zip(self.each(), maps, strict=True)]

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)[:, None, None]


def gathered(taught: Sequence[Tensor], places: int | None) -> list[Tensor]:
    """Return the features of all layers as one map of m × m places, or each as it is.

    Parameters
    ----------
    taught : sequence of Tensor, (N, C, h, w)
    places : int or None
        Edge m of the grid.
    """
    if places is None:
        return list(taught)
    pooled = [functional.adaptive_avg_pool2d(one, places) for one in taught]
    return [torch.cat(pooled, dim=1)]


def normal(maps: Tensor, rng: np.random.Generator, shape: Sequence[int] | None = None) -> Tensor:
    """Return numbers of a normal distribution on the maps' device, by default of their shape."""
    drawn = rng.standard_normal(tuple(shape or maps.shape), dtype=np.float32)
    return maps.new_tensor(drawn)


def uniform(maps: Tensor, rng: np.random.Generator, shape: Sequence[int] | None = None) -> Tensor:
    """Return numbers from 0 to 1 on the maps' device, by default of their shape."""
    return maps.new_tensor(rng.random(tuple(shape or maps.shape), dtype=np.float32))
