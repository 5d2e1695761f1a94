"""From a tumour mask to lesions: what counts as one, and what is too small to count.

Follows the CAMELYON16 evaluation (Ehteshami Bejnordi et al., JAMA 318, 2017): tumour
within 75 µm belongs to one lesion, holes are filled, and a region whose longest
diameter is below 275 µm is a group of isolated tumour cells (ITC), which is neither to
be found nor wrong to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.units import Microns

MERGE_UM = Microns(75.0)
"""Tumour regions up to this far apart are one lesion."""

ITC_UM = Microns(275.0)
"""Regions with a shorter longest axis are isolated tumour cells."""

_COARSE = 16
"""Mask pixels per cell of the coarse search for tumour."""

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationMask:
    """The lesions of a slide.

    Parameters
    ----------
    labels : ndarray of int32, (H, W)
        0 outside, else the number of the region, counted from 1 in reading order of
        their first pixels.
    axes_px : tuple of float
        Longest axis of each region, mask pixels.
    itc : frozenset of int
        Numbers of the regions that are isolated tumour cells.
    """

    labels: npt.NDArray[np.int32]
    axes_px: tuple[float, ...]
    itc: frozenset[int]

    @property
    def lesions(self) -> int:
        """Number of regions that are not isolated tumour cells."""
        return len(self.axes_px) - len(self.itc)


def evaluation_mask(tumour: npt.NDArray[np.bool_], *, pixel_um: float) -> EvaluationMask:
    """Merge, fill, number and measure the tumour regions of a mask.

    Tumour is widened by half of :data:`MERGE_UM` (distances strictly below it), holes
    are filled, regions that touch at an edge or corner are one. The longest axis is
    that of the ellipse with the region's second moments, after widening, as in the
    official scripts. Only the surroundings of tumour are worked on; the result is that
    of working on the whole mask.

    Parameters
    ----------
    tumour : ndarray of bool, (H, W)
        Tumour pixels.
    pixel_um : float
        Edge of a mask pixel, µm.
    """
    reach = MERGE_UM / (pixel_um * 2)
    labels = np.zeros(tumour.shape, dtype=np.int32)
    found: list[tuple[tuple[int, int], Window, npt.NDArray[np.bool_], float]] = []
    for window in _windows_with_tumour(tumour, margin=int(np.ceil(reach)) + 1):
        found.extend(_regions(tumour[window], window, reach))
    found.sort(key=lambda region: region[0])
    for number, (_, window, region, _axis) in enumerate(found, start=1):
        labels[window][region] = number
    axes = tuple(axis for *_, axis in found)
    itc = frozenset(n for n, axis in enumerate(axes, start=1) if axis < ITC_UM / pixel_um)
    return EvaluationMask(labels, axes, itc)


def _regions(
    tumour: npt.NDArray[np.bool_], window: Window, reach: float
) -> Iterator[tuple[tuple[int, int], Window, npt.NDArray[np.bool_], float]]:
    """Yield first pixel, bounding window, pixels and longest axis of each region."""
    from scipy import ndimage
    from skimage import measure

    near = ndimage.distance_transform_edt(~tumour) < reach
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    top, left = window[0].start, window[1].start
    for region in measure.regionprops(labels):
        rows, columns = region.slice
        box = (
            slice(rows.start + top, rows.stop + top),
            slice(columns.start + left, columns.stop + left),
        )
        first_column = int(np.flatnonzero(region.image[0])[0])
        first = (box[0].start, box[1].start + first_column)
        yield first, box, region.image, float(region.axis_major_length)


def _windows_with_tumour(tumour: npt.NDArray[np.bool_], *, margin: int) -> list[Window]:
    """Disjoint windows that hold all tumour with a margin around it.

    Found on a coarse grid, so that no array of the size of the mask is needed. Windows
    that overlap are merged until none does: nothing in one then touches or encloses
    anything in another.
    """
    from scipy import ndimage

    height, width = tumour.shape
    rows = np.arange(0, height, _COARSE)
    columns = np.arange(0, width, _COARSE)
    if not height or not width:
        return []
    coarse = np.logical_or.reduceat(np.logical_or.reduceat(tumour, rows, axis=0), columns, axis=1)
    cells, _ = ndimage.label(coarse)
    boxes = [
        (
            max(0, r.start * _COARSE - margin),
            min(height, r.stop * _COARSE + margin),
            max(0, c.start * _COARSE - margin),
            min(width, c.stop * _COARSE + margin),
        )
        for r, c in ndimage.find_objects(cells)
    ]
    return [(slice(t, b), slice(le, r)) for t, b, le, r in _merge_overlapping(boxes)]


Box = tuple[int, int, int, int]


def _merge_overlapping(boxes: list[Box]) -> list[Box]:
    """Replace boxes (top, bottom, left, right) that overlap by the box around them."""
    merged: list[Box] = []
    for box in boxes:
        current = box
        while True:
            hit = next((other for other in merged if _overlap(current, other)), None)
            if hit is None:
                break
            merged.remove(hit)
            current = (
                min(current[0], hit[0]),
                max(current[1], hit[1]),
                min(current[2], hit[2]),
                max(current[3], hit[3]),
            )
        merged.append(current)
    return merged


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
