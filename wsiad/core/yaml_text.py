"""YAML from outside: only plain values, in bounded time and memory, with errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

MOST_BYTES: Final = 1 << 20
_MOST_VALUES = 100_000
_DEEPEST = 50
_LONGEST = 300


class YamlError(ValueError):
    """A text is not YAML of plain values; the error is one line."""


_MERGE = "tag:yaml.org,2002:merge"
_TEXTS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _PlainValues(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """Safe YAML of texts, numbers, true, false, null, lists and mappings of unique keys.

    A text that looks like a date stays a text, because no option is a date.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key is a list or a mapping", problem_mark=key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} occurs twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_PlainValues.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXTS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainValues.yaml_constructors = {
    tag: function
    for tag, function in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}
_WITH_LIBYAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_PlainValues, yaml.SafeLoader):
    """Loader in Python, whose recursion ends in an error however deep a text is nested."""


class _OwnLoader(_PlainValues, _WITH_LIBYAML):  # type: ignore[misc]
    """Loader with libyaml's parser, where PyYAML has it: a sixth of the time."""


def read(path: Path, *, own: bool = False) -> Any:
    """Read the value in a file.

    Parameters
    ----------
    path : Path
        File to read.
    own : bool
        True for a file of wsiad itself, which is parsed by libyaml where PyYAML has it.

    Raises
    ------
    YamlError
        The file cannot be read, is larger than :data:`MOST_BYTES`, or is not UTF-8 or not YAML
        of plain values.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise YamlError(error.strerror or str(error)) from error
    if len(data) > MOST_BYTES:
        raise YamlError(f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not UTF-8: {error}") from error
    return parse(text, own=own)


def parse(text: str, *, own: bool = False) -> Any:
    """Return the value of a YAML text; for ``own`` see :func:`read`.

    Raises
    ------
    YamlError
        The text is not YAML, holds other than plain values, is nested deeper than 50 levels,
        refers to itself, or grows by its aliases to more than 100,000 values.
    """
    kind: Any = _OwnLoader if own else _Loader
    loader = None
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, depth=0)
        return loader.construct_document(node)
    except YamlError:
        raise
    except RecursionError as error:
        raise YamlError(f"it is nested deeper than {_DEEPEST} levels") from error
    except Exception as error:  # constructors trip over values in many ways
        words = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        words = words or type(error).__name__
        raise YamlError(words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…") from error
    finally:
        if loader is not None:
            loader.dispose()


def in_one_line(value: Any) -> str:
    """Return a plain value as YAML text of one line, which :func:`parse` reads back.

    Examples
    --------
    >>> in_one_line("resnet50"), in_one_line(["layer1", 2, True, 1e-05])
    ('resnet50', '[layer1, 2, true, 1.0e-05]')
    """
    text = yaml.safe_dump(
        value, default_flow_style=True, width=MOST_BYTES, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _measure(node: yaml.Node, sizes: dict[int, int | None], *, depth: int) -> int:
    """Return the number of values in a node, where each alias counts as its target."""
    if depth > _DEEPEST:
        raise YamlError(f"it is nested deeper than {_DEEPEST} levels")
    known = sizes.get(id(node), 0)
    if known is None:
        raise YamlError("an alias refers to a value that contains it")
    if known:
        return known
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.SequenceNode):
        children = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    else:
        children = []
        node.value.encode("utf-8")  # half a character cannot be written
    for child in children:
        size += _measure(child, sizes, depth=depth + 1)
        if size > _MOST_VALUES:
            raise YamlError(f"it has more than {_MOST_VALUES:,} values, aliases counted")
    sizes[id(node)] = size
    return size
