"""Pieces and holes of a mask by their size, at a few bytes a pixel."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

_BAND_PX = 1 << 20


def bands(height: int, width: int) -> Iterator[slice]:
    """Cut an image into bands of rows of about a million pixels."""
    rows = max(1, _BAND_PX // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def without_small_pieces(mask: Mask, *, min_px: float) -> Mask:
    """Leave out pieces of less than ``min_px`` pixels; pixels touch by their edges.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
    min_px : float

    Returns
    -------
    ndarray of bool, (H, W)
    """
    labels, areas = _labelled(mask)
    keep = areas >= min_px
    keep[0] = False  # the background
    return _chosen(keep, labels)


def without_small_holes(mask: Mask, *, min_px: float) -> Mask:
    """Fill what a mask encloses, if it has less than ``min_px`` pixels.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
        Enclosed is what does not reach its border by edges of pixels.
    min_px : float

    Returns
    -------
    ndarray of bool, (H, W)
    """
    labels, areas = _labelled(~mask)
    fill = areas < min_px
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        fill[border] = False
    fill[0] = True  # the mask itself
    return _chosen(fill, labels)


def _labelled(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Labels of connected pixels, (H, W), and how many pixels each label has."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    return np.asarray(labels), np.asarray(stats)[:, cv2.CC_STAT_AREA]


def _chosen(chosen: Mask, labels: npt.NDArray[np.int32]) -> Mask:
    """Look labels up; indexing by all of them at once would take 8 bytes a pixel more."""
    out = np.empty(labels.shape, np.bool_)
    for rows in bands(*labels.shape):
        out[rows] = chosen[labels[rows]]
    return out
