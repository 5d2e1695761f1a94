"""The grid of tiles over a slide: pure geometry, integers in target pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import PixelMap, Size
from wsiad.core.units import TilePx

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Grid:
    """A lattice of square tiles, all of them wholly within the slide.

    Tile ``(row, column)`` covers ``tile`` target pixels from ``(column · stride,
    row · stride)``. What is left at the right and bottom edge is less than a tile and
    is not read: pixels are never invented.

    Parameters
    ----------
    tile, stride : TilePx
        Edge and step, target pixels.
    columns, rows : int
        Size of the lattice.
    pixels : PixelMap
        From target pixels to level-0 pixels.

    Examples
    --------
    >>> Grid.cover(Size(1000, 500), tile=256, stride=256, pixels=PixelMap(0, 0, 2, 2)).columns
    3
    """

    tile: TilePx
    stride: TilePx
    columns: int
    rows: int
    pixels: PixelMap

    @classmethod
    def cover(cls, size: Size, *, tile: int, stride: int, pixels: PixelMap) -> Grid:
        """Lay a grid over ``size`` target pixels.

        Raises
        ------
        ValueError
            Tile or stride is not positive, or the stride leaves gaps.
        """
        if not 0 < stride <= tile:
            raise ValueError(f"a stride of {stride} px does not fit tiles of {tile} px")
        columns, rows = (
            (length - tile) // stride + 1 if length >= tile else 0
            for length in (size.width, size.height)
        )
        return cls(TilePx(tile), TilePx(stride), columns, rows, pixels)

    def boxes(self, rows: IntArray, columns: IntArray) -> npt.NDArray[np.float64]:
        """Level-0 rectangles of tiles.

        Parameters
        ----------
        rows, columns : ndarray of int32, (N,)

        Returns
        -------
        ndarray of float64, (N, 4)
            ``x, y, width, height`` in level-0 pixels.
        """
        boxes = np.empty((len(rows), 4))
        boxes[:, 0] = self.pixels.x + columns.astype(np.float64) * self.stride * self.pixels.scale_x
        boxes[:, 1] = self.pixels.y + rows.astype(np.float64) * self.stride * self.pixels.scale_y
        boxes[:, 2] = self.tile * self.pixels.scale_x
        boxes[:, 3] = self.tile * self.pixels.scale_y
        return boxes
