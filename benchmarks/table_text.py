"""The table of detectors as CSV and Markdown, and its place in a document."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from table_rows import HEALTHY_ONLY, LABELLED, PUBLISHED, SUM, TRAINED

from wsiad.core.errors import InputError
from wsiad.core.packages import versions

Line = dict[str, Any]
"""Figures of a row and seed, or why there are none."""

Clock = Literal["wall", "processor"]
"""Which time is shown: on a CPU, that of the processor does not count what else ran there."""

COLUMNS = (
    "row", "kind", "anomalies", "seed", "auroc", "fit_seconds", "fit_processor_seconds",
    "tiles_per_second", "tiles_per_processor_second", "ended_by", "steps", "weights", "options",
    "failure",
)  # fmt: skip

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
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        values = {name: line[name] for name in COLUMNS[:4]} | {"failure": line["failure"]}
        if not line["failure"]:
            values |= {name: line[name] for name in ("auroc", "ended_by", "steps")} | {
                "fit_seconds": round(line["fit_seconds"]["wall"], 2),
                "fit_processor_seconds": round(line["fit_seconds"]["processor"], 2),
                "tiles_per_second": round(rate(line, "wall"), 1),
                "tiles_per_processor_second": round(rate(line, "processor"), 1),
                "weights": _weights(line),
                "options": json.dumps(line["made_of"]["options"]) if "made_of" in line else "",
            }
        writer.writerow(values)
    return text.getvalue()


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
    seconds = [line["fit_seconds"][clock] for line in whole]
    rates = [rate(line, clock) for line in whole]
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
    return Path(note["source"]).name if note else "none"


def rate(line: Line, clock: Clock) -> float:
    """Tiles that were scored in a second."""
    return line["tiles_scored"] / max(line["score_seconds"][clock], 1e-9)


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
