"""A second look by the verbs: refine, heatmap, significance and evaluate, as a row of a table.

    python benchmarks/second_look.py RUN RESULTS --healthy HEALTHY --slides SLIDES \
        [--healthy-slides SLIDES] --reference CSV --annotations DIR --out DIR [--store STORE] \
        [--detector NAME --option NAME=VALUE … --weights FILE] [--reviewed DIR]

RESULTS and HEALTHY are results of RUN, as `wsiad heatmap` scored them; they are not changed.
SLIDES are the slides of either, or a store of them. With the healthy ones, the second look also
scores them, and p-values of the cohort are computed; else that is left out. A lesion counts as
found if its detection comes at one false positive a slide or fewer. The first look gets the same
row with `--first COPY`, a copy of RESULTS, which is changed.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import shapely
import yaml
from neighbourhoods import PROTOCOLS, found_by_size, text

import wsiad
from wsiad.annotations import SUFFIXES, read_annotations
from wsiad.core.labels import is_healthy
from wsiad.evaluation.truth import find_truth
from wsiad.runs.second_look import read_taught

HEADER = (
    "taught by",
    "tile AUROC",
    "tile AUROC, neighbourhoods",
    *(f"FROC {name}" for name in PROTOCOLS),
    "slide AUC",
    "found",
    "healthy slides with p <= .05",
)


def taught_by(run: Path, annotations: Path) -> str:
    """Count the windows that taught a run, and the share that are tumour."""
    strange = [row for row in read_taught(run) if row.anomalous]
    true = 0
    for name in {row.slide for row in strange}:
        path = find_truth(annotations, name, suffixes=SUFFIXES)
        if path is not None:
            area = read_annotations(path).tumour()
            centres = [
                (row.x + row.width / 2, row.y + row.height / 2)
                for row in strange
                if row.slide == name
            ]
            true += int(shapely.contains_xy(area, np.array(centres)).sum())
    slides = len({row.slide for row in strange})
    return f"{len(strange)} windows of {slides} slides, {true / len(strange):.0%} tumour"


def figures(results: Path, asked: argparse.Namespace) -> list[str]:
    """Return the figures of results, and the lesions found, as cells of the table."""
    found = wsiad.evaluate(
        results=results,
        reference=asked.reference,
        annotations=asked.annotations,
        slide_score="scan",
        protocols=PROTOCOLS,
        quiet=True,
    ).figures
    near = found.tile_auroc_neighbourhoods
    return [
        text(found.tile_auroc),
        text(near) if near else "-",
        *(text(found.froc[name].score) for name in PROTOCOLS),
        text(found.slide_auc),
        found_by_size(results),
    ]


def low_p(results: Path, healthy: Path, reference: Path) -> str:
    """Count the healthy slides of a cohort with p <= .05, of all of them."""
    with reference.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        usual = {Path(row["image"]).stem for row in rows if is_healthy(row["type"])}
    compared = wsiad.significance(results=results, healthy=healthy, slide_score="scan", quiet=True)
    low = [row.slide for row in compared.rows if row.p_slide <= 0.05 and row.slide in usual]
    return f"{len(low)} of {sum(row.slide in usual for row in compared.rows)}"


def scored(run: Path, slides: Path, out: Path) -> Path:
    wsiad.heatmap(
        run=run, slides=[slides], out=out, viewers=["asap"], evidence_regions=0, quiet=True
    )
    return out


def row(asked: argparse.Namespace) -> list[str]:
    """Refine, score and evaluate; the cells of a row, or the reason why there is none."""
    made = wsiad.refine(
        run=asked.run,
        results=asked.results,
        healthy=asked.healthy,
        reviewed=asked.reviewed,
        store=asked.store,
        detector=asked.detector,
        options={
            key: yaml.safe_load(value)
            for key, _, value in (one.partition("=") for one in asked.option)
        },
        weights=asked.weights,
        out=asked.out / "run",
        quiet=True,
    )
    if made.run is None:
        return [made.summary]
    print(made.summary)
    results = scored(made.run, asked.slides, asked.out / "results")
    cells = [taught_by(made.run, asked.annotations), *figures(results, asked), "-"]
    if asked.healthy_slides:
        healthy = scored(made.run, asked.healthy_slides, asked.out / "healthy")
        cells[-1] = low_p(results, healthy, asked.reference)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--healthy", type=Path)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--healthy-slides", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--detector", default="linear-probe")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--weights")
    parser.add_argument("--reviewed", type=Path)
    parser.add_argument("--first", type=Path)
    asked = parser.parse_args()
    start = time.perf_counter()
    print(f"| {' | '.join(HEADER)} |")
    if asked.first:
        wsiad.export(results=asked.first, scales_um=[100, 200, 400], quiet=True)
        print(f"| first look | {' | '.join(figures(asked.first, asked))} | - |")
    print(f"| {' | '.join(row(asked))} |")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
