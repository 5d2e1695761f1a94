#!/usr/bin/env python3
"""A table of slide AUC, FROC and tile AUROC from folders that `wsiad evaluate` wrote.

    pipelines/evaluation_table.py knn=out/results_knn dpa=out/results_dpa

A folder without a name is named by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEADS = ("detector", "slide AUC", "FROC 2016", "FROC dataset", "tile AUROC")


def table(given: Iterable[str]) -> str:
    """Return the table of folders, each ``NAME=FOLDER`` or ``FOLDER``.

    Raises
    ------
    OSError, ValueError, KeyError
        A folder has no evaluation, or it is damaged.
    """
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    slides = []
    for text in given:
        name, _, folder = text.rpartition("=")
        values = json.loads(Path(folder, "evaluation.json").read_text(encoding="utf-8"))
        froc = values["froc"]
        cells = [
            name or Path(folder).resolve().name,
            shown(values["slide_auc"], "value"),
            shown(froc["camelyon16-2016"], "score"),
            shown(froc["camelyon16-dataset"], "score"),
            shown(values["tile_auroc"], "value"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        counts = values["counts"]
        lacking = counts.get("slides_without_score", 0)
        said = f"{counts['tumour_slides']} tumour and {counts['normal_slides']} normal"
        slides.append(f"{said} ({lacking} have no score)" if lacking else said)
    about = " / ".join(dict.fromkeys(slides))
    return "\n".join([*lines, "", f"{about} slides; in brackets 95 % intervals over slides.", ""])


def shown(figure: dict[str, Any], key: str) -> str:
    """Return a figure with its interval, or why there is none."""
    if figure.get(key) is None:
        return f"undefined ({figure.get('undefined', 'no reason given')})"
    low, high = figure.get("low"), figure.get("high")
    interval = "" if low is None else f" ({low:.3f}–{high:.3f})"
    return f"{figure[key]:.3f}{interval}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.stdout.write("\n" + table(sys.argv[1:]))
