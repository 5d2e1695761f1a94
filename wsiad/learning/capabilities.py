"""What some detectors can do besides scoring: show what they see in a tile.

A detector has a capability by having its methods: ``isinstance(detector, Embeds)``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from wsiad.learning.detector import Scores, Tiles

Embedding = npt.NDArray[np.float32]
"""One feature vector a tile, float32 (N, D)."""


@runtime_checkable
class Embeds(Protocol):
    """Describes tiles by the features that its scores come from.

    Tiles with near vectors (Euclidean) look alike to the detector; that says nothing of
    what is to blame for the score of one of them.
    """

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the detector's own features of whole tiles.

        Parameters
        ----------
        tiles : ndarray of uint8, (N, size, size, 3)
            RGB at the input size and scale of the detector.

        Returns
        -------
        ndarray of float32, (N, D)
            What they are is the method's; D is the same for all tiles.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """Makes a healthy image of every tile, and scores what differs from it."""

    def reconstruct(self, tiles: Tiles) -> Tiles:
        """Return what the detector makes of tiles, uint8 (N, size, size, 3).

        Values that a picture cannot hold are cut off; the score is of the whole ones.
        """
        ...

    def difference(self, tiles: Tiles) -> Scores:
        """Return where tiles and reconstructions differ to the detector, float32 (N, h, w).

        The map that is pooled to the score, in its unit.
        """
        ...
