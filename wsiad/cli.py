"""Command line: parse the arguments, call the function of a verb, print its result, and exit."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import shlex
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from wsiad._version import __version__
from wsiad.core.errors import ConfigError, WsiadError
from wsiad.core.files import said
from wsiad.core.signals import Terminated, terminated
from wsiad.core.terminal import OneLine, did_you_mean, lines, one_line
from wsiad.verbs import VERBS, function_of

if typing.TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from wsiad.core.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        Exit code: 0 for success; 1 if something failed and was reported; 2 if the command is
        wrong; 130 or 143 if SIGINT or SIGTERM stopped it; what is kept then is said.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _DEBUG in arguments
    arguments = [word for word in arguments if word != _DEBUG]
    _log(debug=debug)
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name not in VERBS or (arguments and arguments[0] != name):
        _top_parser().parse_args(arguments)
        _top_parser().print_help()
        return 2
    try:
        with terminated():
            return _run(name, arguments[1:])
    except ConfigError as error:
        return _failed(name, str(error), code=2)
    except WsiadError as error:
        return _failed(name, str(error))
    except BrokenPipeError:  # who read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        return _failed(name, said(error))
    except MemoryError as error:
        if debug:
            raise
        return _failed(
            name,
            f"there is not enough memory ({str(error) or 'MemoryError'}). Use fewer workers or "
            "smaller batches, or a machine with more memory.",
        )
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        why = getattr(error, "__notes__", [])  # a verb that has kept nothing yet says so
        kept = why[0] if why else VERBS[name].stopped
        print(
            f"wsiad {name}: {'stopped by SIGTERM' if ended else 'interrupted'}; {kept}",
            file=sys.stderr,
        )
        return 143 if ended else 130
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _failed(
            name,
            f"unexpected error ({what[:500]}). This is a fault of wsiad: please report it with "
            f"the output of the same command with {_DEBUG}.",
        )


_CHECK = "check options"  # no option of a verb is called so

_DEBUG = "--debug"
"""Flag of every verb that shows the traceback of an unexpected error."""


def _failed(name: str, text: str, *, code: int = 1) -> int:
    print(one_line(f"wsiad {name}: {text}"), file=sys.stderr)
    return code


def _log(*, debug: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s %(name)s: %(message)s", tracebacks=debug))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # What it makes of a damaged tag is not yet what is wrong with the slide.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class _Parser(argparse.ArgumentParser):
    """Parser that states an error in one line, with the most similar known word."""

    def error(self, message: str) -> NoReturn:
        """Print an error and exit with code 2."""
        self.exit(2, one_line(f"{self.prog}: {message}; see `{self.prog} --help`") + "\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; an unknown flag is an error that names the most similar one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            near = did_you_mean(flags[0], self._option_string_actions) if flags else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that keeps the titles of groups within the width of the terminal too."""

    def start_section(self, heading: str | None) -> None:
        """Begin a group; its title is divided into lines."""
        # A colon follows.
        wrapped = textwrap.fill(heading, self._width - 1) if heading else heading
        super().start_section(wrapped)


def _run(name: str, arguments: list[str]) -> int:
    from wsiad.core.config import config_class, resolve

    function = function_of(name)
    cls = config_class(function)
    values = vars(_verb_parser(name, cls).parse_args(arguments))
    file, only_checked = values.pop("config", None), values.pop(_CHECK, False)
    shown = {field: field.upper() for field in VERBS[name].positional}
    flags = _nested(values)
    try:
        config = resolve(cls, file=file, flags=flags, shown=shown)
    except ConfigError as error:
        if file and (others := _verbs_of(file, but=cls)):
            raise ConfigError(
                f"is a configuration of wsiad {' or '.join(others)}",
                subject=str(file),
                remedy=f"Pass one of wsiad {name}.",
            ) from error
        raise
    if only_checked:
        return 0
    result = function(config)
    code = _report(name, result)
    # Nothing comes next where nothing was done yet, or where other calls do the rest.
    silent = any(getattr(config, name, False) for name in ("quiet", "dry_run", "partial"))
    own = getattr(result, "following", None)
    if (following := VERBS[name].following if own is None else own) and not code and not silent:
        said = {field: shlex.quote(str(value)) for field, value in iter(config)}
        repeated = _repeated(VERBS[name].repeated, file=file, flags=flags)
        print(lines(" ".join([f"next: {following.format_map(said)}", *repeated])))
    return code


def _verbs_of(file: Path, *, but: type[Config]) -> list[str]:
    """Return the verbs that know all keys of a file, of which another config does not."""
    from wsiad.core.config import config_class, read_yaml

    keys = read_yaml(file).keys()
    if keys <= but.model_fields.keys():
        return []
    known = {verb: config_class(function_of(verb)).model_fields.keys() for verb in VERBS}
    return [verb for verb, fields in known.items() if keys <= fields]


