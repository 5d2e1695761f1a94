"""Colour scale of anomaly scores, fixed by healthy scores, so that a healthy slide looks calm."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ConfigError

ColourMap = Literal["inferno", "viridis", "magma", "plasma", "cividis"]
"""Colour maps in which equal steps look equal, with and without normal colour vision."""

HEALTHY_LEVELS = (0.5, 0.9, 0.99, 0.999)
"""Quantiles of healthy scores that are at equal distances on the scale."""

STRANGE_LEVEL = 0.99
"""Share of healthy windows below the score from which colours are opaque."""

_COLOURS = Path(__file__).parent / "colour_maps.npy"

_ALPHA_LOW, _ALPHA_HIGH = 24, 216
_ALPHA_POWER = 1.5
_ALPHA_STRANGE = (216, 240)


@dataclass(frozen=True, slots=True)
class ColourScale:
    """A fixed map from anomaly scores to colours, the same for all slides of a run.

    A scale fitted to each picture would paint the strangest window of a healthy slide as a
    tumour. This scale depends on the scores of healthy windows: equal steps of colour are
    equally rarer among them, whatever the unit of the detector. Opacity grows faster than
    the score, so the windows of healthy slides stay faint. From the score that 99 % of healthy
    windows are below, colours are nearly opaque, so that the score can be read back from them.

    Parameters
    ----------
    knots : tuple of float
        Rising scores at equal distances on the scale. Colours are linear between knots and
        constant beyond the ends.
    name : ColourMap
        Name of the colour map in matplotlib.
    levels : tuple of float
        Share of healthy windows below each of the first knots, where it is known.

    Raises
    ------
    ConfigError
        The knots do not rise, or the name is unknown.

    Examples
    --------
    >>> ColourScale.from_healthy([1.0, 2.0, 3.0, 5.0]).knots
    (1.0, 2.0, 3.0, 5.0, 7.0)
    """

    knots: tuple[float, ...]
    name: ColourMap = "inferno"
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in get_args(ColourMap):
            raise ConfigError(
                f"no colour map is named {self.name!r}",
                remedy=f"Known: {', '.join(get_args(ColourMap))}.",
            )
        if len(self.knots) < 2 or not all(
            math.isfinite(low) and math.isfinite(high) and low < high
            for low, high in itertools.pairwise(self.knots)
        ):
            raise ConfigError(f"a colour scale through {self.knots} has no extent")

    @classmethod
    def from_healthy(cls, quantiles: Sequence[float], *, name: ColourMap = "inferno") -> Self:
        """Return the scale that healthy windows define.

        Parameters
        ----------
        quantiles : sequence of float
            Scores at `HEALTHY_LEVELS`, not falling. Equal scores are separated by the smallest
            step that can be drawn with floats of their size.
        name : ColourMap
            Name of the colour map.

        Notes
        -----
        The last knot is as far above the last quantile as that is above the one before.

        Raises
        ------
        ConfigError
            The number of quantiles is not that of the levels, or they fall.
        """
        if len(quantiles) != len(HEALTHY_LEVELS) or sorted(quantiles) != list(quantiles):
            raise ConfigError(f"healthy quantiles {quantiles} are not {HEALTHY_LEVELS}, rising")
        least = 1e-6 * max(1.0, abs(quantiles[0]))
        knots = [quantiles[0]]
        for score in quantiles[1:]:
            knots.append(max(score, knots[-1] + least))
        knots.append(2 * knots[-1] - knots[-2])
        return cls(tuple(knots), name, HEALTHY_LEVELS)

    @property
    def low(self) -> float:
        """Score at the lower end."""
        return self.knots[0]

    @property
    def high(self) -> float:
        """Score at the upper end."""
        return self.knots[-1]

    def unit(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map scores to 0…1, clipped; NaN stays NaN."""
        places = np.linspace(0, 1, len(self.knots))
        return np.interp(np.asarray(scores, np.float64), self.knots, places).astype(np.float32)

    def rgba(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Return the colours of scores.

        Parameters
        ----------
        scores : ndarray of float, (...)
            Anomaly scores; NaN where there is none.

        Returns
        -------
        ndarray of uint8, (..., 4)
            Red, green, blue, opacity. NaN is ``(0, 0, 0, 0)``. Every scored pixel has some
            opacity, so that "healthy" and "not looked at" can be distinguished.
        """
        unit = self.unit(scores)
        missing = np.isnan(unit)
        index = np.rint(np.where(missing, 0, unit) * 255).astype(np.uint8)
        colours = self._table()[index]
        colours[missing] = 0
        return colours

    def over(self, scores: npt.NDArray[np.floating], grey: float) -> npt.NDArray[np.uint8]:
        """Return the colours of scores as they look over a grey ground.

        Parameters
        ----------
        scores : ndarray of float, (N,)
            Anomaly scores, none NaN.
        grey : float
            Ground, 0 to 255.

        Returns
        -------
        ndarray of uint8, (N, 3)
            Red, green, blue.
        """
        rgba = self.rgba(scores).astype(np.float64)
        share = rgba[:, 3:] / 255
        return np.rint(grey + (rgba[:, :3] - grey) * share).astype(np.uint8)

    def legend(self) -> dict[str, Any]:
        """Describe the scale as JSON values: ends, map, and score and colour of each knot.

        The percentile of a knot is ``None`` if it is not known, as beyond the last quantile.
        """
        colours = self.rgba(np.array(self.knots))
        shares = itertools.chain(self.levels, itertools.repeat(None))
        return {
            "map": self.name,
            "low": self.low,
            "high": self.high,
            "steps": [
                {
                    "score": score,
                    "percentile": None if share is None else round(100 * share, 6),
                    "rgba": colour.tolist(),
                }
                for score, colour, share in zip(self.knots, colours, shares, strict=False)
            ],
        }

    def _table(self) -> npt.NDArray[np.uint8]:
        table = np.empty((256, 4), np.uint8)
        table[:, :3] = _colours()[get_args(ColourMap).index(self.name)]
        unit = np.arange(256) / 255
        table[:, 3] = np.rint(_ALPHA_LOW + (_ALPHA_HIGH - _ALPHA_LOW) * unit**_ALPHA_POWER)
        if STRANGE_LEVEL in self.levels:
            strange = unit >= self.levels.index(STRANGE_LEVEL) / (len(self.knots) - 1)
            low, high = _ALPHA_STRANGE
            table[strange, 3] = np.rint(np.linspace(low, high, np.count_nonzero(strange)))
        return table


@functools.cache
def _colours() -> npt.NDArray[np.uint8]:
    """Return the colours of all maps in their order, (M, 256, 3), which are matplotlib's.

    Importing matplotlib for them would take a tenth of a verb's start.
    """
    found: npt.NDArray[np.uint8] = np.load(_COLOURS, allow_pickle=False)
    return found
