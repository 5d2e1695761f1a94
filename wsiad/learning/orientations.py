"""The eight ways in which a square tile can lie: turned by right angles and mirrored."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)

_WAYS = (
    (1, 1, False),
    (-1, -1, False),
    (-1, 1, False),
    (1, -1, False),
    (1, 1, True),
    (-1, -1, True),
    (-1, 1, True),
    (1, -1, True),
)
"""Steps down and across (-1 mirrors), and whether it is transposed then. The first 1, 2, 4 and 8
are groups: as it lies, half a turn, mirrored either way, and all."""


def turned(squares: npt.NDArray[T], way: int) -> npt.NDArray[T]:
    """Lay squares, (N, S, S, ...), as the given one of the eight ways says; a copy."""
    down, across, transposed = _WAYS[way]
    found = squares[:, ::down, ::across]
    return np.ascontiguousarray(found.swapaxes(1, 2) if transposed else found)


def turned_back(squares: npt.NDArray[T], way: int) -> npt.NDArray[T]:
    """Undo :func:`turned`; a copy."""
    down, across, transposed = _WAYS[way]
    found = squares.swapaxes(1, 2) if transposed else squares
    return np.ascontiguousarray(found[:, ::down, ::across])
