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


class _ByteProducts(_Compiled):
    """Products of codes of bytes, of which the processor adds four of sixteen codes at once."""

    def __call__(self, *arguments: Any) -> Any:
        """Call the function as it was written: only compiled code has instructions."""
        return self.py_func(*arguments)

    def made(self) -> Callable[..., Any]:
        """Return the products as compiled functions call them."""
        from llvmlite import ir
        from numba import types
        from numba.extending import intrinsic

        number, place = ir.IntType(32), ir.IntType(64)
        wide = ir.VectorType(number, BLOCK)
        nothing, all_alike = ir.Constant(wide, ir.Undefined), wide([0] * BLOCK)

        def products(
            _: Any, codes: Any, rows: Any, blocks: Any, sums: Any, block: Any, least: Any, out: Any
        ) -> Any:
            def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                def start(array: int, *at: Any) -> Any:
                    kind = signature.args[array]
                    data = context.make_array(kind)(context, builder, values[array]).data
                    return builder.gep(data, list(at))

                def alike(value: Any) -> Any:
                    one = builder.insert_element(nothing, value, number(0))
                    return builder.shuffle_vector(one, nothing, all_alike)

                def vector(pointer: Any) -> Any:
                    return builder.bitcast(pointer, wide.as_pointer())

                function = ir.FunctionType(wide, [wide] * 3)
                name = "llvm.x86.avx512.vpdpbusd.512"
                add = builder.module.declare_intrinsic(name, [], function)
                words = [
                    builder.bitcast(
                        start(0, builder.mul(builder.load(start(1, place(row))), place(CODE))),
                        number.as_pointer(),
                    )
                    for row in range(GROUP)
                ]
                begin = builder.mul(values[4], place(BLOCK))
                totals = [builder.load(vector(start(3, begin)), align=4)] * GROUP
                begin = builder.mul(values[4], place(BLOCK * CODE))
                for four in range(CODE // 4):
                    at = builder.add(begin, place(4 * BLOCK * four))
                    across = builder.load(vector(start(2, at)), align=1)
                    for row, word in enumerate(words):
                        own = alike(builder.load(builder.gep(word, [place(four)]), align=1))
                        totals[row] = builder.call(add, [totals[row], across, own])
                reached = None
                for row, total in enumerate(totals):
                    builder.store(total, vector(start(6, place(BLOCK * row))), align=4)
                    bound = alike(builder.load(start(5, place(row))))
                    here = builder.icmp_signed(">=", total, bound)
                    reached = here if reached is None else builder.or_(reached, here)
                return builder.zext(builder.bitcast(reached, ir.IntType(BLOCK)), number)

            return types.uint32(codes, rows, blocks, sums, types.uintp, least, out), code

        with self._lock:
            self._made = self._made or intrinsic(products)
            return cast(Callable[..., Any], self._made)


CODE, BLOCK, GROUP = 64, 16, 8
"""Number of bytes of a code, of codes in a block, and of codes that are multiplied by a block."""

Codes = npt.NDArray[np.int8]
"""C-contiguous array of one axis."""
Indices = npt.NDArray[np.int64]
Sums = npt.NDArray[np.int32]


def _byte_products(
    codes: Codes,
    rows: Indices,
    blocks: Bytes,
    sums: Sums,
    block: np.uintp,
    least: Sums,
    out: Sums,
) -> np.uint32:
    """Multiply eight codes by the sixteen of a block, and tell which of these reach a bound.

    It is for compiled loops, where :func:`multiplies_bytes`. No position is checked.

    Parameters
    ----------
    codes : ndarray of int8, (64 · N,)
    rows : ndarray of int64, (8,)
        Which of the codes.
    blocks : ndarray of uint8, (1024 · M,)
        Codes in blocks of 16: the first four bytes of each of them, then the next four.
    sums : ndarray of int32, (16 · M,)
        What the products are added to.
    block : uintp
        Number of the block.
    least : ndarray of int32, (8,)
        Bounds of the sums.
    out : ndarray of int32, (128,)
        Memory of the sums, of one row after the other.

    Returns
    -------
    uint32
        One bit for each code of the block, which is set if a row's sum is its bound or more.
    """
    own = codes.reshape(-1, CODE)[rows].astype(np.int32)
    across = blocks.reshape(-1, CODE // 4, BLOCK, 4)[block].transpose(1, 0, 2).reshape(BLOCK, CODE)
    found = own @ across.T.astype(np.int32) + sums.reshape(-1, BLOCK)[block]
    out[:] = found.reshape(-1)
    reached = (found >= least[:, None]).any(axis=0)
    return np.uint32(reached @ (1 << np.arange(BLOCK)))


byte_products = cast(
    "Callable[[Codes, Indices, Bytes, Sums, np.uintp, Sums, Sums], np.uint32]",
    _ByteProducts(cast(FunctionType, _byte_products)),
)


@functools.cache
def multiplies_bytes() -> bool:
    """Tell whether compiled functions have the instruction of :func:`byte_products`.

    It is part of AVX-512 VNNI. Numba is asked, not the processor: it can be told to leave
    instructions out (``NUMBA_CPU_FEATURES``), or not to compile at all (``NUMBA_DISABLE_JIT``).
    """
    from numba.core import config
    from numba.core.registry import cpu_target

    if cast(Any, config).DISABLE_JIT:
        return False
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return {"+avx512f", "+avx512vnni"} <= set(features)


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
