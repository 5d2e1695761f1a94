#!/usr/bin/env python3
"""Our figures of CAMELYON16 beside published ones: writes out/camelyon16.md.

pipelines/camelyon16/table.py out/
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from wsiad.core.files import write_text

EXPECTED_TILES = {"train": 7612, "test": 4817}
"""Of the paper: 7,612 healthy ones to train with; 4,000 healthy and 817 tumour ones to test."""

EXPECTED_TEST_SLIDES = 129

TILES = (
    ("Deep Perceptual Autoencoder, progressive growing", "0.934 ± 0.003"),
    ("Deep Perceptual Autoencoder", "0.927 ± 0.004"),
    ("Deep IF, options chosen by labelled tiles", "0.906 ± 0.003"),
    ("PIAD, options chosen by labelled tiles", "0.895 ± 0.006"),
    ("Deep GEO, options chosen by labelled tiles", "0.459 ± 0.021"),
)
"""Shvetsova et al. (2021), table of CAMELYON16: tile AUROC, three runs, on their draw of tiles."""

SLIDES = (
    ("HMS & MIT II (challenge, Bejnordi 2017)", "all tumour outlined", "0.994", "0.807"),
    ("pathologist without time limit (Bejnordi 2017)", "a person", "0.966", ""),
    ("best pathologist with time limit (Bejnordi 2017)", "a person", "0.884", ""),
    ("METU (challenge, Bejnordi 2017)", "all tumour outlined", "0.864", "0.389"),
    ("DeepCare (challenge, Bejnordi 2017)", "all tumour outlined", "0.883", "0.243"),
    ("CAMIL (Fourkioti 2024)", "slide labels", "0.959", ""),
)
"""Slide AUC and FROC of the test set. No pair of both by a method that has seen healthy slides
only has been found in the literature."""


def table(out: Path) -> str:
    """Return the page, as Markdown.

    Raises
    ------
    OSError, ValueError, KeyError
        A step before this has not been done.
    """
    tiles = _read(out / "tiles" / "evaluation.json")
    slides = _read(out / "results" / "evaluation.json")
    method = _read(out / "results" / "run.json")["detector"]
    drawn = {part: _tiles(out / f"store_{part}" / "slides.csv") for part in EXPECTED_TILES}
    counts = slides["counts"]
    froc = slides["froc"]
    return _PAGE.format(
        warning="" if counts["slides"] == EXPECTED_TEST_SLIDES else _WARNING.format(**counts),
        method=method,
        train=_count(drawn["train"], EXPECTED_TILES["train"]),
        test=_count(drawn["test"], EXPECTED_TILES["test"]),
        **counts,
        auroc=_shown(tiles["tile_auroc"], "value"),
        auc=_shown(slides["slide_auc"], "value"),
        froc=_shown(froc["camelyon16-2016"], "score"),
        froc_dataset=_shown(froc["camelyon16-dataset"], "score"),
        published_tiles="\n".join(
            f"| {name} (Shvetsova 2021) | {value} |" for name, value in TILES
        ),
        published_slides="\n".join(f"| {' | '.join(row)} |" for row in SLIDES),
        left_out="\n".join(
            f"- {row['slide']} (out of {row['out of']}): {row['reason']}"
            for row in _known_errors(out)
        ),
    )


_WARNING = f"""
**Not the test set of CAMELYON16: {{slides}} of its {EXPECTED_TEST_SLIDES} slides.** The published
figures below are of the whole, and not to be compared with these.
"""

_PAGE = """\
# CAMELYON16
{warning}
Detector `{method}`; {train} tiles to train with, {test} to test. {tumour_slides} tumour and
{normal_slides} normal slides evaluated, {lesions} lesions, {itc} groups of isolated tumour cells.
In brackets 95 % intervals over slides.

## Tiles

Tiles that are tumour throughout against tiles of normal slides; not to be compared with slide AUC.

| method | tile AUROC |
|---|---|
| **{method}** (this run) | {auroc} |
{published_tiles}

## Slides

| method | learnt from | slide AUC | FROC |
|---|---|---|---|
| **{method}** (this run) | healthy slides | {auc} | {froc} |
{published_slides}

FROC by the protocol `camelyon16-2016`; by `camelyon16-dataset`: {froc_dataset}.

## Left out

{left_out}
"""


def _known_errors(out: Path) -> list[dict[str, str]]:
    with (out / "lists" / "left_out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        row for row in rows if not row["reason"].startswith("a tumour slide of the training set")
    ]


def _tiles(path: Path) -> int:
    with path.open(newline="", encoding="utf-8") as file:
        return sum(int(row["tiles"] or 0) for row in csv.DictReader(file))


def _count(found: int, expected: int) -> str:
    return f"{found:,} (the paper: {expected:,})"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _shown(figure: dict[str, Any], key: str) -> str:
    if figure.get(key) is None:
        return f"undefined ({figure.get('undefined', 'no reason given')})"
    low, high = figure.get("low"), figure.get("high")
    interval = "" if low is None else f" ({low:.3f}–{high:.3f})"
    return f"{figure[key]:.3f}{interval}"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    page = table(Path(sys.argv[1]))
    write_text(Path(sys.argv[1]) / "camelyon16.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
