"""Presets: the published systems, each a file with its method, options and description.

A preset is a configuration of ``wsiad train`` without paths, ``NAME.yaml`` in one folder: that of
the package where wsiad is installed, and ``configs/zoo`` in a checkout. Its key ``about`` names
the paper, and states what is as published and what was adapted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from wsiad.core.config import Config, build, read_yaml
from wsiad.core.errors import ConfigError
from wsiad.core.terminal import did_you_mean
from wsiad.learning.training_options import TrimmingOptions

_ENDING = ".yaml"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FIRST_AUTHOR = re.compile(r"[^,&;]+?(?= et al\.| & |,)")
_YEAR = re.compile(r"\b(19|20)\d\d\b(?!\.\d)")  # not the first half of an arXiv number
_MOST_SHOWN = 100
_LONGEST = 500
_PACKAGE = Path(__file__).parents[1]
_INSTALLED, _CHECKOUT = _PACKAGE / "zoo", _PACKAGE.parent / "configs" / "zoo"


HELD_OUT = (
    "healthy slides are held out, to calibrate with and for the log; with --calibration all are "
    "fitted on"
)
"""Difference of a run without ``--calibration`` from a publication that fits on all slides."""


def _sentences(value: object) -> object:
    """Accept one text for a list, and ``a: b`` in a list, which is a mapping for YAML."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        return value
    return [
        ": ".join(map(str, next(iter(each.items()))))
        if isinstance(each, Mapping) and len(each) == 1
        else each
        for each in value
    ]


_Line = Annotated[
    str, pydantic.Field(strict=True, min_length=1, max_length=_LONGEST, pattern=r"^[^\n\r]+$")
]
_Lines = Annotated[
    tuple[_Line, ...], pydantic.Field(max_length=50), pydantic.BeforeValidator(_sentences)
]


class About(Config):
    """Description of a published system, and of its differences from the publication."""

    system: _Line
    """Name of the system, as in the literature."""
    paper: _Line
    """Authors, title, place and year of the publication."""
    published: Annotated[_Lines, pydantic.Field(min_length=1)]
    """Parts that are as published."""
    adapted: _Lines
    """Parts that are not as published, with the reason; an empty list if there are none."""
    gpu: pydantic.StrictBool
    """True where a useful training needs a GPU."""
    all_slides: pydantic.StrictBool = False
    """True where the publication fits on all slides, as with ``--calibration``: a run that holds
    slides out is adapted."""
    preset: Annotated[str, pydantic.Field(strict=True, max_length=_MOST_SHOWN)] = ""
    """Name of the preset; set by wsiad, not in the file."""
    replaced: tuple[str, ...] = ()
    """Options of the preset that the user replaced or added; set by wsiad."""

    @property
    def cited(self) -> str:
        """First author and year of the publication; empty if :attr:`paper` has another form."""
        author, year = _FIRST_AUTHOR.match(self.paper), _YEAR.search(self.paper)
        return f"{author.group()} {year.group()}" if author and year else ""

    @property
    def as_published(self) -> str:
        """``"as published"`` or ``"adapted"``."""
        return "adapted" if self.adapted else "as published"

    def of_run(self, *, held_out: bool) -> About:
        """Return the description of a run, of which healthy slides may have been held out."""
        if not (self.all_slides and held_out):
            return self
        adapted = (*self.adapted, HELD_OUT)
        return self.model_copy(update={"adapted": tuple(dict.fromkeys(adapted))})


class Preset(Config):
    """Content of the file of a preset."""

    about: About
    """Description of the system."""
    detector: _Line
    """Name of the method."""
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Options of the method."""
    weights: _Line | None = None
    """Pretrained weights, as for ``wsiad train``; ``null`` leaves them to the user."""
    trimming: TrimmingOptions | None = None
    """Tiles of the fit to leave out, as for ``wsiad train``; ``null`` leaves it to the user."""


def preset_folder() -> Path:
    """Return the folder of the presets, of the installed package or of the checkout."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted, without reading them."""
    return tuple(sorted(path.stem for path in preset_folder().glob(f"*{_ENDING}")))


def load_preset(name: str) -> Preset:
    """Read a preset.

    Raises
    ------
    ConfigError
        There is no preset of that name, and the error names the nearest one; or its file is
        damaged.
    """
    path = preset_folder() / f"{name}{_ENDING}"
    if not _NAME.fullmatch(name) or not path.is_file():
        from wsiad.detectors import registry

        known = preset_names()
        if known and name in registry.names():
            raise ConfigError(
                f"there is no preset {name!r}, which is a method",
                remedy=f"Set --detector {name} in its place.",
            )
        raise ConfigError(
            f"there is no preset {name[:_MOST_SHOWN]!r}{did_you_mean(name, known)}",
            remedy="See the list: wsiad detectors."
            if known
            else f"Install wsiad again: {preset_folder()} holds no presets.",
        )
    preset = build(Preset, read_yaml(path, own=True), source=str(path))
    about = preset.about.model_copy(update={"preset": name})
    return preset.model_copy(update={"about": about})


def with_preset(values: Mapping[str, Any], *, fields: Collection[str]) -> dict[str, Any]:
    """Return the values of a training in which a preset, if one is named, fills what is not set.

    Options that are set replace those of the preset, one by one. The result names the preset in
    ``about`` alone, so that a stored configuration is complete even if the preset changes.

    Parameters
    ----------
    values : mapping
        Values that are set, by key.
    fields : collection of str
        Keys that the configuration has.

    Raises
    ------
    ConfigError
        The preset is unknown or trims, which not every command does, or another method or system
        was set.
    """
    given = dict(values)
    name = given.pop("preset", None)
    if not isinstance(name, str):
        return dict(values)
    preset = load_preset(name)
    detector = given.get("detector", preset.detector)
    if detector != preset.detector:
        raise ConfigError(
            f"the preset {name} is a setting of {preset.detector}, not of {str(detector)[:99]}",
            remedy="Leave out the preset or the detector.",
        )
    if given.get("about") is not None:
        raise ConfigError(
            f"the preset {name} is set together with a configuration that describes a system",
            remedy="Leave out the preset, or the configuration of the other one.",
        )
    if preset.trimming and "trimming" not in fields:
        raise ConfigError(
            f"the preset {name} leaves out tiles of the fit, which only wsiad train does",
            remedy=f"Set --detector {preset.detector} and its options, or use wsiad train.",
        )
    made = preset.model_dump(include={"detector", "options", "about"}) | given
    replaced: list[str] = []
    options = given.get("options", {})
    if isinstance(options, Mapping):
        made["options"] = {**preset.options, **options}
        replaced = [key for key in options if options[key] != preset.options.get(key, ...)]
    trimming = given.get("trimming", {})
    if preset.trimming and isinstance(trimming, Mapping):
        own = preset.trimming.model_dump()
        # Without a share there is nothing that the preset's other options could decide.
        none = _is_zero(trimming.get("share"))
        made["trimming"] = dict(trimming) if none else {**own, **trimming}
        replaced += [f"trimming.{key}" for key in trimming if trimming[key] != own.get(key, ...)]
    made["about"] = {**preset.about.model_dump(), "replaced": replaced}
    if given.get("weights") is None:
        made["weights"] = preset.weights
    return made


def _is_zero(value: object) -> bool:
    """Tell whether a value, which may be the text of a flag, is the number 0."""
    try:
        return float(str(value)) == 0
    except ValueError:
        return False
