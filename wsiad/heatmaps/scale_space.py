"""Scale space of a heatmap: how far means over neighbourhoods lie above those of healthy slides.

A lesion is a place where many neighbouring windows are a little strange, and no detector looks
at neighbours. Here the healthy percentile of every heatmap pixel is averaged over
neighbourhoods of several sizes, over assessed tissue alone, and each mean is standardised by the
means of the same size on healthy slides. The highest standardised mean over all sizes is a scan
statistic (Kulldorff, Communications in Statistics 26, 1997); that of percentiles instead of
scores is one of ranks, which a single extreme window cannot dominate (Jung & Cho, International
Journal of Health Geographics 14, 2015).

A detector that learnt from labelled anomalies says more by a score far above all healthy ones
than by one just above them, and their percentiles are equal. For it, the mean is that of scores,
in standard deviations of healthy windows and limited to :data:`LIMITS`, in place of percentiles.

A neighbourhood at the edge of the tissue holds few windows, and its mean varies more than that
of a full one. The variance of a mean over `n` windows is therefore modelled as ``between + within /
n``: what windows share because they lie together, and what each has to itself. Both are
estimated on healthy slides, each size separately and each slide with equal weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, assert_never

import numpy as np
import numpy.typing as npt
import pydantic

from wsiad.core.config import Config
from wsiad.core.errors import ConfigError, EvaluationError
from wsiad.core.geometry import Microns, SquareMicrons
from wsiad.core.typed_files import first_fault
from wsiad.heatmaps.score_map import Heatmap
from wsiad.heatmaps.smoothing import smoothed
from wsiad.heatmaps.space_options import MeanOf, check_scales
from wsiad.runs.calibration import Calibration
from wsiad.runs.healthy_maps import HealthyMap

FloatArray = npt.NDArray[np.float64]

LIMITS = (-3.0, 3.0)
"""Lowest and highest score of a window in a mean of scores, standard deviations of healthy
windows: no single window dominates a mean."""

_NEARLY_0 = 1e-12


@dataclass(frozen=True, slots=True)
class Scale:
    """Local means of one size on healthy slides.

    Parameters
    ----------
    radius : Microns
        Radius of the neighbourhoods, µm; see :func:`smoothed`.
    mean : float
        Mean of all: a share from 0 to 1, or standard deviations of healthy windows.
    between, within : float
        The variance of a mean over `n` windows is ``between + within / n``.
    """

    radius: Microns
    mean: float
    between: float
    within: float

    @property
    def is_constant(self) -> bool:
        """True if all means on healthy slides are equal."""
        return max(self.between, self.within) <= _NEARLY_0

    def standardise(self, means: FloatArray, windows: FloatArray) -> FloatArray:
        """Return how many standard deviations means lie above healthy ones.

        Parameters
        ----------
        means : ndarray of float64, (...)
        windows : ndarray of float64, (...)
            Number of windows that each mean comes from.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(self.between + self.within / np.maximum(windows, 1))
        if self.is_constant:
            return np.where(np.isnan(means), np.nan, 0.0)
        return (means - self.mean) / spread


@dataclass(frozen=True, slots=True)
class SpatialMap:
    """Standardised local means of a slide, and the scale that stands out at each pixel.

    Parameters
    ----------
    heatmap : Heatmap
        Scores are the highest standardised means over all scales, standard deviations.
    scale : ndarray of uint8, (H, W)
        Index of that scale; meaningless where the heatmap is NaN.
    radii_um : tuple of float
        Disc radii of the scales, µm.
    """

    heatmap: Heatmap
    scale: npt.NDArray[np.uint8]
    radii_um: tuple[float, ...]

    @property
    def radius(self) -> npt.NDArray[np.float32]:
        """Radius of the neighbourhood that stands out at each pixel, µm, (H, W)."""
        return np.asarray(self.radii_um, np.float32)[self.scale]

    @property
    def reach(self) -> npt.NDArray[np.float32]:
        """Distance, µm, within which a peak at each pixel is the only one, (H, W).

        It is 1.5 times the radius: a nearer peak would come from the same neighbours.
        """
        return self.radius * np.float32(1.5)


class _Stored(Config):
    radius_um: pydantic.NonNegativeFloat
    mean: pydantic.FiniteFloat
    between: pydantic.NonNegativeFloat
    within: pydantic.NonNegativeFloat


