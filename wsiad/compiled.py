"""Inner loops over pixels, compiled when first called and kept on disk for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers; it runs without holding the interpreter.

    What was compiled is kept beside the module or in the user's cache (``NUMBA_CACHE_DIR``
    says where); where neither can be written, each process compiles anew.
    """
    try:
        made = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # Numba's way to say that there is no place for a cache.
        made = numba.njit(nogil=True)(function)
    return cast(F, made)
