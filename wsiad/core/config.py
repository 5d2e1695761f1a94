"""Typed configurations: one model behind a verb's YAML file, its flags and its API.

Every verb of the package has one frozen :class:`Config`. Unknown keys are errors,
values are checked where they enter, and the resolved config is stored with whatever
it made.

What is wrong with a configuration, in words: each bad key or value, and what is allowed.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from wsiad.core import yaml_text
from wsiad.core.errors import ConfigError
from wsiad.core.files import check_folder, write_text
from wsiad.core.terminal import did_you_mean

_LONGEST = 100
_IN_ITS_OWN_WORDS = frozenset(
    {"value_error", "assertion_error", "finite_number", "too_short", "too_long"}
)
"""Faults whose message says more than what is allowed."""

_TYPES = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "object": "a mapping",
}
_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "more than"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "less than"),
)

Schema = Mapping[str, Any]
"""JSON schema of a config or of a field of it."""


def explained(
    cls: type[pydantic.BaseModel],
    error: pydantic.ValidationError,
    *,
    shown: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Return what is wrong with the values of a config, and which keys there are.

    Parameters
    ----------
    cls : type
        The config that the values were for.
    error : ValidationError
    shown : mapping of str to str, optional
        How missing keys are called where they were to be given.

    Returns
    -------
    problem : str
        Each bad value with those that are allowed, each key that is missing or unknown.
    known : str
        The known keys, where one is unknown; else empty.
    """
    schemas = _Schemas(cls)
    faults = error.errors()
    problems = dict.fromkeys(_explain(schemas, fault, shown or {}) for fault in faults)  # each once
    known = {}
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            *parents, _ = fault["loc"]
            place = ".".join(map(str, parents))
            known[f"Known keys{f' of {place}' if place else ''}"] = schemas.keys(parents)
    remedies = [f"{head}: {', '.join(keys)}." for head, keys in known.items() if keys]
    return "; ".join(problems), " ".join(remedies)