class _StoredCalibration(Config):
    window_um2: pydantic.PositiveFloat
    n_slides: pydantic.PositiveInt
    mean_of: MeanOf = "percentiles"
    scales: tuple[_Stored, ...]
    highest: tuple[pydantic.FiniteFloat, ...]
    calibration: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpatialCalibration:
    """Evidence in space of healthy slides: the spread of each scale, and what is left to chance.

    Parameters
    ----------
    scales : tuple of Scale
        By rising radius.
    window : SquareMicrons
        Area of a window, µm²: so much tissue counts as one window.
    calibration : Calibration
        Distribution of the spatial map's pixels over healthy slides, each with equal weight
        a pixel; its percentiles and quantiles take the place of those of the scores.
    highest : tuple of float
        Highest pixel of each healthy slide's spatial map, rising.
    mean_of : {"percentiles", "scores"}
        Values that are averaged.

    Notes
    -----
    With two healthy slides or more, the map of each is standardised by the others, so that
    `calibration` and `highest` promise no more than new slides keep.
    """

    scales: tuple[Scale, ...]
    window: SquareMicrons
    calibration: Calibration
    highest: tuple[float, ...]
    mean_of: MeanOf = "percentiles"

    @classmethod
    def of(
        cls,
        healthy: Sequence[Heatmap | HealthyMap],
        *,
        calibration: Calibration,
        scales_um: Sequence[float],
        window: SquareMicrons,
        mean_of: MeanOf = "percentiles",
    ) -> Self:
        """Learn the spread of local means from healthy slides that nothing was fitted on.

        Parameters
        ----------
        healthy : sequence of Heatmap or HealthyMap
            Scores of healthy slides, with at least one assessed pixel each.
        calibration : Calibration
            Calibration of the scores.
        scales_um : sequence of float
            Disc radii, µm; see :func:`check_scales`.
        window : SquareMicrons
            Area of a window, µm².
        mean_of : {"percentiles", "scores"}, optional
            Values that are averaged.

        Raises
        ------
        EvaluationError
            There is no healthy slide, or one has no assessed pixel.
        ConfigError
            The scales make no sense.
        """
        radii = check_scales(scales_um)
        if not healthy:
            raise EvaluationError(
                "there is no healthy slide to standardise scales by",
                remedy="Pass held-out healthy slides, or scales_um: 0.",
            )
        if blank := [one.slide for one in healthy if not np.isfinite(one.scores).any()]:
            raise EvaluationError(f"the healthy slide {blank[0]} has no assessed pixel")
        means = [
            _neighbourhoods(
                one.pixel_um, _averaged(one.scores, calibration, mean_of), radii, window
            )
            for one in healthy
        ]
        moments = np.stack([[_moments(*part) for part in slide] for slide in means])
        scales = tuple(_scale(radius, moments[:, i]) for i, radius in enumerate(radii))
        highest, pixels = [], []
        for number, slide in enumerate(means):
            others = scales
            if len(healthy) > 1:
                rest = np.delete(moments, number, axis=0)
                others = tuple(_scale(radius, rest[:, i]) for i, radius in enumerate(radii))
            best = _highest(slide, others)[0]
            pixels.append(best[np.isfinite(best)])
            highest.append(float(pixels[-1].max()))
        usual = Calibration.of(np.concatenate(pixels).astype(np.float32), n_slides=len(healthy))
        return cls(scales, window, usual, tuple(sorted(highest)), mean_of=mean_of)

    def map(self, heatmap: Heatmap, calibration: Calibration) -> SpatialMap:
        """Return the spatial map of a slide.

        Parameters
        ----------
        heatmap : Heatmap
            Scores of the slide; pixels that were not assessed stay so.
        calibration : Calibration
            Calibration of the scores.
        """
        best, index = self._highest(heatmap, calibration)
        radii = tuple(float(scale.radius) for scale in self.scales)
        return SpatialMap(replace(heatmap, scores=best.astype(np.float32)), index, radii)

    @property
    def digest(self) -> str:
        """Digest of everything that decides a map, 16 hexadecimal digits."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def values(self, healthy: HealthyMap, calibration: Calibration) -> FloatArray:
        """Return the spatial map, (H, W), of a healthy slide that this was not learnt from."""
        return self._highest(healthy, calibration)[0]

    def _highest(
        self, one: Heatmap | HealthyMap, calibration: Calibration
    ) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
        radii = tuple(float(scale.radius) for scale in self.scales)
        averaged = _averaged(one.scores, calibration, self.mean_of)
        return _highest(_neighbourhoods(one.pixel_um, averaged, radii, self.window), self.scales)

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        # Files of before there was a choice do not state it.
        other = {} if self.mean_of == "percentiles" else {"mean_of": self.mean_of}
        return other | {
            "window_um2": float(self.window),
            "n_slides": self.calibration.n_slides,
            "scales": [
                {
                    "radius_um": float(scale.radius),
                    "mean": scale.mean,
                    "between": scale.between,
                    "within": scale.within,
                }
                for scale in self.scales
            ],
            "highest": list(self.highest),
            "calibration": self.calibration.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """Read back what :meth:`to_json` returned.

        Raises
        ------
        EvaluationError
            It is not such a calibration.
        """
        try:
            found = _StoredCalibration.model_validate(stored)
            check_scales(scale.radius_um for scale in found.scales)
        except pydantic.ValidationError as error:
            problem = f"is not a calibration of scales: {first_fault(error)}"
            raise EvaluationError(problem) from error
        except ConfigError as error:
            raise EvaluationError(f"is not a calibration of scales ({error.problem})") from error
        if not found.highest or list(found.highest) != sorted(found.highest):
            raise EvaluationError("is not a calibration of scales: its highest pixels do not rise")
        return cls(
            tuple(
                Scale(Microns(one.radius_um), one.mean, one.between, one.within)
                for one in found.scales
            ),
            SquareMicrons(found.window_um2),
            Calibration.from_json(found.calibration),
            found.highest,
            mean_of=found.mean_of,
        )


def _averaged(
    scores: npt.NDArray[np.float32], calibration: Calibration, mean_of: MeanOf
) -> FloatArray:
    """Return what is averaged in place of scores; NaN stays NaN."""
    match mean_of:
        case "percentiles":
            return calibration.percentile(scores).astype(np.float64) / 100
        case "scores":
            above = scores.astype(np.float64) - calibration.median
            if calibration.spread > 0:
                return np.clip(above / calibration.spread, *LIMITS)
            # Half of the healthy windows or more have one score: all others differ by much.
            return np.where(above > 0, LIMITS[1], np.where(above < 0, LIMITS[0], above))
        case _:
            assert_never(mean_of)


def _neighbourhoods(
    pixel_um: tuple[float, float],
    averaged: FloatArray,
    radii_um: Sequence[float],
    window: SquareMicrons,
) -> list[tuple[FloatArray, FloatArray]]:
    """Local means, and the windows that each comes from, by scale."""
    width, height = pixel_um
    parts = []
    for radius in radii_um:
        means, counts = smoothed(averaged, pixel_um=pixel_um, radius=Microns(radius))
        parts.append((means, np.maximum(counts * (width * height / window), 1.0)))
    return parts


def _moments(means: FloatArray, windows: FloatArray) -> FloatArray:
    """Averages over a slide of a scale, from which its variance follows: (6,)."""
    seen = np.isfinite(means)
    q, u = means[seen], 1 / windows[seen]
    return np.array(
        [
            q.mean(),
            (q * q).mean(),
            u.mean(),
            (u * u).mean(),
            (u * q).mean(),
            (u * q * q).mean(),
        ]
    )


def _scale(radius: float, moments: FloatArray) -> Scale:
    """Fit ``between + within / n`` to squared deviations by least squares, neither below 0."""
    q, qq, u, uu, uq, uqq = moments.mean(axis=0)
    square = max(0.0, qq - q * q)  # mean squared deviation from the mean
    weighted = max(0.0, uqq - 2 * q * uq + q * q * u)  # the same times 1 / n
    spread = uu - u * u
    if spread <= _NEARLY_0 * uu:  # every mean is over as many windows
        return Scale(Microns(radius), float(q), float(square), 0.0)
    within = (weighted - u * square) / spread
    between = square - within * u
    if within < 0:
        between, within = square, 0.0
    elif between < 0:
        between, within = 0.0, weighted / uu
    return Scale(Microns(radius), float(q), float(between), float(within))


def _highest(
    means: Sequence[tuple[FloatArray, FloatArray]], scales: Sequence[Scale]
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Highest standardised mean at each pixel, and the index of its scale."""
    best = scales[0].standardise(*means[0])
    index = np.zeros(best.shape, np.uint8)
    for number, (scale, part) in enumerate(zip(scales[1:], means[1:], strict=True), start=1):
        standardised = scale.standardise(*part)
        with np.errstate(invalid="ignore"):
            higher = standardised > best
        best = np.where(higher, standardised, best)
        index[higher] = number
    return best, index
