"""Scores of a heatmap as shares of healthy windows with a lower score.

The windows of a results folder carry both, score and percentile; so the scale of a run is
read off its results, wherever the run itself is now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import EvaluationError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class HealthyScale:
    """Which share of healthy windows scores less than a score.

    Parameters
    ----------
    scores, shares : ndarray of float64, (N,)
        Both rising; shares are 0 to 1. Between two scores the share is linear, beyond
        the ends it is that of the end.
    """

    scores: Floats
    shares: Floats

    @classmethod
    def of(cls, slides: Iterable[tuple[str, npt.NDArray[Any]]]) -> Self:
        """Read the scale off the windows of slides scored by one run.

        Parameters
        ----------
        slides : iterable of (str, structured ndarray)
            Name, and windows with the fields ``score`` and ``percentile`` (0 to 100).

        Raises
        ------
        EvaluationError
            Windows have no percentiles, or there is no window.
        """
        parts = []
        for slide, windows in slides:
            if "percentile" not in (windows.dtype.names or ()):
                raise EvaluationError(
                    "its windows have no percentiles",
                    subject=slide,
                    remedy="Run `wsiad heatmap` on the slide again, or exclude it.",
                )
            scores, first = np.unique(np.asarray(windows["score"], np.float64), return_index=True)
            parts.append((scores, np.asarray(windows["percentile"], np.float64)[first]))
        if not parts:
            raise EvaluationError("no slide has a scored window")
        scores, percentiles = (np.concatenate(side) for side in zip(*parts, strict=True))
        scores, first = np.unique(scores, return_index=True)
        # Percentiles rise with the score; what rounding has left of disorder goes.
        return cls(scores, np.maximum.accumulate(percentiles[first]) / 100)

    def of_heatmap(self, scores: npt.NDArray[np.float32]) -> Floats:
        """Return the share of each pixel, NaN where nothing was scored.

        Parameters
        ----------
        scores : ndarray of float32, (H, W)
        """
        placed = np.interp(scores.astype(np.float64), self.scores, self.shares)
        return np.where(np.isfinite(scores), placed, np.nan)
