"""`wsiad status`: what it counts is what the folder holds, also while jobs work or after damage."""

import json
import os
import shutil
from pathlib import Path

import pytest

import wsiad
from support.builders import stained, write_tiff
from wsiad.cli import main
from wsiad.core.config import read_yaml
from wsiad.core.errors import InputError
from wsiad.core.ownership import claimed, owner
from wsiad.results.job_status import job_status
from wsiad.store.tile_store import GROUPS

TILING = {"mpp": 0.5, "tile": 64, "tissue": {"min_area_um2": 0}, "quiet": True}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for name in "abcd":
        write_tiff(folder / f"{name}.tif", stained(300, 300), mpp=0.5, levels=1)
    (folder / "text.svs").write_text("no slide")
    return folder


@pytest.fixture
def store(slides, tmp_path):
    """A store of a job array of which the first two of three jobs have run."""
    for shard in ("1/3", "2/3"):
        wsiad.tile(slides=slides, out=tmp_path / "store", shard=shard, **TILING)
    return tmp_path / "store"


def test_a_job_array_in_the_middle(slides, store):
    found = job_status(store)
    made = wsiad.TileStore(store).names()
    assert (found.kind, found.slides) == ("a tile store", 5)
    assert made == ["a", "b", "d"]
    assert found.done == 3
    assert found.left == ("c",)
    assert list(found.failed) == ["text"]
    assert found.exit_code == 1
    assert "3 of 5 slides done, 1 failed, 1 left" in found.text()
    wsiad.tile(slides=slides, out=store, shard="3/3", **TILING)
    assert (job_status(store).done, job_status(store).left) == (4, ())


def test_slides_are_found_from_any_folder(slides, tmp_path, monkeypatch):
    shutil.copytree(slides, tmp_path / "project" / "slides")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    wsiad.tile(slides="slides", out="store", limit=2, **TILING)
    for place, store in (("elsewhere", "../project/store"), ("project/store", ".")):
        monkeypatch.chdir(tmp_path / place)
        found = job_status(Path(store))
        assert (found.slides, found.done, found.left, found.notes) == (2, 2, (), ())
    (tmp_path / "project").rename(tmp_path / "moved")
    assert job_status(tmp_path / "moved" / "store").slides == 2


def test_programs_read_names_that_a_terminal_must_not_print(tmp_path, capsys):
    names = ["a\x9b31mb", "c\x7fd", "e\U000e0001f"]
    for name in names:
        (tmp_path / f"{name}.svs").write_text("no slide")
    store = tmp_path / "a\x7f store"
    told = wsiad.tile(slides=tmp_path, out=store, dry_run=True, as_json=True, **TILING)
    assert [row["slide"] for row in json.loads(told.summary)["slides"]] == names
    assert told.summary.isascii()
    wsiad.tile(slides=tmp_path, out=store, **TILING)
    assert main(["status", str(store), "--json"]) == 1
    text = capsys.readouterr().out
    assert text.isascii()
    found = json.loads(text)
    assert (found["folder"], list(found["failed"])) == (str(store), names)


def test_what_live_processes_write_is_running_and_dead_ones_leave_nothing(slides, store):
    (store / GROUPS / f".c.{owner()}.partial").mkdir()
    assert job_status(store).running == ("c",)
    assert job_status(store).left == ()
    for entry in (store / GROUPS).glob(".c.*"):
        entry.rmdir()
    gone = owner().replace(f"-{os.getpid()}-", "-999999999-")
    (store / GROUPS / f".c.{gone}.partial").mkdir()
    assert (job_status(store).running, job_status(store).left) == ((), ("c",))
    (store / f".working.{owner()}").write_text("c")  # as of a process that works on slides in turn
    assert job_status(store).running == ("c",)


def test_nothing_is_written(store):
    def state():
        return {path: path.stat().st_mtime_ns for path in store.rglob("*")}

    before = state()
    job_status(store)
    assert state() == before


