"""The objective of the Deep Perceptual Autoencoder, at one resolution or growing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from wsiad.learning.stages import Stage
from wsiad.networks.autoencoder import Autoencoder, images_of
from wsiad.networks.growing import GrowingAutoencoder, GrowingDistance, faded
from wsiad.networks.perceptual import RelativePerceptualL1


class Objective:
    """The distance between images and their reconstructions, as a loss.

    A call with windows, uint8 (N, S, S, 3), returns the loss of each, float32 (N,).

    Parameters
    ----------
    autoencoder : Autoencoder or GrowingAutoencoder
        Autoencoder; a growing one receives the resolution and the share of the stage.
    distances : mapping of int to RelativePerceptualL1
        Distance for each resolution, pixels.
    size : int
        Edge of the windows, pixels.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | GrowingAutoencoder,
        distances: Mapping[int, RelativePerceptualL1],
        *,
        size: int,
    ) -> None:
        self._autoencoder = autoencoder
        growing = isinstance(autoencoder, GrowingAutoencoder)
        self._distance: nn.Module = GrowingDistance(distances) if growing else distances[size]

    def __call__(self, windows: Tensor, stage: Stage | None = None) -> Tensor:
        """Return the distance of each window to its reconstruction."""
        return self.distance(*self.images(windows, stage), stage)

    def images(self, windows: Tensor, stage: Stage | None = None) -> tuple[Tensor, Tensor]:
        """Return images at the stage's resolution and their reconstructions."""
        x = images_of(windows)
        if stage is None:
            return x, self._autoencoder(x)
        x = faded(x, px=stage.px, alpha=stage.alpha)
        return x, self._autoencoder(x, px=stage.px, alpha=stage.alpha)

    def distance(self, original: Tensor, made: Tensor, stage: Stage | None = None) -> Tensor:
        """Return the distance of each image to its reconstruction."""
        found: Tensor = (
            self._distance(original, made, px=stage.px, alpha=stage.alpha)
            if stage
            else self._distance(original, made)
        )
        return found
