"""Options of evidence in space: the neighbourhoods over which windows are looked at together."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from wsiad.core.config import Config
from wsiad.core.errors import ConfigError

MOST_SCALES = 16
"""Maximum number of scales."""

SHORTEST_UM, LONGEST_UM = 1.0, 100_000.0
"""Shortest and longest radius of a neighbourhood, µm; a slide is 75,000 µm long."""

ALONE = (0.0,)
"""Scales at which neighbours are not looked at."""

MeanOf = Literal["percentiles", "scores"]
"""Values of windows that are averaged over a neighbourhood."""

USUAL = (100.0, 200.0)
"""Scales of `auto`, where healthy slides can standardise them."""


def check_scales(scales_um: Iterable[float]) -> tuple[float, ...]:
    """Return radii in rising order.

    Parameters
    ----------
    scales_um : iterable of float
        Radii, µm. 0 is the heatmap pixel alone.

    Raises
    ------
    ConfigError
        There are none or too many, one is neither 0 nor from 1 to 100,000 µm, or two are equal.
    """
    scales = tuple(sorted(float(scale) for scale in scales_um))
    words = ", ".join(f"{scale:g}" for scale in scales)
    if not 1 <= len(scales) <= MOST_SCALES:
        raise ConfigError(
            f"{len(scales)} scales were given",
            remedy=f"Pass between 1 and {MOST_SCALES} radii in µm.",
        )
    if not all(scale == 0 or SHORTEST_UM <= scale <= LONGEST_UM for scale in scales):
        raise ConfigError(
            f"the scales {words} µm are not all radii of neighbourhoods on a slide",
            remedy=f"Pass radii from {SHORTEST_UM:g} to {LONGEST_UM:,.0f} µm, or 0.",
        )
    if any(one == other for one, other in pairwise(scales)):
        raise ConfigError(f"the scales {words} µm name one twice", remedy="Pass each radius once.")
    return scales


def _plain(scales_um: object) -> object:
    """Accept a radius without a list, and the word `auto` in one, as the command line gives it."""
    match scales_um:
        case ["auto"]:
            return "auto"
        case int() | float():
            return (scales_um,)
        case _:
            return scales_um


Scales = Annotated[Literal["auto"] | tuple[float, ...], BeforeValidator(_plain)]


class SpaceOptions(Config):
    """Options that decide over which neighbourhoods evidence is collected."""

    scales_um: Scales = "auto"
    """Radii, µm, of neighbourhoods over which windows are averaged: regions, detections and the
    slide's scan score are then taken from the highest mean, standardised by healthy slides. 0:
    from the score of each window alone. `auto`: what existing results have, else 100 200 if
    the run has maps of at least two healthy slides, else 0."""
    mean_of: Literal["auto"] | MeanOf = "auto"
    """Values that are averaged over a neighbourhood: healthy `percentiles` of the windows, or their
    `scores` in standard deviations of healthy windows, from -3 to 3. `auto`: `scores` if the
    method learnt from labelled anomalies, else `percentiles`."""

    @field_validator("scales_um")
    @classmethod
    def _are_scales(cls, scales_um: Scales) -> Scales:
        return "auto" if scales_um == "auto" else check_scales(scales_um)

    @model_validator(mode="after")
    def _means_need_neighbours(self) -> Self:
        if self.scales_um == ALONE and self.mean_of != "auto":
            raise ValueError("`mean_of` does nothing where `scales_um` is 0: leave one of them out")
        return self
