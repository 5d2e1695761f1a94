"""Size of report.html with many slides, and how soon a browser shows it and the viewer's tiles.

    python benchmarks/pages.py results/ --slides 500

A copy of the results folder, in a temporary folder on the same disk, gets its slides as often as
is needed (hard links of the same pictures, other names), and the report of all of them is written
as `wsiad export` would. Headless Chromium opens it in a new profile, in a window of
1280 × 1000 px. Times are those of the browser's own clock (Paint Timing and Navigation Timing) from
the start of navigation; where other programs are busy, the processor's time of the browser, from
its start to its end, says more. For the viewer, the clock runs from the page's request until the
last byte of the first tile that it asks for; the server has just started, so the slide is opened
within. Medians of several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from machine import print_machine

from support.browser import Browser
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.report.report import write_results_report
from wsiad.results.folder import Results
from wsiad.slides.slide_table import SLIDES_TABLE, slide_table_kind
from wsiad.verbs.view import ViewConfig, open_server

_REPORT_CLOCK = """(() => {
  const [page] = performance.getEntriesByType("navigation");
  const [first] = performance.getEntriesByName("first-contentful-paint");
  return {paint: first && first.startTime, load: page.loadEventEnd, images: document.images.length};
})()"""
_TILE_CLOCK = """(() => {
  const all = performance.getEntriesByType("resource");
  const tiles = all.filter((one) => one.name.includes("/tile/"));
  return tiles.length ? Math.min(...tiles.map((one) => one.responseEnd)) : 0;
})()"""


def many(results: Path, folder: Path, slides: int) -> Path:
    """Make results of many slides from those of a few; return their folder."""
    out = folder / "results"
    out.mkdir()
    for name in ("run.json", "config.yaml", "calibration.json", "scales.json", "colours.png"):
        if (results / name).exists():
            shutil.copy(results / name, out)
    rows = [row for row in Results(results).slides if row.status == "ok"]
    made: list[HeatmapRow] = []
    for number in range(slides):
        row = rows[number % len(rows)]
        name = f"{row.slide}_{number:04d}"
        shutil.copytree(results / row.slide, out / name, copy_function=os.link)
        made.append(replace(row, slide=name))
    (out / SLIDES_TABLE).write_text(slide_table_kind(HeatmapRow).text(made), encoding="utf-8")
    return out


def open_often(url: str, clock: str, folder: Path, *, runs: int) -> tuple[list[Any], list[float]]:
    """Open a page in new browsers; return what the clock says in each, and processor seconds."""
    found, spent = [], []
    for run in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        browser = Browser(folder / f"profile{run}")
        try:
            browser.open(url, timeout=300)
            found.append(browser.wait(clock, timeout=300))
        finally:
            browser.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return found, spent


def main() -> None:
    """Measure, and print a line of JSON for each page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results folder with a few scored slides")
    parser.add_argument("--slides", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(dir=asked.results.resolve().parent) as name:
        folder = Path(name)
        out = many(asked.results, folder, asked.slides)
        start = time.monotonic()
        report = write_results_report(out)
        written = time.monotonic() - start
        for page in (report, out / "contact_sheet.html"):
            times, spent = open_often(
                page.as_uri(), _REPORT_CLOCK, folder / page.stem, runs=asked.runs
            )
            figures = {
                "page": page.name,
                "slides": asked.slides,
                "MB": round(page.stat().st_size / 1e6, 2),
                "images": times[0]["images"],
                **{
                    f"{kind}_s": round(statistics.median(one[kind] for one in times) / 1000, 2)
                    for kind in ("paint", "load")
                },
                "browser_cpu_s": round(statistics.median(spent), 1),
            }
            print(json.dumps(figures))
        print(json.dumps({"written_s": round(written, 1)}))
        seconds = []
        for run in range(asked.runs):
            server = open_server(ViewConfig(results=asked.results, browser=False))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            (at,), _ = open_often(server.url, _TILE_CLOCK, folder / f"view{run}", runs=1)
            server.shutdown()
            server.server_close()
            seconds.append(at / 1000)
        print(
            json.dumps({"page": "wsiad view", "first_tile_s": round(statistics.median(seconds), 2)})
        )


if __name__ == "__main__":
    main()
