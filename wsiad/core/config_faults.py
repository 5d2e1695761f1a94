"""Say what is wrong with the values of a configuration: the key, the value, what is allowed.

The words are pydantic's, on one line. The alternatives of a union become one sentence, and an
unknown key is answered with the nearest known one.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pydantic

from wsiad.core.terminal import did_you_mean

_LONGEST = 100
_QUOTED = re.compile("'([^']*)'")
_SHOULD = "Input should be "
_EXCESS = re.compile(", unable to .*| after validation")
_SAID = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "path_type": "a path",
}
"""Words for what is allowed, where pydantic uses Python's own."""


def explained(
    cls: type[pydantic.BaseModel],
    error: pydantic.ValidationError,
    *,
    values: Mapping[str, Any],
    shown: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Return the faults of a config's values, and the keys that exist.

    Parameters
    ----------
    cls : type
        The config that the values were for.
    error : ValidationError
        Error of pydantic; a value that fits no alternative becomes one sentence.
    values : mapping
        Values that were set.
    shown : mapping of str to str, optional
        Names for missing keys, as in the place where they should be set.

    Returns
    -------
    problem : str
        Each bad value with what it should be, and each key that is missing or unknown.
    known : str
        The known keys if one is unknown; otherwise empty.
    """
    faults: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for fault in error.errors(include_url=False):
        faults.setdefault(_place(fault, values), []).append(fault)
    problems, remedies = [], []
    for place, of_place in faults.items():
        if any(other[: len(place)] == place and other != place for other in faults):
            continue  # an alternative went further into the value: it is what was meant
        key = ".".join(map(str, place))
        kind = of_place[0]["type"]
        if kind == "extra_forbidden":
            known = _known_keys(cls, place[:-1])
            if whole := _group_of(cls, place, of_place[0]["input"]):
                problems.append(f"{key}: a group of options is set as a whole")
                remedies.append(whole)
                continue
            problems.append(f"{key}: unknown key{did_you_mean(str(place[-1]), known)}")
            parent = f" of {'.'.join(map(str, place[:-1]))}" if len(place) > 1 else ""
            remedies += [f"Known keys{parent}: {', '.join(known)}."] if known else []
        elif kind == "missing":
            problems.append(f"{shown.get(key, key) if shown else key}: is required")
        else:
            problem = _problem(of_place)
            # What is wrong with values together is wrong with none of them.
            problems.append(f"{key}: {problem}" if place else problem)
    return "; ".join(problems), " ".join(dict.fromkeys(remedies))


def _place(fault: Mapping[str, Any], values: Any) -> tuple[int | str, ...]:
    """Return the place of a fault, without the alternatives of a union that pydantic adds."""
    place: list[int | str] = []
    for number, part in enumerate(fault["loc"]):
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        elif number and not (fault["type"] == "missing" and part == fault["loc"][-1]):
            continue
        place.append(part)
    return tuple(place)


def _problem(faults: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with a value that no alternative accepts."""
    given = repr(faults[0]["input"])
    if len(given) > _LONGEST:
        given = f"{given[:_LONGEST]}…"
    allowed = []
    for fault in faults:
        message = _EXCESS.sub("", fault["msg"])
        if fault["type"] not in _SAID and not message.startswith(_SHOULD):  # says it all itself
            message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
            message = message[:1].lower() + message[1:]
            return f"{message} (got {given})" if fault["loc"] else message
        allowed.append(_SAID.get(fault["type"], message.removeprefix(_SHOULD)))
    choices = _QUOTED.findall(" ".join(allowed))
    near = did_you_mean(faults[0]["input"], choices) if isinstance(faults[0]["input"], str) else ""
    return f"{given} is not allowed; it should be {' or '.join(dict.fromkeys(allowed))}{near}"


def _group_of(
    cls: type[pydantic.BaseModel], place: Sequence[int | str], value: object
) -> str | None:
    """Return how to set what a key with a dot means, if it begins with a group of options."""
    group, _, key = str(place[-1]).partition(".")
    known = _known_keys(cls, place[:-1])
    if not key or group not in known or key not in _known_keys(cls, (*place[:-1], group)):
        return None
    shown = str(value)
    shown = f"{shown[:_LONGEST]}…" if len(shown) > _LONGEST else shown
    return (
        f"Set {group} to {{{key}: {shown}}} with whatever else of it should not have its default; "
        f"on a command line --option '{group}={{{key}: {shown}}}'."
    )


def _known_keys(cls: type[pydantic.BaseModel], place: Iterable[int | str]) -> list[str]:
    """Return the known keys of a config, or of one within it."""
    for part in place:
        if part in cls.model_fields:
            cls = next(_models(cls.model_fields[str(part)].annotation), cls)
    return list(cls.model_fields)


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """Yield the configs that a type contains."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)
