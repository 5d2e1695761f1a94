"""Value types of plane geometry in level-0 pixels, without I/O or rounding.

Units are types, so that the type checker keeps µm and pixels apart. The grid of tiles over a slide
is pure geometry, with integers in target pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType, overload

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """Axis-aligned rectangle in level-0 pixels; ``x``, ``y`` is its top-left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Right edge, level-0 pixels."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Bottom edge, level-0 pixels."""
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class PixelMap:
    """Affine map from the pixel edges of a raster to level-0 pixels.

    Pixel ``(column, row)`` of the raster covers the level-0 rectangle from
    ``to_level0(column, row)`` to ``to_level0(column + 1, row + 1)``.

    Parameters
    ----------
    x, y : float
        Level-0 position of the raster's top-left corner.
    scale_x, scale_y : float
        Level-0 pixels per raster pixel.

    Examples
    --------
    >>> PixelMap(x=100, y=0, scale_x=4, scale_y=4).to_level0(2, 1)
    (108.0, 4.0)
    """

    x: float
    y: float
    scale_x: float
    scale_y: float

    @overload
    def to_level0(self, column: float, row: float) -> tuple[float, float]: ...
    @overload
    def to_level0(self, column: FloatArray, row: FloatArray) -> tuple[FloatArray, FloatArray]: ...
    def to_level0(self, column, row):  # type: ignore[no-untyped-def]
        """Return the level-0 position of raster pixel edges."""
        x, y = self.x + column * self.scale_x, self.y + row * self.scale_y
        return (float(x), float(y)) if np.isscalar(column) else (x, y)

    @overload
    def from_level0(self, x: float, y: float) -> tuple[float, float]: ...
    @overload
    def from_level0(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]: ...
    def from_level0(self, x, y):  # type: ignore[no-untyped-def]
        """Return the raster position, in pixel edges, of level-0 positions."""
        column, row = (x - self.x) / self.scale_x, (y - self.y) / self.scale_y
        return (float(column), float(row)) if np.isscalar(x) else (column, row)

    def box(self, size: Size) -> Box:
        """Return the level-0 rectangle that a raster of this size covers."""
        return Box(self.x, self.y, size.width * self.scale_x, size.height * self.scale_y)


Mpp = NewType("Mpp", float)
"""Micrometres per pixel, µm/px."""

Microns = NewType("Microns", float)
"""A length in micrometres."""

SquareMicrons = NewType("SquareMicrons", float)
"""An area in square micrometres."""

TilePx = NewType("TilePx", int)
"""Length in pixels of a tile, at the tile's own µm/px."""


@dataclass(frozen=True, slots=True)
class Spacing:
    """Physical size of a slide's level-0 pixel.

    Parameters
    ----------
    x, y : Mpp
        µm per level-0 pixel along the row and the column direction.
    """

    x: Mpp
    y: Mpp

    @property
    def mean(self) -> Mpp:
        """Mean of both directions, µm/px."""
        return Mpp((self.x + self.y) / 2)


IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Grid:
    """A lattice of square tiles, all of them completely within the slide.

    Tile ``(row, column)`` covers ``tile`` target pixels from ``(column · stride,
    row · stride)``. The rest at the right and bottom edge is less than a tile and is not read:
    pixels are never invented.

    Parameters
    ----------
    tile, stride : TilePx
        Edge of the tiles and step between them, target pixels.
    columns, rows : int
        Number of columns and rows of the lattice.
    pixels : PixelMap
        Map from target pixels to level-0 pixels.

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
        """Return the grid that covers ``size`` target pixels.

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
        return cls(
            tile=TilePx(tile), stride=TilePx(stride), columns=columns, rows=rows, pixels=pixels
        )

    def boxes(self, rows: IntArray, columns: IntArray) -> npt.NDArray[np.float64]:
        """Return the level-0 rectangles of tiles.

        Parameters
        ----------
        rows, columns : ndarray of int32, (N,)

        Returns
        -------
        ndarray of float64, (N, 4)
            Rectangles ``x, y, width, height`` in level-0 pixels.
        """
        boxes = np.empty((len(rows), 4))
        boxes[:, 0] = self.pixels.x + columns.astype(np.float64) * self.stride * self.pixels.scale_x
        boxes[:, 1] = self.pixels.y + rows.astype(np.float64) * self.stride * self.pixels.scale_y
        boxes[:, 2] = self.tile * self.pixels.scale_x
        boxes[:, 3] = self.tile * self.pixels.scale_y
        return boxes
