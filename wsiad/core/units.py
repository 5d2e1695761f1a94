"""Units as types: the type checker, not the reader, keeps µm and pixels apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Mpp = NewType("Mpp", float)
"""Micrometres per pixel, µm/px."""

Microns = NewType("Microns", float)
"""A length in micrometres."""

SquareMicrons = NewType("SquareMicrons", float)
"""An area in square micrometres."""

TilePx = NewType("TilePx", int)
"""A length in pixels of a tile, that is at the tile's own µm/px."""


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
