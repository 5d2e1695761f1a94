"""`wsiad train` on small stores: what the run holds, resume, budgets, bad input."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wsiad
from support.builders import stained, write_tiff
from support.small_runs import TINY, train
from wsiad.core.errors import (
    ConfigError,
    DetectorError,
    InputError,
    RunError,
    StoreError,
    WeightsError,
)
from wsiad.core.files import fingerprint
from wsiad.core.ownership import CLAIM
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.runs import fitting
from wsiad.runs.run import RunFolder
from wsiad.store.tile_store import TileStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    rows = ["slide,label,split"]
    for number in range(5):
        image = stained(160, 208, seed=number)
        write_tiff(folder / f"s{number}.tif", image, mpp=0.5, levels=1)
        rows.append(f"s{number}.tif,{'tumor' if number == 4 else 'normal'},a")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    wsiad.tile(slides=folder / "m.csv", out=folder / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    return folder / "store"


def test_slides_without_a_label_are_healthy_only_where_none_has_one(store, tmp_path, caplog):
    mixed = shutil.copytree(store, tmp_path / "mixed")
    table = (mixed / "slides.csv").read_text()
    (mixed / "slides.csv").write_text(table.replace(",normal,", ",,", 1))
    train(mixed, tmp_path / "run", detector="gaussian")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    unsaid = "it has no label, and others have one"
    assert record["notes"]["slides_not_used"] == {"s0": unsaid, "s4": "label is 'tumor'"}
    assert "slides without a label are not trained on, because others have one: 1 (" in caplog.text
    # Of 0.1 a table may hold the user's own words.
    (mixed / "slides.csv").write_text(table.replace(",normal,", ",Negative,"))
    train(mixed, tmp_path / "own", detector="gaussian")
    record = json.loads((tmp_path / "own" / "run.json").read_text())
    assert record["notes"]["slides_not_used"] == {"s4": "label is 'tumor'"}
    (mixed / "slides.csv").write_text(table.replace(",normal,", ",,").replace(",tumor,", ",,"))
    train(mixed, tmp_path / "none", detector="gaussian")
    assert (
        "slides_not_used" not in json.loads((tmp_path / "none" / "run.json").read_text())["notes"]
    )


def test_run_of_a_baseline(store, tmp_path):
    result = train(store, tmp_path / "run", detector="gaussian", options={"places": 2})
    assert (result.ended_by, result.steps) == ("fitted", 0)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "weights.safetensors", "detector.json", "calibration.json",
                     "run.json", "preparation.json", "examples.safetensors",
                     "healthy_maps.safetensors"}  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["notes"]["slides_not_used"] == {"s4": "label is 'tumor'"}
    assert record["stores"]["store"].startswith("sha256:")
    uses = record["slides"]
    assert sorted(name for use in uses.values() for name in use) == ["s0", "s1", "s2", "s3"]
    assert list(uses) == ["fit", "stop", "calibration"]
    slides = store.parent
    for use in uses.values():
        assert use == {name: fingerprint(slides / f"{name}.tif") for name in use}
    assert record["versions"]["wsiad"] == wsiad.__version__
    assert record["split"].startswith("split by slide: ")
    assert record["notes"]["weights"]["source"] == "random"
    with (store / "slides.csv").open(newline="") as file:
        spent = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert record["tile_seconds"] == pytest.approx(sum(spent), abs=1e-3)
    assert sum(spent) > 0
    assert "WARNING" in result.summary


def test_weights_that_tell_no_tile_from_another_are_said(store, tmp_path, caplog):
    states = torchvision_models().squeezenet1_1(weights=None).state_dict()
    save_file({key: np.zeros(value.shape, np.float32) for key, value in states.items()},
              tmp_path / "zero.safetensors")  # fmt: skip
    train(store, tmp_path / "run", detector="knn", weights=str(tmp_path / "zero.safetensors"))
    windows = RunFolder(tmp_path / "run").calibration().n_windows
    assert f"all {windows} healthy windows of the calibration have one score, 0: " in caplog.text
    caplog.clear()
    train(store, tmp_path / "random", detector="knn")
    assert "have one score" not in caplog.text


def test_run_of_a_trained_method(store, tmp_path):
    result = train(store, tmp_path / "run", options=TINY)
    assert (result.ended_by, result.steps) == ("max-steps", 12)
    folder = tmp_path / "run"
    assert {"metrics.csv", "loss.png", "weights.safetensors"} <= {p.name for p in folder.iterdir()}
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "8", "12"]
    assert train(store, tmp_path / "by-flag", options=TINY, max_steps=5).steps == 5


def test_max_minutes_ends_a_run(store, tmp_path):
    options = {**TINY, "max_steps": 100_000}
    result = train(store, tmp_path / "run", options=options, max_minutes=0.01)
    assert result.ended_by == "max-minutes"
    assert 0 < result.steps < 100_000
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["ended_by"] == "max-minutes"


def test_same_seed_same_run_and_other_seed_other_run(store, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(store, tmp_path / name, options=TINY, seed=seed)
    a, b, c = (load_file(tmp_path / name / "weights.safetensors") for name in "abc")
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not all(np.array_equal(a[key], c[key]) for key in a)


CHILD = """
import os, sys, wsiad
from wsiad.learning import loop

