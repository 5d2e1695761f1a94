"""The eight ways in which a square tile can lie: turned by right angles and mirrored."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Squares = TypeVar("Squares", bound=npt.NDArray[Any])

_WAYS = tuple(
    (down, across, transposed)
    for transposed, (down, across) in itertools.product(
        (False, True), ((False, False), (True, True), (True, False), (False, True))
    )
)
"""Upside down, mirrored left to right, transposed; the first 1, 2, 4 and 8 are groups: as it
lies, half a turn, mirrored either way, and all."""


def turned(squares: Squares, way: int) -> Squares:
    """Lay squares, (N, S, S, ...), as the given one of the eight ways says; a copy."""
    down, across, transposed = _WAYS[way]
    found = squares[:, :: -1 if down else 1, :: -1 if across else 1]
    return np.ascontiguousarray(found.swapaxes(1, 2) if transposed else found)  # type: ignore[return-value]


def turned_back(squares: Squares, way: int) -> Squares:
    """Undo :func:`turned`; a copy."""
    down, across, transposed = _WAYS[way]
    found = squares.swapaxes(1, 2) if transposed else squares
    return np.ascontiguousarray(found[:, :: -1 if down else 1, :: -1 if across else 1])  # type: ignore[return-value]
