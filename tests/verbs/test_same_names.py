"""Slides of one file name in several folders, from tiles to evaluation."""

import csv
import json
import subprocess
import sys

import pytest

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import EvaluationError
from wsiad.core.ownership import owner
from wsiad.evaluation.truth import read_groups
from wsiad.exports.asap import SUFFIX
from wsiad.store.tile_store import TileStore
from wsiad.verbs.view import viewed_slides

NAMES = [f"p{number}/1" for number in range(4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        path = folder / "slides" / f"{name}.tif"
        path.parent.mkdir(parents=True)
        write_tiff(path, stained(160, 208, seed=number), mpp=0.5, levels=1)
    given = {"slides": folder / "slides", "out": folder / "store", "mpp": 0.5, "tile": 48,
             "tissue": {"min_area_um2": 0}, "quiet": True}  # fmt: skip
    wsiad.tile(**given)
    wsiad.train(store=folder / "store", out=folder / "run", detector="gaussian", weights="random",
                quiet=True)  # fmt: skip
    wsiad.heatmap(run=folder / "run", slides=folder / "slides", out=folder / "results", quiet=True)
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_store_and_results_have_them_all(made):
    assert TileStore(made / "store").names() == NAMES
    for folder in ("store", "results"):
        found = rows(made / folder / "slides.csv")
        assert [(row["slide"], row["status"]) for row in found] == [(n, "ok") for n in NAMES]
    for name in NAMES:
        folder = made / "results" / name
        assert json.loads((folder / "slide.json").read_text())["row"]["slide"] == name
        assert (folder / f"1{SUFFIX}").exists()
        assert (made / "store" / "overviews" / f"{name}.jpg").exists()


def dead_owner():
    """Name of what a process of this machine was writing that is dead."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    machine, _, _, last = owner().split("-")
    return f"{machine}-{process.pid}-1-{last}"


def test_what_dead_runs_left_among_them_is_cleared_away(made):
    left = [made / "store" / "slides.zarr" / "p1" / f".1.{dead_owner()}.partial",
            made / "store" / "slides.zarr" / "p1" / ".1.parts",
            made / "store" / "overviews" / "p1" / f".{dead_owner()}.partial.1.jpg",
            made / "results" / "p1" / f".1.{dead_owner()}.partial"]  # fmt: skip
    for path in left:
        path.mkdir()
    wsiad.tile(slides=made / "slides", out=made / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    wsiad.heatmap(run=made / "run", slides=made / "slides", out=made / "results", quiet=True)
    assert not any(path.exists() for path in left)
    assert TileStore(made / "store").names() == NAMES


def test_a_second_call_passes_over_them(made):
    before = {n: (made / "results" / n / "slide.json").stat().st_mtime_ns for n in NAMES}
    wsiad.heatmap(run=made / "run", slides=made / "slides", out=made / "results", quiet=True)
    assert {n: (made / "results" / n / "slide.json").stat().st_mtime_ns for n in NAMES} == before


def test_a_store_of_them_is_scored_and_exported(made, tmp_path):
    wsiad.heatmap(run=made / "run", slides=made / "store", out=tmp_path / "of-store", quiet=True)
    there = {row["slide"]: row["score_max"] for row in rows(tmp_path / "of-store" / "slides.csv")}
    here = {row["slide"]: row["score_max"] for row in rows(made / "results" / "slides.csv")}
    assert there.keys() == here.keys() == set(NAMES)
    for kind, file in (("png", "p2/1/000000.png"), ("clam", "p2/1.h5")):
        result = wsiad.export_tiles(store=made / "store", out=tmp_path / kind, format=kind,
                                    quiet=True)  # fmt: skip
        assert sorted(result.slides) == NAMES
        assert list((tmp_path / kind / "p2").rglob(f"*{file[-4:]}"))


def test_they_are_evaluated_and_looked_at(made, tmp_path):
    labels = dict(zip(NAMES, ("normal", "tumor", "normal", "tumor"), strict=True))
    text = "".join(f"{name}.tif,{label},c{name[1]}\n" for name, label in labels.items())
    (tmp_path / "ref.csv").write_text(f"image,type,centre\n{text}")
    wsiad.evaluate(results=made / "results", reference=tmp_path / "ref.csv", out=tmp_path / "out",
                   bootstrap=10, group_by="centre", quiet=True)  # fmt: skip
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert sorted(slide["slide"] for slide in found["slides"]) == NAMES
    assert sorted(slide.name for slide in viewed_slides(made / "results")) == NAMES


def test_groups_are_found_by_name_with_and_without_folders(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("slide,centre\n/x/p1/1.tif,A\nx/p2/1.tif,B\nx/p2/2.tif,B\n")
    groups = read_groups(path, "centre", slides={"p1/1", "p2/1", "2"})
    assert (groups["p1/1"], groups["p2/1"], groups["2"], groups["p2/2"]) == ("A", "B", "B", "B")
    with pytest.raises(EvaluationError, match="1 is in 'A' already"):
        read_groups(path, "centre", slides={"1"})
