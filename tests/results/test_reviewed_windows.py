"""Windows of judged regions: which are taken, and what runs learn from them."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import wsiad
from support.builders import stained
from support.strange_slides import EDGE, OPTIONS, fit_knn, write_slide
from wsiad.core.config import CONFIG, read_yaml
from wsiad.core.errors import DetectorError, InputError, RunError
from wsiad.results.folder import Results
from wsiad.results.reviewed_windows import reviewed_slides, reviewed_store
from wsiad.results.reviews import Judgement, SlideReview, region_id
from wsiad.runs.refining import training_of
from wsiad.store.tile_store import TileStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of healthy slides, a run, and results of two strange and of all healthy slides."""
    root = tmp_path_factory.mktemp("made")
    for number in range(6):
        write_slide(root / "slides" / f"h{number}.tif", number)
    for number in range(2):
        write_slide(root / "slides" / f"c{number}.tif", 100 + number, strange=True)
    rows = [f"slides/h{n}.tif,normal" for n in range(6)] + [f"slides/c{n}.tif," for n in range(2)]
    (root / "healthy.csv").write_text("\n".join(["slide,label", *rows[:6], ""]))
    (root / "all.csv").write_text("\n".join(["slide,label", *rows, ""]))
    fit_knn(root, root / "healthy.csv")
    wsiad.heatmap(
        run=root / "run",
        slides=[root / "all.csv"],
        out=root / "out",
        viewers=[],
        evidence_regions=0,
        scales_um=[0],
        region_quantile=0.9,
        quiet=True,
    )
    return root


@pytest.fixture
def results(made, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def largest(results, name):
    """The identifier of the largest region of a slide, and its outline."""
    slide = Results(results).slide(name)
    shape = max(slide.outlines(), key=lambda one: one.measurements["wsiad: area µm^2"])
    return region_id(name, shape), shape


def say(results, name, verdict, reviewer="Ada"):
    key, shape = largest(results, name)
    judgement = Judgement(reviewer=reviewer, verdict=verdict)
    SlideReview(Results(results).slide(name)).judge(key, judgement)
    return shape


def test_windows_are_those_with_their_centre_in_the_region_and_have_its_pixels(made, results):
    say(results, "c0", "rejected")
    (found,) = reviewed_slides([results], "rejected", device="cpu")
    corners = {(x, y) for x, y, *_ in found.boxes.tolist()}
    inside = {(float(x), float(y)) for x in range(128, 256, EDGE) for y in range(128, 256, EDGE)}
    assert inside <= corners
    whole = stained(EDGE * 12, EDGE * 12, seed=100)
    pixels = np.concatenate(list(found.pixels()))
    assert pixels.shape == (len(found.boxes), EDGE, EDGE, 3)
    for (x, y, *_), window in zip(found.boxes.astype(int).tolist(), pixels, strict=True):
        if (float(x), float(y)) in inside:
            continue
        np.testing.assert_array_equal(window, whole[y : y + EDGE, x : x + EDGE])
    with reviewed_store([results], "rejected", device="cpu", beside=made / "x") as path:
        stored = TileStore(path).slide("c0")
        np.testing.assert_array_equal(stored.take(np.arange(len(stored))), pixels)
        assert stored.fingerprint == Results(results).slide("c0").fingerprint()
    assert not path.exists()


def test_a_small_region_has_the_window_that_covers_most_of_it(results):
    review = SlideReview(Results(results).slide("c0"))
    say(results, "c0", "rejected")
    values = json.loads(review.path.read_text())
    ring = [[100, 100], [127, 100], [127, 110], [100, 110], [100, 100]]
    values["features"][0]["geometry"]["coordinates"] = [ring]
    review.path.write_text(json.dumps(values))
    (found,) = reviewed_slides([results], "rejected", device="cpu")
    assert found.boxes[:, :2].tolist() == [[96.0, 96.0]]


def test_disputed_regions_and_contradictions_teach_nothing_and_are_told(results, caplog):
    say(results, "c0", "rejected")
    say(results, "c1", "rejected", "Ada")
    say(results, "c1", "accepted", "Bo")
    with caplog.at_level(logging.WARNING):
        (found,) = reviewed_slides([results], "rejected", device="cpu")
    assert found.name == "c0"
    assert "1 region on which reviewers disagree is left out" in caplog.text
    with pytest.raises(InputError, match="holds no region that was accepted"):
        reviewed_slides([results], "accepted", device="cpu")
    with pytest.raises(InputError, match="two of the results"):
        reviewed_slides([results, results], "rejected", device="cpu")
    say(results, "h0", "accepted")
    with pytest.raises(InputError, match="is labelled 'normal', but regions of it were accepted"):
        reviewed_slides([results], "accepted", device="cpu")


def test_windows_in_regions_of_both_verdicts_are_left_out(results, caplog):
    shape = say(results, "c0", "rejected")
    path = SlideReview(Results(results).slide("c0")).path
    count = len(reviewed_slides([results], "rejected", device="cpu")[0].boxes)
    values = json.loads(path.read_text())
    ring = [[128, 128], [192, 128], [192, 256], [128, 256], [128, 128]]
    drawn = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
    }
    values["features"].append(drawn)
    path.write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        (found,) = reviewed_slides([results], "rejected", device="cpu")
    assert len(found.boxes) == count - 8
    assert "8 windows in a region of another verdict too are left out" in caplog.text
    assert shape.rings


