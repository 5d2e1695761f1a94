"""Describe a search: the options of a detector to try, their values, and how they are tried."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import pydantic
from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from wsiad.core.config import Config, Order
from wsiad.core.errors import ConfigError
from wsiad.core.terminal import did_you_mean
from wsiad.learning.devices import DeviceOptions
from wsiad.runs.anomalies import AnomalyOptions
from wsiad.runs.healthy_tiles import HealthyOptions, MethodOptions

Params = dict[str, Any]
"""Value of each parameter of a space, as JSON; these values define a trial."""

_Number = int | float
_INSIDE = 0.382  # a place within a range that is no whole number where its ends are


def key(value: object) -> str:
    """Return a JSON value as text, always the same text for the same value."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def _plain(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return values as they are after a round trip through JSON; duplicates are an error."""
    try:
        keys = [key(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"values must be numbers, texts, lists and mappings: {error}") from None
    if twice := next((text for text in keys if keys.count(text) > 1), None):
        raise ValueError(f"{twice} is listed twice")
    return tuple(json.loads(text) for text in keys)


class Choices(Config):
    """Values to try for the option that has the parameter's name."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1)]
    """Values to try."""

    @field_validator("choices")
    @classmethod
    def _are_plain(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return _plain(values)


class Tied(Config):
    """Options that change together; the parameter's name need not be that of an option."""

    tied: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    """Groups of options and values; all groups set the same options."""

    @field_validator("tied")
    @classmethod
    def _are_alike(cls, groups: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if not all(group and group.keys() == groups[0].keys() for group in groups):
            raise ValueError("each group must set the same options")
        return _plain(groups)


class Range(Config):
    """Numbers between two bounds, both included; whole numbers if both bounds are whole."""

    low: _Number
    """Smallest value."""
    high: _Number
    """Largest value."""
    log: bool = False
    """Sample on a logarithmic scale."""
    step: Annotated[_Number, Field(gt=0)] | None = None
    """Distance between the values to try."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError("`low` must be below `high`")
        if self.log and self.low <= 0:
            raise ValueError("`log` needs a `low` above 0")
        if self.log and self.step is not None:
            raise ValueError("`log` and `step` exclude each other")
        if self.whole and isinstance(self.step, float):
            raise ValueError("`step` must be whole where `low` and `high` are")
        return self

    @property
    def whole(self) -> bool:
        """True where the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def values(self) -> list[_Number] | None:
        """Return all values, or ``None`` if there are infinitely many."""
        if self.whole:
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [self.low + number * self.step for number in range(count)]


def _spelt_out(value: object) -> object:
    """Convert a list, or a single value, to the mapping of :class:`Choices`."""
    if isinstance(value, list | tuple):
        return {"choices": value}
    return value if isinstance(value, Mapping | Config) else {"choices": [value]}


def _kind(value: object) -> str | None:
    kinds = {"choices": "choices", "tied": "tied", "low": "range", "high": "range"}
    names = value if isinstance(value, Mapping) else type(value).model_fields  # type: ignore[attr-defined]
    return next((kind for name, kind in kinds.items() if name in names), None)


Parameter: TypeAlias = Annotated[
    Annotated[Choices, Tag("choices")]
    | Annotated[Tied, Tag("tied")]
    | Annotated[Range, Tag("range")],
    Discriminator(
        _kind,
        custom_error_type="parameter",
        custom_error_message="write a list, or a mapping with `choices`, `tied`, or `low` and "
        "`high`; options that are not searched belong in `options`",
    ),
    BeforeValidator(_spelt_out),
]
"""Values to try of one parameter: a list, tied options, or a range."""

Space = Mapping[str, Choices | Tied | Range]

SCALE = "mpp"
"""Parameter of a search over several scales: µm/px of the tiles. It is no option of a detector."""


def settings_of(space: Space, params: Params) -> dict[str, Any]:
    """Return all that a trial's parameter values set: the scale, if it is searched, and options."""
    settings: dict[str, Any] = {}
    for name, parameter in space.items():
        settings |= params[name] if isinstance(parameter, Tied) else {name: params[name]}
    return settings


def options_of(space: Space, params: Params) -> dict[str, Any]:
    """Return the detector's options that a trial's parameter values set."""
    settings = settings_of(space, params)
    return {name: value for name, value in settings.items() if name != SCALE}


def with_scales(space: Mapping[str, Parameter], scales: Sequence[float]) -> dict[str, Parameter]:
    """Return a space with the scales to try, µm/px, if there are several."""
    if len(scales) < 2:
        return dict(space)
    return {SCALE: Choices(choices=tuple(scales)), **space}


def values_of(parameter: Choices | Tied | Range) -> list[Any] | None:
    """Return all values of a parameter, or ``None`` if there are infinitely many."""
    match parameter:
        case Choices():
            return list(parameter.choices)
        case Tied():
            return list(parameter.tied)
        case Range():
            return parameter.values()


def size(space: Space) -> int | None:
    """Return the number of settings in a space, or ``None`` if there are infinitely many."""
    counts = [values_of(parameter) for parameter in space.values()]
    return None if None in counts else math.prod(len(values or ()) for values in counts)


def check_space(space: Space, fixed: Mapping[str, Any], options: type[Config]) -> None:
    """Check the names and values of a space before anything is tried.

    Values are checked one by one. A combination that a detector refuses becomes a failed trial.

    Parameters
    ----------
    space : mapping of str to parameter
        Search space.
    fixed : mapping of str to value
        Options that are the same in all trials.
    options : type
        Class of the detector's options.

    Raises
    ------
    ConfigError
        An option is unknown, is set twice, or cannot have one of its values.
    """
    owner = dict.fromkeys(fixed, "options")
    for name, parameter in space.items():
        for option in parameter.tied[0] if isinstance(parameter, Tied) else (name,):
            _check_known(option, f"space.{name}", options)
            if option in owner:
                raise ConfigError(
                    f"the option {option!r} is set by {owner[option]} already",
                    subject=f"space.{name}",
                    remedy="Set each option in one place only.",
                )
            owner[option] = f"space.{name}"
        for option, value in _looked_at(name, parameter):
            _check_value(option, value, fixed, options, subject=f"space.{name}")


def _looked_at(name: str, parameter: Choices | Tied | Range) -> Iterator[tuple[str, Any]]:
    """Yield options and values to check: all listed ones; for a range, its ends and a value inside.

    A value inside is only checked for a range of real numbers without a step.
    """
    match parameter:
        case Choices():
            yield from ((name, value) for value in parameter.choices)
        case Tied():
            yield from (item for group in parameter.tied for item in group.items())
        case Range(low=low, high=high):
            yield from ((name, low), (name, high))
            if not parameter.whole and parameter.step is None:
                yield name, low + _INSIDE * (high - low)


def _check_known(option: str, subject: str, options: type[Config]) -> None:
    known = options.model_fields
    if option in known:
        return
    if option in (SCALE, "scale", "store"):
        raise ConfigError(
            "the scale of the tiles is searched over stores of the same slides",
            subject=subject,
            remedy="Set --scale STORE=ANOMALIES, once for each further store of another --mpp.",
        )
    raise ConfigError(
        f"the detector has no option {option!r}{did_you_mean(option, known)}",
        subject=subject,
        remedy=f"Use one of its options: {', '.join(known)}. Write options that change together "
        "as `tied`.",
    )


def _check_value(
    option: str, value: Any, fixed: Mapping[str, Any], options: type[Config], *, subject: str
) -> None:
    try:
        options.model_validate({**fixed, option: value})
    except pydantic.ValidationError as error:
        for item in error.errors():
            if item["loc"] and item["loc"][0] == option:
                message = item["msg"].removeprefix("Value error, ")
                raise ConfigError(
                    f"{option} cannot be {value!r}: {message[0].lower()}{message[1:]}",
                    subject=subject,
                ) from None


class SearchOptions(DeviceOptions, AnomalyOptions, HealthyOptions, MethodOptions):
    """Options of a search: the space, the tiles, and the way in which settings are tried."""

    ORDER: ClassVar[Order] = (
        *("store", "anomalies", "out", "preset", "detector", "space", "scales", "options"),
        *("trials", "max_minutes", "random_trials", "prune", "folds", "healthy_folds_by"),
        *("anomaly_folds_by", "healthy_tiles", "anomaly_types", "anomaly_tiles", "split"),
        *("quality", "weights", "seed", "device", "fit_steps", "fit_minutes", ..., "about"),
    )

    store: Path
    """Tile store of healthy slides."""
    anomalies: Path
    """Tile store of labelled anomalous tiles; the label of a slide is its anomaly type."""
    out: Path
    """Folder of the search; an interrupted search in it continues."""
    scales: dict[str, Path] = Field(default_factory=dict)
    """Store of the same healthy slides at another µm/px, and that of the anomalous ones, as
    STORE=ANOMALIES; can be passed several times. The scale is then searched too."""
    space: dict[str, Parameter] = Field(default_factory=dict)
    """Search space: an option and a list of values, or a range such as `{low: 1, high: 9}`; see
    docs/tune.md. Can be passed several times."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Option of the method that is the same in all trials; can be passed several times."""
    trials: Annotated[int, Field(ge=1)] = 30
    """Maximum number of settings to try, including those of earlier calls."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Start no further fit after this many minutes of this call."""
    random_trials: Annotated[int, Field(ge=1)] = 10
    """Number of trials drawn at random, before earlier trials decide on the next."""
    prune: bool = True
    """Stop a trial if its mean after a fold is below the median of the complete trials."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Number of parts of the slides; a trial is fitted and tested once for each."""
    healthy_folds_by: Literal["slide", "tile"] = "slide"
    """Unit of the folds of healthy tiles. `tile` is for fewer slides than folds; figures are
    then too good."""
    anomaly_folds_by: Literal["slide", "label", "tile"] = "slide"
    """Unit of the folds of anomalous tiles. `label` tests on types of anomaly that no other fold
    has; `tile` is for fewer slides than folds."""
    healthy_tiles: Annotated[int, Field(ge=1)] | None = None
    """Number of tiles of `store` to use, drawn by the seed evenly over the slides; by default
    all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search; the same seed gives the same result if trials run one at a time."""
    fit_steps: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of optimiser steps of each fit."""
    fit_minutes: Annotated[float, Field(gt=0)] | None = None
    """Maximum minutes of each fit; results then depend on the machine."""
    retry_failed: bool = False
    """Try trials that failed in an earlier call again."""

    @model_validator(mode="after")
    def _has_something_to_try(self) -> Self:
        if not (self.space or self.scales):
            raise ValueError("there is nothing to try: set `space` or `scales`")
        by_tile = "tile" in (self.healthy_folds_by, self.anomaly_folds_by)
        if self.scales and by_tile:
            raise ValueError("`scales` need folds of slides: tiles of two scales do not correspond")
        return self