def test_damage_is_told_and_the_rest_is_counted(store):
    shutil.rmtree(store / GROUPS / "b")
    assert job_status(store).broken == ("b: slides.csv says ok, and the store lacks it",)
    (store / "slides.csv").write_text("not,a\ntable\n")
    found = job_status(store)
    assert (found.done, found.exit_code, len(found.broken)) == (0, 1, 1)
    assert "0 of 5 slides done, 5 left" in found.text()
    assert "slides.csv" in found.broken[0]
    (store / "config.yaml").write_text("slides: [")
    found = job_status(store)
    assert (found.done, found.slides, found.left) == (0, None, ("a", "d"))
    assert "0 slides done, 2 left" in found.text()
    assert any("config.yaml" in one for one in found.broken)
    (store / GROUPS / "zarr.json").write_text("{")
    assert any("damaged" in one for one in job_status(store).broken)


def test_a_slide_that_failed_over_what_another_file_left_is_no_done_one(slides, tmp_path):
    mine = shutil.copytree(slides, tmp_path / "mine")
    wsiad.tile(slides=mine, out=tmp_path / "store", **TILING)
    write_tiff(mine / "a.tif", stained(300, 300, seed=9), mpp=0.5, levels=1)
    failed = wsiad.tile(slides=mine, out=tmp_path / "store", **TILING).failed
    found = job_status(tmp_path / "store")
    assert found.failed == {row.slide: row.reason for row in failed}
    assert (found.slides, found.done, sorted(found.failed), found.left) == (5, 3, ["a", "text"], ())


def test_slides_that_are_gone_leave_the_rest_known(store):
    values = read_yaml(store / "config.yaml")
    (store / "config.yaml").write_text(json.dumps(values | {"slides": ["/no/such/folder"]}))
    found = job_status(store)
    assert (found.done, found.slides, found.left) == (3, None, ())
    assert "no such file or folder" in found.notes[0]


@pytest.fixture
def run(store, tmp_path):
    return wsiad.train(
        store=store, out=tmp_path / "run", detector="gaussian", weights="random",
        options={"places": 2}, quiet=True,
    ).run  # fmt: skip


def test_results(slides, run, tmp_path):
    out = tmp_path / "results"
    made = wsiad.heatmap(run=run, slides=slides, out=out, shard="1/2", quiet=True)
    found = job_status(out)
    assert found.kind == "a results folder"
    assert found.done == sum(row.status == "ok" for row in made.rows) == 2
    assert found.failed == {row.slide: row.reason for row in made.failed}
    assert found.left == ("b", "d")
    whole = (out / "slides.csv").read_text()
    (out / "slides.csv").unlink()
    found = job_status(out)
    assert (found.done, found.left, found.exit_code) == (0, ("a", "b", "c", "d", "text"), 1)
    assert found.broken[0].startswith(
        "slides.csv is missing: labels and failures of 2 slides (a, c)"
    )
    (out / "slides.csv").write_text(whole)
    (out / "a" / "slide.json").unlink()
    assert job_status(out).broken == ("a: slides.csv says ok, and slide.json is missing",)
    (out / "run.json").write_text('{"digest": "x", "detector": "gaussian"}')
    assert any("run.json: is damaged: run" in one for one in job_status(out).broken)


METRICS = "step,seconds,learning_rate,train_loss,stop_loss\n"


def test_a_training(run, tmp_path):
    assert job_status(run).training["state"] == "complete"
    config = {"store": "s", "detector": "dpa", "options": {"max_steps": 500}, "max_minutes": 60}
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config))
    assert job_status(folder).training["state"] == "interrupted"
    (folder / "metrics.csv").write_text(METRICS + "50,100,0.001,1.5,\n100,200,0.001,1.25,1.75\n15")
    with claimed(folder):
        found = job_status(folder).training
    assert (found["state"], found["step"], found["limit"]) == ("running", 100, 500)
    assert (found["loss"], found["held_out_loss"]) == (1.25, 1.75)
    assert (found["seconds_left"], found["ends_by"]) == (800, "max_steps")
    assert "step 100 of at most 500, at most 13:20 left (max_steps), loss 1.25" in found["said"]
    assert job_status(folder).training["state"] == "interrupted"
    (folder / "metrics.csv").write_text("x\n1\n2\n")
    assert "metrics.csv" in job_status(folder).broken[0]
    (run / "run.json").write_text("{")
    assert job_status(run).exit_code == 1


def test_by_command(store, tmp_path, capsys):
    assert main(["status", str(store), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], found["left"], list(found["failed"])) == (3, ["c"], ["text"])
    assert main(["status", str(store)]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines()[:1])) < 200
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is an empty folder, and neither"):
        job_status(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no such folder"):
        job_status(tmp_path / "absent")
