"""``wsiad detectors``: list the methods and the presets, or explain one."""

from __future__ import annotations

import inspect
import json
import logging
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from wsiad.core.config import Config, build, option_texts, verb
from wsiad.core.errors import ConfigError
from wsiad.core.terminal import did_you_mean, json_text
from wsiad.detectors.detector_inventory import DetectorEntry, inventory
from wsiad.runs.presets import HELD_OUT, Preset, load_preset, preset_names

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

logger = logging.getLogger(__name__)

_WIDTH = 100


class DetectorsConfig(Config):
    """List all methods and presets with what they need, or explain one of them."""

    flags: ClassVar[Mapping[str, str]] = {"as_json": "json"}

    name: str | None = None
    """Method or preset to explain: its options, what is as published and what was adapted."""
    as_json: bool = False
    """Print JSON, for programs."""


@dataclass(frozen=True, slots=True)
class DetectorsResult:
    """List of methods and presets, or explanation of one.

    Parameters
    ----------
    facts : dict
        JSON values: ``detectors`` and ``presets``, each a list; or those of the one that was named.
    summary : str
        Text for the terminal, or JSON.
    """

    facts: dict[str, Any]
    summary: str


@verb(DetectorsConfig)
def detectors(config: DetectorsConfig) -> DetectorsResult:
    """List the methods and presets, or explain one of them.

    Raises
    ------
    ConfigError
        There is no method and no preset of that name, or the file of a preset is damaged.
    PluginError
        The method comes from a plug-in that is broken.
    """
    entries = {entry.name: entry for entry in inventory()}
    names = preset_names()
    if config.name is None:
        facts, text = _listed(entries, {name: _preset(name) for name in names})
    elif config.name in entries:
        facts, text = _explained(entries[config.name], _presets_of(config.name, names))
    elif config.name in names:
        preset = load_preset(config.name)
        facts = _preset_facts(config.name, preset, entries)
        text = "\n".join(_preset_text(config.name, preset, entries))
    else:
        known = sorted({*entries, *names})
        raise ConfigError(
            f"there is no method or preset {config.name[:_WIDTH]!r}"
            f"{did_you_mean(config.name, known)}",
            remedy="See the list: wsiad detectors.",
        )
    return DetectorsResult(facts, json_text(facts) if config.as_json else text)


def _preset(name: str) -> Preset | None:
    """Return a preset for the list, which one damaged file does not end."""
    try:
        return load_preset(name)
    except ConfigError as error:
        logger.warning("%s", error)
        return None


def _presets_of(detector: str, names: tuple[str, ...]) -> dict[str, Preset]:
    found = {name: _preset(name) for name in names}
    return {
        name: preset for name, preset in found.items() if preset and preset.detector == detector
    }


def _listed(
    entries: Mapping[str, DetectorEntry], presets: Mapping[str, Preset | None]
) -> tuple[dict[str, Any], str]:
    whole = {name: preset for name, preset in presets.items() if preset}
    width = max(map(len, [*entries, *presets]), default=0)
    lines = ["methods: wsiad train STORE --out RUN --detector NAME", ""]
    lines += [f"  {name:<{width}}  {_entry_line(entry)}" for name, entry in entries.items()]
    lines += ["", "published systems: wsiad train STORE --out RUN --preset NAME", ""]
    lines += [f"  {name:<{width}}  {_preset_line(p, entries)}" for name, p in whole.items()]
    lines += [
        "",
        "`wsiad detectors NAME` explains one. Most methods name their own weights: --weights.",
    ]
    facts = {
        "detectors": [_entry_facts(entry) for entry in entries.values()],
        "presets": [_preset_facts(name, preset, entries) for name, preset in whole.items()],
    }
    return facts, "\n".join(lines)


def _entry_line(entry: DetectorEntry) -> str:
    words = entry.summary or f"from {entry.package}"
    return f"{words}{_bracketed(entry.needs())}"


def _preset_line(preset: Preset, entries: Mapping[str, DetectorEntry]) -> str:
    about = preset.about
    words = f"{about.system}, {about.cited}" if about.cited else about.system
    if about.system.lower().replace(" ", "-") != preset.detector:
        words += f", a setting of {preset.detector}"
    whole = " with --calibration" if about.all_slides and not about.adapted else ""
    return f"{words}; {about.as_published}{whole}{_bracketed(_needs(preset, entries))}"


