"""Compilation of inner loops over pixels, at the first call, kept on disk for other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
"""C-contiguous array of one axis."""

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers, which then runs without Python's lock.

    Division by zero gives infinity or NaN, as in NumPy; a loop that may raise at any element
    could not be vectorised.

    The compiled code is kept next to the module, or in the user's cache (``NUMBA_CACHE_DIR``
    sets its place). If neither can be written, each process compiles again.
    """
    return _made(function, fastmath=False)


def compiled_sum(function: F) -> F:
    """Compile as :func:`compiled` does a function whose sums may be taken in any order.

    Processors add several terms of a sum at once if the order is free; the rounding of the last
    digits then depends on the processor.
    """
    return _made(function, fastmath={"reassoc", "contract", "nsz"})


def _made(function: F, *, fastmath: bool | set[str]) -> F:
    try:
        made = numba.njit(nogil=True, error_model="numpy", cache=True, fastmath=fastmath)(function)
    except RuntimeError:  # Numba's way to say that there is no place for a cache.
        made = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    return cast(F, made)


_8, _16, _24 = np.uint32(8), np.uint32(16), np.uint32(24)


@compiled
def load_word(values: Bytes, start: int) -> np.uint32:
    """Read four bytes of an array as a word, the first byte lowest, from a position of 0 or more.

    It is for compiled loops, and does not check that the bytes belong to the array. LLVM turns
    the four reads into one because the byte numbers are unsigned; signed ones, which can count
    from the end, are tested one by one.
    """
    at = np.uintp(start)
    word = np.uint32(values[at]) | np.uint32(values[at + np.uintp(1)]) << _8
    word |= np.uint32(values[at + np.uintp(2)]) << _16
    return np.uint32(word | np.uint32(values[at + np.uintp(3)]) << _24)


@compiled
def store_word(values: Bytes, start: int, word: np.uint32) -> None:
    """Write a word over four bytes of an array; see :func:`load_word`."""
    at = np.uintp(start)
    values[at] = np.uint8(word)
    values[at + np.uintp(1)] = np.uint8(word >> _8)
    values[at + np.uintp(2)] = np.uint8(word >> _16)
    values[at + np.uintp(3)] = np.uint8(word >> _24)
