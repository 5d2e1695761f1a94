"""Rows of the table of detectors: what there is to run.

A row is a detector with options, or the sum of the scores of others. It is run once for each
seed and, where it learns from labelled tiles, number of these: a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from wsiad.core.config import Config, build, read_yaml
from wsiad.core.errors import ConfigError
from wsiad.core.files import checked_name
from wsiad.detectors import registry
from wsiad.detectors._perceptual import PerceptualOptions
from wsiad.learning.training_options import LoopOptions, TrimmingOptions
from wsiad.networks.pixel_features import PIXELS
from wsiad.runs.presets import load_preset, preset_names

BACKBONE, PERCEPTUAL, OWN = "backbone", "perceptual", "wsiad"
"""Names of the weights that the detectors use by default, and of those that come with wsiad."""

RANDOM, NONE = "random", "none"
"""Names of the weights of networks that are drawn at random, and of methods without a network."""

HEALTHY_ONLY, LABELLED, TRAINED, SUM = "healthy-only", "labelled", "trained", "sum"
PUBLISHED = "published"
KINDS = (HEALTHY_ONLY, LABELLED, TRAINED, PUBLISHED, SUM)
"""Kinds of rows, in the order in which they are run."""


Labels = Literal["tiles", "slides", "digits"]


class Variant(Config):
    """A row of the file of rows: a detector with options, or a sum."""

    detector: str | None = None
    """The method; by default it is `sum` that says what is scored."""
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Of the method."""
    weights: str | None = None
    """Name of the pretrained weights: `backbone`, `perceptual` or one of `--more-weights`."""
    max_minutes: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Bound on its training, in place of that of all trainings."""
    sum: tuple[str, ...] = ()
    """Names of other rows: the score is the mean of theirs, each standardised."""


class Measured(Config):
    """How a preset is measured, where it is not measured as it is."""

    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Options in place of the preset's, such as a network whose weights are at hand."""
    weights: str | None = None
    """Name of the pretrained weights, as for :class:`Variant`."""
    score_tiles: Annotated[int, pydantic.Field(gt=0)] | None = None
    """Bound on the tiles of each kind that are scored, for methods that take seconds for each."""
    labels: Labels = "tiles"
    """What a method that needs labels learns from: tumour tiles, slides that are drawn of tiles and
    hold them among healthy ones, or scikit-learn's digits, a reference set that is no tissue."""
    left_out: str = ""
    """Reason why the preset is not measured here."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Parameters
    ----------
    name : str
    kind : str
        One of ``KINDS``.
    detector : str
        The method; empty for a sum.
    options : dict
        Those that are not the method's defaults.
    weights : str
        Name of the pretrained weights that it is given.
    max_minutes : float or None
        Bound on its training; None for that of all trainings.
    members : tuple of str
        Rows that a sum adds.
    labelled : bool
        Whether it learns from labelled tiles.
    bounded : bool
        Whether the bounds on trainings hold for it.
    score_tiles : int or None
        Bound on the tiles of each kind that are scored.
    labels : str
        What it learns from beside healthy tiles; see :class:`Measured`. ``labelled`` is false for
        digits, of which all are given.
    trimming : TrimmingOptions or None
        Tiles of the fit to leave out.
    """

    name: str
    kind: str
    detector: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    weights: str = BACKBONE
    max_minutes: float | None = None
    members: tuple[str, ...] = ()
    labelled: bool = False
    bounded: bool = False
    score_tiles: int | None = None
    labels: Labels = "tiles"
    trimming: TrimmingOptions | None = None


Key = tuple[str, int | None, int]
"""Row, number of labelled anomalous tiles and seed: what a line of the table is of."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row with a seed, and the number of labelled anomalous tiles that it learns from, if any."""

    row: Row
    anomalies: int | None
    seed: int

    @property
    def key(self) -> Key:
        """What the case is called in a table."""
        return self.row.name, self.anomalies, self.seed

    def path(self, out: Path) -> Path:
        """Return the file of its figures."""
        labels = f"{self.anomalies}-anomalies" if self.anomalies else HEALTHY_ONLY
        return out / "rows" / self.row.name / labels / f"seed-{self.seed}.json"


