"""Check that outlines are on the slide and on windows that were scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.core.geometry import Size
from wsiad.evaluation.truth import Mask

MOST_BEYOND = 0.001
"""Maximum share of the outlined tumour beyond the slide; users are warned above it."""

MOST_UNSCORED = 0.25
"""Maximum share of the outlined tumour on no window; at the edges of tissue, some always is."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Position of a slide's outlined tumour, relative to the slide and to its scored windows.

    Parameters
    ----------
    beyond : float or None
        Share of the tumour's area beyond the slide; ``None`` where the slide's size is unknown.
    unscored : float or None
        Share of the tumour's mask on no scored window; ``None`` where the windows are unknown or
        the mask is empty.
    areas, unscored_areas : int
        Number of connected areas of the mask, and number of those that are on no window.
    """

    beyond: float | None
    unscored: float | None
    areas: int = 0
    unscored_areas: int = 0

    @property
    def doubtful(self) -> bool:
        """True where the user should be warned."""
        return (
            (self.beyond or 0.0) > MOST_BEYOND
            or (self.unscored or 0.0) > MOST_UNSCORED
            or self.unscored_areas > 0
        )

    def __str__(self) -> str:
        said = []
        if self.beyond is not None and self.beyond > MOST_BEYOND:
            said.append(f"{_percent(self.beyond)} of the outlined tumour lies beyond the slide")
        if self.unscored is not None and (
            self.unscored > MOST_UNSCORED or self.unscored_areas or not said
        ):
            said.append(
                f"{_percent(self.unscored)} of the outlined tumour ({self.unscored_areas} of "
                f"{self.areas} areas completely) lies where no tissue was scored"
            )
        return "; ".join(said)


def place(
    tumour: BaseGeometry,
    mask: Mask,
    *,
    step: int,
    size: Size | None,
    windows: npt.NDArray[Any] | None,
) -> Placement:
    """Measure the position of outlined tumour.

    Parameters
    ----------
    tumour : geometry
        Outlined area, level-0 pixels.
    mask : ndarray of bool, (H, W)
        The same area as a mask of the slide.
    step : int
        Level-0 pixels per mask pixel.
    size : Size or None
        Size of the slide, level-0 pixels, if known.
    windows : structured ndarray, (N,), or None
        Scored windows, fields ``x``, ``y``, ``width``, ``height`` in level-0 pixels.
    """
    import scipy.ndimage

    beyond = None
    if size is not None and tumour.area > 0:
        on_slide = shapely.box(0, 0, size.width, size.height)
        beyond = max(0.0, 1 - tumour.intersection(on_slide).area / tumour.area)
    count = np.count_nonzero(mask)
    if windows is None or not count:
        return Placement(beyond, None)
    scored = mask & covered(windows, mask.shape, step)
    labels, areas = scipy.ndimage.label(mask, np.ones((3, 3)))
    met = len(np.unique(labels[scored]))
    return Placement(beyond, 1 - np.count_nonzero(scored) / count, areas, areas - met)


def covered(windows: npt.NDArray[Any], shape: tuple[int, ...], step: int) -> Mask:
    """Return a mask, (H, W) as ``shape``, of the pixels whose top-left corner is in a window."""
    height, width = shape
    left, right = (
        np.ceil(edge / step).clip(0, width).astype(np.int64)
        for edge in (windows["x"], windows["x"] + windows["width"])
    )
    top, bottom = (
        np.ceil(edge / step).clip(0, height).astype(np.int64)
        for edge in (windows["y"], windows["y"] + windows["height"])
    )
    # Every window is its four corners in a sum over rows and columns.
    sums = np.zeros((height + 1, width + 1), dtype=np.int32)
    for y, x, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(sums, (y, x), sign)
    return np.asarray(sums.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)


def _percent(share: float) -> str:
    return "less than 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")
