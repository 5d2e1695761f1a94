"""The table of detectors as CSV and Markdown, and its place in a document."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from table_rows import HEALTHY_ONLY, LABELLED, PUBLISHED, SUM, TRAINED

from wsiad.core.errors import InputError
from wsiad.core.packages import versions
from wsiad.core.typed_files import TableKind

Line = dict[str, Any]
"""Figures of a row and seed, or why there are none."""

Clock = Literal["wall", "processor"]
"""Which time is shown: on a CPU, that of the processor does not count what else ran there."""

CLOCKS: tuple[Clock, ...] = ("wall", "processor")

NO_WEIGHTS = "none"
"""What the table says of methods without pretrained weights."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A line of ``table.csv``: the figures of a row and seed, or why there are none.

    Times are in seconds, rates in tiles a second; what was not kept, and all figures of a failure,
    are empty. `options` and `setting` are JSON: with `detector` what the figures depend on, empty
    for a sum.
    """

    row: str
    kind: str
    anomalies: int | None
    seed: int
    auroc: float | None
    fit_seconds: float | None
    fit_processor_seconds: float | None
    tiles_scored: int | None
    tiles_per_second: float | None
    tiles_per_processor_second: float | None
    ended_by: str
    steps: int | None
    weights: str
    detector: str
    options: str
    setting: str
    environment: str
    failure: str


TABLE = TableKind(
    FigureRow,
    "figures of detectors",
    remedy="Give a table.csv that pipelines/benchmark_table.py wrote.",
    error=InputError,
    digits=9,
)

_TITLES = {
    HEALTHY_ONLY: "Fitted in closed form on healthy tiles alone",
    LABELLED: "Healthy tiles and labelled tumour tiles",
    TRAINED: "Trained step by step on healthy tiles alone",
    PUBLISHED: "Published systems",
    SUM: "Sums of standardised scores",
}


def environment(device: torch.device) -> str:
    """Describe where figures are made: processor, threads, versions."""
    chip = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                chip = line.partition(":")[2].strip()
                break
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else chip
    found = versions()
    names = ("wsiad", "python", "torch", "torchvision", "numpy", "scikit-learn")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{on}; {threads}; " + ", ".join(f"{name} {found[name]}" for name in names)


def as_csv(lines: Sequence[Line]) -> str:
    """Return a line for each row, number of labelled tiles, and seed."""
    return TABLE.text(map(_figure_row, lines))


def _figure_row(line: Line) -> FigureRow:
    failed = bool(line["failure"])
    made_of = dict(line.get("made_of", {}))
    detector, options = made_of.pop("detector", ""), made_of.pop("options", None)
    fit = {} if failed else line["fit_seconds"]
    return FigureRow(
        **{name: line[name] for name in ("row", "kind", "anomalies", "seed", "environment")},
        auroc=None if failed else line["auroc"],
        fit_seconds=fit.get("wall"),
        fit_processor_seconds=fit.get("processor"),
        tiles_scored=None if failed else line["tiles_scored"],
        tiles_per_second=None if failed else rate(line, "wall"),
        tiles_per_processor_second=None if failed else rate(line, "processor"),
        ended_by="" if failed else line["ended_by"],
        steps=None if failed else line["steps"],
        weights="" if failed else _weights(line),
        detector=detector,
        options="" if options is None else json.dumps(options),
        setting=json.dumps(made_of) if made_of else "",
        failure=line["failure"] or "",
    )


def read_csv(path: Path) -> list[Line]:
    """Return the lines of a table that :func:`as_csv` wrote.

    Raises
    ------
    InputError
        The file cannot be read, lacks a column, or has a cell that its column does not accept.
    """
    return [_line(row, f"{path}: row {number}") for number, row in TABLE.read_numbered(path)]


def _line(row: FigureRow, subject: str) -> Line:
    line: Line = {
        name: getattr(row, name) for name in ("row", "kind", "anomalies", "seed", "environment")
    }
    try:
        if row.options or row.setting:
            given = {"options": json.loads(row.options), **json.loads(row.setting)}
            line["made_of"] = {"detector": row.detector, **given}
    except (ValueError, TypeError) as error:
        raise InputError(f"options or setting are not JSON ({error})", subject=subject) from None
    if row.failure:
        return line | {"failure": row.failure}
    tiles, fit = row.tiles_scored, (row.fit_seconds, row.fit_processor_seconds)
    rates = row.tiles_per_second, row.tiles_per_processor_second
    if row.auroc is None or not 0 <= row.auroc <= 1 or tiles is None or row.steps is None:
        raise InputError("has neither figures nor a failure", subject=subject, remedy=TABLE.remedy)
    return line | {
        "auroc": row.auroc,
        "fit_seconds": dict(zip(CLOCKS, fit, strict=True)),
        "score_seconds": {
            clock: tiles / own if own else None for clock, own in zip(CLOCKS, rates, strict=True)
        },
        "tiles_scored": tiles,
        "ended_by": row.ended_by,
        "steps": row.steps,
        "weights": None if row.weights == NO_WEIGHTS else {"source": row.weights},
        "failure": None,
    }


def as_markdown(lines: Sequence[Line], *, clock: Clock, absent: Sequence[str] = ()) -> str:
    """Return a table for each kind of rows: mean and spread over seeds, the highest mean first.

    Parameters
    ----------
    lines : sequence of dict
    clock : {"wall", "processor"}
    absent : sequence of str
        What to say of rows that have no lines.
    """
    parts = []
    for kind, title in _TITLES.items():
        own = [line for line in lines if line["kind"] == kind]
        if own:
            parts += [f"**{title}**", "", *_table(own, kind, clock), ""]
    if absent:
        parts += [f"Not run: {', '.join(absent)}.", ""]
    return "\n".join(parts)


def _table(lines: Sequence[Line], kind: str, clock: Clock) -> list[str]:
    labelled = any(line["anomalies"] for line in lines)
    of = " (processor)" if clock == "processor" else ""
    heads = [
        "detector",
        *(["tumour tiles"] if labelled else []),
        "AUROC",
        "seeds",
        f"fit, s{of}",
        f"tiles/s{of}",
        *(["tiles scored"] if kind == PUBLISHED else []),
        *([] if kind == SUM else ["weights", "ended by"]),
    ]
    if any(line["failure"] for line in lines):
        heads.append("failures")
    groups: dict[tuple[str, int | None], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["row"], line["anomalies"]), []).append(line)
    ordered = sorted(groups.values(), key=lambda own: (own[0]["anomalies"] or 0, -_mean(own)))
    rows = [heads, ["---"] * len(heads)]
    for own in ordered:
        cells = {"tumour tiles": str(own[0]["anomalies"] or ""), **summary(own, clock=clock)}
        cells |= {f"{name}{of}": cells[name] for name in ("fit, s", "tiles/s")}
        rows.append([cells[head] for head in heads])
    return [f"| {' | '.join(row)} |" for row in rows]


def _mean(lines: Sequence[Line]) -> float:
    areas = [line["auroc"] for line in lines if not line["failure"]]
    return statistics.mean(areas) if areas else 0.0


def summary(lines: Sequence[Line], *, clock: Clock) -> dict[str, str]:
    """Return the cells of one row from its lines, one a seed: means and medians over seeds."""
    whole = [line for line in lines if not line["failure"]]
    failures = "; ".join(
        f"seed {line['seed']}: {line['failure']}" for line in lines if line["failure"]
    )
    seconds = [fit for line in whole if (fit := line["fit_seconds"][clock]) is not None]
    rates = [tiles for line in whole if (tiles := rate(line, clock)) is not None]
    return {
        "detector": f"`{lines[0]['row']}`",
        "AUROC": spread([line["auroc"] for line in whole]),
        "seeds": str(len(whole)),
        "fit, s": f"{statistics.median(seconds):.3g}" if seconds else "–",
        "tiles/s": _rounded(statistics.median(rates)) if rates else "–",
        "tiles scored": f"{whole[0]['tiles_scored']:,}" if whole else "–",
        "weights": ", ".join(dict.fromkeys(_weights(line) for line in whole)) or "–",
        "ended by": _ended(whole) or "–",
        "failures": failures.replace("|", "\\|").replace("\n", " "),
    }


def _rounded(tiles: float) -> str:
    return f"{tiles:,.0f}" if tiles >= 10 else f"{tiles:.2g}"


def _ended(lines: Sequence[Line]) -> str:
    found = {}
    for line in lines:
        found.setdefault(line["ended_by"], []).append(line["steps"])
    return ", ".join(
        reason
        + (f" ({' / '.join(f'{n:,}' for n in dict.fromkeys(steps))} steps)" if any(steps) else "")
        for reason, steps in found.items()
    )


def _weights(line: Line) -> str:
    note = line["weights"]
    return Path(note["source"]).name if note else NO_WEIGHTS


def rate(line: Line, clock: Clock) -> float | None:
    """Return the tiles that were scored in a second; ``None`` where the time was not kept."""
    seconds = line["score_seconds"][clock]
    return None if seconds is None else line["tiles_scored"] / max(seconds, 1e-9)


def spread(areas: Sequence[float]) -> str:
    """Return mean ± sample standard deviation, or what there is of them."""
    if not areas:
        return "–"
    mean = f"{statistics.mean(areas):.3f}"
    return f"{mean} ± {statistics.stdev(areas):.3f}" if len(areas) > 1 else mean


def replaced(text: str, name: str, new: str) -> str:
    """Return a document with what lies between two marker comments replaced.

    Raises
    ------
    InputError
        There is not exactly one such place.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended or text.count(begin) != 1 or text.count(end) != 1:
        raise InputError(
            f"does not have the two comments {begin} and {end} once, in this order",
            remedy="Put them where the table is to be.",
        )
    return f"{head}{begin}\n\n{new.strip()}\n\n{end}{tail}"