def read_rows(path: Path) -> list[Row]:
    """Return every registered detector with its defaults, and the rows of a file.

    Raises
    ------
    ConfigError, DetectorError, InputError
        A row of the file is not valid: it has the name of a detector, unknown options, adds rows
        that are not there.
    """
    rows = {name: _row(name, Variant(detector=name)) for name in registry.names()}
    for name, values in read_yaml(path).items():
        subject = f"{path.name}: {name}"
        if name in rows:
            raise ConfigError("is the name of a detector with its defaults", subject=subject)
        if not isinstance(values, dict):
            raise ConfigError("does not hold a mapping of keys to values", subject=subject)
        variant = build(Variant, values, source=subject)
        if bool(variant.detector) == bool(variant.sum) or (variant.sum and len(values) > 1):
            raise ConfigError("needs either a detector or a sum of rows", subject=subject)
        rows[name] = _sum(name, variant, rows, subject) if variant.sum else _row(name, variant)
    return sorted(rows.values(), key=lambda row: KINDS.index(row.kind))


def read_published(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Return a row for every preset, and the reasons of those that are not measured.

    Parameters
    ----------
    path : Path
        File that says, by the names of presets, what is measured otherwise: see :class:`Measured`.

    Raises
    ------
    ConfigError, DetectorError, InputError
        The file is not valid: it names an unknown preset, or options that do not exist.
    """
    given = read_yaml(path)
    if unknown := sorted(set(given) - set(preset_names())):
        raise ConfigError(f"there is no preset {unknown[0]!r}", subject=path.name)
    rows, left_out = [], {}
    for name in preset_names():
        measured = build(Measured, given.get(name, {}), source=f"{path.name}: {name}")
        if measured.left_out:
            left_out[name] = measured.left_out
            continue
        preset = load_preset(name)
        variant = Variant(
            detector=preset.detector,
            options={**preset.options, **measured.options},
            weights=measured.weights or preset.weights,
        )
        own = _row(name, variant)
        own = replace(
            own,
            kind=PUBLISHED,
            bounded=own.bounded or own.labelled,
            score_tiles=measured.score_tiles,
            labels=measured.labels,
            labelled=own.labelled and measured.labels != "digits",
            trimming=preset.trimming,
        )
        rows.append(own)
    return rows, left_out


def _row(name: str, variant: Variant) -> Row:
    assert variant.detector
    cls = registry.load(variant.detector)
    options = build(cls.Options, variant.options, source=name)
    labelled = cls.learns_from_anomalies(options) == "needed"
    trained = issubclass(cls.Options, LoopOptions)
    return Row(
        checked_name(name),
        LABELLED if labelled else TRAINED if trained else HEALTHY_ONLY,
        detector=variant.detector,
        options=variant.options,
        weights=variant.weights or _usual_weights(options),
        max_minutes=variant.max_minutes,
        labelled=labelled,
        bounded=trained and not labelled,
    )


def _usual_weights(options: Config) -> str:
    if getattr(options, "backbone", "") == PIXELS:
        return NONE
    return PERCEPTUAL if isinstance(options, PerceptualOptions) else BACKBONE


def _sum(name: str, variant: Variant, rows: dict[str, Row], subject: str) -> Row:
    members = tuple(variant.sum)
    for member in members:
        if member not in rows or rows[member].kind == SUM:
            raise ConfigError(
                f"{member!r} is no row of a detector above it",
                subject=subject,
                remedy=f"Rows: {', '.join(rows)}.",
            )
    labelled = any(rows[member].labelled for member in members)
    return Row(checked_name(name), SUM, members=members, labelled=labelled)


def cases(row: Row, *, counts: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Return the cases of a row, seed by seed."""
    return [
        Case(row, count, seed) for count in (counts if row.labelled else [None]) for seed in seeds
    ]
