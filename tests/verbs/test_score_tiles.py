"""`wsiad score-tiles`: which window is scored, the table, tile AUROC, bad input."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import wsiad
from support.builders import import_images, stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import DetectorError, InputError, RunError, StoreError, StoreMismatchError
from wsiad.runs.run import RunFolder
from wsiad.store.tile_store import TileStore

PX = 40


@pytest.fixture(autouse=True)
def _channel(monkeypatch):
    use_channel(monkeypatch)


@pytest.fixture
def run(tmp_path):
    """Scores a tile by the mean of red in the 32 px of its centre."""
    return make_run(tmp_path / "run", size=32)


def reds(seed, count, middle):
    """Tiles whose centre has one red each, and whose frame misleads."""
    values = np.clip(np.random.default_rng(seed).normal(middle, 20, count), 0, 255).round()
    images = np.full((count, PX, PX, 3), 255, np.uint8)
    images[:, 4:36, 4:36, 0] = values[:, None, None].astype(np.uint8)
    return values, images


def add(store, name, images, tmp_path, **values):
    import_images(tmp_path / "in" / name, images, **{"out": store, **values})


def score(run, store, out, **values):
    return wsiad.score_tiles(**{"run": run, "store": store, "out": out, "quiet": True, **values})


def test_scores_and_auroc(run, tmp_path):
    truth = {}
    for name, count, middle, label in (
        ("n1", 300, 90, "normal"), ("n2", 41, 95, "healthy"), ("t1", 130, 110, "tumor"),
        ("t2", 60, 120, "Tumour"), ("u", 5, 200, ""),
    ):  # fmt: skip
        truth[name], images = reds(count, count, middle)
        add(tmp_path / "store", name, images, tmp_path, label=label)
    result = score(run, tmp_path / "store", tmp_path / "out", batch=32)
    with result.scores.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 536
    calibration = RunFolder.open(run).calibration()
    for name, values in truth.items():
        mine = [row for row in rows if row["group"] == name]
        assert [int(row["index"]) for row in mine] == list(range(len(values)))
        assert mine[3]["tile"] == "0003.png"
        np.testing.assert_allclose([float(row["score"]) for row in mine], values)
        expected = calibration.percentile(values)
        np.testing.assert_allclose([float(r["percentile"]) for r in mine], expected, rtol=1e-5)
    facts = json.loads(result.evaluation.read_text())
    negative, positive = (
        np.concatenate([truth[n] for n in g]) for g in (("n1", "n2"), ("t1", "t2"))
    )
    area = roc_auc_score(
        np.repeat([0, 1], [len(negative), len(positive)]), np.concatenate([negative, positive])
    )
    assert facts["tile_auroc"]["value"] == pytest.approx(area, abs=1e-12)
    assert facts["tile_auroc"]["low"] < area < facts["tile_auroc"]["high"]
    assert facts["as_if_tiles_were_independent"]["value"] == pytest.approx(area, abs=1e-12)
    assert [group["taken_as"] for group in facts["groups"]] == [
        "normal", "normal", "tumour", "tumour", None]  # fmt: skip
    assert f"{area:.3f}" in result.summary
    before = result.scores.read_bytes()
    assert score(run, tmp_path / "store", tmp_path / "out").scores.read_bytes() == before
    # Labels of one's own: what is not named as normal is tumour.
    other = score(run, tmp_path / "store", tmp_path / "other", normal=["Normal"])
    assert [group.truth for group in other.groups] == ["normal", "tumour", "tumour", "tumour", ""]


def test_one_group_a_class_has_no_interval_over_groups(run, tmp_path):
    for name, middle, label in (("n", 90, "normal"), ("t", 120, "tumor")):
        add(tmp_path / "store", name, reds(1, 50, middle)[1], tmp_path, label=label)
    result = score(run, tmp_path / "store", tmp_path / "out")
    facts = json.loads(result.evaluation.read_text())
    assert facts["tile_auroc"]["low"] is None
    assert "fewer than two" in facts["tile_auroc"]["interval_undefined"]
    independent = facts["as_if_tiles_were_independent"]
    assert independent["low"] < independent["value"] < independent["high"]
    assert "if tiles were independent" in result.summary


def test_without_labels_there_is_no_auroc(run, tmp_path):
    add(tmp_path / "store", "a", reds(1, 9, 90)[1], tmp_path)
    result = score(run, tmp_path / "store", tmp_path / "out")
    assert result.tile_auroc.value is None
    facts = json.loads(result.evaluation.read_text())
    assert facts["tile_auroc"]["undefined"]
    assert facts["as_if_tiles_were_independent"] is None


def test_label_of_a_slide_is_not_that_of_its_tiles(run, tmp_path):
    """A tumour slide's tiles are scored, and not taken for tumour; a normal one's are normal."""
    for name in ("n", "t"):
        write_tiff(tmp_path / f"{name}.tif", stained(120, 160), mpp=0.5, levels=1)
    (tmp_path / "m.csv").write_text("slide,label\nn.tif,normal\nt.tif,tumor\n")
    wsiad.tile(slides=tmp_path / "m.csv", out=tmp_path / "store", mpp=0.5, tile=PX,
               stain={"method": "none"}, tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    result = score(run, tmp_path / "store", tmp_path / "out")
    assert [(group.truth, len(group.scores)) for group in result.groups] == [
        ("normal", 12),
        ("", 12),
    ]
    cut_within_outlines = score(run, tmp_path / "store", tmp_path / "out", tumour=["Tumor"])
    assert [group.truth for group in cut_within_outlines.groups] == ["normal", "tumour"]
    slide = TileStore(tmp_path / "store").slide("n")
    centre = slide.tiles(0, 12)[:, 4:36, 4:36, 0].mean(axis=(1, 2))
    np.testing.assert_allclose(result.groups[0].scores, centre, rtol=1e-6)


def test_scores_that_are_not_finite_are_an_error_and_are_not_written(run, tmp_path, monkeypatch):
    add(tmp_path / "store", "a", reds(1, 4, 100)[1], tmp_path)
    load = RunFolder.load_detector

    def damaged(folder, device):
        detector = load(folder, device)
        monkeypatch.setattr(
            detector, "score", lambda tiles: np.full(len(tiles), np.nan, np.float32)
        )
        return detector

    monkeypatch.setattr(RunFolder, "load_detector", damaged)
    with pytest.raises(DetectorError, match="scores of a that are not finite") as error:
        score(run, tmp_path / "store", tmp_path / "out")
    assert error.value.subject == str(run)
    assert not (tmp_path / "out" / "scores.csv").exists()


def test_bad_input(run, tmp_path):
    add(tmp_path / "store", "a", reds(1, 3, 90)[1], tmp_path)
    with pytest.raises(RunError, match="no such run"):
        score(tmp_path / "gone", tmp_path / "store", tmp_path / "out")
    with pytest.raises(StoreError, match="not a tile store"):
        score(run, tmp_path, tmp_path / "out")
    add(tmp_path / "coarse", "b", reds(1, 3, 90)[1], tmp_path, mpp=1.0)
    with pytest.raises(StoreMismatchError, match="another mpp"):
        score(run, tmp_path / "coarse", tmp_path / "out")
    add(tmp_path / "stained", "c", reds(1, 3, 90)[1], tmp_path, stain={"method": "reinhard"})
    with pytest.raises(StoreMismatchError, match="another stain"):
        score(run, tmp_path / "stained", tmp_path / "out")
    add(tmp_path / "small", "d", [p[:24, :24] for p in reds(1, 3, 90)[1]], tmp_path)
    with pytest.raises(StoreMismatchError, match="24 px are smaller than the detector's 32"):
        score(run, tmp_path / "small", tmp_path / "out")
    with pytest.raises(InputError, match="not scores of tiles"):
        score(run, tmp_path / "store", tmp_path / "store")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        score(run, tmp_path / "store", tmp_path / "file")
