"""Quality of tiles as numbers: sharpness, saturation, pen and black."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.compiled import compiled
from wsiad.tissue.artefacts import BLACK_MAX, has_pen_colour

COLUMNS = ("sharpness", "saturation", "pen", "black")
"""Names of the quality columns of a store."""

_ROWS = 4
"""Saturation, pen and black are those of every fourth row: colours hardly change within
three, and all rows would cost as much as half of decoding them."""
_ONE = 65535.0
_RUN = 1024
"""Pixels whose sums fit in 32 bits, of which a processor adds twice as many at once as of
64; 1024 squares of 4 × 255 do. Numba adds in 64 bits wherever it is not told otherwise."""

_Plane = npt.NDArray[np.uint8]


def measure(tiles: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    """Measure tiles as they were scanned, before stain normalisation.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, H, W, 3)

    Returns
    -------
    dict of str to ndarray of float32, (N,)
        ``sharpness``: variance of the Laplacian of luma over the pixels with four
        neighbours, (grey levels)², low where out of focus (Pech-Pacheco 2000);
        ``saturation``: mean, 0 to 1, and ``pen`` and ``black``: share of pixels, of
        every fourth row.
    """
    out = {name: np.zeros(len(tiles), np.float32) for name in COLUMNS}
    # Fresh memory for each tile would cost as much as what is done in it.
    luma = np.empty(tiles.shape[1:3], np.uint8)
    rows = np.empty(tiles[0, ::_ROWS].shape, np.uint8) if len(tiles) else luma
    planes = [np.empty(rows.shape[:2], np.uint8) for _ in range(3)]
    for index, tile in enumerate(tiles):
        cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY, dst=luma)
        out["sharpness"][index] = _laplacian_variance(luma)
        rows[:] = tile[::_ROWS]
        cv2.split(rows, planes)
        saturation, pen, black = _count_colours(*(plane.reshape(-1) for plane in planes))
        out["saturation"][index] = saturation / _ONE / planes[0].size
        out["pen"][index], out["black"][index] = pen / planes[0].size, black / planes[0].size
    return out


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
    """Sum of saturations in 65535ths, and numbers of pixels of pen and of black."""
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
