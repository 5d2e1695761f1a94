"""Typed configurations: one model behind a verb's YAML file, its flags and its API.

Every verb of the package has one frozen :class:`Config`. Unknown keys are errors,
values are checked where they enter, and the resolved config is stored with whatever
it made.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml

from wsiad.core import yaml_text
from wsiad.core.config_errors import explained
from wsiad.core.errors import ConfigError
from wsiad.core.files import check_folder, write_text

C = TypeVar("C", bound="Config")
R = TypeVar("R")


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], pydantic.BeforeValidator(_listed)]
"""Any number of paths; a single one may be given as it is."""


def _is_empty_path(value: object) -> bool:
    several = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, str) and not each.strip() for each in several)


class Config(pydantic.BaseModel):
    """Base of all configurations: frozen, no unknown keys, docstrings as descriptions."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _check_path(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Refuse an empty path: a variable without a value would mean the current folder."""
        if not _is_empty_path(value):
            return value
        if "Path" in str(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("an empty path is no path; write . for the current folder")
        return value


def build(
    cls: type[C],
    values: Mapping[str, Any],
    *,
    source: str = "config",
    shown: Mapping[str, str] | None = None,
) -> C:
    """Validate values into a config.

    Parameters
    ----------
    cls : type
    values : mapping
    source : str
        Where the values are from, for errors.
    shown : mapping of str to str, optional
        How fields are called where they were to be given, for errors of those that are missing.

    Raises
    ------
    ConfigError
        Naming every bad key, what is wrong with its value and what is allowed, and for
        an unknown key the nearest known one.
    """
    try:
        return cls.model_validate(dict(values))
    except pydantic.ValidationError as error:
        problem, known = explained(cls, error, shown=shown or {})
        raise ConfigError(problem, subject=source, remedy=known or None) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values; see :mod:`wsiad.core.yaml_text`.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or does not hold a mapping of texts to values.
    """
    try:
        values = yaml_text.read(path)
    except yaml_text.YamlError as error:
        raise ConfigError(f"cannot be read as YAML ({error})", subject=str(path)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("does not hold a mapping of keys to values", subject=str(path))
    if other := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(
            f"the key {other[0]!r} is no text",
            subject=str(path),
            remedy="Put quotes around it, or give the name of an option.",
        )
    return values


def resolve(
    cls: type[C],
    *,
    file: Path | None = None,
    flags: Mapping[str, Any],
    shown: Mapping[str, str] | None = None,
) -> C:
    """Merge a YAML file and flags (which win) into a config; ``shown`` as for :func:`build`.

    Raises
    ------
    ConfigError
        Anything in either is not valid.
    """
    values = read_yaml(file) if file else {}
    for key, value in flags.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    return build(cls, values, source=str(file) if file else "command line", shown=shown)


def dump_yaml(config: Config) -> str:
    """Return a config as YAML text that :func:`resolve` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def write_config(path: Path, config: Config) -> None:
    """Store a resolved config beside what it made, atomically."""
    write_text(path, dump_yaml(config))


def differences(was: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Say which values of two dumped configs differ, with both: ``seed 0 (now 7)``.

    Parameters
    ----------
    was, now : mapping
        Of JSON values; a key that one lacks is ``not stated`` there.
    prefix : str
        Before the names of keys.
    """
    told: list[str] = []
    for key in dict.fromkeys([*was, *now]):
        before, after = was.get(key, _NOT_STATED), now.get(key, _NOT_STATED)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            told += differences(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            told.append(f"{prefix}{key} {_short(before)} (now {_short(after)})")
    return told


_NOT_STATED = "not stated"
_LONGEST = 100


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def verb(cls: type[C]) -> Callable[[Callable[[C], R]], Callable[..., R]]:
    """Let a function of one config also be called with the config's fields.

    ``f(config)`` and ``f(field=value, …)`` do the same; in the second form the
    values are checked as those of a file are.
    """

    def decorate(function: Callable[[C], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(config: C | None = None, /, **fields: Any) -> R:
            if config is not None and fields:
                raise ConfigError("give a config or its fields, not both")
            if config is not None and not isinstance(config, cls):
                raise ConfigError(f"expected a {cls.__name__}, got {type(config).__name__}")
            checked = (
                config
                if config is not None
                else build(cls, fields, source=f"wsiad.{function.__name__}()")
            )
            if isinstance(out := getattr(checked, "out", None), Path):
                check_folder(out)
            return function(checked)

        call.config_class = cls  # type: ignore[attr-defined]
        return call

    return decorate


def config_class(function: Callable[..., Any]) -> type[Config]:
    """Return the config class of a verb made by :func:`verb`."""
    return typing.cast("type[Config]", vars(function)["config_class"])
