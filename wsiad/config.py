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

from wsiad.config_errors import explained
from wsiad.errors import ConfigError
from wsiad.files import read_text, write_text

_MOST_YAML = 1 << 20  # bytes
_MOST_VALUES = 100_000
_DEEPEST = 64

C = TypeVar("C", bound="Config")
R = TypeVar("R")


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], pydantic.BeforeValidator(_listed)]
"""Any number of paths; a single one may be given as it is."""


class Config(pydantic.BaseModel):
    """Base of all configurations: frozen, no unknown keys, docstrings as descriptions."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def build(cls: type[C], values: Mapping[str, Any], *, source: str = "config") -> C:
    """Validate values into a config.

    Raises
    ------
    ConfigError
        Naming every bad key, what is wrong with its value and what is allowed, and for
        an unknown key the nearest known one.
    """
    try:
        return cls.model_validate(dict(values))
    except pydantic.ValidationError as error:
        problem, known = explained(cls, error)
        raise ConfigError(problem, subject=source, remedy=known or None) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(
                    problem=f"a key is a {type(key).__name__}, not a text",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (safe loader, no duplicate keys).

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        values = parse_yaml(read_text(path, most=_MOST_YAML))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot be read as YAML ({' '.join(str(error).split())})", subject=str(path)
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("does not hold a mapping of keys to values", subject=str(path))
    return values


def parse_yaml(text: str) -> Any:
    """Parse YAML: plain values only, no duplicate keys.

    Raises
    ------
    ValueError
        It is not YAML, or holds what no config has: keys that are no text, half characters,
        more than 100,000 values once its aliases are followed, or values that nest deeper
        than 64.
    """
    try:
        # _UniqueKeyLoader is a SafeLoader: it builds plain values only.
        values = yaml.load(text, _UniqueKeyLoader)  # noqa: S506
    except RecursionError:
        raise ValueError(f"it nests deeper than {_DEEPEST}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:  # what PyYAML makes of a bad date or number has no end
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"a value is not what its tag says ({words})") from error
    left = [_MOST_VALUES]
    _check_values(values, _DEEPEST, left)
    return values


def _check_values(value: object, deeper: int, left: list[int]) -> None:
    """Check what a document holds; `left` counts the values that it may still have."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it holds more than {_MOST_VALUES} values")
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")  # half a character cannot be written
    if isinstance(value, dict | list) and not deeper:
        raise ValueError(f"it nests deeper than {_DEEPEST}")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str | int | float | bool | None):
                raise ValueError(f"the key {key!r} is no text")  # noqa: TRY004 - as all else is said
            _check_values(key, deeper - 1, left)
            _check_values(part, deeper - 1, left)
    elif isinstance(value, list):
        for part in value:
            _check_values(part, deeper - 1, left)


def resolve(cls: type[C], *, file: Path | None = None, flags: Mapping[str, Any]) -> C:
    """Merge a YAML file and flags (which win) into a config.

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
    return build(cls, values, source=str(file) if file else "command line")


def dump_yaml(config: Config) -> str:
    """Return a config as YAML text that :func:`resolve` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def write_config(path: Path, config: Config) -> None:
    """Store a resolved config beside what it made, atomically."""
    write_text(path, dump_yaml(config))


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
            return function(
                config
                if config is not None
                else build(cls, fields, source=f"wsiad.{function.__name__}()")
            )

        call.config_class = cls  # type: ignore[attr-defined]
        return call

    return decorate


def config_class(function: Callable[..., Any]) -> type[Config]:
    """Return the config class of a verb made by :func:`verb`."""
    return typing.cast("type[Config]", vars(function)["config_class"])
