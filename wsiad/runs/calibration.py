"""Calibrate a detector: quantiles of its score on held-out healthy tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pydantic

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.terminal import Progress
from wsiad.core.typed_files import first_fault
from wsiad.learning.detector import Detector, Scores, TileSource
from wsiad.pictures.colour_scale import HEALTHY_LEVELS, ColourScale

_FORMAT = 1
_BATCH = 64
_MAD_TO_STD = 1.4826022185056018  # of a normal distribution

_LEVELS = sorted(
    {
        *np.linspace(0, 1, 1001).round(6).tolist(),  # every 0.1 %
        *np.linspace(0.99, 1, 101).round(6).tolist(),  # the upper tail: every 0.01 %
    }
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
        Quantile levels, ascending from 0 to 1, and the scores at these levels.
    median, spread : float
        Median, and 1.4826 × median absolute deviation from it; 0 for constant scores.
    n_windows, n_slides : int
        Number of windows and slides that were scored. The quantile at a level beyond
        1 − 1/n_windows is the largest score seen.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]
    median: float
    spread: float
    n_windows: int
    n_slides: int

    @classmethod
    def of(cls, scores: Scores, *, n_slides: int) -> Self:
        """Make a calibration from the scores of healthy windows, (N,).

        Raises
        ------
        DetectorError
            There is no score, or a score is not finite.
        """
        if not scores.size:
            raise DetectorError("there are no healthy windows to calibrate with")
        if not np.isfinite(scores).all():
            raise DetectorError(
                "the detector returned scores that are not finite for healthy tiles",
                remedy="Fit it again; use a smaller learning_rate for a trained method.",
            )
        exact = scores.astype(np.float64).ravel()
        values = np.quantile(exact, _LEVELS)
        median = float(np.median(exact))
        return cls(
            levels=tuple(_LEVELS),
            values=tuple(values.tolist()),
            median=median,
            spread=float(np.median(np.abs(exact - median)) * _MAD_TO_STD),
            n_windows=exact.size,
            n_slides=n_slides,
        )

    @property
    def constant(self) -> bool:
        """True if several healthy windows were scored, and all have one score."""
        return self.n_windows > 1 and self.values[0] == self.values[-1]

    def percentile(self, scores: npt.ArrayLike) -> Scores:
        """Return the share of healthy windows with a lower score, float32 from 0 to 100.

        The result has the shape of `scores`. It is linear between the stored quantiles, 0 below
        all healthy scores and 100 above them; NaN stays NaN. Where many healthy windows have the
        same score, those strictly below it count.
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
        """Return the score below which this share (0 to 1) of healthy windows is.

        Raises
        ------
        DetectorError
            The level is not between 0 and 1.
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
        """Make a calibration from the values that :meth:`to_json` returned.

        Raises
        ------
        RunError
            The values are not a calibration, or have an unknown format version.
        """
        try:
            found = _Stored.model_validate(stored)
        except pydantic.ValidationError as error:
            raise RunError(f"is not a calibration: {first_fault(error)}") from error
        if found.format != _FORMAT:
            raise RunError(f"has the calibration format {found.format}, not {_FORMAT}")
        rising = all(np.all(np.diff(array) >= 0) for array in (found.levels, found.values))
        if len(found.levels) != len(found.values) or len(found.levels) < 2 or not rising:
            raise RunError("is not a calibration: its quantiles do not ascend")
        return cls(**found.model_dump(exclude={"format"}))


def colour_scale(calibration: Calibration) -> ColourScale:
    """Return the colour scale of a run, which its healthy scores determine."""
    return ColourScale.from_healthy([calibration.quantile(level) for level in HEALTHY_LEVELS])


def held_out_scores(detector: Detector, tiles: TileSource, *, quiet: bool = False) -> Scores:
    """Score all windows of held-out healthy tiles, in order.

    Tiles larger than the detector's input are cut into windows on a centred grid without
    overlap, because a heatmap scores windows, not tiles.

    Parameters
    ----------
    detector : Detector
        Fitted detector.
    tiles : TileSource
        Healthy tiles that were not fitted on.
    quiet : bool
        Show no progress.

    Returns
    -------
    ndarray of float32, (N · k²,)
        Scores of the k × k windows of each tile.

    Raises
    ------
    DetectorError
        The tiles are too small.
    """
    from wsiad.learning.batches import windows
    from wsiad.learning.feature_source import score_maps

    size = detector.spec.size
    per_tile = (tiles.tile // size) ** 2 or 1
    scores = []
    with Progress("calibrate", total=len(tiles), unit="tile", quiet=quiet) as progress:
        maps = score_maps(detector, tiles, batch=_BATCH, cut=lambda part: windows(part, size))
        for places in maps:
            scores.append(detector.pool(places))
            progress.update(len(places) // per_tile)
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)
