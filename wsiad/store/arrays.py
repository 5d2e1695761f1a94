"""Tiles in memory as a source of tiles: small data, tests and notebooks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.units import TilePx


class ArrayTiles:
    """A source of tiles over an array.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, S, S, 3)
        RGB tiles, at least one.

    Raises
    ------
    InputError
        The array is not of that shape or dtype, or holds no tile.
    """

    def __init__(self, tiles: npt.NDArray[np.uint8]) -> None:
        if (
            tiles.dtype != np.uint8
            or tiles.ndim != 4
            or tiles.shape[1] != tiles.shape[2]
            or tiles.shape[3] != 3
        ):
            raise InputError(
                f"tiles must be uint8 (N, S, S, 3), not {tiles.dtype} {tuple(tiles.shape)}"
            )
        if not len(tiles):
            raise InputError("there are no tiles")
        self._tiles = tiles

    @property
    def tile(self) -> TilePx:
        """Edge of the tiles, pixels."""
        return TilePx(self._tiles.shape[1])

    def __len__(self) -> int:
        return len(self._tiles)

    def ordered(self, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield every tile once in its order, in batches of at most ``batch``."""
        for start in range(0, len(self._tiles), batch):
            yield self._tiles[start : start + batch]

    def shuffled(
        self, batch: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield full batches, from batch ``start`` of an order that seed and epoch decide.

        The tiles left over in an epoch are dropped. Fewer tiles than a batch fill
        one by coming round again.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self._tiles))
        if len(order) < batch:
            order = np.resize(order, batch)
        for first in range(start * batch, len(order) - batch + 1, batch):
            yield self._tiles[order[first : first + batch]]
