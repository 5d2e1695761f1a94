"""Reference pages that are made from the code: commands, options of detectors, Python."""

from __future__ import annotations

import argparse
import inspect
import json
import typing
from collections.abc import Callable, Iterator

import wsiad
from wsiad.cli import _verb_parser  # the parsers are of the command line alone
from wsiad.core.config import config_class, option_texts
from wsiad.detectors import registry
from wsiad.verbs import VERBS, function_of

if typing.TYPE_CHECKING:
    from pydantic import BaseModel


def commands() -> str:
    """Return a section for each verb, of its parser."""
    return "\n".join(line for name in VERBS for line in _command(name))


def _command(name: str) -> Iterator[str]:
    parser = _verb_parser(name, config_class(function_of(name)))
    yield f"## wsiad {name}\n"
    yield _words(parser.description or "") + "\n"
    yield "```\n" + VERBS[name].examples + "\n```\n"
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help and each.dest != "help"]
        if actions and group.title not in ("positional arguments", "options"):
            yield f"**{group.title}**\n"
        for action in actions:
            yield _option_line(action)


def _option_line(action: argparse.Action) -> str:
    """Return an option as an entry of a definition list."""
    if isinstance(action, argparse.BooleanOptionalAction):
        shown = ", ".join(action.option_strings)
    elif action.option_strings:
        shown = f"{action.option_strings[0]} {action.metavar or ''}".strip()
    else:
        shown = str(action.metavar)
    more = " …" if action.nargs in ("*", "+") else ""
    nested = f" (in YAML `{action.dest}`)" if "." in action.dest else ""
    text = _words(str(action.help).replace("%%", "%"))
    return f"`{shown}{more}`{nested}\n: {text}\n"


def detector_options() -> str:
    """Return a section for each detector of this package: what it is, and its options."""
    lines = []
    for name in registry.own_names():
        cls = registry.load(name)
        first, _, _ = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        lines += [f"## {name}\n", _words(first) + "\n", *_options_of(cls.Options)]
    return "\n".join(lines)


def _options_of(options: type[BaseModel], prefix: str = "") -> Iterator[str]:
    texts = option_texts(options)
    for key, field in options.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and hasattr(kind, "model_fields"):
            yield from _options_of(kind, f"{prefix}{key}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else f"default `{_as_json(default)}`"
        text = _words(texts[key])
        yield f"`{prefix}{key}` ({shown})\n: {text}\n"


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


MET = (
    "wsiad.store.stored_slide.StoredSlide",
    "wsiad.results.slide_results.SlideResults",
    "wsiad.heatmaps.score_map.Heatmap",
    "wsiad.heatmaps.regions.Region",
)
"""Classes that users meet without importing them."""


def python() -> str:
    """Return the directives that show the public names of the package, of their docstrings."""
    classes = [name for name in wsiad.__all__ if isinstance(getattr(wsiad, name), type)]
    verbs = [name for name in wsiad.__all__ if name not in classes and name != "__version__"]
    lines = ["## Functions\n"]
    for name in verbs:
        verb = name.replace("_", "-")
        lines += [
            f"### {name}\n",
            *_directive(f"autofunction:: wsiad.{name}(**options)"),
            f"Options: [wsiad {verb}](commands.md#wsiad-{verb})\n",
        ]
    lines.append("## Classes\n")
    for path in (*(f"wsiad.{name}" for name in classes), *MET):
        title = path.rpartition(".")[2]
        lines += [f"### {title}\n", *_directive(f"autoclass:: {path}", ":members:")]
    return "\n".join(lines)


def _directive(first: str, *options: str) -> list[str]:
    return ["```{eval-rst}", f".. {first}", *(f"   {option}" for option in options), "```\n"]


def _words(text: str) -> str:
    """Return a text of code on one line, fit for Markdown."""
    return " ".join(text.replace("``", "`").split())


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "detector-options": detector_options,
    "python": python,
}
"""Functions that return what is added to a document, by its name."""
