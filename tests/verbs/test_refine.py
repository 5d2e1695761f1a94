"""`wsiad refine`: a second look from what stands out, or a line that says why there is none."""

import json
import shutil

import numpy as np
import pytest

import wsiad
from support.builders import import_images
from support.strange_slides import EDGE, MPP, OPTIONS, fit_knn, write_slide
from wsiad.cli import main
from wsiad.core.errors import DetectorError, InputError, RunError
from wsiad.detectors.linear_probe import LinearProbe
from wsiad.results.folder import Results
from wsiad.runs.refining import training_of
from wsiad.runs.run import RunFolder
from wsiad.runs.second_look import read_taught
from wsiad.store.tile_store import TileStore

HEAD = {**OPTIONS, "magnify": 1, "strength": 1e-2}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A store of healthy slides, a run, a cohort with five strange slides, and healthy ones."""
    root = tmp_path_factory.mktemp("first")
    for number in range(6):
        write_slide(root / "train" / f"h{number}.tif", number)
    for number in range(8):
        write_slide(root / "cohort" / f"c{number}.tif", 100 + number, strange=number < 5)
    for number in range(10):
        write_slide(root / "healthy" / f"n{number}.tif", 200 + number)
    fit_knn(root, root / "train")
    for name in ("cohort", "healthy"):
        wsiad.heatmap(
            run=root / "run",
            slides=[root / name],
            out=root / f"{name}_results",
            viewers=[],
            evidence_regions=0,
            scales_um=[0],
            quiet=True,
        )
    return root


def refine(first, out, **values):
    given = {
        "run": first / "run",
        "results": first / "cohort_results",
        "healthy": first / "healthy_results",
        "options": HEAD,
        "scales_um": [24, 48],
        "top": 0.1,
        "quiet": True,
    }
    return wsiad.refine(**{**given, **values}, out=out)


@pytest.fixture(scope="module")
def second(first):
    return refine(first, first / "second")


def test_what_taught_is_written(first, second):
    assert second.run == first / "second"
    taught = read_taught(second.run)
    high = [row for row in taught if row.anomalous]
    assert {row.slide for row in high} >= {f"c{number}" for number in range(5)}
    inside = [4 * EDGE <= row.x < 8 * EDGE and 4 * EDGE <= row.y < 8 * EDGE for row in high]
    assert np.mean(inside) > 0.6  # neighbours of strange windows stand out too
    assert min(row.value for row in high) > max(row.value for row in taught if not row.anomalous)
    folds = {}
    for row in taught:
        assert folds.setdefault(row.slide, row.fold) == row.fold
    note = wsiad.RunFolder(second.run).record().notes["second_look"]
    assert note["anomalous_windows"] == len(high)
    assert note["slide_fdr"] <= 0.2
    assert note["run"].endswith("run")
    used = wsiad.RunFolder(second.run).record().slides
    assert sorted(used["second_look"]) == [f"c{number}" for number in range(8)]
    calibration = wsiad.RunFolder(first / "run").record().slides["calibration"]
    assert used["calibration"] == calibration


def test_the_same_again_gives_the_same_bytes(first, second):
    again = refine(first, first / "again")
    for name in ("teaching.csv", "weights.safetensors", "calibration.json"):
        assert (again.run / name).read_bytes() == (second.run / name).read_bytes()
    assert "complete already" in refine(first, first / "again").summary


def test_a_run_that_learnt_from_labels_is_warned_of(first, tmp_path, caplog):
    run = shutil.copytree(first / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["notes"]["anomalies"] = {"tiles": 3, "types": ["tumor"], "slides": ["a"]}
    (run / "run.json").write_text(json.dumps(record))
    refine(first, tmp_path / "second", run=run, store=first / "store")
    assert "learnt from labels" in caplog.text


def test_a_run_without_labels_is_not_warned_of(first, tmp_path, caplog):
    refine(first, tmp_path / "second")
    assert "learnt from labels" not in caplog.text


@pytest.mark.parametrize("kept", [False, True])
def test_the_words_of_an_interrupted_one_are_true(first, tmp_path, monkeypatch, capsys, kept):
    def killed(self, *given):
        raise KeyboardInterrupt

    part = "fit_labelled" if kept else "_taught"  # after the features, and while they are made
    monkeypatch.setattr(LinearProbe, part, killed)
    with pytest.raises(KeyboardInterrupt) as stopped:
        refine(first, tmp_path / "a")
    notes = getattr(stopped.value, "__notes__", [])
    assert bool(notes) is not kept
    assert all("nothing is kept yet" in note for note in notes)

    def interrupted(config):
        raise stopped.value

    monkeypatch.setattr("wsiad.verbs.refine._refined", interrupted)
    given = [str(first / "run"), "none", "--healthy", "none", "--out"]
    assert main(["refine", *given, str(tmp_path / "a")]) == 130
    said = capsys.readouterr().err
    assert ("finished work is kept" in said) is kept
    assert ("nothing is kept yet, for the features" in said) is not kept


def test_a_killed_one_continues_to_the_same_run(first, second, tmp_path, monkeypatch):
    fits, fit = [], LinearProbe.fit_labelled

    def killed(self, vectors, context):
        if len(fits) == 3:
            raise KeyboardInterrupt
        fits.append(len(vectors.anomalous))
        return fit(self, vectors, context)

    with monkeypatch.context() as patch:
        patch.setattr(LinearProbe, "fit_labelled", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(first, tmp_path / "a")
    assert not (tmp_path / "a" / "run.json").exists()
    with pytest.raises(RunError, match="holds parts of a run with folds"):
        refine(first, tmp_path / "a", folds=4)
    done = list(fits)
    monkeypatch.setattr(LinearProbe, "fit_labelled", lambda *given: fits.append(0) or fit(*given))
    again = refine(first, tmp_path / "a")
    assert len(done) == 3
    assert len(fits) == 8 + 1  # eight folds and all, each once
    kept = {path.name for path in second.run.iterdir()}
    assert {path.name for path in again.run.iterdir()} == kept
    for name in kept - {"run.json", "config.yaml"}:  # they hold the time and the folder
        assert (again.run / name).read_bytes() == (second.run / name).read_bytes(), name


def test_the_cohort_is_scored_without_what_it_taught(first, second):
    out = first / "second_results"
    wsiad.heatmap(
        run=second.run,
        slides=[first / "cohort"],
        out=out,
        viewers=[],
        evidence_regions=0,
        quiet=True,
    )
    detector = wsiad.RunFolder(second.run).load_detector("cpu")
    results = Results(out)
    name = "c0"
    scores = np.asarray(results.slide(name).windows()["score"])
    held_out = detector.held_out(results.slide(name).fingerprint())
    assert held_out is not detector
    import tifffile

    pixels = tifffile.imread(first / "cohort" / f"{name}.tif")
    windows = results.slide(name).windows()
    tiles = np.stack(
        [
            pixels[int(y) : int(y) + EDGE, int(x) : int(x) + EDGE]
            for x, y in zip(windows["x"], windows["y"], strict=True)
        ]
    )
    np.testing.assert_allclose(scores, held_out.score(tiles), rtol=1e-3, atol=1e-3)
    assert not np.allclose(scores, detector.score(tiles), rtol=1e-3, atol=1e-3)
    report = (out / "report.html").read_text("utf-8")
    assert report.count("The first look at this slide") == 2 * 8  # the picture and its text
    moved = (first / "cohort_results").rename(first / "elsewhere")
    try:
        wsiad.export(results=out, region_quantile=0.99, quiet=True)
    finally:
        moved.rename(first / "cohort_results")
    report = (out / "report.html").read_text("utf-8")
    assert "The first look at this slide" not in report
    assert report.count("the first look is not shown: ") == 1
    strange = [results.slide(f"c{number}").row.score_max for number in range(5)]
    usual = [results.slide(f"c{number}").row.score_max for number in range(5, 8)]
    assert min(strange) > max(usual)


def test_tiles_of_the_cohort_are_scored_without_what_it_taught(first, second, tmp_path):
    (tmp_path / "slides").mkdir()
    for path in (first / "cohort" / "c0.tif", first / "healthy" / "n0.tif"):
        shutil.copy(path, tmp_path / "slides")
    shutil.copy(first / "healthy" / "n1.tif", tmp_path / "slides" / "c1.tif")  # only its name
    store = tmp_path / "store"
    wsiad.tile(
        slides=[tmp_path / "slides"],
        out=store,
        mpp=MPP,
        tile=EDGE,
        stain={"method": "none"},
        quiet=True,
    )
    tiles = {slide.name: slide for slide in TileStore(store)}
    import_images(tmp_path / "in" / "loose", tiles["c0"].tiles(0, 5), out=store)
    result = wsiad.score_tiles(run=second.run, store=store, out=tmp_path / "out", quiet=True)
    detector = wsiad.RunFolder(second.run).load_detector("cpu")
    own = detector.held_out(tiles["c0"].fingerprint)
    assert own is not detector
    found = {group.name: group.scores for group in result.groups}
    for name, expected in (("c0", own), ("c1", detector), ("n0", detector)):
        pixels = tiles[name].tiles(0, len(tiles[name]))
        np.testing.assert_allclose(found[name], expected.score(pixels), rtol=1e-4, atol=1e-4)
    assert not np.allclose(found["loose"], found["c0"][:5], rtol=1e-4, atol=1e-4)
    said = result.summary.splitlines()
    assert said[0].startswith("1 of 4 groups taught this second look: each is scored by the fit")
    assert [line for line in said if "such as loose" in line and "loose tiles have no" in line]
    assert [line for line in said if "such as c1" in line and "another fingerprint" in line]
    unknown = json.loads(result.evaluation.read_text())["may_have_taught"]
    assert sorted(unknown) == ["c1", "loose"]
    plain = wsiad.score_tiles(run=first / "run", store=store, out=tmp_path / "b", quiet=True)
    assert "second look" not in plain.summary


def test_it_says_why_there_is_none(first, tmp_path, capsys):
    declined = refine(first, tmp_path / "a", slides_needed=8)
    assert declined.run is None
    assert declined.exit_code == 1
    assert not (tmp_path / "a").exists()
    assert "needed" in declined.declined or "expected by chance" in declined.declined
    few = refine(first, tmp_path / "b", healthy=None)
    assert "pass at least" in few.declined
    run, results = str(first / "run"), str(first / "cohort_results")
    assert main(["refine", run, results, "--out", str(tmp_path / "c"), "--quiet"]) == 1
    assert "no second look is taken" in capsys.readouterr().out


def test_a_healthy_cohort_is_left_alone(first, tmp_path):
    calm = refine(
        first, tmp_path / "a", results=first / "healthy_results", healthy=first / "cohort_results"
    )
    assert calm.run is None


@pytest.mark.parametrize("which", ["results", "healthy"])
def test_results_without_any_heatmap_say_why(first, tmp_path, which):
    folder = {"results": "cohort_results", "healthy": "healthy_results"}[which]
    failed = shutil.copytree(first / folder, tmp_path / "failed")
    rows = (failed / "slides.csv").read_text().replace(",ok,,", ",failed,is cut off,")
    (failed / "slides.csv").write_text(rows)
    name = rows.splitlines()[1].split(",")[0]
    said = rf"failed: holds no slide with a heatmap \(\d+ failed; {name}: failed: is cut off; "
    with pytest.raises(InputError, match=said):
        refine(first, tmp_path / "a", **{which: failed})


def test_a_second_look_is_not_refined(first, second, tmp_path):
    with pytest.raises(RunError, match="is a second look already"):
        refine(first, tmp_path / "a", run=second.run)


def test_relative_weights_of_the_first_look_are_found_from_any_folder(first, tmp_path):
    run = shutil.copytree(first / "run", tmp_path / "made" / "run")
    (tmp_path / "made" / "net.safetensors").write_bytes(b"")
    text = (run / "config.yaml").read_text()
    changed = text.replace(f"out: {first / 'run'}", "out: run")
    changed = changed.replace("weights: random", "weights: net.safetensors")
    assert changed.count("out: run\n") == changed.count("weights: net.safetensors\n") == 1
    (run / "config.yaml").write_text(changed)
    training, _ = training_of(
        RunFolder(run), out=tmp_path / "a", store=first / "store", detector="linear-probe",
        options=HEAD, weights=None, device="cpu", quiet=True,
    )  # fmt: skip
    assert training.weights == str(tmp_path / "made" / "net.safetensors")


def test_other_inputs_are_refused(first, tmp_path):
    with pytest.raises(InputError, match="is also in the cohort"):
        refine(first, tmp_path / "a", healthy=first / "cohort_results")
    for name, why in [
        ("knn", "cannot learn from the windows of a first look"),
        ("ensemble", "cannot learn from the windows of a first look"),
        ("outlier-exposure", "once for each fold and once more: it takes methods on frozen"),
    ]:
        with pytest.raises(DetectorError, match=why) as error:
            refine(first, tmp_path / "a", detector=name, options={})
        assert "Set --detector linear-probe, devnet or deep-sad." in str(error.value)
        assert "\n" not in str(error.value)
    other = tmp_path / "other"
    shutil.copytree(first / "run", other)
    values = json.loads((other / "calibration.json").read_text())
    (other / "calibration.json").write_text(json.dumps({**values, "n_slides": 3}))
    with pytest.raises(InputError, match="not made by the run"):
        refine(first, tmp_path / "a", run=other)
    assert not (tmp_path / "a").exists()


def outline(folder, name, *areas):
    """A GeoJSON of rectangles (left, top, right, bottom, class), level-0 pixels."""
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": group}},
        }
        for x, y, right, bottom, group in areas
    ]
    folder.mkdir(exist_ok=True)
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / f"{name}.geojson").write_text(text)


def test_a_review_decides_in_place_of_the_estimate(first, tmp_path, capsys):
    reviewed = tmp_path / "reviewed"
    for number in range(4):
        outline(
            reviewed,
            f"c{number}",
            (4 * EDGE, 4 * EDGE, 6 * EDGE, 8 * EDGE, "Tumor"),
            (6 * EDGE, 4 * EDGE, 8 * EDGE, 8 * EDGE, "Normal"),
        )
    made = refine(first, tmp_path / "a", healthy=None, reviewed=reviewed)
    taught = read_taught(made.run)

    def inside(row, left, right):
        return left * EDGE <= row.x < right * EDGE and 4 * EDGE <= row.y < 8 * EDGE

    high = {(row.slide, row.x, row.y) for row in taught if row.anomalous}
    windows = {
        (f"c{number}", float(x * EDGE), float(y * EDGE))
        for number in range(4)
        for x in (4, 5)
        for y in range(4, 8)
    }
    assert high == windows  # neither what stands out on c4 nor what was rejected
    low = [row for row in taught if not row.anomalous and row.slide in {"c0", "c1", "c2", "c3"}]
    assert sum(inside(row, 6, 8) for row in low) == 4 * 2 * 4
    assert not any(inside(row, 4, 6) for row in low)
    note = wsiad.RunFolder(made.run).record().notes["second_look"]
    assert note["reviewed"] == str(reviewed)
    assert (note["anomalous_slides"], note["rejected_windows"]) == (4, 32)
    assert "window_fdr" not in note
    assert "32 of them in rejected regions" in made.summary


def test_a_review_of_few_slides_does_not_teach(first, tmp_path):
    reviewed = tmp_path / "reviewed"
    outline(reviewed, "c0", (4 * EDGE, 4 * EDGE, 8 * EDGE, 8 * EDGE, "Tumor"))
    declined = refine(first, tmp_path / "a", reviewed=reviewed)
    assert "confirms regions of 1 of the 8 slides, and 4 are needed" in declined.declined
    with pytest.raises(InputError, match="is no folder of outlines"):
        refine(first, tmp_path / "a", reviewed=tmp_path / "nowhere")
    assert not (tmp_path / "a").exists()


def test_patients_stay_together(first, tmp_path):
    made = refine(first, tmp_path / "a", patient="c[01]|c", folds=4)
    folds = {row.slide: row.fold for row in read_taught(made.run)}
    assert len({folds[f"c{number}"] for number in range(2, 8)}) == 1
    with pytest.raises(InputError, match="does not match the pattern"):
        refine(first, tmp_path / "b", patient="patient_[0-9]+")