def test_accepted_regions_are_anomalous_tiles_of_a_training(made, results, tmp_path):
    say(results, "c0", "accepted")
    say(results, "c1", "accepted")
    taken = reviewed_slides([results], "accepted", device="cpu")
    values = {
        "store": made / "store", "detector": "linear-probe", "weights": "random", "quiet": True,
        "options": {**OPTIONS, "magnify": 1, "strength": 1e-2},
    }  # fmt: skip
    wsiad.train(**values, out=tmp_path / "run", anomalies=results)
    record = wsiad.RunFolder(tmp_path / "run").record()
    about = record.notes["anomalies"]
    assert about["types"] == {"tumor": sum(len(one.boxes) for one in taken)}
    assert about["store"] == "out (accepted)"
    assert record.slides["anomalies"] == {one.name: one.fingerprint for one in taken}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "run"}  # the store is gone
    again = wsiad.train(**values, out=tmp_path / "run", anomalies=results)
    assert "complete already" in again.summary


def bank(run):
    return wsiad.RunFolder(run).load_detector("cpu")._fitted["bank"]


def test_rejected_regions_are_fitted_on_and_their_slides_not_held_out(made, results, tmp_path):
    held = next(iter(wsiad.RunFolder(made / "run").record().slides["calibration"]))
    say(results, held, "rejected")
    say(results, "c0", "rejected")
    wsiad.train(
        store=made / "store", out=tmp_path / "run", detector="knn", options=OPTIONS,
        weights="random", healthy_regions=results, quiet=True,
    )  # fmt: skip
    record = wsiad.RunFolder(tmp_path / "run").record()
    taken = reviewed_slides([results], "rejected", device="cpu")
    assert record.slides["healthy_regions"] == {one.name: one.fingerprint for one in taken}
    assert held in record.slides["fit"]
    assert held not in record.slides["calibration"]
    count = sum(len(one.boxes) for one in taken)
    assert record.notes["healthy_regions"]["tiles"] == count
    tiles = sum(len(TileStore(made / "store").slide(name)) for name in record.slides["fit"])
    assert record.notes["tiles"] == tiles + count


