"""Compilation of inner loops over pixels, at the first call, kept on disk for other processes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
"""C-contiguous array of one axis."""

F = TypeVar("F", bound=Callable[..., object])


class _Compiled:
    """A function that Numba compiles when it is first called, and is imported for only then."""

    _lock = threading.RLock()

    def __init__(self, function: FunctionType, **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        """The function as it was written."""
        self._options = {"nogil": True, "error_model": "numpy", **options}
        self._made: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        return (self._made or self.made())(*arguments)

    def made(self) -> Callable[..., Any]:
        """Return Numba's function, made once.

        Numba knows its own functions alone: those that this one calls take the place of their
        wrappers. The rest of the function, by which its code is kept, stays as it is.
        """
        import numba

        with self._lock:
            if self._made is None:
                function = self.py_func
                names = {
                    name: value.made() if isinstance(value, _Compiled) else value
                    for name, value in function.__globals__.items()
                    if name in function.__code__.co_names or name.startswith("__")
                }
                bound = FunctionType(
                    function.__code__, names, function.__name__, function.__defaults__
                )
                bound = cast(FunctionType, functools.update_wrapper(bound, function))
                del bound.__wrapped__  # type: ignore[attr-defined]
                try:
                    self._made = numba.njit(**self._options, cache=True)(bound)
                except RuntimeError:  # Numba's way to say that there is no place for a cache.
                    self._made = numba.njit(**self._options)(bound)
            return cast(Callable[..., Any], self._made)


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers, which then runs without Python's lock.

    Division by zero gives infinity or NaN, as in NumPy; a loop that may raise at any element
    could not be vectorised.

    The function is compiled at its first call. The compiled code is kept next to the module, or in
    the user's cache (``NUMBA_CACHE_DIR`` sets its place). If neither can be written, each process
    compiles again.
    """
    return cast(F, _Compiled(cast(FunctionType, function)))


def compiled_sum(function: F) -> F:
    """Compile as :func:`compiled` does a function whose sums may be taken in any order.

    Processors add several terms of a sum at once if the order is free; the rounding of the last
    digits then depends on the processor.
    """
    free = {"reassoc", "contract", "nsz"}
    return cast(F, _Compiled(cast(FunctionType, function), fastmath=free))


class _Prefetch(_Compiled):
    """An instruction of the processor in place of a function."""

    def __call__(self, *arguments: Any) -> Any:
        """Call the function as it was written: only compiled code has instructions."""
        return self.py_func(*arguments)

    def made(self) -> Callable[..., Any]:
        """Return the instruction as compiled functions call it."""
        from llvmlite import ir
        from numba import types
        from numba.extending import intrinsic

        def prefetch(_: Any, array: Any, __: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                start = context.make_array(signature.args[0])(context, builder, values[0]).data
                place = builder.gep(start, [values[1]])
                number = ir.IntType(32)
                kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
                fetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
                # To read it; to the second of the caches; data.
                builder.call(fetch, [place, number(0), number(2), number(1)])
                return context.get_dummy_value()

            return types.void(array, types.uintp), code

        with self._lock:
            self._made = self._made or intrinsic(prefetch)
            return cast(Callable[..., Any], self._made)


def _prefetch(array: npt.NDArray[Any], index: np.uintp) -> None:
    """Fetch an element of an array of one axis to the core's own cache, to be read later.

    It is for compiled loops, in which the processor does not wait for it; elsewhere it does
    nothing. The position may be anywhere: nothing is read.
    """


prefetch = cast(
    "Callable[[npt.NDArray[Any], np.uintp], None]", _Prefetch(cast(FunctionType, _prefetch))
)


def kept_in() -> str | None:
    """Return the folder of the compiled code of this module, the others' being next to it.

    ``None`` is returned if there is no place that can be written.
    """
    made = cast(Any, load_word).made()
    return cast("str | None", made.stats.cache_path)


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
