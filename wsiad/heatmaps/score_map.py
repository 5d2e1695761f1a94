"""The heatmap: an array of anomaly scores with one affine map to level 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Box, PixelMap, Size
from wsiad.core.units import Spacing


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Anomaly scores over a slide.

    Parameters
    ----------
    slide : str
        Name of the slide.
    scores : ndarray of float32, (H, W)
        Mean anomaly score of the windows over each pixel; NaN where none was scored.
    placement : PixelMap
        From heatmap pixel edges to level-0 pixels.
    slide_size : Size
        Of level 0, pixels.
    bounds : Box
        Non-empty part of the slide in level-0 pixels; the whole slide where the
        format states none. QuPath's coordinates start at its corner.
    spacing : Spacing
        µm per level-0 pixel.
    """

    slide: str
    scores: npt.NDArray[np.float32]
    placement: PixelMap
    slide_size: Size
    bounds: Box
    spacing: Spacing

    @property
    def size(self) -> Size:
        """Width and height of the heatmap, pixels."""
        return Size(self.scores.shape[1], self.scores.shape[0])

    @property
    def box(self) -> Box:
        """Level-0 rectangle that the heatmap covers."""
        return self.placement.box(self.size)

    @property
    def pixel_um(self) -> tuple[float, float]:
        """Physical width and height of a heatmap pixel, µm."""
        return self.placement.scale_x * self.spacing.x, self.placement.scale_y * self.spacing.y


@dataclass(frozen=True, slots=True)
class WindowScores:
    """The scored windows of a slide, as they were read.

    Parameters
    ----------
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height`` of each window in level-0 pixels.
    scores : ndarray of float32, (N,)
        Anomaly score of each window.
    percentiles : ndarray of float32, (N,)
        Share of healthy windows with a lower score, 0 to 100.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    percentiles: npt.NDArray[np.float32]
