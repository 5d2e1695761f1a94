"""The scripts of the gallery and the notebook run as they stand."""

from __future__ import annotations

import csv
import runpy
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "first_slides.ipynb"


def run(script, *words):
    """Run a script as the command line does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, words)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def colours(path):
    """Number of colours of a picture: an empty one has few."""
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0))


def test_the_heatmap_lies_over_the_slide(scored_pair, tmp_path):
    run("heatmap_over_slide.py", scored_pair / "results", "b", "--out", tmp_path / "b.png")
    assert colours(tmp_path / "b.png") > 1000


def test_slides_without_a_score_are_named_and_none_is_dropped(scored_pair, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(scored_pair / "results", results)
    with (results / "slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {
        key: rows[0][key] for key in ("seconds", "tiles", "unusable", "damaged", "regions_left_out")
    }
    lost = {"slide": "c", "status": "failed", "reason": "cannot be opened", **kept}
    with (results / "slides.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], restval="")
        table.writeheader()
        table.writerows([*rows, lost])
    (tmp_path / "reference.csv").write_text("image,type\nb,tumor\n")
    run("scores_of_slides.py", results, "--reference", tmp_path / "reference.csv",
        "--out", tmp_path / "scores.png")  # fmt: skip
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert shown["a"][:3] == ["ok", "no", "label"]
    assert shown["b"][:2] == ["ok", "tumor"]
    assert shown["c"] == ["failed", "no", "label", "NaN"]
    assert colours(tmp_path / "scores.png") > 20


def test_the_strangest_windows_are_read_where_they_are(scored_pair, tmp_path):
    found = runpy.run_path(str(EXAMPLES / "strangest_windows.py"))
    chosen = found["strangest"](scored_pair / "results", count=6, per_slide=3)
    assert list(chosen.score) == sorted(chosen.score, reverse=True)
    assert set(chosen.slide) == {"a", "b"}
    window = chosen.iloc[0]
    import openslide

    with openslide.OpenSlide(window.file) as slide:
        size = round(window.width), round(window.height)
        there = slide.read_region((round(window.x), round(window.y)), 0, size).convert("RGB")
    shown = np.asarray(found["pixels"](window), float)
    np.testing.assert_allclose(shown.mean((0, 1)), np.asarray(there, float).mean((0, 1)), atol=3)
    run("strangest_windows.py", scored_pair / "results", "--count", 6, "--out", tmp_path / "w.png")
    assert colours(tmp_path / "w.png") > 1000


def test_slides_to_practise_on_are_drawn(tmp_path):
    run("draw_slides.py", tmp_path, "--size-px", 830, 830)
    assert len(list((tmp_path / "healthy").glob("*.tif"))) == 12
    assert len(list((tmp_path / "new").glob("*.tif"))) == 8
    assert (tmp_path / "new/reference.csv").read_text().count("tumor") == 10


def test_the_notebook_has_no_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2
    assert any("<table" in output.get("data", {}).get("text/html", "") for output in shown)
