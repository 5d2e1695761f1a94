"""False alarms and FROC before and after rejections of regions on other slides.

    python benchmarks/review.py RUN REVIEWED EVALUATED --slides SLIDES --reference CSV \
        --annotations DIR --out DIR [--rejections 20] [--store STORE] [--quantile 0.999] \
        [--scales 0]

REVIEWED and EVALUATED are results of RUN on different slides, as `wsiad heatmap` scored them;
copies are changed. SLIDES are those of EVALUATED, or a store of them. A reviewer is imitated, who
goes through the regions of REVIEWED by falling score and rejects the first 20 that meet no outlined
tumour. `wsiad extend` takes them into the run, which scores SLIDES again. A false alarm is an
outlined region that meets no tumour; its threshold is the same healthy quantile before and after,
by each run's own calibration. `--scales 0` outlines single windows, in place of neighbourhoods.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from pathlib import Path

import shapely
from neighbourhoods import PROTOCOLS, found_by_size, text
from shapely.geometry.base import BaseGeometry

import wsiad
from wsiad.annotations import SUFFIXES, read_annotations
from wsiad.evaluation.truth import find_truth
from wsiad.results.reviews import JudgedRegion, Judgement, SlideReview, region_id
from wsiad.results.slide_results import SlideResults

HEADER = (
    "",
    "false alarms a slide",
    "on healthy slides",
    "healthy slides without",
    *(f"FROC {name}" for name in PROTOCOLS),
    "slide AUC",
    "tile AUROC",
    "found",
)


def tumour_of(slide: SlideResults, annotations: Path) -> BaseGeometry:
    path = find_truth(annotations, slide.name, suffixes=SUFFIXES)
    return shapely.Polygon() if path is None else read_annotations(path).tumour()


def regions_of(slide: SlideResults) -> list[tuple[JudgedRegion, float]]:
    """Regions of a slide with their scores, strongest first."""
    return [
        (
            JudgedRegion(region_id(slide.name, shape), shape.rings, ()),
            shape.measurements["wsiad: max score"],
        )
        for shape in slide.outlines()
    ]


def reject(results: Path, annotations: Path, count: int) -> str:
    """Reject the strongest regions without tumour; return what was rejected, in words."""
    found = []
    for slide in wsiad.Results(results):
        if slide.is_scored:
            tumour = tumour_of(slide, annotations)
            found += [
                (score, slide, region)
                for region, score in regions_of(slide)
                if not region.area.intersects(tumour)
            ]
    chosen = sorted(found, key=lambda one: -one[0])[:count]
    for _, slide, region in chosen:
        judgement = Judgement(reviewer="imitated", verdict="rejected")
        SlideReview(slide).judge(region.id, judgement)
    slides = {slide.name for _, slide, _ in chosen}
    area = sum(region.area.area for *_, region in chosen)
    return f"{len(chosen)} of {len(found)} false alarms of {len(slides)} slides, {area:.3g} px²"


def figures(results: Path, reference: Path, annotations: Path) -> list[str]:
    """Return the figures of results as cells of the table."""
    alarms, healthy = [], []
    for slide in wsiad.Results(results):
        tumour = tumour_of(slide, annotations)
        false = sum(not region.area.intersects(tumour) for region, _ in regions_of(slide))
        alarms.append(false)
        if tumour.is_empty:
            healthy.append(false)
    found = wsiad.evaluate(
        results=results,
        reference=reference,
        annotations=annotations,
        protocols=PROTOCOLS,
        quiet=True,
    ).figures
    return [
        f"{sum(alarms) / len(alarms):.2f}",
        f"{sum(healthy) / len(healthy):.2f}",
        f"{sum(not count for count in healthy)} of {len(healthy)}",
        *(text(found.froc[name].score) for name in PROTOCOLS),
        text(found.slide_auc),
        text(found.tile_auroc),
        found_by_size(results),
    ]


def only(reference: Path, results: Path, out: Path) -> Path:
    """Write the rows of a reference that are of the slides of results."""
    with reference.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    names = {slide.name for slide in wsiad.Results(results)}
    kept = [rows[0], *(row for row in rows[1:] if Path(row[0]).stem in names)]
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(kept)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("reviewed", type=Path)
    parser.add_argument("evaluated", type=Path)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rejections", type=int, default=20)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--quantile", type=float, default=0.999)
    parser.add_argument("--scales", default="auto")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    reviewed, before = asked.out / "reviewed", asked.out / "before"
    shutil.copytree(asked.reviewed, reviewed, ignore=shutil.ignore_patterns("reviews"))
    shutil.copytree(asked.evaluated, before)
    scales = "auto" if asked.scales == "auto" else [float(part) for part in asked.scales.split(",")]
    derived = {"region_quantile": asked.quantile, "scales_um": scales, "quiet": True}
    for results in (reviewed, before):
        wsiad.export(results=results, **derived)
    print(reject(reviewed, asked.annotations, asked.rejections))
    start = time.monotonic()
    run, after = asked.out / "run", asked.out / "after"
    more = wsiad.extend(run=asked.run, results=[reviewed], out=run, store=asked.store, quiet=True)
    print(f"{more.summary}\n{time.monotonic() - start:.0f} s")
    wsiad.heatmap(
        run=run, slides=[asked.slides], out=after, viewers=[], evidence_regions=0, **derived
    )
    reference = only(asked.reference, before, asked.out / "reference.csv")
    print(" | ".join(HEADER))
    for name, results in (("before", before), ("after", after)):
        print(" | ".join([name, *figures(results, reference, asked.annotations)]), flush=True)


if __name__ == "__main__":
    main()
