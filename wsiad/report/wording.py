"""Put the numbers of the report into words: units, digits, and reasons for undefined figures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wsiad.core.terminal import counted

NONE = "–"
"""Text of a value that does not exist."""

_THIN = "\u202f"  # narrow no-break space: groups digits, precedes units
# Parts of a protocol that stand in the table, and its rules, which stand in the manual.
_SHOWN = {"score", "low", "high", "undefined", "interval_undefined", "rules"}
_SHOWN |= {"sensitivity_at", "sensitivity_interval_at", "threshold_at", "by_class"}
_NAMES = {
    "slide_auc": "Slide AUC",
    "tile_auroc": "Tile AUROC",
    "tile_auroc_neighbourhoods": "Tile AUROC, neighbourhoods",
}
_RANKED = {
    "scan": "the scan score",
    "top_k_mean": "the mean of the k highest scores",
    "percentile": "a percentile of their scores",
}
_CLASSES = {"macro": "macrometastases", "micro": "micrometastases", "itc": "isolated tumour cells"}


def quoted(text: str) -> str:
    """Return a text as a word of a command, quoted where a shell would take it otherwise."""
    return shlex.quote(text)


@dataclass(frozen=True, slots=True)
class Figure:
    """Figure of the evaluation in words: name, value, 95 % interval, and what it leaves out."""

    name: str
    value: str
    interval: str
    defined: bool
    without: str = ""


@dataclass(frozen=True, slots=True)
class FrocRow:
    """FROC of one protocol in words.

    Parameters
    ----------
    figure : Figure
        FROC score, with the name of the protocol.
    sensitivities : list of (str, str)
        Sensitivity and its interval at each number of false positives.
    below : list of (str, list of str)
        Further lines of the table, each with a label and a cell for each number of false
        positives: the lowest confidence that keeps to it, and the sensitivity for lesions of
        each class of size.
    facts : list of (str, str)
        Further facts, label and value.
    """

    figure: Figure
    sensitivities: list[tuple[str, str]]
    below: list[tuple[str, list[str]]]
    facts: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class FrocTable:
    """FROC of all protocols; ``points`` are mean false positives per slide."""

    points: list[str]
    rows: list[FrocRow]


def finite(value: float | None) -> float | None:
    """Return a finite number, or ``None``."""
    return value if value is not None and math.isfinite(value) else None


def score(value: float | None) -> str:
    """Return an anomaly score with four digits, or "not finite"."""
    if value is None:
        return NONE
    return f"{value:#.4g}".rstrip(".").replace("-", "−") if math.isfinite(value) else "not finite"


def count(value: float | None) -> str:
    """Return a whole number with its thousands separated."""
    return NONE if value is None else f"{value:,.0f}".replace(",", _THIN)


def hits(hit: int | None, among: int | None) -> str:
    """Return the number of lesions that were hit, and of all; a dash if there are none."""
    if not among:
        return NONE
    return "not known" if hit is None else f"{count(hit)} of {count(among)}"


def percentile(value: float | None) -> str:
    """Return a percentile with two digits, rounded down so that only 100 reads as 100."""
    if finite(value) is None:
        return NONE if value is None else "not finite"
    assert value is not None
    # 99.97 must not read as 100: nothing healthy was as strange, or something was.
    return "100" if value >= 100 else f"{math.floor(value * 100) / 100:.2f}"


def share(value: float | None) -> str:
    """Return a share, 0 to 1, in per cent; rounding never makes it 0 % or 100 %."""
    if finite(value) is None:
        return NONE
    assert value is not None
    if 0 < value < 0.001:
        return f"<{_THIN}0.1{_THIN}%"
    shown = math.floor(1000 * value) / 10 if value > 0.5 else 100 * value
    return f"{shown:.1f}".removesuffix(".0") + f"{_THIN}%"


def area(um2: float) -> str:
    """Return an area in µm², or a large one in mm² with three digits."""
    if um2 < 1e5:
        return f"{count(um2)}{_THIN}µm²"
    return f"{um2 / 1e6:#.3g}".rstrip(".") + f"{_THIN}mm²"


def probability(value: float | None) -> str:
    """Return a p- or q-value with two digits."""
    return NONE if finite(value) is None else f"{value:.2g}"


def seconds(value: float) -> str:
    """Return a duration in seconds, in minutes and seconds, or in hours and minutes."""
    if not math.isfinite(value):
        return "not finite"
    if value < 59.95:
        return f"{value:.1f}{_THIN}s" if value < 9.95 else f"{value:.0f}{_THIN}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{_THIN}min {rest:02d}{_THIN}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_THIN}h {minutes:02d}{_THIN}min"


def durations(values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the label and the duration of each stage, in order."""
    return [(str(name).replace("_", " "), seconds(value)) for name, value in values.items()]


