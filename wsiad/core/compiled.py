"""Inner loops over pixels, compiled when first called and kept on disk for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

Bytes = npt.NDArray[np.uint8]
"""A C-contiguous array of one axis."""

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers; it runs without holding the interpreter.

    Dividing by zero gives infinity or NaN, as in NumPy: a loop that may stop at any
    element with an exception works on one at a time.

    What was compiled is kept beside the module or in the user's cache (``NUMBA_CACHE_DIR``
    says where); where neither can be written, each process compiles anew.
    """
    try:
        made = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # Numba's way to say that there is no place for a cache.
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(F, made)


def _load_word(_: object, values: Any, start: object) -> tuple[Any, Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature, arguments), align=1)

    return types.uint32(values, types.intp), generate


def _store_word(_: object, values: Any, start: object, word: object) -> tuple[Any, Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return types.void(values, types.intp, types.uint32), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    word = context.get_value_type(types.uint32).as_pointer()
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), word)


load_word = cast(Callable[[Bytes, int], np.uint32], intrinsic(_load_word))
"""Read the four bytes of an array from the given one on, whatever that is, as a word.

For compiled loops; nothing checks that the bytes belong to the array."""

store_word = cast(Callable[[Bytes, int, np.uint32], None], intrinsic(_store_word))
"""Write a word over the four bytes of an array from the given one on, likewise."""
