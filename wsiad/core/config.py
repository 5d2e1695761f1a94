"""Typed configurations: one model for a verb's YAML file, its flags and its API.

Every verb of the package has one frozen :class:`Config`. Unknown keys are errors, values are
checked when they enter, and the resolved config is stored with the verb's results. Errors of a
configuration are reported in pydantic's words, on one line, with the key, the value and the
nearest key.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

import pydantic
import yaml

from wsiad.core import yaml_text
from wsiad.core.config_faults import explained
from wsiad.core.errors import ConfigError
from wsiad.core.files import check_folder, write_text
from wsiad.core.terminal import by_number

CONFIG: Final = "config.yaml"
"""Name of the file, in the folder that a verb makes, of the verb's resolved configuration."""
RECORD: Final = "run.json"
"""Name of the file, in the folder that a verb makes, of its record: work done, and versions."""

C = TypeVar("C", bound="Config")
R = TypeVar("R")


def _config_listed(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], pydantic.BeforeValidator(_config_listed)]
"""Any number of paths; a single path can be set without a list."""

Texts = Annotated[tuple[str, ...], pydantic.BeforeValidator(_config_listed)]
"""Any number of texts; a single text can be set without a list."""


def _is_empty_path(value: object) -> bool:
    several = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, str) and not each.strip() for each in several)


Order = tuple[str | types.EllipsisType, ...]
"""Names of options in their order, around ``...`` for all others."""


