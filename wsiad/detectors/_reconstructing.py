"""The base of detectors that compare a tile with its reconstruction by a perceptual distance."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from wsiad.detectors._stored import in_batches
from wsiad.learning.detector import Detector, Embedding, Scores, Tiles
from wsiad.networks.autoencoder import Autoencoder, images_of
from wsiad.networks.perceptual import RelativePerceptualL1

_BATCH = 128


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
        made = in_batches(lambda part: autoencoder(images_of(part)), tiles, device, batch=_BATCH)
        pixels = np.rint((made + 1) * 127.5).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))

    def difference(self, tiles: Tiles) -> Scores:
        """Return the distance at each place, which is also the score."""
        return self.score_map(tiles)
