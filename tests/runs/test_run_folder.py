import json
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wsiad.core.config import read_yaml, write_config
from wsiad.core.errors import RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.knn import KnnOptions, NearestNeighbours
from wsiad.learning.detector import FitContext, HealthyTiles, InputSpec
from wsiad.learning.metrics import MetricsLog, MetricsRow
from wsiad.runs.calibration import Calibration, held_out_scores
from wsiad.runs.run import RunFolder, RunRecord, load_detector
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
TILES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


def record(**changes):
    values = {
        "detector": "knn",
        "seed": 1,
        "device": "cpu",
        "ended_by": "fitted",
        "seconds": 1.5,
        "stores": {"store": "sha256:abc"},
        "notes": {"weights": {"source": "random"}},
    }
    return RunRecord(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    detector = NearestNeighbours(KnnOptions(places=2), InputSpec(TilePx(32), Mpp(0.972)))
    source = ArrayTiles(TILES)
    context = FitContext(seed=1, device=CPU, folder=folder.path, weights="random", quiet=True)
    detector.fit(HealthyTiles(source, source), context)
    write_config(folder.path / "config.yaml", detector.options)
    folder.save_detector(detector, name="knn")
    scores = held_out_scores(detector, source, quiet=True)
    folder.write_calibration(Calibration.of(scores, n_slides=1))
    return folder


def test_round_trip(folder):
    folder.finish(record())
    detector = load_detector(folder.path, CPU)
    assert isinstance(detector, NearestNeighbours)
    assert (detector.spec.size, detector.spec.mpp) == (32, 0.972)
    opened = RunFolder.open(folder.path)
    assert opened.input_spec() == detector.spec
    scores = detector.score(TILES)
    assert opened.calibration().quantile(1) == pytest.approx(scores.max())
    assert opened.record() == record(finished=opened.record().finished)
    assert opened.record().random_weights
    assert torch.__version__.startswith(opened.record().versions["torch"])
    assert read_yaml(folder.path / "config.yaml")["places"] == 2
    assert not any(".partial" in path.name for path in folder.path.iterdir())


def test_record_says_when_weights_were_learnt():
    assert not record(notes={"weights": {"source": "w.safetensors"}}).random_weights
    assert not record(notes={}).random_weights


def test_record_names_the_published_system_of_its_preset():
    assert record(detector="gmm", notes={"about": {"system": "TEXEM"}}).method == "gmm (TEXEM)"
    for notes in ({}, {"about": None}, {"about": {"system": 3}}):
        assert record(detector="gmm", notes=notes).method == "gmm"


def test_run_without_its_record_is_not_complete(folder):
    with pytest.raises(RunError, match=r"not complete.*train again"):
        load_detector(folder.path, CPU)
    assert RunFolder.create(folder.path) == folder  # it may be resumed


def test_complete_run_is_not_overwritten(folder):
    folder.finish(record())
    with pytest.raises(RunError, match="complete run already"):
        RunFolder.create(folder.path)


def test_no_such_folder(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for name in ("run.json", "slides.csv"):
        (results / name).write_text("")
    for opened in (RunFolder, RunFolder.open):
        with pytest.raises(RunError, match="no such run folder"):
            opened(tmp_path / "absent")
        with pytest.raises(RunError, match="is not a run, but a results folder"):
            opened(results)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be created"):
        RunFolder.create(tmp_path / "file")


def test_loss_picture_only_where_there_are_metrics(folder):
    folder.finish(record())
    assert not (folder.path / "loss.png").exists()
    MetricsLog(folder.path / "metrics.csv").append(MetricsRow(1, 0.1, 1e-3, 0.5, 0.6))
    folder.finish(record(notes={"best_step": 1}))
    assert (folder.path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["run.json", "detector.json"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format version 2, but this version of wsiad reads 1"),
        ({"detector": 3}, "detector"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_json_that_is_not_valid(folder, name, change, said):
    folder.finish(record())
    path = folder.path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=rf"{name}: .*{said}"):
        load_detector(folder.path, CPU)


@pytest.mark.parametrize(
    "name", ["run.json", "detector.json", "weights.safetensors", "calibration.json"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", pickle.dumps({"a": 1}), None])
def test_damaged_or_missing_file(folder, name, content):
    folder.finish(record())
    if content is None and name != "run.json":
        (folder.path / name).unlink()
    else:
        (folder.path / name).write_bytes(content or b"{")
    with pytest.raises(RunError) as error:
        opened = RunFolder.open(folder.path)
        opened.calibration()
        opened.load_detector(CPU)
    assert error.value.subject
    assert "rain again" in str(error.value.remedy) or content is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"detector": "gausian"}, "did you mean 'gaussian'"),
        ({"options": {"places": 0}}, "places"),
        ({"options": {"backbone": "resnet18"}}, "not that of this detector"),
    ],
)
def test_detector_that_does_not_fit(folder, change, said):
    folder.finish(record())
    path = folder.path / "detector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=said):
        load_detector(folder.path, CPU)


def test_record_is_checked():
    with pytest.raises(ValidationError):
        record(seconds=float("nan"))
    with pytest.raises(ValidationError):
        record(status="interrupted")
