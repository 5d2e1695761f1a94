"""Value types of plane geometry in level-0 pixels. No I/O, no rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

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
        """Level-0 position of raster pixel edges."""
        x, y = self.x + column * self.scale_x, self.y + row * self.scale_y
        return (float(x), float(y)) if np.isscalar(column) else (x, y)

    @overload
    def from_level0(self, x: float, y: float) -> tuple[float, float]: ...
    @overload
    def from_level0(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]: ...
    def from_level0(self, x, y):  # type: ignore[no-untyped-def]
        """Raster position (in pixel edges) of level-0 positions."""
        column, row = (x - self.x) / self.scale_x, (y - self.y) / self.scale_y
        return (float(column), float(row)) if np.isscalar(x) else (column, row)

    def box(self, size: Size) -> Box:
        """Level-0 rectangle covered by a raster of this size."""
        return Box(self.x, self.y, size.width * self.scale_x, size.height * self.scale_y)