store, out, die_at, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
step = loop.Training._step

def dying(self, tiles):
    if self._at.step == die_at:
        os.kill(os.getpid(), 9)
    step(self, tiles)

loop.Training._step = dying
wsiad.train(
    store=store, out=out, detector="dpa", weights="random", quiet=True, options=options
)
"""


def train_in_child(store, out, *, die_at=-1):
    """Train in a process of its own, as users do; equal bits need equal threads."""
    arguments = [sys.executable, "-c", CHILD, str(store), str(out), str(die_at), repr(TINY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, capture_output=True, check=False, env=environment).returncode


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_result(store, tmp_path):
    assert train_in_child(store, tmp_path / "whole") == 0
    assert train_in_child(store, tmp_path / "cut", die_at=7) == -9
    with pytest.raises(RunError, match="not complete"):
        RunFolder.open(tmp_path / "cut")
    assert train_in_child(store, tmp_path / "cut") == 0
    assert RunFolder.open(tmp_path / "cut").record().steps == 12
    one, two = (load_file(tmp_path / n / "weights.safetensors") for n in ("whole", "cut"))
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)
    one, two = ((tmp_path / n / "examples.safetensors").read_bytes() for n in ("whole", "cut"))
    assert one == two


def test_a_complete_run_is_kept(store, tmp_path):
    train(store, tmp_path / "run", detector="gaussian", options={"places": 2})
    before = (tmp_path / "run" / "run.json").read_bytes()
    again = train(store, tmp_path / "run", detector="gaussian", options={"places": 2})
    assert "complete already" in again.summary
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    with pytest.raises(RunError, match="complete run already"):
        train(store, tmp_path / "run", detector="gaussian", options={"places": 3})


def test_two_trainings_in_one_folder_do_not_meet(store, tmp_path, monkeypatch):
    """While one is at work a second is refused and changes nothing."""
    given = {"detector": "gaussian", "options": {"places": 2}}
    whole, refused = fitting.held_out_scores, []

    def with_a_second(*args, **values):
        before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
        with pytest.raises(InputError, match=r"run: another process works on it\. Wait"):
            train(store, tmp_path / "run", **given, seed=1)
        assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
        refused.append(True)
        return whole(*args, **values)

    monkeypatch.setattr(fitting, "held_out_scores", with_a_second)
    assert train(store, tmp_path / "run", **given).ended_by == "fitted"
    assert refused == [True]
    assert not (tmp_path / "run" / CLAIM).exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"detector": "knn"}, "detector gaussian .now knn."),
        ({"seed": 7}, "seed 0 .now 7."),
        ({"options": {"places": 1}}, "options.places 2 .now 1"),
        ({"split": "a"}, "split None .now a."),
    ],
)
def test_parts_of_another_run_are_refused_and_left_as_they_are(store, tmp_path, changes, told):
    given = {"detector": "gaussian", "options": {"places": 2}}
    run = train(store, tmp_path / "run", **given).run
    (run / "run.json").unlink()
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.iterdir()}
    with pytest.raises(RunError, match=f"run: holds parts of a run with {told}.*another --out"):
        train(store, run, **given | changes)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.iterdir()} == before
    assert train(store, run, **given).ended_by == "fitted"


def test_a_checkpoint_of_another_limit_is_refused_and_the_config_kept(store, tmp_path):
    run = train(store, tmp_path / "run", options=TINY, max_steps=2).run
    (run / "run.json").unlink()
    before = (run / "config.yaml").read_bytes()
    (run / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="checkpoint"):
        train(store, run, options=TINY, max_steps=3)
    assert (run / "config.yaml").read_bytes() == before


def test_a_folder_in_which_nothing_was_made_takes_another_config(store, tmp_path):
    with pytest.raises(WeightsError):
        train(store, tmp_path / "run", detector="gaussian", weights=str(tmp_path / "none.pth"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(WeightsError):
        train(store, tmp_path / "run", detector="gaussian", weights=str(tmp_path / "none.pth"))
    assert not list((tmp_path / "run").iterdir())
    # As a training leaves it that was killed before it made any part.
    (tmp_path / "run" / "config.yaml").write_text("detector: gaussian\n")
    assert train(store, tmp_path / "run", detector="knn", seed=3).ended_by == "fitted"


def test_too_few_slides_are_split_by_tile_and_said_so(tmp_path):
    write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    wsiad.tile(slides=tmp_path / "s.tif", out=tmp_path / "store", mpp=0.5, tile=32,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    train(tmp_path / "store", tmp_path / "run", detector="gaussian", options={"places": 2})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "split by tile" in record["split"]


def test_a_split_is_read_like_that_of_a_manifest(store, tmp_path):
    own = shutil.copytree(store, tmp_path / "own")
    table = (own / "slides.csv").read_text()
    # As a manifest gives it, and as imports of earlier versions kept it.
    (own / "slides.csv").write_text(table.replace(",normal,a,", ",normal,Train,", 2))
    for number, split in enumerate(("train", " Train ", "TRAIN")):
        train(own, tmp_path / f"run{number}", detector="gaussian", split=split)
        record = json.loads((tmp_path / f"run{number}" / "run.json").read_text())
        assert record["notes"]["slides_not_used"] == {
            "s2": "split is not 'train'", "s3": "split is not 'train'", "s4": "label is 'tumor'",
        }  # fmt: skip


def test_a_split_without_slides_is_answered_with_those_that_there_are(store, tmp_path):
    own = shutil.copytree(store, tmp_path / "own")
    table = (own / "slides.csv").read_text()

    def said(split):
        with pytest.raises(InputError) as caught:
            train(own, tmp_path / "run", detector="gaussian", split=split)
        return str(caught.value)

    lacks = f"{own}: has no healthy slide with tiles in the split 'b'"
    assert said("B") == (
        f"{lacks}; those of its healthy slides: 'a'. Set --split to one of these, or leave it out."
    )
    changed = table.replace(",normal,a,", ",normal,c,", 1).replace(",tumor,a,", ",tumor,b,")
    (own / "slides.csv").write_text(changed)
    assert said("b").startswith(f"{lacks}; those of its healthy slides: 'a', 'c'. ")
    (own / "slides.csv").write_text(table.replace(",a,", ",,"))
    assert said("b") == (
        f"{lacks}: no healthy slide of it has a split. Leave out --split, or state splits in the "
        "manifest's column `split` (or by the --split of an import) and run the command that made "
        "the store again."
    )
    # Slides of no label are not healthy where others have one: no split is named for them.
    (own / "slides.csv").write_text(table.replace(",normal,a,", ",,a,"))
    assert "split is not 'b'" in said("b")
    assert "Tile healthy slides" in said("b")
    assert not (tmp_path / "run").exists()


def test_bad_input(store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoreError, match="is not a tile store"):
        train(tmp_path, out)
    with pytest.raises(DetectorError, match=r"needs 64 px, but the store's tiles have 48 px"):
        train(store, out)
    with pytest.raises(InputError, match="no healthy slide"):
        train(store, out, split="b", detector="gaussian")
    with pytest.raises(WeightsError, match="no such file"):
        train(store, out, detector="gaussian", weights=str(tmp_path / "none.pth"),
              options={"places": 2})  # fmt: skip
    with pytest.raises(wsiad.core.errors.ConfigError, match="this machine has"):
        train(store, out, device="cuda:9")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").touch()
    with pytest.raises(RunError, match="not a run"):
        train(store, tmp_path / "mine", detector="gaussian")


def test_trimming_drops_tiles_of_each_slide_and_says_which(store, tmp_path):
    options = {"detector": "gaussian", "options": {"places": 2}}
    train(store, tmp_path / "plain", **options)
    train(store, tmp_path / "none", trimming={"share": 0}, **options)
    result = train(store, tmp_path / "some", trimming={"share": 0.2, "rounds": 2}, **options)
    plain, none, some = (tmp_path / name for name in ("plain", "none", "some"))
    weights = "weights.safetensors"
    assert (plain / weights).read_bytes() == (none / weights).read_bytes()
    assert (plain / weights).read_bytes() != (some / weights).read_bytes()
    assert "trimming" not in json.loads((none / "run.json").read_text())["notes"]
    record = json.loads((some / "run.json").read_text())
    note = record["notes"]["trimming"]
    healthy = TileStore(store)
    for name in record["slides"]["fit"]:
        count = len(healthy.slide(name))
        assert note["dropped"][name] == len(note["dropped_tiles"][name]) == int(0.2 * count)
        assert all(0 <= tile < count for tile in note["dropped_tiles"][name])
    assert record["notes"]["tiles"] == note["tiles"] - sum(note["dropped"].values())
    assert "were left out as the strangest of their slides" in result.summary
    with pytest.raises(ConfigError, match="fits by one process: leave out `devices`"):
        train(store, tmp_path / "both", trimming={"share": 0.1}, devices=2, **options)
