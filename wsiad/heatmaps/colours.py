"""Colours: one fixed scale from healthy scores, so that a healthy slide looks calm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import matplotlib
import numpy as np
import numpy.typing as npt

from wsiad.errors import ConfigError

ColourMap = Literal["inferno", "viridis", "magma", "plasma", "cividis"]
"""Maps in which equal steps look equal, with and without colour vision."""

_ALPHA_LOW, _ALPHA_HIGH = 24, 216
_LEGEND_STEPS = 5


@dataclass(frozen=True, slots=True)
class ColourScale:
    """A fixed map from anomaly scores to colours, the same for all slides of a run.

    A scale fitted to each picture would paint the strangest spot of a healthy slide as
    a tumour. This one hangs on the scores of healthy windows, and opacity grows with
    the square of strangeness, so that what healthy slides hold stays faint.

    Parameters
    ----------
    low, high : float
        Scores at the two ends; beyond them colours stay what they are.
    name : ColourMap
        Of the colour map, as in matplotlib.

    Raises
    ------
    ConfigError
        ``low`` is not below ``high``, or the name is unknown.

    Examples
    --------
    >>> scale = ColourScale.from_healthy(median=1.0, upper=3.0)
    >>> scale.low, scale.high
    (1.0, 5.0)
    """

    low: float
    high: float
    name: ColourMap = "inferno"

    def __post_init__(self) -> None:
        if self.name not in get_args(ColourMap):
            raise ConfigError(
                f"no colour map is named {self.name!r}",
                remedy=f"Known: {', '.join(get_args(ColourMap))}.",
            )
        span = self.high - self.low
        if not (math.isfinite(self.low) and math.isfinite(self.high) and span > 0):
            raise ConfigError(f"a colour scale from {self.low} to {self.high} has no extent")

    @classmethod
    def from_healthy(cls, *, median: float, upper: float, name: ColourMap = "inferno") -> Self:
        """Return a scale whose middle is what hardly any healthy window exceeds.

        Parameters
        ----------
        median : float
            Median score of healthy windows: the scale's lower end.
        upper : float
            A high quantile of them (99.9 %): the scale's middle.
        name : ColourMap
            Of the colour map.

        Raises
        ------
        ConfigError
            ``upper`` is not above ``median``.
        """
        if not upper > median:
            raise ConfigError(
                f"the upper healthy quantile ({upper}) is not above the healthy median ({median})",
                remedy="Calibrate on more healthy slides.",
            )
        return cls(low=median, high=2 * upper - median, name=name)

    def unit(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map scores to 0…1, clipped; NaN stays NaN."""
        unit = (np.asarray(scores, np.float64) - self.low) / (self.high - self.low)
        return np.clip(unit, 0, 1).astype(np.float32)

    def rgba(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Colour scores.

        Parameters
        ----------
        scores : ndarray of float, (...)
            Anomaly scores; NaN where none was given.

        Returns
        -------
        ndarray of uint8, (..., 4)
            Red, green, blue, opacity. NaN is ``(0, 0, 0, 0)``; every scored pixel has
            some opacity, so that "healthy" and "not looked at" can be told apart.
        """
        unit = self.unit(scores)
        missing = np.isnan(unit)
        index = np.rint(np.where(missing, 0, unit) * 255).astype(np.uint8)
        colours = self._table()[index]
        colours[missing] = 0
        return colours

    def legend(self) -> dict[str, Any]:
        """Describe the scale as JSON values: ends, map and the colour of some scores."""
        scores = np.linspace(self.low, self.high, _LEGEND_STEPS)
        return {
            "map": self.name,
            "low": self.low,
            "high": self.high,
            "steps": [
                {"score": float(score), "rgba": colour.tolist()}
                for score, colour in zip(scores, self.rgba(scores), strict=True)
            ],
        }

    def _table(self) -> npt.NDArray[np.uint8]:
        unit = np.arange(256) / 255
        table = np.asarray(matplotlib.colormaps[self.name](unit, bytes=True), np.uint8).copy()
        table[:, 3] = np.rint(_ALPHA_LOW + (_ALPHA_HIGH - _ALPHA_LOW) * unit**2)
        return table