def _repeated(fields: Sequence[str], *, file: Path | None, flags: dict[str, Any]) -> list[str]:
    """Return the words of flags with which another verb gets the same values of some fields."""
    from wsiad.core.config import read_yaml
    from wsiad.core.yaml_text import in_one_line

    stated = read_yaml(file) if file and fields else {}
    words = []
    for field in fields:
        below, value = stated.get(field), flags.get(field, stated.get(field))
        if isinstance(below, dict) and isinstance(value, dict):
            value = below | value
        flag = f"--{field.replace('_', '-')}"
        if isinstance(value, dict):
            pairs = (f"{key}={in_one_line(one)}" for key, one in value.items())
            words += [f"{flag.removesuffix('s')} {shlex.quote(pair)}" for pair in pairs]
        elif value is not None:
            words.append(f"{flag} {shlex.quote(str(value))}")
    return words


def _report(name: str, result: Any) -> int:
    """Print the summary and the slides that failed or are unusable, and return the exit code."""
    if summary := getattr(result, "summary", None):
        print(lines(str(summary)))
    for kind, means in (
        ("unusable", " (could not be looked at; may have tissue)"),
        ("failed", ""),
    ):
        if rows := getattr(result, kind, ()):
            print(f"\nwsiad {name}: {len(rows)} {kind}{means}:", file=sys.stderr)
            width = max(len(row.slide) for row in rows) + 1
            for row in rows:
                print(
                    f"  {one_line(row.slide) + ':':<{width}} {one_line(row.reason)}",
                    file=sys.stderr,
                )
    if getattr(result, "unusable", ()) or getattr(result, "failed", ()):
        return 1
    return int(getattr(result, "exit_code", 0))


def _top_parser() -> _Parser:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    parser = _Parser(
        prog="wsiad",
        formatter_class=_Formatter,
        description="Whole-slide pathology anomaly detection: wsiad learns from healthy slides "
        f"and makes heatmaps of abnormal tissue.\n\nverbs:\n{verbs}",
        epilog="`wsiad VERB --help` explains a verb. Start with `wsiad demo`.\n\n"
        f"examples:\n{_indent(VERBS['tile'].examples.splitlines()[0])}\n"
        f"{_indent(VERBS['train'].examples.splitlines()[0])}\n"
        f"{_indent(VERBS['heatmap'].examples.splitlines()[0])}\n"
        f"{_indent(VERBS['evaluate'].examples.splitlines()[0])}",
    )
    parser.add_argument("--version", action="version", version=f"wsiad {__version__}")
    parser.add_argument("verb", nargs="?", type=_verb, metavar="VERB", help="see above")
    return parser


def _verb(word: str) -> str:
    if word in VERBS:
        return word
    raise argparse.ArgumentTypeError(
        f"invalid choice: {word!r}{did_you_mean(word, VERBS)}; choose from {', '.join(VERBS)}"
    )


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _verb_parser(name: str, cls: type[Config]) -> _Parser:
    verb = VERBS[name]
    places = [_place(cls.model_fields[field], field) for field in verb.positional]
    needed = [
        f"--{cls.flags.get(field, field)} {_metavar(info.annotation)}".replace("_", "-")
        for field, info in cls.model_fields.items()
        if info.is_required() and field not in verb.positional
    ]
    parser = _Parser(
        prog=f"wsiad {name}",
        usage=textwrap.fill(
            " ".join([f"wsiad {name}", *places, *needed, "[OPTION ...]"]),
            shutil.get_terminal_size().columns - len("usage: "),
            subsequent_indent=" " * len("usage: "),
            break_on_hyphens=False,
        ),
        add_help=False,
        description="\n\n".join(
            textwrap.fill(" ".join(part.split()), shutil.get_terminal_size().columns - 2)
            for part in inspect.cleandoc(cls.__doc__ or verb.summary).split("\n\n")
        ),
        epilog=f"examples:\n{_indent(verb.examples)}",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in verb.positional:
        info = cls.model_fields[field]
        many = _is_many(info.annotation)
        parser.add_argument(
            field,
            nargs="*" if many else "?",
            metavar=field.upper(),
            help=_help(info, field, cls),
        )
    _add_flags(_Groups(parser, name, cls, common=verb.common), cls, skip=verb.positional)
    general = parser.add_argument_group("help, configuration and faults")
    general.add_argument("-h", "--help", action="help", help="Show this text and exit.")
    general.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file of the options; flags override it. [default: none]",
    )
    general.add_argument(
        "--check-options",
        dest=_CHECK,
        action="store_true",
        help="Check the options, those of --config too, and do nothing. [default: no]",
    )
    general.add_argument(
        _DEBUG,
        action="store_true",
        help="Show the traceback of an unexpected error. [default: no]",
    )
    return parser