def _needs(preset: Preset, entries: Mapping[str, DetectorEntry]) -> tuple[str, ...]:
    """Return what a preset needs besides healthy tiles."""
    entry = entries.get(preset.detector)
    found = entry.needs(preset.options) if entry else ()
    return (*found, "GPU") if preset.about.gpu else found


def _bracketed(needs: tuple[str, ...]) -> str:
    return f" [{', '.join(needs)}]" if needs else ""


def _entry_facts(entry: DetectorEntry) -> dict[str, Any]:
    return asdict(entry) | {"needs": list(entry.needs())}


def _preset_facts(
    name: str, preset: Preset, entries: Mapping[str, DetectorEntry]
) -> dict[str, Any]:
    facts = preset.model_dump(mode="json")
    facts["about"] = {k: v for k, v in facts["about"].items() if k not in ("preset", "replaced")}
    return {"name": name, **facts, "needs": list(_needs(preset, entries))}


def _preset_text(name: str, preset: Preset, entries: Mapping[str, DetectorEntry]) -> Iterator[str]:
    about, needs = preset.about, _needs(preset, entries)
    yield f"{name}: {about.system}"
    yield from _wrapped(about.paper, "  ")
    others = " --calibration OTHER_HEALTHY" if about.all_slides else ""
    yield f"  wsiad train STORE --out RUN --preset {name}{others}"
    for title, texts in (("as published", about.published), ("adapted", about.adapted)):
        for text in texts:
            yield from _wrapped(f"{title}: {text}", "  ")
    if about.all_slides:
        yield from _wrapped(f"adapted without --calibration: {HELD_OUT}", "  ")
    if needs:
        yield f"  needs besides healthy tiles: {', '.join(needs)}"
    yield f"  detector: {preset.detector}"
    if preset.weights:
        yield f"  weights: {preset.weights}"
    if preset.trimming:
        values = preset.trimming.model_dump(exclude_unset=True)
        yield from _wrapped(f"trimming: {json.dumps(values)}", "  ")
    for key, value in preset.options.items():
        yield from _wrapped(f"{key}: {json.dumps(value)}", "    ")


def _explained(entry: DetectorEntry, presets: Mapping[str, Preset]) -> tuple[dict[str, Any], str]:
    """Return the facts and the text of a method; this imports it, and torch."""
    from wsiad.detectors import registry

    cls = registry.load(entry.name)
    learns = cls.learns_from_anomalies(build(cls.Options, {}, source=entry.name))
    texts = option_texts(cls.Options)
    options = [_option(key, field, texts[key]) for key, field in cls.Options.model_fields.items()]
    words = inspect.cleandoc(cls.__doc__ or "")
    facts = _entry_facts(entry) | {
        "labels": learns,
        "description": words,
        "options": options,
        "presets": [_preset_facts(key, p, {entry.name: entry}) for key, p in presets.items()],
    }
    lines = [f"{entry.name}: {_entry_line(entry)}", "", *words.splitlines(), ""]
    lines.append("options (--option NAME=VALUE):")
    for option in options:
        shown = f"{option['name']} [{json.dumps(option['default'])}]"
        lines += _wrapped(f"{shown}: {option['description']}", "  ")
        if option["choices"]:
            lines += _wrapped(f"one of {', '.join(map(str, option['choices']))}", "    ")
    for key, preset in presets.items():
        lines += ["", *_preset_text(key, preset, {entry.name: entry})]
    return facts, "\n".join(lines)


def _option(name: str, field: FieldInfo, text: str) -> dict[str, Any]:
    default = field.get_default(call_default_factory=True, validated_data={})
    plain = default.model_dump(mode="json") if isinstance(default, Config) else default
    words = " ".join(text.replace("``", "`").split())
    return {
        "name": name,
        "default": json.loads(json.dumps(plain, default=str), parse_constant=str),
        "description": words,
        "choices": list(dict.fromkeys(_choices(field.annotation))),
    }


def _choices(kind: Any) -> Iterator[Any]:
    """Yield the values that a type names, however deep."""
    for part in typing.get_args(kind):
        if typing.get_origin(kind) is Literal:
            yield part
        elif typing.get_args(part):
            yield from _choices(part)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
