"""The colour table: the complete normalisation of a slide as one look-up per pixel.

Compiled loops without state look colours up in a table and fill it when a colour first occurs.
An entry holds red in its lowest byte, then green and blue, and 255 in its highest byte; an
entry of 0 is not known yet. A slide has a hundred thousand to a few million of the 256³ colours,
so most entries are never needed. Two threads that fill the same entry write the same value.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled, load_word, prefetch, store_word
from wsiad.core.errors import StainError
from wsiad.stain.colours import optical_density
from wsiad.stain.methods import PENALTY, transfer
from wsiad.stain.profile import LabStatistics, StainProfile, Triple, TwoStains

Entries = npt.NDArray[np.uint32]
"""The 256³ entries; the index is red + 256 green + 65536 blue."""

ENTRIES: Final = 1 << 24
_BYTE: Final = np.uint32(0xFF)
_PIXEL: Final = np.uint32(0xFFFFFF)
_KNOWN: Final = np.uint32(0xFF000000)
_8, _16 = np.uint32(8), np.uint32(16)
_AHEAD: Final = 3 * 384
"""Bytes of pixels between a look-up and the fetching of its entry to the core's own cache, from
which decoding displaces entries (measured in docs/performance.md)."""


class StainMap(NamedTuple):
    """A map between two pairs of stains, as numbers that a compiled loop can use.

    The product of a stain vector with a density is a sum over its channels, so a few
    hundred products are enough for all colours.

    Parameters
    ----------
    products : ndarray of float64, (2, 3, 256)
        Stain vectors of the slide times the optical density of each value of each channel.
    penalty : float
        Number that is subtracted from both sums; see
        :func:`wsiad.stain.methods.concentrations`.
    cosine : float
        Cosine of the angle between both stain vectors.
    exponents : ndarray of float64, (2, 3)
        Log intensity of the result's channels for one unit of each of the slide's stains.
    """

    products: npt.NDArray[np.float64]
    penalty: float
    cosine: float
    exponents: npt.NDArray[np.float64]


NO_MAP: Final = StainMap(np.zeros((2, 3, 256)), 0.0, 0.0, np.zeros((2, 3)))
"""Map for tables that are filled already."""


def map_in_place(table: Entries, formula: StainMap, pixels: npt.NDArray[np.uint8]) -> None:
    """Replace pixels by their entries, in place.

    Parameters
    ----------
    table : ndarray of uint32, (256³,)
        Table in which entries that are not known yet are filled.
    formula : StainMap
        Map that gives the values of these entries.
    pixels : ndarray of uint8, C-contiguous, (..., 3)
    """
    values = pixels.reshape(-1)
    mapped = _map_fours(table, *formula, values)
    _map_bytes(table, *formula, values[mapped:])


@compiled
def _entry(
    colour: np.uint32,
    products: npt.NDArray[np.float64],
    penalty: float,
    cosine: float,
    exponents: npt.NDArray[np.float64],
) -> np.uint32:
    """Return the entry of a colour: its concentrations by the lasso, shown in other stains."""
    red, green, blue = colour & _BYTE, (colour >> _8) & _BYTE, (colour >> _16) & _BYTE
    first = products[0, 1, green] + products[0, 0, red] - penalty + products[0, 2, blue]
    second = products[1, 1, green] + products[1, 0, red] - penalty + products[1, 2, blue]
    left_first, left_second = first - cosine * second, second - cosine * first
    scale = 1.0 / (1.0 - cosine * cosine)
    amount_first = max(left_first * scale if left_second > 0 else first, 0.0)
    amount_second = max(left_second * scale if left_first > 0 else second, 0.0)
    entry = _KNOWN
    for channel in range(3):
        exponent = exponents[0, channel] * amount_first + exponents[1, channel] * amount_second
        value = np.uint32(np.rint(255.0 * math.exp(exponent)))
        entry |= value << np.uint32(8 * channel)
    return np.uint32(entry)


@compiled
def _known(
    table: Entries,
    colour: np.uint32,
    products: npt.NDArray[np.float64],
    penalty: float,
    cosine: float,
    exponents: npt.NDArray[np.float64],
) -> np.uint32:
    entry = table[colour]
    if entry == 0:
        entry = _entry(colour, products, penalty, cosine, exponents)
        table[colour] = entry
    return entry


@compiled
def _map_bytes(
    table: Entries,
    products: npt.NDArray[np.float64],
    penalty: float,
    cosine: float,
    exponents: npt.NDArray[np.float64],
    values: npt.NDArray[np.uint8],
) -> None:
    for start in range(0, len(values), 3):
        colour = np.uint32(values[start]) | np.uint32(values[start + 1]) << _8
        colour |= np.uint32(values[start + 2]) << _16
        entry = _known(table, colour, products, penalty, cosine, exponents)
        for channel in range(3):
            values[start + channel] = (entry >> np.uint32(8 * channel)) & _BYTE


@compiled
def _map_fours(
    table: Entries,
    products: npt.NDArray[np.float64],
    penalty: float,
    cosine: float,
    exponents: npt.NDArray[np.float64],
    values: npt.NDArray[np.uint8],
) -> int:
    """Map pixels four at a time while a fifth follows; return the number of values mapped.

    A colour is read as the word at its first byte, without regard to alignment. This takes one
    load and one store for a pixel instead of three each, and half of the time. The last byte of a
    word is the next pixel's first: that word is read before its first byte is overwritten, and
    its own store corrects the byte.
    """
    stop = len(values) // 12 * 12 - 12
    if stop <= 0:
        return 0
    one = load_word(values, 0)
    start = 0
    while start < stop:
        # The loop over known colours has no other in it, which keeps its numbers in registers.
        while start < stop:
            ahead = min(start + _AHEAD, stop - 12)
            for place in range(ahead, ahead + 12, 3):
                prefetch(table, np.uintp(load_word(values, place) & _PIXEL))
            two, three = load_word(values, start + 3), load_word(values, start + 6)
            four, five = load_word(values, start + 9), load_word(values, start + 12)
            p, q = table[one & _PIXEL], table[two & _PIXEL]
            r, s = table[three & _PIXEL], table[four & _PIXEL]
            if p & q & r & s == 0:
                break
            store_word(values, start, p)
            store_word(values, start + 3, q)
            store_word(values, start + 6, r)
            store_word(values, start + 9, s)
            one = five
            start += 12
        if start < stop:
            two, three = load_word(values, start + 3), load_word(values, start + 6)
            for word in (one, two, three, load_word(values, start + 9)):
                colour = word & _PIXEL
                if table[colour] == 0:
                    table[colour] = _entry(colour, products, penalty, cosine, exponents)
    # The byte after the last store belongs to a pixel that is still to come.
    values[stop] = one & _BYTE
    return stop


Pixels = npt.NDArray[np.uint8]
"""RGB pixels, uint8 (..., 3)."""

_LEVELS: Final = np.arange(256, dtype=np.uint8)
_SLAB_BLUES: Final = 4


class ColourTable:
    """A map from each of the 256³ colours to another colour, or the identity.

    One table serves a slide, and several threads can use it at the same time. It takes up to
    64 MB. Entries are computed when their colours first occur.

    Examples
    --------
    >>> table = ColourTable.identity()
    >>> tiles = np.zeros((2, 8, 8, 3), np.uint8)
    >>> table.apply(tiles) is tiles
    True
    """

    def __init__(self, entries: Entries | None, formula: StainMap = NO_MAP) -> None:
        self._entries, self._formula = entries, formula

    @classmethod
    def identity(cls) -> Self:
        """Return the map of each colour to itself, which needs no table."""
        return cls(None)

    @classmethod
    def between(cls, profile: StainProfile, target: StainProfile) -> Self:
        """Return the map from a slide's stain to the target's.

        With two stains, the concentrations of a colour are scaled by the ratio of the
        strengths and shown in the target's stains; glass becomes pure white. Values are
        rounded to the nearest integer (StainTools truncates them).

        Parameters
        ----------
        profile : StainProfile
            Profile of the slide.
        target : StainProfile
            Profile to which the slide is normalised.

        Raises
        ------
        StainError
            The target was estimated with another method.
        """
        if profile.method == "none":
            return cls.identity()
        if profile.method != target.method:
            raise StainError(
                f"a slide's stain by {profile.method} cannot be normalised to a target by "
                f"{target.method}",
                remedy="Estimate slide and target with the same method.",
            )
        if profile.stains is not None and target.stains is not None:
            formula = _stain_map(profile.white, profile.stains, target.stains)
            return cls(np.zeros(ENTRIES, np.uint32), formula)
        assert profile.lab is not None
        assert target.lab is not None
        return cls(_lab_entries(profile.white, profile.lab, target.lab))

    @property
    def is_identity(self) -> bool:
        """True if every colour stays as it is."""
        return self._entries is None

    def apply(self, rgb: Pixels, *, out: Pixels | None = None) -> Pixels:
        """Map pixels.

        Parameters
        ----------
        rgb : ndarray of uint8, (..., 3)
            Pixels to map.
        out : ndarray of uint8, (..., 3), C-contiguous, optional
            Array for the result, which can be ``rgb`` itself.

        Returns
        -------
        ndarray of uint8, (..., 3)
            A new array; ``out`` if it was passed; or ``rgb`` itself with the identity and no
            ``out``.

        Raises
        ------
        StainError
            The array does not hold RGB pixels, or ``out`` has another shape or type.
        """
        if rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
            raise StainError(f"expected uint8 (..., 3) pixels, got {rgb.dtype} {rgb.shape}")
        if out is not None and (
            out.dtype != np.uint8 or out.shape != rgb.shape or not out.flags.c_contiguous
        ):
            raise StainError(f"out must be a C-contiguous uint8 array of shape {rgb.shape}")
        if self._entries is None and out is None:
            return rgb
        if out is None:
            out = np.empty(rgb.shape, np.uint8)
        if out is not rgb:
            np.copyto(out, rgb)
        if self._entries is not None:
            map_in_place(self._entries, self._formula, out)
        return out


def _stain_map(white: Triple, source: TwoStains, target: TwoStains) -> StainMap:
    density = optical_density(np.column_stack([_LEVELS] * 3), white)
    scale = np.divide(target.strength, source.strength)
    return StainMap(
        np.ascontiguousarray(source.matrix[:, :, None] * density.T),
        PENALTY,
        float(source.matrix[0] @ source.matrix[1]),
        -(scale[:, None] * target.matrix),
    )


def _lab_entries(white: Triple, source: LabStatistics, target: LabStatistics) -> Entries:
    balanced = np.minimum(_LEVELS[:, None] * np.divide(255.0, white), 255.0)
    rgba = np.full((256, 256, 256, 4), 255, np.uint8)
    rgb = np.empty((_SLAB_BLUES, 256, 256, 3), np.float32)
    rgb[..., 0], rgb[..., 1] = balanced[:, 0], balanced[:, 1, None]
    for blue in range(0, 256, _SLAB_BLUES):
        blues = slice(blue, blue + _SLAB_BLUES)
        rgb[..., 2] = balanced[blues, 2, None, None]
        moved = transfer(rgb.reshape(-1, 3), source, target).reshape(rgb.shape)
        rgba[blues, ..., :3] = np.rint(moved, out=moved)
    return rgba.reshape(-1).view(np.uint32)
