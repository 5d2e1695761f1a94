"""Tissue coverage of tiles by an integral image, exact for fractional edges."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import PixelMap


def coverage(
    mask: npt.NDArray[np.bool_], placement: PixelMap, boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Share of each box that is tissue.

    The integral of a mask over ``[0, x) × [0, y)`` is bilinear within each pixel, so
    interpolating the integral image (Crow 1984) gives the exact area for any edges.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
    placement : PixelMap
        From mask pixels to level-0 pixels.
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height`` in level-0 pixels; parts beyond the mask are no tissue.

    Returns
    -------
    ndarray of float32, (N,)
        0 to 1.
    """
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    if mask.size:
        cv2.integral(mask.view(np.uint8), sum=integral, sdepth=cv2.CV_64F)
    left, top = placement.from_level0(boxes[:, 0], boxes[:, 1])
    right, bottom = placement.from_level0(boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3])

    def at(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = x.clip(0, mask.shape[1]), y.clip(0, mask.shape[0])
        column = np.minimum(x.astype(np.int64), max(0, mask.shape[1] - 1))
        row = np.minimum(y.astype(np.int64), max(0, mask.shape[0] - 1))
        dx, dy = x - column, y - row
        right_, below = np.minimum(column + 1, mask.shape[1]), np.minimum(row + 1, mask.shape[0])
        upper = integral[row, column] * (1 - dx) + integral[row, right_] * dx
        lower = integral[below, column] * (1 - dx) + integral[below, right_] * dx
        return upper * (1 - dy) + lower * dy

    tissue = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    share = tissue / ((right - left) * (bottom - top))
    return share.clip(0, 1).astype(np.float32)