class Config(pydantic.BaseModel):
    """Base of all configurations: frozen, no unknown keys, explained by :func:`option_texts`.

    A config can be composed of others, each with the options of one subject. Their options come
    first, those of the last named base before those of the base in front of it; the config's own
    follow. ``ORDER`` names options with another position, around ``...`` for all others. It
    holds for `--help` and for stored configs, and configs made of this one keep it.

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
        validate_default=True,
        allow_inf_nan=False,
    )

    kept: ClassVar[frozenset[str]] = frozenset()
    """Fields that keep the value of the verb's input if they are not set."""
    unflagged: ClassVar[frozenset[str]] = frozenset()
    """Fields that are set in files and have no flag."""
    tries_out: ClassVar[bool] = True
    """False where what is complete in `out` is only read, so that it may be read-only."""
    flags: ClassVar[Mapping[str, str]] = {}
    """Flags of fields, without dashes, that differ from the fields' names."""

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

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in option_texts(cls).items():
            if text and name in properties:
                properties[name].setdefault("description", text)
        return schema

    def part(self, kind: type[C]) -> C:
        """Return only the options of one of the configs of which this one is made."""
        return kind(**{key: getattr(self, key) for key in kind.model_fields})

    def begin(self) -> None:
        """Do what comes before everything else of a verb with these options; by default nothing."""

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _check_path(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Refuse an empty path: a variable without a value would mean the current folder."""
        if not _is_empty_path(value):
            return value
        if "Path" in str(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("an empty path is not a path; write . for the current folder")
        return value


@functools.cache
def option_texts(cls: type[pydantic.BaseModel]) -> dict[str, str]:
    """Return the texts that explain a config's options: descriptions, or docstrings below them.

    An option that is declared again has the text of that declaration alone. Docstrings are read
    from the source, and only where texts are shown: pydantic would read those of each config that
    is imported (`use_attribute_docstrings`), a tenth of the start of a verb. Without the source
    they are empty.
    """
    models = [base for base in cls.__mro__ if issubclass(base, pydantic.BaseModel)][:-1]
    below: dict[str, str] = {}
    for base in reversed(models):
        below |= _docstrings(base)
    return {
        name: info.description or below.get(name, "") for name, info in cls.model_fields.items()
    }


def _docstrings(cls: type) -> dict[str, str]:
    """Return the docstring, or an empty text, of each attribute that a class itself declares."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
        body = _classes(source)[cls.__qualname__].body
    except (KeyError, OSError, SyntaxError, TypeError):
        return {}
    texts = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = after.value if isinstance(after, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) else None
            texts[node.target.id] = inspect.cleandoc(text) if isinstance(text, str) else ""
    return texts


@functools.lru_cache(maxsize=64)
def _classes(source: str) -> dict[str, ast.ClassDef]:
    """Return the classes in the source of a module, by their qualified names."""
    return dict(_classes_in(ast.parse(source), ""))


def _classes_in(parent: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef):
            yield f"{prefix}{node.name}", node
            yield from _classes_in(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes_in(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.stmt):
            yield from _classes_in(node, prefix)


_STORED: ContextVar[bool] = ContextVar("stored", default=False)


@contextmanager
def idle_options_allowed() -> Iterator[None]:
    """Accept options that are set and do nothing, as earlier versions stored them."""
    token = _STORED.set(True)
    try:
        yield
    finally:
        _STORED.reset(token)


def _default(kind: type[pydantic.BaseModel], name: str) -> Any:
    """Return the default of a field."""
    return kind.model_fields[name].get_default(call_default_factory=True)


class UsedOptions(Config):
    """Base of options of which some do nothing with certain others: if set, these are refused."""

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return, for options that do not always do something, whether they do, or without what.

        A subclass adds its own to those of its bases. An option of nested ones has a name such as
        ``network.output``.
        """
        return {}

    def idle(self) -> dict[str, str]:
        """Return the options that are set and do nothing, with what they do nothing with."""
        return {
            name: why
            for name, (used, why) in self.uses().items()
            if not used and self._is_set(name)
        }

    def without_idle(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of which these options were built, without those that do nothing."""
        idle, found = self.idle(), {}
        for name, value in values.items():
            nested = getattr(self, name)
            if name in idle:
                continue
            if isinstance(value, Mapping) and isinstance(nested, UsedOptions):
                used = nested.without_idle(value)
                value = {key: one for key, one in used.items() if f"{name}.{key}" not in idle}
            found[name] = value
        return found

    def _is_set(self, name: str) -> bool:
        """Tell whether an option has neither its own default nor that of the options around it."""
        first, *rest = name.split(".")
        value, usual = getattr(self, first), _default(type(self), first)
        defaults = [usual]
        for part in rest:
            defaults = [*(getattr(one, part) for one in defaults), _default(type(value), part)]
            value = getattr(value, part)
        return value not in defaults

    @pydantic.model_validator(mode="after")
    def _check_idle(self) -> Self:
        """Refuse options that do nothing, unless :func:`idle_options_allowed` holds."""
        if (idle := self.idle()) and not _STORED.get():
            said = [f"{name} does nothing with {why}" for name, why in idle.items()]
            raise ValueError("; ".join([*said, self._way_out(list(idle))]))
        return self

    def _way_out(self, idle: Sequence[str]) -> str:
        """Return what to do about options that do nothing, which a preset can have set."""
        own = {name: _default(type(self), name) for name in idle if "." not in name}
        plain = [
            f"{name}={json.dumps(value)}"
            for name, value in own.items()
            if value is None or isinstance(value, str | int | float)
        ]
        if len(plain) < len(idle):
            return f"leave {by_number(len(idle), 'it', 'them')} out"
        return f"leave {by_number(len(idle), 'it', 'them')} out, or set {', '.join(plain)}"


class QuietOptions(Config):
    """Options of the messages that a verb prints while it works."""

    quiet: bool = False
    """Print no progress, nor which command usually comes next."""


def build(
    cls: type[C],
    values: Mapping[str, Any],
    *,
    source: str = "config",
    shown: Mapping[str, str] | None = None,
) -> C:
    """Validate values and return them as a config.

    Parameters
    ----------
    cls : type
    values : mapping
    source : str
        Source of the values, for errors.
    shown : mapping of str to str, optional
        Names of fields in the place where they should be set, for errors about missing fields.

    Raises
    ------
    ConfigError
        A key is bad. The error names every bad key, what is wrong with its value and what is
        allowed, and for an unknown key the nearest known one.
    """
    try:
        return cls.model_validate(dict(values))
    except pydantic.ValidationError as error:
        problem, known = explained(cls, error, values=values, shown=shown)
        raise ConfigError(problem, subject=source, remedy=known or None) from None


def read_yaml(path: Path, *, own: bool = False) -> dict[str, Any]:
    """Read a YAML mapping of plain values; for ``own`` see :func:`wsiad.core.yaml_text.read`.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or does not hold a mapping of texts to values.
    """
    try:
        values = yaml_text.read(path, own=own)
    except yaml_text.YamlError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(
                "there is no such file", subject=str(path), remedy="Check the path."
            ) from error
        raise ConfigError(f"cannot be read as YAML ({error})", subject=str(path)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("does not hold a mapping of keys to values", subject=str(path))
    if other := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(
            f"the key {other[0]!r} is not a text",
            subject=str(path),
            remedy="Put quotes around it, or use the name of an option.",
        )
    return values


def resolve(
    cls: type[C],
    *,
    file: Path | None = None,
    flags: Mapping[str, Any],
    shown: Mapping[str, str] | None = None,
) -> C:
    """Merge a YAML file and flags, which override it; ``shown`` is as for :func:`build`.

    Raises
    ------
    ConfigError
        A value of either is not valid.
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
    """Store a resolved config next to the verb's results, atomically."""
    write_text(path, dump_yaml(config))


def stated_path(path: Path, *, folder: Path, out: object) -> Path:
    """Return where a path leads that the config of a folder states.

    A relative one counts from where the command was started that wrote the folder. That is known
    from its ``out``, also after all was moved together; if the folder was renamed, the path counts
    from the working directory.

    Parameters
    ----------
    path : Path
        Path that the config states.
    folder : Path
        Folder of the config.
    out : object
        The folder as its config states it.

    Examples
    --------
    >>> stated_path(Path("store"), folder=Path("/work/runs/knn"), out="runs/knn").as_posix()
    '/work/store'
    """
    given = Path(str(out)).parts
    here = folder.absolute().parts
    start, tail = here[: len(here) - len(given)], here[len(here) - len(given) :]
    if path.is_absolute() or not start or tail != given or ".." in given:
        return path
    found = Path(*start) / path
    return path if found == path.absolute() else found


def differences(was: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Return the differences between two dumped configs, with both values: ``seed 0 (now 7)``.

    Parameters
    ----------
    was, now : mapping
        Mappings of JSON values; a key that is missing in one is ``not stated`` there.
    prefix : str
        Prefix of the names of keys.
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
    """Make a function of one config also callable with the config's fields.

    ``f(config)`` and ``f(field=value, …)`` do the same. In the second form, the values are
    checked like those of a file.
    """

    def decorate(function: Callable[[C], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(config: C | None = None, /, **fields: Any) -> R:
            if config is not None and fields:
                raise ConfigError("pass a config or its fields, not both")
            if config is not None and not isinstance(config, cls):
                raise ConfigError(f"expected a {cls.__name__}, got {type(config).__name__}")
            source = f"wsiad.{function.__name__}()"
            checked = config if config is not None else build(cls, fields, source=source)
            checked.begin()
            if isinstance(out := getattr(checked, "out", None), Path):
                looks = getattr(checked, "dry_run", False)
                check_folder(out, tried=not looks and (checked.tries_out or not out.exists()))
            return function(checked)

        call.config_class = cls  # type: ignore[attr-defined]
        return call

    return decorate


def config_class(function: Callable[..., Any]) -> type[Config]:
    """Return the config class of a verb made by :func:`verb`."""
    return typing.cast("type[Config]", vars(function)["config_class"])