def _explain(schemas: _Schemas, fault: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    place: tuple[int | str, ...] = fault["loc"]
    key = ".".join(map(str, place))
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key" + did_you_mean(str(place[-1]), schemas.keys(place[:-1]))
    allowed = schemas.allowed(place)
    if fault["type"] == "missing":
        return f"{shown.get(key, key)}: is required" + (f" ({allowed})" if allowed else "")
    given = repr(fault["input"])
    if len(given) > _LONGEST:
        given = f"{given[:_LONGEST]}…"
    if fault["type"] in _IN_ITS_OWN_WORDS or not allowed:
        message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if fault["type"] == "too_short":
            message = f"give at least {fault['ctx']['min_length']}"
        message = message[:1].lower() + message[1:]
        # What is wrong with values together is wrong with none of them.
        return f"{key}: {message} (got {given})" if place else message
    if schemas.at(place) is None:
        key = ".".join(map(str, place[:-1]))
    near = ""
    if isinstance(fault["input"], str):
        near = did_you_mean(fault["input"], schemas.choices(place))
    return f"{key}: {given} is not allowed; give {allowed}{near}"


class _Schemas:
    """JSON schemas of the fields of a config, by their place in it.

    Parameters
    ----------
    cls : type
    """

    def __init__(self, cls: type[pydantic.BaseModel]) -> None:
        try:
            self._whole: Schema = cls.model_json_schema(schema_generator=_Quiet)
        except pydantic.PydanticInvalidForJsonSchema:  # a type of which JSON knows nothing
            self._whole = {"properties": {key: {} for key in cls.model_fields}}

    def keys(self, place: Sequence[int | str]) -> list[str]:
        """Return the known keys of a mapping."""
        return list((self.at(place) or {}).get("properties", ()))

    def at(self, place: Iterable[int | str]) -> Schema | None:
        """Return the schema of a place; ``None`` if there is none of its own."""
        schema: Schema | None = self._whole
        for part in place:
            if schema is None:
                return None
            if isinstance(part, int):
                schema = schema.get("items")
            else:
                other = schema.get("additionalProperties")
                schema = schema.get("properties", {}).get(part, other or None)
            schema = self._plain(schema) if isinstance(schema, Mapping) else None
        return schema

    def allowed(self, place: Sequence[int | str]) -> str:
        """Say what may be given at a place; nothing where it cannot be said in words."""
        schema = self.at(place)
        if schema is None and place:
            # Of a union: pydantic names the alternative that did not fit.
            schema = self.at(place[:-1])
            if schema is None or "anyOf" not in schema:
                return ""
        return self._words(schema or {})

    def choices(self, place: Sequence[int | str]) -> list[str]:
        """Return the texts among which a value at a place is chosen."""
        schema = self.at(place) or self.at(place[:-1]) or {}
        parts = [schema, *schema.get("anyOf", ())]
        found = [choice for part in parts for choice in self._plain(part).get("enum", ())]
        return [choice for choice in found if isinstance(choice, str)]

    def _plain(self, schema: Schema) -> Schema:
        """Follow a reference; of what may be left out, take what may be given."""
        if "$ref" in schema:
            return self._plain(self._whole["$defs"][schema["$ref"].rpartition("/")[2]])
        given = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
        return self._plain(given[0]) if len(given) == 1 else schema

    def _words(self, schema: Schema) -> str:
        schema = self._plain(schema)
        if "anyOf" in schema:
            each = [self._words(part) for part in schema["anyOf"] if part.get("type") != "null"]
            return _listed(list(dict.fromkeys(each))) if all(each) else ""
        if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
            return _listed([repr(choice) for choice in choices])
        if schema.get("type") == "array":
            return self._list(schema)
        if "pattern" in schema or schema.get("type") not in _TYPES:
            return ""
        if schema.get("format") in {"path", "file-path", "directory-path"}:
            return "a path"
        bounds = [f"{words} {schema[key]:g}" for key, words in _BOUNDS if key in schema]
        return _TYPES[schema["type"]] + (f" of {' and '.join(bounds)}" if bounds else "")

    def _list(self, schema: Schema) -> str:
        least = schema.get("minItems", 0)
        if "prefixItems" in schema or "items" not in schema:
            return f"a list of {least}" if least else "a list"
        each = self._words(schema["items"])
        head = f"a list of at least {least}" if least else "a list"
        return f"{head}, each {each}" if each else head


class _Quiet(GenerateJsonSchema):
    """Without warnings of defaults that are no JSON: only types are asked for."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {  # noqa: RUF012 - the base's type
        "non-serializable-default",
        "skipped-choice",
    }


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


C = TypeVar("C", bound="Config")
R = TypeVar("R")


def _config_listed(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], pydantic.BeforeValidator(_config_listed)]
"""Any number of paths; a single one may be given as it is."""

Texts = Annotated[tuple[str, ...], pydantic.BeforeValidator(_config_listed)]
"""Any number of texts; a single one may be given as it is."""


def _is_empty_path(value: object) -> bool:
    several = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, str) and not each.strip() for each in several)


Order = tuple[str | types.EllipsisType, ...]
"""Names of options in their order, around ``...`` for all others."""


class Config(pydantic.BaseModel):
    """Base of all configurations: frozen, no unknown keys, docstrings as descriptions.

    A config may be made of others, each with the options of one matter. Theirs come in the
    order in which the last named base, the one before it and so on list them, and its own
    after them. ``ORDER`` names options that stand elsewhere, around ``...`` for all others;
    it holds for `--help` and for stored configs, and configs made of this one keep it.

    Examples
    --------
    >>> class Painted(QuietOptions):
    ...     ORDER = (..., "quiet")
    ...     colour: str = "red"
    >>> list(Painted.model_fields)
    ['colour', 'quiet']
    """

    ORDER: ClassVar[Order] = (...,)

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    kept: ClassVar[frozenset[str]] = frozenset()
    """Fields that stay as they are in what the verb works on, where they are not given."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields
        bases = [base for base in reversed(cls.__bases__) if issubclass(base, pydantic.BaseModel)]
        names = dict.fromkeys(name for base in bases for name in base.model_fields)
        listed = vars(cls).get("ORDER", (...,))
        rest = [name for name in names | dict.fromkeys(fields) if name not in listed]
        split = listed.index(...)
        order = [*listed[:split], *rest, *listed[split + 1 :]]
        if order != list(fields):
            found = {name: fields[name] for name in order}
            fields.clear()
            fields.update(found)
            cls.model_rebuild(force=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _check_path(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Refuse an empty path: a variable without a value would mean the current folder."""
        if not _is_empty_path(value):
            return value
        if "Path" in str(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("an empty path is no path; write . for the current folder")
        return value


class QuietOptions(Config):
    """How much a verb tells while it works."""

    quiet: bool = False
    """No progress output."""


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
