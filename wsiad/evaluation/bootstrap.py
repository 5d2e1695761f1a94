"""Intervals by resampling slides: what the figures would be on other slides like these.

Lesions and tiles of one slide are not independent, slides are; so slides are drawn,
each with all that is on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
"""Coverage that all intervals aim at."""

NO_RESAMPLES = "no resample of the slides gives the figure"
"""Why an interval is not defined where the bootstrap has nothing to show."""

_ROWS = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, or why there is none.

    Parameters
    ----------
    value : float or None
        The figure; ``None`` where it is not defined.
    low, high : float or None
        Ends of its 95 % interval; ``None`` where it is not defined.
    undefined : str or None
        Why the figure is not defined.
    interval_undefined : str or None
        Why the interval is not defined though the figure is.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str | None = None
    interval_undefined: str | None = None

    def __str__(self) -> str:
        if self.value is None:
            return f"not defined: {self.undefined}"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} (95 % {self.low:.3f}–{self.high:.3f})"

    def as_json(self, name: str = "value") -> dict[str, Any]:
        """Return the figure under a name, its interval, and the reasons if there are any."""
        known: dict[str, Any] = {name: self.value, "low": self.low, "high": self.high}
        if self.undefined:
            known["undefined"] = self.undefined
        if self.interval_undefined:
            known["interval_undefined"] = self.interval_undefined
        return known


def undefined(reason: str) -> Estimate:
    """Return the estimate of a figure that is not defined."""
    return Estimate(None, undefined=reason)


def slide_weights(slides: int, *, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each slide is drawn, (slides,), for each resample.

    As many slides as there are, are drawn with replacement. The same seed gives the same
    draws.
    """
    generator = np.random.default_rng(seed)
    share = np.full(slides, 1 / slides)
    for start in range(0, resamples, _ROWS):
        yield from generator.multinomial(slides, share, size=min(_ROWS, resamples - start))


def percentile_interval(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Percentile interval of resampled figures.

    Parameters
    ----------
    samples : ndarray of float64, (R, ...)
        One figure, or several, per resample; R at least 1.

    Returns
    -------
    ndarray of float64, (2, ...)
        Low and high ends.
    """
    tail = (1 - LEVEL) / 2
    return np.quantile(samples, [tail, 1 - tail], axis=0)
