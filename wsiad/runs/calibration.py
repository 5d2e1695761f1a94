"""Which scores are usual on healthy tissue: quantiles of the score of held-out tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pydantic

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.progress import Progress
from wsiad.learning.batches import sample, windows
from wsiad.learning.detector import Detector, Scores, TileSource

_FORMAT = 1
_BATCH = 64
_MAD_TO_STD = 1.4826022185056018  # of a normal distribution

_LEVELS = np.unique(
    np.round(
        np.concatenate(
            [
                np.linspace(0, 1, 1001),  # every 0.1 %
                np.linspace(0.99, 1, 101),  # the upper tail: every 0.01 %
            ]
        ),
        6,
    )
)


class _Stored(Config):
    format: int
    levels: tuple[float, ...]
    values: tuple[float, ...]
    median: float
    spread: float
    n_windows: pydantic.PositiveInt
    n_slides: pydantic.NonNegativeInt


@dataclass(frozen=True, slots=True)
class Calibration:
    """Distribution of the anomaly score over healthy windows.

    Parameters
    ----------
    levels, values : tuple of float
        Quantile levels, rising from 0 to 1, and the scores at them.
    median, spread : float
        Median, and 1.4826 × median absolute deviation from it; 0 for constant scores.
    n_windows, n_slides : int
        How many windows and slides it comes from; a level beyond 1 − 1/n_windows is
        the largest score seen.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]
    median: float
    spread: float
    n_windows: int
    n_slides: int

    @classmethod
    def of(cls, scores: Scores, *, n_slides: int) -> Self:
        """Calibrate by the scores of healthy windows, (N,).

        Raises
        ------
        DetectorError
            There is none, or one is not finite.
        """
        if not scores.size:
            raise DetectorError("there are no healthy windows to calibrate with")
        if not np.isfinite(scores).all():
            raise DetectorError(
                "the detector gives scores that are not finite on healthy tiles",
                remedy="Fit it again; for a trained method with a smaller learning_rate.",
            )
        exact = scores.astype(np.float64).ravel()
        values = np.quantile(exact, _LEVELS)
        median = float(np.median(exact))
        return cls(
            levels=tuple(_LEVELS.tolist()),
            values=tuple(values.tolist()),
            median=median,
            spread=float(np.median(np.abs(exact - median)) * _MAD_TO_STD),
            n_windows=exact.size,
            n_slides=n_slides,
        )

    def percentile(self, scores: npt.ArrayLike) -> Scores:
        """Share of healthy windows with a lower score, float32 in 0 to 100, of any shape.

        Linear between the stored quantiles; 0 below all healthy scores and 100 above;
        NaN stays NaN. Where many healthy windows have the very same score, it counts
        those strictly below.
        """
        asked = np.asarray(scores, dtype=np.float64)
        levels, values = np.asarray(self.levels), np.asarray(self.values)
        right = np.searchsorted(values, asked, side="left")  # first value not below
        above = np.clip(right, 1, len(values) - 1)
        low, high = values[above - 1], values[above]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip((asked - low) / (high - low), 0, 1)
        found = levels[above - 1] + share * (levels[above] - levels[above - 1])
        found = np.where(right == 0, 0.0, np.where(right == len(values), 1.0, found))
        return np.where(np.isnan(asked), np.nan, 100 * found).astype(np.float32)

    def quantile(self, level: float) -> float:
        """Score below which this share (0 to 1) of healthy windows lies.

        Raises
        ------
        DetectorError
            The level is not within 0 to 1.
        """
        if not 0 <= level <= 1:
            raise DetectorError(f"a quantile level must be within 0 to 1, not {level}")
        return float(np.interp(level, self.levels, self.values))

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return {
            "format": _FORMAT,
            "n_windows": self.n_windows,
            "n_slides": self.n_slides,
            "median": self.median,
            "spread": self.spread,
            "levels": list(self.levels),
            "values": list(self.values),
        }

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """Read back what :meth:`to_json` returned.

        Raises
        ------
        RunError
            It is not a calibration, or of an unknown format version.
        """
        try:
            found = _Stored.model_validate(stored)
        except pydantic.ValidationError as error:
            raise RunError(f"is not a calibration ({error.error_count()} faults)") from error
        if found.format != _FORMAT:
            raise RunError(f"has the calibration format {found.format}, not {_FORMAT}")
        rising = all(np.all(np.diff(array) >= 0) for array in (found.levels, found.values))
        if len(found.levels) != len(found.values) or len(found.levels) < 2 or not rising:
            raise RunError("is not a calibration: its quantiles do not rise")
        return cls(**found.model_dump(exclude={"format"}))


def calibrate(
    detector: Detector,
    tiles: TileSource,
    *,
    n_slides: int,
    seed: int = 0,
    most_tiles: int | None = None,
    quiet: bool = False,
) -> Calibration:
    """Score held-out healthy tiles and keep the quantiles.

    A tile larger than the detector's input gives all its windows of a centred grid
    without overlap, as the heatmap scores windows and not tiles.

    Parameters
    ----------
    detector : Detector
        Fitted.
    tiles : TileSource
        Healthy tiles that were not fitted on.
    n_slides : int
        How many slides they come from.
    seed, most_tiles : int
        Take a random sample of at most so many tiles.
    quiet : bool
        No progress output.

    Raises
    ------
    DetectorError
        There are no tiles, they are too small, or a score is not finite.
    """
    count, batches = sample(tiles, most_tiles, batch=_BATCH, seed=seed)
    scores = []
    with Progress("calibrate", total=count, unit="tile", quiet=quiet) as progress:
        for part in batches:
            scores.append(detector.score(windows(part, detector.spec.size)))
            progress.update(len(part))
    return Calibration.of(
        np.concatenate(scores) if scores else np.zeros(0, np.float32), n_slides=n_slides
    )
