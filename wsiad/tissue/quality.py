"""Quality of tiles as numbers: sharpness, saturation, pen and black."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.tissue.artefacts import is_black, is_pen, planes_of, saturation

COLUMNS = ("sharpness", "saturation", "pen", "black")
"""Names of the quality columns of a store."""


def measure(tiles: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    """Measure tiles as they were scanned, before stain normalisation.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, H, W, 3)

    Returns
    -------
    dict of str to ndarray of float32, (N,)
        ``sharpness``: variance of the Laplacian of luma, (grey levels)², low where out
        of focus (Pech-Pacheco 2000); ``saturation``: mean, 0 to 1; ``pen`` and
        ``black``: share of pixels.
    """
    out = {name: np.empty(len(tiles), np.float32) for name in COLUMNS}
    for index, tile in enumerate(tiles):
        luma = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
        edges = cv2.Laplacian(luma, cv2.CV_16S)
        mean = cv2.sumElems(edges)[0] / edges.size
        out["sharpness"][index] = cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - mean**2
        planes = planes_of(tile)
        out["saturation"][index] = saturation(tile, planes).mean()
        for name, found in (("pen", is_pen(tile, planes)), ("black", is_black(tile, planes))):
            out[name][index] = np.count_nonzero(found) / found.size
    return out
