"""Whether outlines lie on what was looked at: on the slide, and on windows that were scored."""

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
"""Share of the outlined tumour beyond the slide above which people are told."""

MOST_UNSCORED = 0.25
"""The same of what no window shows: at the edges of tissue, some of it always is."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the outlined tumour of a slide lies.

    Parameters
    ----------
    beyond : float or None
        Share of its area beyond the slide; ``None`` where the slide's size is unknown.
    unscored : float or None
        Share of its mask on no scored window; ``None`` where no windows are known or the
        mask is empty.
    areas, unscored_areas : int
        Areas of the mask that hang together, and those of them that are on no window.
    """

    beyond: float | None
    unscored: float | None
    areas: int = 0
    unscored_areas: int = 0

    @property
    def doubtful(self) -> bool:
        """Whether people are told."""
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
                f"{_percent(self.unscored)} of the outlined tumour, {self.unscored_areas} of "
                f"{self.areas} areas wholly, lies where no tissue was scored"
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
    """Tell where outlined tumour lies.

    Parameters
    ----------
    tumour : geometry
        Outlined area, level-0 pixels.
    mask : ndarray of bool, (H, W)
        The same as a mask of the slide.
    step : int
        Level-0 pixels per mask pixel.
    size : Size or None
        Of the slide, if known.
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
    """Return the mask pixels whose top-left corner is within a window, (H, W) as ``shape``."""
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
