"""Features of a heatmap in another precision than that of the run."""

import json

import numpy as np
import pytest
import torch

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import DetectorError, InputError
from wsiad.runs.run import RunFolder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on features of random weights, and the slides of its store."""
    folder = tmp_path_factory.mktemp("precision")
    slides = folder / "slides"
    slides.mkdir()
    for number in range(3):
        write_tiff(slides / f"{number}.tif", stained(400, 400), mpp=0.5, levels=1)
    tissue = {"min_area_um2": 0, "smooth_um": 0}
    wsiad.tile(slides=slides, out=folder / "store", mpp=0.5, tile=64, tissue=tissue, quiet=True)
    wsiad.train(
        store=folder / "store",
        out=folder / "run",
        detector="gaussian",
        weights="random",
        quiet=True,
    )
    return folder / "run", slides


@pytest.mark.slow
def test_scores_in_bfloat16_differ_by_little_and_are_other_results(trained, tmp_path):
    run, slides = trained
    common = {"run": run, "slides": slides, "device": "cpu", "viewers": [], "quiet": True}
    wsiad.heatmap(out=tmp_path / "fp32", **common)
    result = wsiad.heatmap(out=tmp_path / "bf16", precision="bf16", **common)
    assert not result.failed
    stated = [
        json.loads((tmp_path / name / "run.json").read_text())["scored"]
        for name in ("fp32", "bf16")
    ]
    assert "precision" not in stated[0]  # as in results of before there was a choice
    assert stated[1]["precision"] == "bf16"
    usual, low = (
        np.concatenate([np.load(tmp_path / name / f"{i}" / "windows.npy")["score"] for i in "012"])
        for name in ("fp32", "bf16")
    )
    assert (low != usual).any()
    np.testing.assert_allclose(low, usual, rtol=0.05)
    with pytest.raises(InputError, match=r"precision run \(now bf16\)"):
        wsiad.heatmap(out=tmp_path / "fp32", precision="bf16", **common)
    with pytest.raises(InputError, match=r"precision bf16 \(now run\)"):
        wsiad.heatmap(out=tmp_path / "bf16", **common)


@pytest.mark.slow
def test_the_detector_is_that_of_a_run_in_bfloat16(trained):
    run, _ = trained
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    detector, other = (RunFolder.open(run).load_detector(CPU) for _ in range(2))
    detector.compute_in("bf16")
    assert detector.feature_identity() == {**other.feature_identity(), "precision": "bf16"}
    features = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    normalised = other._backbone.normalised(features.float() / 255)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = other._backbone.maps(normalised)
    places = torch.nn.functional.adaptive_avg_pool2d(found.float(), 8).mean(dim=(2, 3))
    np.testing.assert_allclose(detector.embed(tiles), places.numpy(), rtol=1e-4, atol=1e-5)


def test_a_method_without_frozen_features_refuses(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    slide = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    with pytest.raises(DetectorError, match="channel computes in the precision of its run alone"):
        wsiad.heatmap(run=run, slides=slide, out=tmp_path / "out", precision="bf16", quiet=True)
    assert not (tmp_path / "out").exists()
