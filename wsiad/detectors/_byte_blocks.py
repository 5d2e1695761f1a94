"""Search in codes of bytes, which lie in blocks as the processor multiplies them.

Products of bytes are exact, and one instruction (AVX-512 VNNI) adds 64 of them. They are compared
with a vector's bound as they are made, and never written to memory that is not the core's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import BLOCK, CODE, GROUP, Bytes, Sums, byte_products, compiled
from wsiad.detectors._cells import Doubles, Floats, Indices, enter, square_distance

if TYPE_CHECKING:
    from wsiad.detectors._codes import Coded

SIGN = 128
"""Number that makes a byte with a sign one without, when it is added."""
_NEVER = np.int32(1 << 30)  # more than any sum
_LARGEST = float(1 << 27)  # more than any square of a distance of codes
_ABSENT = -(1 << 30)  # sums of codes that only fill a block


class Blocks(NamedTuple):
    """Codes of a bank in blocks; each of its M cells begins with a new one.

    Parameters
    ----------
    values : ndarray of uint8, (1024 · P,)
        Codes of P blocks; see :func:`~wsiad.core.compiled.byte_products`.
    sums : ndarray of int32, (16 · P,)
        Half the squared lengths of the codes, negative.
    begins : ndarray of int64, (M + 1,)
        Number of the first block of each cell.
    starts : ndarray of int64, (M + 1,)
        Where cells begin in ``order``.
    order : ndarray of int64, (B,)
        Indices of the vectors in the bank, cell by cell.
    errors : ndarray of float32, (M,)
        Largest error of a code of each cell.
    usual_error : float
        Median of the codes' errors.
    scale : float
        Distance of two neighbouring bytes.
    """

    values: Bytes
    sums: Sums
    begins: Indices
    starts: Indices
    order: Indices
    errors: Floats
    usual_error: float
    scale: float

    @classmethod
    def of(cls, coded: Coded, *, order: Indices, starts: Indices, scale: float) -> Self:
        """Put codes of vectors, which lie cell by cell, into blocks."""
        sizes = np.diff(starts)
        begins = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK))])
        places = np.arange(len(order)) + np.repeat(BLOCK * begins[:-1] - starts[:-1], sizes)
        filled = np.zeros((BLOCK * begins[-1], CODE), np.uint8)
        filled[places] = coded.codes.numpy().view(np.uint8) ^ np.uint8(SIGN)
        sums = np.full(len(filled), _ABSENT, np.int32)
        sums[places] = -(coded.squares.astype(np.int32) >> 1)
        fours = filled.reshape(-1, BLOCK, CODE // 4, 4).transpose(0, 2, 1, 3)
        return cls(
            values=np.ascontiguousarray(fours).reshape(-1),
            sums=sums,
            begins=begins,
            starts=starts,
            order=order,
            errors=np.maximum.reduceat(np.append(coded.errors, np.float32(0)), starts[:-1]),
            usual_error=float(np.median(coded.errors)),
            scale=scale,
        )


@compiled
def _least(best: float, error: float, scale: float, length: float, own: int) -> np.int32:
    """Return the smallest sum of products of a vector that may be nearer than the best."""
    reach = (np.sqrt(best) + error) / scale
    most = reach * reach * 1.000001 - length
    if not most > -_LARGEST:  # also of a vector that is not finite
        return _NEVER
    return np.int32(own - ((np.int64(min(most, _LARGEST)) + 1) >> 1))


@compiled
def compare(
    asked: Floats,
    bank: Floats,
    codes: npt.NDArray[np.int8],
    owns: Sums,
    lengths: Floats,
    errors: Floats,
    rows: Indices,
    places: Indices,
    first: int,
    last: int,
    held: Blocks,
    best: Doubles,
    found: Indices,
) -> None:
    """Compare vectors with the cells of a bank, and keep the nearest.

    Vectors ``asked``, of which those from ``first`` to ``last`` are searched, have ``codes`` whose
    squared lengths are ``lengths``, whose errors are ``errors``, and whose numbers add up to
    ``owns`` / ``SIGN``. With a cell, those of ``rows`` from the cell's number in ``places`` on are
    compared, in increasing order. For ``best`` and ``found`` see
    :func:`~wsiad.detectors._cells.enter`.
    """
    begins, starts, order, scale = held.begins, held.starts, held.order, held.scale
    values, sums = held.values, held.sums
    group, least = np.empty(GROUP, np.int64), np.empty(GROUP, np.int32)
    made = np.empty(GROUP * BLOCK, np.int32)
    highest, nearest = np.empty(GROUP, np.int32), np.empty(GROUP, np.int64)
    for cell in range(len(places) - 1):
        here = rows[places[cell] : places[cell + 1]]
        end = int(np.searchsorted(here, last))
        for begin in range(int(np.searchsorted(here, first)), end, GROUP):
            count = min(GROUP, end - begin)
            new = False
            for place in range(GROUP):
                group[place] = here[begin + min(place, count - 1)]
                least[place] = _NEVER
                highest[place] = np.int32(_ABSENT)
                new |= best.shape[1] == 1 and best[group[place], 0] == np.inf
            if new:
                # The one whose code is nearest first: few others are then near enough.
                for block in range(begins[cell], begins[cell + 1]):
                    byte_products(codes, group, values, sums, np.uintp(block), least, made)
                    for place in range(count):
                        high = highest[place]
                        for column in range(BLOCK * place, BLOCK * place + BLOCK):
                            high = max(high, made[column])
                        if high > highest[place]:
                            highest[place] = high
                            column = BLOCK * place
                            while made[column] != high:
                                column += 1
                            at = BLOCK * (block - begins[cell]) + column - BLOCK * place
                            nearest[place] = order[starts[cell] + at]
                for place in range(count):
                    row = group[place]
                    square = square_distance(asked[row], bank[nearest[place]])
                    if square < best[row, 0]:  # not if it is no number
                        best[row, 0], found[row, 0] = square, nearest[place]
            for place in range(count):
                row = group[place]
                error = errors[row] + held.errors[cell]
                worst = best[row, best.shape[1] - 1]
                least[place] = _least(worst, error, scale, lengths[row], owns[row])
            for block in range(begins[cell], begins[cell + 1]):
                bits = byte_products(codes, group, values, sums, np.uintp(block), least, made)
                column = 0
                while bits:
                    if bits & np.uint32(1):
                        at = BLOCK * (block - begins[cell]) + column
                        for place in range(count):
                            if made[BLOCK * place + column] < least[place]:
                                continue
                            row, index = group[place], order[starts[cell] + at]
                            square = square_distance(asked[row], bank[index])
                            if enter(best, found, row, square, index):
                                error = errors[row] + held.errors[cell]
                                worst = best[row, best.shape[1] - 1]
                                least[place] = _least(worst, error, scale, lengths[row], owns[row])
                    bits >>= np.uint32(1)
                    column += 1