def test_a_relative_store_is_found_from_any_folder(made, results, tmp_path, monkeypatch):
    say(results, "c0", "rejected")
    project = tmp_path / "project"
    shutil.copytree(made / "run", project / "runs" / "knn")
    (project / "store").symlink_to(made / "store")
    path = project / "runs" / "knn" / CONFIG
    stated = read_yaml(path) | {"store": "store", "out": "runs/knn"}
    path.write_text(yaml.safe_dump(stated), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = "project/runs/knn"
    wsiad.extend(run=run, results=[results], out=tmp_path / "more", quiet=True)
    assert wsiad.RunFolder(tmp_path / "more").record().ended_by == "extended"
    (project / "store").unlink()
    for call in (
        lambda: wsiad.extend(run=run, results=[results], out=tmp_path / "x", quiet=True),
        lambda: training_of(
            wsiad.RunFolder(Path(run)),
            out=tmp_path / "x",
            store=None,
            detector="linear-probe",
            options={},
            weights=None,
            device="cpu",
            quiet=True,
        ),
    ):
        with pytest.raises(RunError, match=r"runs/knn: was trained on the store store, .* --store"):
            call()


def test_a_run_takes_rejected_regions_without_a_training(made, results, tmp_path):
    say(results, "c0", "rejected")
    (taken,) = reviewed_slides([results], "rejected", device="cpu")
    made_by = wsiad.extend(run=made / "run", results=[results], out=tmp_path / "more", quiet=True)
    assert f"{len(taken.boxes)} windows of 1 rejected region of 1 slide" in made_by.summary
    before, after = bank(made / "run"), bank(tmp_path / "more")
    assert (after[: len(before)] == before).all()
    assert len(after) == len(before) + 16 * len(taken.boxes)
    pixels = np.concatenate(list(taken.pixels()))
    first, more = (
        wsiad.RunFolder(path).load_detector("cpu") for path in (made / "run", tmp_path / "more")
    )
    assert first.score(pixels).min() > 0
    np.testing.assert_allclose(more.score(pixels), 0, atol=1e-3)
    record, old = (wsiad.RunFolder(p).record() for p in (tmp_path / "more", made / "run"))
    assert record.slides["healthy_regions"] == {"c0": taken.fingerprint}
    assert record.slides["calibration"] == old.slides["calibration"]
    assert record.ended_by == "extended"
    assert record.notes["healthy_regions"]["run"] == str(made / "run")
    again = wsiad.extend(run=made / "run", results=[results], out=tmp_path / "more", quiet=True)
    assert "complete already" in again.summary
    with pytest.raises(RunError, match="was extended already"):
        wsiad.extend(run=tmp_path / "more", results=[results], out=tmp_path / "third", quiet=True)
    # It scores slides like any run.
    wsiad.heatmap(
        run=tmp_path / "more", slides=[made / "all.csv"], out=tmp_path / "second", viewers=[],
        evidence_regions=0, scales_um=[0], quiet=True,
    )  # fmt: skip
    scores = [Results(path).slide("c0").score() for path in (made / "out", tmp_path / "second")]
    assert scores[1] < scores[0]


def test_the_calibration_leaves_out_slides_whose_windows_were_taken(made, results, tmp_path):
    held = list(wsiad.RunFolder(made / "run").record().slides["calibration"])
    for name in held:
        say(results, name, "rejected")
    with pytest.raises(InputError, match="all slides of the calibration have regions"):
        wsiad.extend(run=made / "run", results=[results], out=tmp_path / "more", quiet=True)
    assert not (tmp_path / "more").exists()
    other = next(name for name in (f"h{n}" for n in range(6)) if name not in held)
    shutil.rmtree(results / "reviews")
    say(results, other, "rejected")
    wsiad.extend(run=made / "run", results=[results], out=tmp_path / "more", quiet=True)
    record = wsiad.RunFolder(tmp_path / "more").record()
    assert set(record.slides["calibration"]) == set(held)


def test_what_cannot_take_windows_says_so(made, results, tmp_path):
    say(results, "c0", "rejected")
    values = {"store": made / "store", "weights": "random", "quiet": True, "options": OPTIONS}
    wsiad.train(**values, out=tmp_path / "pca", detector="pca")
    with pytest.raises(DetectorError, match="only where it is fitted anew"):
        wsiad.extend(run=tmp_path / "pca", results=[results], out=tmp_path / "x", quiet=True)
    with pytest.raises(InputError, match="holds no region that was rejected"):
        wsiad.extend(run=made / "run", results=[made / "out"], out=tmp_path / "x", quiet=True)
    assert not (tmp_path / "x").exists()


def test_accepted_regions_are_what_a_search_compares_by(made, results, tmp_path):
    pytest.importorskip("optuna")
    say(results, "c0", "accepted")
    say(results, "c1", "accepted")
    found = wsiad.tune(
        store=made / "store", anomalies=results, out=tmp_path / "tuned", detector="knn",
        options=OPTIONS, space={"neighbours": [1, 3]}, weights="random", trials=1, folds=2,
        healthy_tiles=100, quiet=True,
    )  # fmt: skip
    assert found.best is not None
    assert ".partial" not in (tmp_path / "tuned" / "best.yaml").read_text()  # a store that is gone
    record = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert record["anomalies"]["types"]["tumor"] > 0
