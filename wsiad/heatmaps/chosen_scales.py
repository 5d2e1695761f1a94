"""Scales that options amount to with the healthy slides at hand."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Self

from wsiad.core.errors import InputError
from wsiad.core.terminal import counted
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.heatmaps.space_options import ALONE, USUAL, MeanOf, SpaceOptions
from wsiad.runs.calibration import Calibration
from wsiad.runs.healthy_maps import HealthyMaps

logger = logging.getLogger(__name__)

FEWEST_SLIDES = 2
"""Minimum number of healthy slides that standardise scales unless the user sets them."""
_FEW_SLIDES = 3


@dataclass(frozen=True, slots=True)
class ChosenScales:
    """Scales that options amount to with the healthy slides at hand.

    Parameters
    ----------
    scales_um : tuple of float
        Radii, µm; :data:`~wsiad.heatmaps.space_options.ALONE` for single windows.
    calibration : SpatialCalibration or None
        Calibration of these scales; ``None`` for single windows.
    reason : str
        Reason why `auto` amounts to single windows; otherwise empty.
    warning : str
        Reason why the calibration is weak; otherwise empty.
    """

    scales_um: tuple[float, ...]
    calibration: SpatialCalibration | None
    reason: str = ""
    warning: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Values of :class:`SpaceOptions` that state the choice."""
        mean_of = self.calibration.mean_of if self.calibration else "auto"
        return {"scales_um": self.scales_um, "mean_of": mean_of}

    def told(self, subject: str) -> Self:
        """Log the warning, if there is one, and return these scales."""
        if self.warning:
            logger.warning("%s: %s", subject, self.warning)
        return self


def choose_scales(
    maps: HealthyMaps | None,
    calibration: Calibration,
    options: SpaceOptions,
    *,
    labelled: bool,
    subject: str,
) -> ChosenScales:
    """Standardise the scales of options by the healthy slides of a run.

    Parameters
    ----------
    maps : HealthyMaps or None
        Maps of the run's healthy slides, if it has any.
    calibration : Calibration
        Calibration of the run.
    options : SpaceOptions
        With `auto`, scales that cannot be standardised are no error but single windows.
    labelled : bool
        True if the detector learnt from labelled anomalies.
    subject : str
        Path of the run or of its results, for errors.

    Raises
    ------
    InputError
        Stated scales cannot be standardised: there are no maps, a radius is too long for them, or
        all their windows have one score.
    """
    auto = options.scales_um == "auto"
    mean_of: MeanOf = "scores" if labelled else "percentiles"
    if options.mean_of != "auto":
        mean_of = options.mean_of
    scales_um = USUAL if options.scales_um == "auto" else options.scales_um
    if scales_um == ALONE:
        return ChosenScales(ALONE, None)
    if auto and (maps is None or len(maps) < FEWEST_SLIDES):
        kept = "the map of 1 healthy slide" if maps else "no maps of healthy slides"
        return _alone(
            f"the run keeps {kept}, and neighbourhoods need {FEWEST_SLIDES}. Train on at least "
            "eight healthy slides whose tiles have positions, or pass results of healthy slides "
            "to wsiad export --scales-from"
        )
    if maps is None:
        raise InputError(
            "has no maps of healthy slides, by which scales_um could be standardised",
            subject=subject,
            remedy="Train again on a store of at least three healthy slides with positions, pass "
            "results of healthy slides to wsiad export --scales-from, or leave out --scales-um.",
        )
    found = SpatialCalibration.of(
        maps.maps,
        calibration=calibration,
        scales_um=scales_um,
        window=maps.window,
        mean_of=mean_of,
    )
    differ = calibration.values[0] < calibration.values[-1]
    for scale in found.scales:
        if not scale.is_constant:
            continue
        # Its map would be 0 everywhere, whatever a slide has.
        why = (
            "its healthy slides are too few or too small for a radius of "
            f"{scale.radius:g} µm: all means over it are equal"
        )
        remedy = "Leave that radius out of --scales-um, or train on more slides."
        if not differ:
            why = "all its healthy windows have one score, and so have all means of neighbours"
            remedy = "Pass --scales-um 0, or train another method or on other slides."
        if auto:
            return _alone(why)
        raise InputError(why, subject=subject, remedy=remedy)
    few = (
        f"scales are standardised by {counted(len(maps), 'healthy slide')}. "
        "Train on more slides: with so few, places that are usual on other healthy slides can "
        "stand out."
        if len(maps) < _FEW_SLIDES
        else ""
    )
    return ChosenScales(scales_um, found, warning=few)


def _alone(why: str) -> ChosenScales:
    """Return single windows, which nobody asked for, and why there are no neighbourhoods."""
    return ChosenScales(ALONE, None, f"regions come from single windows: {why}")
