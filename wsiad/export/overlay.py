"""Pictures for people: the slide with its tissue outlined, and with its heatmap over it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsiad.files import atomic_file
from wsiad.geometry import PixelMap
from wsiad.heatmaps.colours import ColourScale
from wsiad.heatmaps.heatmap import Heatmap
from wsiad.tiles.overview import Overview, hatch_left_out

RGB = npt.NDArray[np.uint8]

_LONGEST_PX = 1600
_BAND_ROWS = 128
_OUTLINE = (0, 110, 60)


def outline(thumbnail: RGB, mask: npt.NDArray[np.bool_]) -> RGB:
    """Draw the outline of a mask onto a thumbnail of the same size.

    Parameters
    ----------
    thumbnail : ndarray of uint8, (H, W, 3)
    mask : ndarray of bool, (H, W)

    Returns
    -------
    ndarray of uint8, (H, W, 3)
    """
    picture = thumbnail.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask.shape) / 800))
    cv2.drawContours(picture, contours, -1, _OUTLINE, width)
    return picture


def overlay(thumbnail: RGB, placement: PixelMap, heatmap: Heatmap, scale: ColourScale) -> RGB:
    """Lay a heatmap over a thumbnail: each pixel by the heatmap pixel under its centre.

    Parameters
    ----------
    thumbnail : ndarray of uint8, (H, W, 3)
    placement : PixelMap
        From thumbnail pixels to level-0 pixels.
    heatmap : Heatmap
    scale : ColourScale

    Returns
    -------
    ndarray of uint8, (H, W, 3)
    """
    height, width = thumbnail.shape[:2]
    columns, rows = (np.arange(n, dtype=np.float64) + 0.5 for n in (width, height))
    x, y = placement.to_level0(columns, rows)
    column, row = (np.floor(v).astype(np.int64) for v in heatmap.placement.from_level0(x, y))
    inside_x = (column >= 0) & (column < heatmap.size.width)
    inside_y = (row >= 0) & (row < heatmap.size.height)
    # Grey first: the colours of the stain and of the heatmap must not be confused.
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)
    picture = np.empty_like(thumbnail)
    # In bands of rows: as floats, a large slide takes hundreds of megabytes.
    for top in range(0, height, _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        shown = np.repeat((128 + grey[band].astype(np.float32) / 2)[..., None], 3, axis=2)
        there = np.ix_(row[band][inside_y[band]], column[inside_x])
        rgba = scale.rgba(heatmap.scores[there]).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        where = np.ix_(np.flatnonzero(inside_y[band]), np.flatnonzero(inside_x))
        shown[where] = shown[where] * (1 - alpha) + rgba[..., :3] * alpha
        picture[band] = np.rint(shown)
    return picture


def hatch_unscored(picture: RGB, overview: Overview) -> None:
    """Hatch what of a slide was left out, by its reason, onto an overlay of the same slide.

    Parameters
    ----------
    picture : ndarray of uint8, (H, W, 3)
        Of the size of the overview's thumbnail; changed in place.
    overview : Overview
    """
    hatch_left_out(picture, overview, overview.placement, overview.pen)


def write_picture(path: Path, picture: RGB) -> None:
    """Write a picture as PNG, at most 1600 px on its longest edge."""
    image = Image.fromarray(picture)
    image.thumbnail((_LONGEST_PX, _LONGEST_PX), Image.Resampling.BOX)
    with atomic_file(path) as partial:
        image.save(partial, optimize=True)
