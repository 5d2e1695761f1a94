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


class _WeightedMean(_Compiled):
    """A sum of a fixed number of weighted pixels, of which all channels are computed at once."""

    def __init__(self, taps: int) -> None:
        super().__init__(cast(FunctionType, _weighted_mean))
        self._taps = taps

    def __call__(self, *arguments: Any) -> Any:
        """Call the function as it was written: only compiled code has vectors."""
        return self.py_func(*arguments, self._taps)

    def made(self) -> Callable[..., Any]:
        """Return the sum as compiled functions call it."""
        from llvmlite import ir
        from numba import types
        from numba.extending import intrinsic

        number = ir.IntType(32)
        four = ir.VectorType(ir.FloatType(), 4)
        nothing, all_alike = ir.Constant(four, ir.Undefined), ir.VectorType(number, 4)([0] * 4)
        taps = range(self._taps)

        def mean(_: Any, sums: Any, __: Any, weights: Any, ___: Any, means: Any, ____: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                starts = [
                    context.make_array(signature.args[array])(context, builder, values[array]).data
                    for array in (0, 2, 4)
                ]
                pixel, weight, out = (
                    builder.gep(start, [values[place]])
                    for start, place in zip(starts, (1, 3, 5), strict=True)
                )
                total = None
                for tap in taps:
                    place = builder.gep(pixel, [number(3 * tap)])
                    channels = builder.load(builder.bitcast(place, four.as_pointer()), align=4)
                    own = builder.load(builder.gep(weight, [number(tap)]))
                    own = builder.insert_element(nothing, own, number(0))
                    own = builder.shuffle_vector(own, nothing, all_alike)
                    term = builder.fmul(own, channels)
                    total = term if total is None else builder.fadd(total, term)
                builder.store(total, builder.bitcast(out, four.as_pointer()), align=4)
                return context.get_dummy_value()

            places = types.uintp
            return types.void(sums, places, weights, places, means, places), code

        with self._lock:
            self._made = self._made or intrinsic(mean)
            return cast(Callable[..., Any], self._made)


Floats = npt.NDArray[np.float32]
"""C-contiguous array of one axis."""


def _weighted_mean(
    sums: Floats,
    pixel: np.uintp,
    weights: Floats,
    first: np.uintp,
    means: Floats,
    place: np.uintp,
    taps: int,
) -> None:
    """Add pixels of three channels that follow one another, each by its weight.

    Four values are read of each and written: the fourth is meaningless, the next pixel's first
    value takes its place. No position is checked.
    """
    total = weights[first] * sums[pixel : pixel + 4]
    for tap in range(1, taps):
        total = total + weights[first + tap] * sums[pixel + 3 * tap : pixel + 3 * tap + 4]
    means[place : place + 4] = total


_Mean = Callable[[Floats, np.uintp, Floats, np.uintp, Floats, np.uintp], None]
mean_of_3 = cast(_Mean, _WeightedMean(3))
mean_of_4 = cast(_Mean, _WeightedMean(4))
mean_of_5 = cast(_Mean, _WeightedMean(5))


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
