"""Pictures of restored tiles, and the bases of detectors that make them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError
from wsiad.detectors._stored import in_batches
from wsiad.detectors._trained import TrainedDetector, images
from wsiad.learning.detector import Detector, Embedding, Scores, Tiles
from wsiad.networks.autoencoder import Autoencoder, images_of
from wsiad.networks.perceptual import RelativePerceptualL1

_BATCH = 128


def pictures(function: Callable[[Tensor], Tensor], tiles: Tiles, device: torch.device) -> Tiles:
    """Return what a function makes of tiles, as pictures, uint8 (N, S, S, 3).

    Parameters
    ----------
    function : callable
        Function that maps tiles, uint8 (N, S, S, 3), to images (N, 3, S, S) in [−1, 1].
    tiles : ndarray of uint8, (N, S, S, 3)
    device : torch.device
    """
    made = in_batches(function, tiles, device, batch=_BATCH)
    pixels = np.rint((made + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def check_places(places: int, size: int) -> None:
    """Check that a grid of places divides an input.

    Raises
    ------
    DetectorError
        It does not.
    """
    if size % places:
        raise DetectorError(
            f"{places} × {places} places do not divide an input of {size} px",
            remedy="Choose another number of places.",
        )


class RestoringDetector(TrainedDetector):
    """A detector whose trained network makes of a tile the picture that it expects.

    Its score need not be the difference of the pixels.
    """

    @abstractmethod
    def restored(self, x: Tensor) -> Tensor:
        """Return what the fitted network makes of images (N, 3, S, S) in [−1, 1]; as these."""

    def reconstruct(self, tiles: Tiles) -> Tiles:
        """Return the restored tiles; see :class:`wsiad.learning.detector.Reconstructs`."""
        self.network().eval()
        return pictures(lambda part: self.restored(images(part) * 2 - 1), tiles, self._device)

    def difference(self, tiles: Tiles) -> Scores:
        """Return the score at each place."""
        return self.score_map(tiles)


class ReconstructingDetector(Detector):
    """A detector whose score is the perceptual distance of a tile to its reconstruction."""

    @abstractmethod
    def judged(self) -> tuple[Autoencoder, RelativePerceptualL1, torch.device]:
        """Return the autoencoder, the distance that judges its results, and their device.

        Raises
        ------
        DetectorError
            The detector is not fitted yet.
        """

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the features that the distance compares, averaged over the tile.

        Channels are normalised as for the score, and layers count by their weights. Without
        layers it is the latent, place by place. See :class:`wsiad.learning.detector.Embeds`.
        """
        autoencoder, distance, device = self.judged()

        def embedded(part: Tensor) -> Tensor:
            x = images_of(part)
            return distance.averages(x) if distance.layers else autoencoder.encoder(x).flatten(1)

        return in_batches(embedded, tiles, device, batch=_BATCH)

    def reconstruct(self, tiles: Tiles) -> Tiles:
        """Return the reconstructions; see :class:`wsiad.learning.detector.Reconstructs`."""
        autoencoder, _, device = self.judged()
        return pictures(lambda part: autoencoder(images_of(part)), tiles, device)

    def difference(self, tiles: Tiles) -> Scores:
        """Return the distance at each place, which is also the score."""
        return self.score_map(tiles)
