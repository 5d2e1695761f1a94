"""The command line: parses, calls one function, prints, exits. No logic of its own."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsiad._version import __version__
from wsiad.errors import ConfigError, WsiadError
from wsiad.files import DISK_FULL
from wsiad.interrupts import Terminated, terminated
from wsiad.verbs import VERBS

if typing.TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from wsiad.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 all went well; 1 something failed and was reported; 2 the command is wrong; 130
        and 143 it was ended by SIGINT or SIGTERM, and what is whole was kept.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name not in VERBS or (arguments and arguments[0] != name):
        _top_parser().parse_args(arguments)
        _top_parser().print_help()
        return 2
    try:
        with terminated():
            return _run(name, arguments[1:])
    except ConfigError as error:
        print(f"wsiad {name}: {error}", file=sys.stderr)
        return 2
    except WsiadError as error:
        print(f"wsiad {name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in DISK_FULL
        remedy = " Make room and run the same command again." if full else ""
        print(f"wsiad {name}: {error}.{remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        print(
            f"wsiad {name}: {'ended by SIGTERM' if ended else 'interrupted'}; what is whole was "
            "kept. Run the same command again to go on.",
            file=sys.stderr,
        )
        return 143 if ended else 130


def _run(name: str, arguments: list[str]) -> int:
    from wsiad.config import config_class, resolve

    module = name.replace("-", "_")
    stage = importlib.import_module(f"wsiad.stages.{module}")
    function: Callable[..., Any] = getattr(stage, module)
    cls = config_class(function)
    values = vars(_verb_parser(name, cls).parse_args(arguments))
    file = values.pop("config", None)
    config = resolve(cls, file=file, flags=_nested(values))
    result = function(config)
    return _report(name, result)


def _report(name: str, result: Any) -> int:
    """Print what was made, failed or was not looked at; the exit code says if all went well."""
    if summary := getattr(result, "summary", None):
        print(summary)
    for kind, means in (("unusable", ", which does not mean without tissue"), ("failed", "")):
        if rows := getattr(result, kind, ()):
            print(f"\nwsiad {name}: {len(rows)} {kind}{means}:", file=sys.stderr)
            width = max(len(row.slide) for row in rows) + 1
            for row in rows:
                print(f"  {row.slide + ':':<{width}} {row.reason}", file=sys.stderr)
    if getattr(result, "unusable", ()) or getattr(result, "failed", ()):
        return 1
    return int(getattr(result, "exit_code", 0))


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="wsiad",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Whole-slide pathology anomaly detection: healthy slides in, heatmaps of "
        f"what is abnormal out.\n\nverbs:\n{verbs}",
        epilog="`wsiad VERB --help` tells more. Start with `wsiad demo`.\n\n"
        f"examples:\n{_indent(VERBS['tile'].examples.splitlines()[0])}\n"
        f"{_indent(VERBS['train'].examples.splitlines()[0])}\n"
        f"{_indent(VERBS['heatmap'].examples.splitlines()[0])}\n"
        f"{_indent(VERBS['evaluate'].examples.splitlines()[0])}",
    )
    parser.add_argument("--version", action="version", version=f"wsiad {__version__}")
    parser.add_argument("verb", nargs="?", choices=VERBS, metavar="VERB", help="see above")
    return parser


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _verb_parser(name: str, cls: type[Config]) -> argparse.ArgumentParser:
    verb = VERBS[name]
    parser = argparse.ArgumentParser(
        prog=f"wsiad {name}",
        description=(cls.__doc__ or verb.summary).strip(),
        epilog=f"examples:\n{_indent(verb.examples)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in verb.positional:
        info = cls.model_fields[field]
        many = _is_many(info.annotation)
        parser.add_argument(
            field, nargs="*" if many else "?", metavar=field.upper(), help=_help(info)
        )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of the options; flags win over it"
    )
    _add_flags(parser, cls, skip=verb.positional)
    return parser


def _add_flags(
    parser: argparse.ArgumentParser,
    cls: type[Config],
    *,
    prefix: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
) -> None:
    from wsiad.config import Config

    for field, info in cls.model_fields.items():
        if not prefix and field in skip:
            continue
        path = (*prefix, field)
        flag = "--" + "-".join(path).replace("_", "-")
        dest = ".".join(path)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            _add_flags(parser, kind, prefix=path)
        elif kind is bool:
            parser.add_argument(
                flag, dest=dest, action=argparse.BooleanOptionalAction, help=_help(info)
            )
        elif typing.get_origin(kind) is dict:
            parser.add_argument(
                "--" + "-".join(path).removesuffix("s").replace("_", "-"),
                dest=dest,
                action="append",
                type=_pair,
                metavar="KEY=VALUE",
                help=_help(info),
            )
        else:
            many = _is_many(kind)
            parser.add_argument(
                flag,
                dest=dest,
                nargs="+" if many else None,
                metavar=_metavar(kind),
                help=_help(info),
            )


def _is_many(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, list)


def _metavar(kind: Any) -> str:
    choices = _choices(kind)
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    names = [getattr(part, "__name__", str(part)) for part in _parts(kind)]
    return next((name.upper() for name in names if name != "NoneType"), "VALUE")


def _parts(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(inner for part in typing.get_args(kind) for inner in _parts(part))
    if _is_many(kind):
        return _parts(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Annotated:
        return _parts(typing.get_args(kind)[0])
    return (kind,)


def _choices(kind: Any) -> tuple[Any, ...]:
    return tuple(
        choice
        for part in _parts(kind)
        if typing.get_origin(part) is typing.Literal
        for choice in typing.get_args(part)
    )


def _help(info: FieldInfo) -> str:
    text = " ".join((info.description or "").split())
    default = info.default
    # Switches show theirs by their name; a default that is made anew has none to show.
    plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    if plain and default != "":
        text += f" [default: {default}]"
    if info.is_required():
        text += " [required]"
    return text.replace("%", "%%")


def _pair(text: str) -> tuple[str, Any]:
    from wsiad.config import parse_yaml

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, parse_yaml(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the value of {key} is not YAML ({error})") from error


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Turn ``{"stain.method": v}`` into ``{"stain": {"method": v}}``."""
    out: dict[str, Any] = {}
    for dotted, value in values.items():
        if value == [] or value is None:
            continue  # an absent positional
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            value = dict(value)
        *parents, last = dotted.split(".")
        inner = out
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return out


if __name__ == "__main__":
    sys.exit(main())