def sortable(value: float | None) -> str:
    """Return a number as text for the script that sorts; empty if it is not finite."""
    return "" if finite(value) is None else f"{value:.9g}"


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the label and the value of each fact, in order; nested mappings are flattened."""
    return list(_flat(values, ""))


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        label = f"{above}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label} · ")
        else:
            yield label, _plain(value)


def _plain(value: Any) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return score(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value) or NONE
    return str(value)


def figures(evaluation: Mapping[str, Any] | None) -> list[Figure]:
    """Return the figures of ``evaluation.json`` that have a value and an interval, except FROC."""
    known = evaluation or {}
    found = [
        replace(
            _figure(_NAMES.get(key, key.replace("_", " ")), value, "value"),
            without=_without(known, of_lesions=key.startswith("tile_")),
        )
        for key, value in known.items()
        if isinstance(value, Mapping) and "value" in value
    ]
    if classifier := known.get("slide_classifier"):
        found.append(
            replace(
                _figure("Slide AUC, supervised", classifier["slide_auc"], "value"),
                without=_without(known),
            )
        )
    return found


def _without(evaluation: Mapping[str, Any], *, of_lesions: bool = False) -> str:
    """Return how many slides were excluded from a figure, by name; empty if none was.

    Figures of lesions, FROC and those of tiles, also lack those that were excluded from FROC.
    """
    excluded = evaluation.get("exclusions") or {}
    number = len(excluded.get("all") or []) + of_lesions * len(excluded.get("froc") or [])
    return f"{counted(number, 'slide')} excluded" if number else ""


def further(evaluation: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the counts of ``evaluation.json``, and the figures nested in other figures."""
    known = evaluation or {}
    within = [
        _figure(f"{_NAMES.get(key, key)}, {name.replace('_', ' ')}", item, "value")
        for key, value in known.items()
        if isinstance(value, Mapping) and "value" in value
        for name, item in value.items()
        if isinstance(item, Mapping) and "value" in item
    ]
    figures_within = [
        (item.name, f"{item.value} ({item.interval})" if item.defined else item.value)
        for item in within
    ]
    return facts(known.get("counts") or {}) + figures_within


def remarks(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Return the notes and exclusions that a reader of the figures must know."""
    known = evaluation or {}
    excluded = known.get("exclusions") or {}
    texts = {"all": "Excluded", "froc": "Excluded from FROC and tile figures"}
    said = [
        f"{text}: {', '.join(map(str, excluded[key]))}"
        for key, text in texts.items()
        if excluded.get(key)
    ]
    asked = ((known.get("made_by") or {}).get("config") or {}).get("slide_score", "max")
    words = _RANKED.get(str(asked))
    ranked = [f"Slide AUC ranks slides by {words}."] if words else []
    return [*ranked, *map(str, known.get("notes") or []), *said]


def froc_table(evaluation: Mapping[str, Any] | None) -> FrocTable:
    """Return the FROC of ``evaluation.json`` by protocol; without rows if there is none."""
    protocols = (evaluation or {}).get("froc") or {}
    known = {name: value for name, value in protocols.items() if isinstance(value, Mapping)}
    points = list(dict.fromkeys(p for v in known.values() for p in v.get("sensitivity_at", {})))
    without = _without(evaluation or {}, of_lesions=True)
    rows = [_froc_row(name, value, points) for name, value in known.items()]
    return FrocTable(
        points, [replace(row, figure=replace(row.figure, without=without)) for row in rows]
    )


def _froc_row(name: str, value: Mapping[str, Any], points: list[str]) -> FrocRow:
    at = value.get("sensitivity_at", {})
    ends = value.get("sensitivity_interval_at", {})
    rest = {key: item for key, item in value.items() if key not in _SHOWN}
    return FrocRow(
        _figure(name, value, "score"),
        [
            (_ratio(at.get(point)), _interval(*(ends.get(point) or (None, None))))
            for point in points
        ],
        list(_froc_below(value, points)),
        facts(rest),
    )


def _froc_below(value: Mapping[str, Any], points: list[str]) -> Iterator[tuple[str, list[str]]]:
    if reached := value.get("threshold_at"):
        yield "lowest confidence", [score(finite(reached.get(point))) for point in points]
    for name, found in (value.get("by_class") or {}).items():
        at = found.get("sensitivity_at") or {}
        label = (
            f"{_CLASSES.get(name, name)}: {count(found.get('hit'))} of {count(found['regions'])}"
        )
        if found["regions"]:
            yield f"{label} hit", [_ratio(at.get(point)) for point in points]


def group_table(evaluation: Mapping[str, Any] | None) -> list[tuple[str, str, list[Figure]]]:
    """Return name, number of slides and figures of each group, if the evaluation has groups."""
    groups = (evaluation or {}).get("groups") or {}
    return [
        (str(name), _group_slides(known), [*figures(known), *_froc_scores(known)])
        for name, known in groups.items()
    ]


def _group_slides(known: Mapping[str, Any]) -> str:
    counts = known.get("counts")
    if not counts:
        return NONE
    said = f"{count(counts['slides'])}, {count(counts['tumour_slides'])} with tumour"
    lacking = counts.get("slides_without_score")
    return f"{said}; {count(lacking)} without a score" if lacking else said


def _froc_scores(known: Mapping[str, Any]) -> list[Figure]:
    return [_figure(f"FROC {name}", value, "score") for name, value in known["froc"].items()]


def _figure(name: str, known: Mapping[str, Any], key: str) -> Figure:
    value = finite(known.get(key))
    if value is None:
        return Figure(name, f"undefined: {known.get('undefined', 'no reason is given')}", "", False)
    interval = _interval(known.get("low"), known.get("high"))
    if interval == NONE and known.get("interval_undefined"):
        interval = f"undefined: {known['interval_undefined']}"
    return Figure(name, _ratio(value), interval, True)


def _ratio(value: float | None) -> str:
    """Return a share or an area, 0 to 1, with three decimals."""
    return NONE if finite(value) is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    if finite(low) is None or finite(high) is None:
        return NONE
    return f"{low:.3f}–{high:.3f}"
