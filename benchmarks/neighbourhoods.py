"""Slide and tile AUC, FROC and lesions found, by the neighbourhoods that findings come from.

    python benchmarks/neighbourhoods.py RESULTS --reference CSV --annotations DIR \
        [--healthy HEALTHY] [--scales 0 --scales 100,200 …] \
        [--mean-of auto --mean-of percentiles …]

RESULTS and HEALTHY are results of `wsiad heatmap` by a run that keeps maps of healthy slides,
HEALTHY of healthy slides that took part in nothing, for p-values. Both are changed: they hold the
last scales afterwards. Each `--mean-of` is for all radii. A lesion counts as found if its
detection comes at one false positive a slide or fewer.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from machine import print_machine

import wsiad
from wsiad.evaluation.auc import Estimate, slide_auc
from wsiad.results.file_names import LESION_TABLE
from wsiad.slides.slide_table import SLIDES_TABLE

PROTOCOLS = ("camelyon16-2016", "camelyon16-dataset")
LARGEST_MM2 = (0.0, 0.125, 0.5, np.inf)
"""Edges of the classes of slides by their largest lesion."""


def text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def found_by_size(results: Path) -> str:
    """Lesions found of each class of size, at one false positive a slide."""
    found: dict[str, list[bool]] = defaultdict(list)
    with (results / LESION_TABLE).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["protocol"] == PROTOCOLS[0]:
                rate = row["false_positives_per_slide"]
                found[row["class"]].append(bool(rate) and float(rate) <= 1)
    return ", ".join(f"{kind} {sum(hits)} of {len(hits)}" for kind, hits in sorted(found.items()))


def auc_by_largest_lesion(results: Path, score: str) -> str:
    """Slide AUC of tumour slides by the class of their largest lesion, against all normal ones."""
    largest: dict[str, float] = defaultdict(float)
    with (results / LESION_TABLE).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            area = float(row["tumour_um2"] or 0) / 1e6
            largest[row["slide"]] = max(largest[row["slide"]], area)
    with (results / SLIDES_TABLE).open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        scores = {row["slide"]: float(row[f"score_{score}"] or "nan") for row in rows}
    normal = np.array([value for slide, value in scores.items() if slide not in largest])
    found = []
    for low, high in pairwise(LARGEST_MM2):
        some = np.array([scores[slide] for slide, area in largest.items() if low <= area < high])
        found.append(f"{low:g}–{high:g} mm² ({len(some)}) {text(slide_auc(some, normal))}")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--healthy", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--scales", action="append")
    parser.add_argument("--mean-of", action="append")
    asked = parser.parse_args()
    print_machine()
    print(f"wsiad {wsiad.__version__}")
    several = product(asked.scales or ["0", "100,200"], asked.mean_of or ["auto"])
    for words, mean_of in several:
        scales = [float(radius) for radius in words.split(",")]
        space = {"scales_um": scales, "mean_of": mean_of}
        start = time.perf_counter()
        rows = wsiad.export(results=asked.results, **space, quiet=True).rows
        seconds = (time.perf_counter() - start) / max(1, len(rows))
        score = "max" if scales == [0.0] else "scan"
        figures = wsiad.evaluate(
            results=asked.results,
            reference=asked.reference,
            annotations=asked.annotations,
            slide_score=score,
            protocols=PROTOCOLS,
            quiet=True,
        ).figures
        print(f"scales {words} µm, mean of {mean_of}, score {score}, ", end="")
        print(f"{seconds:.2f} s a slide to derive")
        print(f"  slide AUC {text(figures.slide_auc)}")
        print(f"    by largest lesion: {auc_by_largest_lesion(asked.results, score)}")
        print(f"  tile AUROC {text(figures.tile_auroc)}")
        if figures.tile_auroc_neighbourhoods:
            print(f"  tile AUROC, neighbourhoods {text(figures.tile_auroc_neighbourhoods)}")
        for protocol, froc in figures.froc.items():
            print(f"  FROC {protocol} {text(froc.score)}")
        print(f"  found: {found_by_size(asked.results)}")
        if asked.healthy:
            wsiad.export(results=asked.healthy, **space, quiet=True)
            compared = wsiad.significance(
                results=asked.results, healthy=asked.healthy, slide_score=score, quiet=True
            )
            low = [row.slide for row in compared.rows if row.p_slide <= 0.05]
            print(f"  p <= 0.05: {len(low)} slides: {', '.join(low)}")


if __name__ == "__main__":
    main()