def _place(info: FieldInfo, field: str) -> str:
    shown = f"{field.upper()} ..." if _is_many(info.annotation) else field.upper()
    return shown if info.is_required() else f"[{shown}]"


class _Groups:
    """The groups of a verb's options: the common ones first, then one for each subject.

    The subject of an option is that of the config which defines it, and the first line of that
    config's docstring is the group's title.
    """

    def __init__(
        self, parser: _Parser, verb: str, cls: type[Config], *, common: tuple[str, ...]
    ) -> None:
        self._parser, self._verb, self._cls, self._common = parser, verb, cls, common
        self._groups = {"": parser.add_argument_group("common options")}

    def of(self, owner: type[Config], path: tuple[str, ...]) -> Any:
        """Return the group of an option, which a config has under a path of keys."""
        first = self._cls.model_fields[path[0]]
        if path[0] in self._common or (len(path) == 1 and first.is_required()):
            return self._groups[""]
        defining = next(kind for kind in owner.__mro__ if path[-1] in inspect.get_annotations(kind))
        title = inspect.cleandoc(defining.__doc__ or "").partition("\n")[0].rstrip(".").lower()
        if defining is self._cls:
            title = f"more options of wsiad {self._verb}"
        if title not in self._groups:
            self._groups[title] = self._parser.add_argument_group(title)
        return self._groups[title]


def _add_flags(
    groups: _Groups,
    cls: type[Config],
    *,
    prefix: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
) -> None:
    from wsiad.core.config import Config

    for field, info in cls.model_fields.items():
        if (not prefix and field in skip) or field in cls.unflagged:
            continue
        path = (*prefix, field)
        flag = "--" + "-".join((*prefix, cls.flags.get(field, field))).replace("_", "-")
        dest = ".".join(path)
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            _add_flags(groups, kind, prefix=path)
            continue
        group = groups.of(cls, path)
        if kind is bool:
            group.add_argument(
                flag, dest=dest, action=argparse.BooleanOptionalAction, help=_help(info, field, cls)
            )
        elif typing.get_origin(kind) is dict:
            group.add_argument(
                "--" + "-".join(path).removesuffix("s").replace("_", "-"),
                dest=dest,
                action="append",
                type=_pair,
                metavar="KEY=VALUE",
                help=_help(info, field, cls),
            )
        else:
            many = _is_many(kind)
            group.add_argument(
                flag,
                dest=dest,
                nargs="+" if many else None,
                metavar=_metavar(kind),
                help=_help(info, field, cls),
            )


def _is_many(kind: Any) -> bool:
    inner = typing.get_args(kind) if _is_union(kind) else (kind,)
    return any(typing.get_origin(part) in (tuple, list) for part in inner)


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


def _metavar(kind: Any) -> str:
    choices = _choices(kind)
    names = [
        getattr(part, "__name__", str(part))
        for part in _parts(kind)
        if typing.get_origin(part) is not typing.Literal
    ]
    other = next((name.upper() for name in names if name != "NoneType"), "")
    if choices:
        return "{" + ",".join(map(str, [*choices, *([other] if other else [])])) + "}"
    return other or "VALUE"


def _parts(kind: Any) -> tuple[Any, ...]:
    if _is_union(kind):
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


def _help(info: FieldInfo, field: str, cls: type[Config]) -> str:
    from wsiad.core.config import option_texts

    text = " ".join(option_texts(cls)[field].split())
    if field in cls.kept:
        return f"{text} [default: unchanged]".replace("%", "%%")
    if info.is_required():
        text += " [required]"
    elif "default" not in text.lower():
        text += f" [default: {_default(info.get_default(call_default_factory=True))}]"
    return text.replace("%", "%%")


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    return str(value) if value or value == 0 else "none"


def _pair(text: str) -> tuple[str, Any]:
    from wsiad.core.yaml_text import YamlError, parse

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text[:200]!r} is not KEY=VALUE")
    try:
        return key, parse(value)
    except YamlError as error:
        raise argparse.ArgumentTypeError(f"the value of {key} is not YAML ({error})") from error


def _distinct(pairs: list[tuple[str, Any]], dotted: str) -> dict[str, Any]:
    """Return pairs as a mapping.

    Raises
    ------
    ConfigError
        A key has two different values, one of which would be dropped silently.
    """
    from wsiad.core.errors import ConfigError

    found: dict[str, Any] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise ConfigError(
                f"{key!r} is set twice, to {found[key]!r} and {value!r}",
                subject=f"command line: {dotted}",
                remedy="Keep one of them.",
            )
    return found


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Turn ``{"stain.method": v}`` into ``{"stain": {"method": v}}``."""
    out: dict[str, Any] = {}
    for dotted, value in values.items():
        if value == [] or value is None:
            continue  # an absent positional
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            value = _distinct(value, dotted)
        *parents, last = dotted.split(".")
        inner = out
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return out


if __name__ == "__main__":
    sys.exit(main())
