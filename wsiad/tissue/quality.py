"""The quality of tiles as numbers: sharpness, saturation, pen and black.

Thresholds on these columns decide which tiles are too bad to be used. Tiles that are not used, for
this or another reason, are kept by position and reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from wsiad.core.compiled import compiled
from wsiad.core.geometry import IntArray
from wsiad.tissue.artefacts import BLACK_MAX, has_pen_colour
from wsiad.tissue.tissue_options import QualityThresholds

COLUMNS = ("sharpness", "saturation", "pen", "black")
"""Names of the quality columns of a store."""

_ROWS = 4
"""Step between the rows that give saturation, pen and black: colours hardly change within three
rows, and all rows would cost as much as half of decoding them."""
_ONE = 65535.0
_RUN = 1024
"""Number of pixels whose sums fit in 32 bits, of which a processor adds twice as many at a time as
of 64; 1024 squares of 4 × 255 do. Numba adds in 64 bits unless told otherwise."""

_Plane = npt.NDArray[np.uint8]


def measure(tiles: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    """Measure tiles as they were scanned, before stain normalisation.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, H, W, 3)

    Returns
    -------
    dict of str to ndarray of float32, (N,)
        ``sharpness``: variance of the Laplacian of luma over the pixels with four neighbours,
        (grey levels)², low if out of focus (Pech-Pacheco 2000); ``saturation``: mean, 0 to 1;
        ``pen`` and ``black``: share of pixels. The last three are measured on every fourth row.
    """
    values = np.zeros((len(tiles), len(COLUMNS)), np.float64)
    if tiles.size:
        _measure(np.ascontiguousarray(tiles), values)
    return {name: values[:, column].astype(np.float32) for column, name in enumerate(COLUMNS)}


@compiled
def _measure(tiles: npt.NDArray[np.uint8], values: npt.NDArray[np.float64]) -> None:
    """Fill in the columns tile by tile, while a tile is in the processor's cache."""
    count, height, width, _ = tiles.shape
    pixels = -(-height // _ROWS) * width
    luma = np.empty((height, width), np.uint8)
    red, green, blue = (
        np.empty(pixels, np.uint8),
        np.empty(pixels, np.uint8),
        np.empty(pixels, np.uint8),
    )
    for index in range(count):
        _fill_luma(tiles[index].reshape(-1), luma.reshape(-1))
        for y in range(0, height, _ROWS):
            start = y // _ROWS * width
            _part(tiles[index, y].reshape(-1), red[start:], green[start:], blue[start:])
        saturation, pen, black = _count_colours(red, green, blue)
        values[index, 0] = _laplacian_variance(luma)
        values[index, 1] = saturation / _ONE / pixels
        values[index, 2], values[index, 3] = pen / pixels, black / pixels


@compiled
def _fill_luma(values: _Plane, luma: _Plane) -> None:
    """Compute the luma of ITU-R BT.601 in 15 bits, like OpenCV: 0.299, 0.587 and 0.114."""
    for x in range(len(luma)):
        red, green, blue = (
            np.int32(values[3 * x]),
            np.int32(values[3 * x + 1]),
            np.int32(values[3 * x + 2]),
        )
        total = np.int32(red * np.int32(9798) + green * np.int32(19235))
        total = np.int32(total + blue * np.int32(3735) + np.int32(16384))
        luma[x] = np.uint8(total >> np.int32(15))


@compiled
def _part(row: _Plane, red: _Plane, green: _Plane, blue: _Plane) -> None:
    """Split the pixels of a row into their channels."""
    for x in range(len(row) // 3):
        red[x], green[x], blue[x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]


@compiled
def _laplacian_variance(luma: _Plane) -> np.float64 | float:
    height, width = luma.shape
    total = squares = np.int64(0)
    for y in range(1, height - 1):
        for left in range(0, width - 2, _RUN):
            row = luma[y, left : left + _RUN + 2]
            above, below = luma[y - 1, left + 1 :], luma[y + 1, left + 1 :]
            part = part_squares = np.int32(0)
            for x in range(len(row) - 2):
                around = np.int32(above[x]) + np.int32(below[x])
                around += np.int32(row[x]) + np.int32(row[x + 2])
                value = np.int32(around - 4 * np.int32(row[x + 1]))
                part = np.int32(part + value)
                part_squares = np.int32(part_squares + np.int32(value * value))
            total += part
            squares += part_squares
    count = (height - 2) * (width - 2)
    return squares / count - (total / count) ** 2 if count > 0 else 0.0


@compiled
def _count_colours(red: _Plane, green: _Plane, blue: _Plane) -> tuple[np.int64, np.int64, np.int64]:
    """Return the sum of saturations in 65535ths, and the numbers of pixels of pen and of black."""
    saturation = pen = black = np.int64(0)
    for start in range(0, len(red), _RUN):
        reds, greens, blues = red[start : start + _RUN], green[start:], blue[start:]
        part = part_pen = part_black = np.int32(0)
        for i in range(len(reds)):
            r, g, b = np.int32(reds[i]), np.int32(greens[i]), np.int32(blues[i])
            high, low = max(max(r, g), b), min(min(r, g), b)
            share = np.float32(np.int32(high - low)) / np.float32(max(high, np.int32(1)))
            # Whole numbers, whose sum does not depend on the order of adding.
            part = np.int32(part + np.int32(np.float32(_ONE) * share))
            part_pen = np.int32(part_pen + np.int32(has_pen_colour(r, g, b)))
            part_black = np.int32(part_black + np.int32(high <= BLACK_MAX))
        saturation += part
        pen += part_pen
        black += part_black
    return saturation, pen, black


Reasons = npt.NDArray[np.uint8]
"""A :class:`Reason` for each tile."""


class Reason(IntEnum):
    """The reason why a tile is not used, with the numbers of a store's ``left_out_reason``.

    The order decides the single reason of a tile that fails several thresholds, so that counts
    add up. Marks over the tissue come before their effects on its look.
    """

    USABLE = 0
    MISSING = 1
    """The slide has no pixels for a part of the tile."""
    BLACK = 2
    PEN = 3
    SATURATION = 4
    SHARPNESS = 5
    DAMAGED = 6
    """A part of the tile is damaged in the file, and damage is skipped."""

    @property
    def word(self) -> str:
        """Name of the reason in counts: its quality column, ``"missing"`` or ``"damaged"``."""
        return self.name.lower()


QUALITY_REASONS = (Reason.BLACK, Reason.PEN, Reason.SATURATION, Reason.SHARPNESS)
"""Reasons that follow from thresholds."""


def judge(columns: Mapping[str, npt.NDArray[np.float32]], thresholds: QualityThresholds) -> Reasons:
    """Judge tiles by their quality.

    Parameters
    ----------
    columns : mapping of str to ndarray of float32, (N,)
        Columns of :func:`wsiad.tissue.quality.measure`.
    thresholds : QualityThresholds
        Thresholds; a tile exactly on a threshold passes it.

    Returns
    -------
    ndarray of uint8, (N,)
        First :class:`Reason` that applies to each tile; 0 if none does.

    Notes
    -----
    A threshold is compared as float32, like the columns, so that tiles are judged the same when
    they are cut and when they are read from a store.
    """
    reasons = np.zeros(len(columns["sharpness"]), np.uint8)
    limits = (
        (Reason.BLACK, thresholds.max_black, np.greater),
        (Reason.PEN, thresholds.max_pen, np.greater),
        (Reason.SATURATION, thresholds.min_saturation, np.less),
        (Reason.SHARPNESS, thresholds.min_sharpness, np.less),
    )
    for reason, limit, fails in limits:
        if limit is not None:
            failed = fails(columns[reason.word], np.float32(limit))
            reasons[failed & (reasons == Reason.USABLE)] = reason
    return reasons


def count_reasons(reasons: Reasons) -> dict[str, int]:
    """Count the tiles that fail for each quality reason, zeros included."""
    counts = np.bincount(reasons, minlength=len(Reason))
    return {reason.word: int(counts[reason]) for reason in QUALITY_REASONS}


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts by reason as text; empty if all are zero.

    Examples
    --------
    >>> in_words({"black": 0, "pen": 3, "sharpness": 12})
    'sharpness 12, pen 3'
    """
    found = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{word} {count:,}" for word, count in found if count)


def _no_places() -> IntArray:
    return np.empty(0, np.int32)


def _no_reasons() -> Reasons:
    return np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Tiles of a grid that are not used; by default none.

    Parameters
    ----------
    rows, columns : ndarray of int32, (N,)
        Positions of the tiles in the grid.
    reasons : ndarray of uint8, (N,)
        Reason for each tile, a :class:`wsiad.tissue.quality.Reason`.
    """

    rows: IntArray = field(default_factory=_no_places)
    columns: IntArray = field(default_factory=_no_places)
    reasons: Reasons = field(default_factory=_no_reasons)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def without_pixels(
        cls, rows: IntArray, columns: IntArray, damaged: npt.NDArray[np.bool_]
    ) -> LeftOut:
        """Return tiles that lack pixels in a part, missing in the file or damaged."""
        reasons = np.where(damaged, Reason.DAMAGED, Reason.MISSING).astype(np.uint8)
        return cls(rows, columns, reasons)

    @classmethod
    def join(cls, parts: Iterable[LeftOut]) -> LeftOut:
        """Join parts in their order."""
        some = [part for part in parts if len(part)]
        if not some:
            return cls()
        return cls(
            np.concatenate([part.rows for part in some]),
            np.concatenate([part.columns for part in some]),
            np.concatenate([part.reasons for part in some]),
        )

    def in_order(self) -> LeftOut:
        """Return the tiles sorted by row and column, in whatever order they were read."""
        order = np.lexsort((self.columns, self.rows))
        return LeftOut(self.rows[order], self.columns[order], self.reasons[order])

    def count(self, reason: Reason) -> int:
        """Count the tiles with this reason."""
        return int(np.count_nonzero(self.reasons == reason))

    def by_quality(self) -> dict[str, int]:
        """Count the tiles that fail a quality threshold, by its name."""
        return count_reasons(self.reasons)
