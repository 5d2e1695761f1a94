"""Detectors on the features of encoders, and their runs, which name the weights they need."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.labelled import anomalies, healthy
from support.labelled import tiles as made_tiles
from support.tiny_encoders import REGISTERS, TINY, team, tiny, weights
from wsiad.core.errors import DetectorError, RunError, WeightsError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import FitContext, InputSpec, State
from wsiad.networks.features import random_tensors
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.runs.run import RunFolder

torchvision_models()
pytest.importorskip("timm", reason="the optional dependency timm is not installed")

CPU = torch.device("cpu")
ASKED = made_tiles(5, seed=7)


@pytest.fixture(autouse=True)
def encoders(tmp_path, monkeypatch):
    """A team's folder with two encoders."""
    folder = team(tmp_path / "encoders", tiny=TINY, regs=REGISTERS)
    monkeypatch.setenv("WSIAD_ENCODERS", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


def made(name, *, mpp=0.5, size=32, **options):
    cls = registry.load(name)
    return cls(cls.Options(**options), InputSpec(TilePx(size), Mpp(mpp)))


def fitted(name, folder, *, weights=None, mpp=0.5, **options):
    found = made(name, mpp=mpp, **options)
    learns = found.learns_from_anomalies(found.options)
    context = FitContext(seed=1, device=CPU, folder=folder, weights=weights, quiet=True,
                         anomalies=anomalies() if learns == "needed" else None)  # fmt: skip
    return found, found.fit(healthy(), context)


def again(found, name):
    """Return the detector that a run would load, from what a run holds."""
    state = found.state()
    options = json.loads(json.dumps(found.options.model_dump(mode="json")))
    values = json.loads(json.dumps(state.values))
    other = made(name, **options)
    other.load_state(State(state.tensors, values), CPU)
    return other


STEPS = {"max_steps": 2, "batch": 8, "val_interval": 2}
SMALL = {**STEPS, "places": 2, "embedding": "places"}
DETECTORS = {
    "knn": {}, "gaussian": {"shrinkage": 0.5}, "pca": {}, "gmm": {"components": 2}, "kde": {},
    "ocsvm": {}, "svdd": {}, "deep-if": {}, "patchcore": {"embedding": "places", "places": 4},
    "padim": {"embedding": "places", "places": 2, "channels": 8}, "linear-probe": {},
    "devnet": {"steps": 3}, "deep-sad": {"steps": 3},
    "student-teacher": {**STEPS, "places": 2}, "reverse-distillation": {**STEPS, "places": 2},
    "feature-reconstruction": {**STEPS, "places": 2, "network": "transformer", "depth": 2},
}  # fmt: skip


def accepted(name, options):
    """Return the options that a detector has."""
    return {k: v for k, v in options.items() if k in registry.load(name).Options.model_fields}


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_every_detector_on_frozen_features_takes_an_encoder_and_does_not_keep_it(name, tmp_path):
    options = accepted(name, DETECTORS[name])
    found, report = fitted(name, tmp_path, backbone="regs", **options)
    state = found.state()
    held = sum(tensor.numel() for key, tensor in state.tensors.items()
               if key.startswith(("backbone.", "teacher.")))  # fmt: skip
    assert held == 0
    note = report.notes["weights"]
    assert note["encoder"] == "regs"
    assert note["carried"] is False
    assert note["licence"] == "for tests only"
    assert note["source"].endswith("regs.bin")
    scores = found.score(ASKED)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(again(found, name).score(ASKED), scores, rtol=1e-5, atol=1e-6)


def test_embeddings_are_those_of_the_network(tmp_path, encoders):
    knn, _ = fitted("knn", tmp_path, backbone="regs")
    assert knn.options.embedding == "cls+patch_mean"
    assert knn.options.places == 1
    both = knn.embed(ASKED)
    assert both.shape == (5, 48)
    for embedding, part in (("cls", both[:, :24]), ("patch_mean", both[:, 24:])):
        one, _ = fitted("knn", tmp_path, backbone="regs", embedding=embedding)
        np.testing.assert_allclose(one.embed(ASKED), part, rtol=1e-5, atol=1e-6)
    places, _ = fitted("knn", tmp_path, backbone="regs", embedding="places", places=4)
    assert places.score_map(ASKED).shape == (5, 4, 4)
    np.testing.assert_allclose(places.embed(ASKED), both[:, 24:], rtol=1e-4, atol=1e-5)
    layer, _ = fitted("knn", tmp_path, backbone="regs", layers=["blocks.0"], places=2)
    assert layer.score_map(ASKED).shape == (5, 2, 2)


def test_the_run_names_the_encoder(tmp_path):
    found, _ = fitted("knn", tmp_path, backbone="tiny")
    stored = json.loads(json.dumps(found.options.model_dump(mode="json")))
    assert stored["encoder"]["arguments"] == TINY["arguments"]
    assert stored["encoder"]["licence"] == "for tests only"
    values = found.state().values
    assert len(values["weights"]["sha256"]) == 64
    assert values["precision"] == "fp32"
    identity = found.feature_identity()
    assert identity["encoder"]["name"] == "tiny"
    assert identity["mean"] == TINY["mean"]


@pytest.mark.parametrize("name", ["knn", "student-teacher"])
def test_a_run_finds_its_weights_again_or_says_what_it_needs(name, tmp_path, encoders, monkeypatch):
    found, _ = fitted(name, tmp_path, backbone="tiny", **accepted(name, SMALL))
    scores, sha = found.score(ASKED), found.state().values["weights"]["sha256"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    file = encoders / "tiny.bin"
    with pytest.raises(WeightsError) as caught:
        file.rename(moved / "tiny-moved.bin")
        again(found, name)
    for part in ("does not hold the weights of tiny", f"{file} is not there", sha, "for tests only",
                 "$WSIAD_ENCODERS as tiny.bin"):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("WSIAD_ENCODERS", str(moved))  # where there is no table
    np.testing.assert_array_equal(again(found, name).score(ASKED), scores)
    torch.save(weights(tiny()) | {"norm.bias": torch.ones(24)}, moved / "tiny-moved.bin")
    with pytest.raises(WeightsError, match=r"tiny-moved\.bin has another SHA-256"):
        again(found, name)


def test_the_run_folder_passes_the_remedy_on(tmp_path, encoders):
    found, _ = fitted("knn", tmp_path, backbone="tiny")
    folder = RunFolder.create(tmp_path / "run")
    folder.save_detector(found, name="knn")
    np.testing.assert_array_equal(folder.load_detector("cpu").score(ASKED), found.score(ASKED))
    (encoders / "tiny.bin").unlink()
    with pytest.raises(RunError, match=r"cannot be loaded: .*is not there\. Put the file"):
        folder.load_detector("cpu")


def test_members_of_an_ensemble_name_their_encoders(tmp_path, encoders):
    small = {"backbone": "squeezenet1_1", "places": 2}
    members = [
        {"detector": "knn", "options": {"backbone": "tiny"}},
        {"detector": "gaussian", "options": small, "weights": "random"},
    ]
    found, _ = fitted("ensemble", tmp_path, members=members)
    keys = found.state().tensors
    assert not any(key.startswith("1.backbone.") for key in keys)
    assert any(key.startswith("2.backbone.") for key in keys)
    np.testing.assert_allclose(again(found, "ensemble").score(ASKED), found.score(ASKED), rtol=1e-5)
    (encoders / "tiny.bin").unlink()
    with pytest.raises(WeightsError, match=r"does not hold the weights of tiny"):
        again(found, "ensemble")


def test_weights_are_kept_where_it_is_asked_for(tmp_path, encoders, caplog):
    found, report = fitted("knn", tmp_path, backbone="tiny", carry_weights=True)
    assert "the run holds the weights of tiny: for tests only" in caplog.text
    assert "carried" not in report.notes["weights"]
    (encoders / "tiny.bin").unlink()
    np.testing.assert_array_equal(again(found, "knn").score(ASKED), found.score(ASKED))


@pytest.mark.parametrize("backbone", ["timm/resnet10t", "resnet18"])
def test_a_users_file_is_not_kept_but_one_that_wsiad_made_is(backbone, tmp_path, caplog):
    tensors = random_tensors(backbone, 0)
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path)
    options = {"backbone": backbone, "layers": ["layer1"], "places": 2}
    found, report = fitted("knn", tmp_path, weights=str(path), **options)
    assert f"needs {path} (SHA-256 {report.notes['weights']['sha256']})" in caplog.text
    assert "carry_weights=true" in caplog.text
    np.testing.assert_array_equal(again(found, "knn").score(ASKED), found.score(ASKED))
    kept, _ = fitted("knn", tmp_path, weights=str(path), **options, carry_weights=True)
    random, _ = fitted("knn", tmp_path, weights="random", **options)
    path.unlink()
    with pytest.raises(WeightsError, match=r"weights of mine\.safetensors, and .* is not there"):
        again(found, "knn")
    for one in (kept, random):
        np.testing.assert_array_equal(again(one, "knn").score(ASKED), one.score(ASKED))


def test_weights_of_before_which_are_kept_load_as_ever(tmp_path):
    found, _ = fitted("knn", tmp_path, weights="random", backbone="squeezenet1_1", places=2)
    state = found.state()
    old = {k: v for k, v in state.values.items() if k not in ("fingerprint", "precision")}
    other = made("knn", backbone="squeezenet1_1", places=2)
    other.load_state(State(state.tensors, old), CPU)
    np.testing.assert_array_equal(other.score(ASKED), found.score(ASKED))


def test_a_network_that_gives_other_features_than_at_the_training_is_noticed(tmp_path):
    found, _ = fitted("knn", tmp_path, backbone="regs")
    options = found.options.model_dump(mode="json")
    options["encoder"]["mean"] = [0.5, 0.4, 0.7]
    other = made("knn", **options)
    with pytest.raises(WeightsError, match=r"not those of the training .*run\.json states"):
        other.load_state(found.state(), CPU)
    state = found.state()
    near = [value * (1 + 5e-4) for value in state.values["fingerprint"]]
    again_ = made("knn", **found.options.model_dump(mode="json"))
    again_.load_state(State(state.tensors, {**state.values, "fingerprint": near}), CPU)
    far = [value * (1 + 5e-3) for value in state.values["fingerprint"]]
    with pytest.raises(WeightsError, match=r"0\.005 off, 0\.001 allowed"):
        again_.load_state(State(state.tensors, {**state.values, "fingerprint": far}), CPU)
    coarse = {**state.values, "fingerprint": far, "precision": "bf16"}
    again_.load_state(State(state.tensors, coarse), CPU)


def test_features_in_bfloat16_are_near(tmp_path):
    full, _ = fitted("knn", tmp_path, backbone="tiny")
    low, _ = fitted("knn", tmp_path, backbone="tiny", precision="bf16")
    assert low.feature_identity()["precision"] == "bf16"
    np.testing.assert_allclose(low.embed(ASKED), full.embed(ASKED), rtol=0.1, atol=0.1)
    assert (low.embed(ASKED) != full.embed(ASKED)).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": (0.5,) * 3, "std": (0.2,) * 3}, "mean is not for the encoder tiny"),
        ({"backbone_args": {"depth": 3}}, "backbone_args is not for the encoder tiny"),
        ({"magnify": 2}, "magnify is not for the encoder tiny"),
        ({"places": 4}, r"one vector for a tile, and 4 × 4 places.*embedding=places"),
        ({"layers": ["norm"], "embedding": "cls"}, "layers and embedding are both set"),
        ({"embedding": "places"}, r"8 × 8 places were requested, but .* have 4 × 4"),
        ({"layers": ["blocks.7"]}, r"tiny has no layer 'blocks\.7'"),
    ],
)
def test_options_that_the_encoder_decides_are_refused(options, said, tmp_path):
    with pytest.raises(DetectorError, match=said):
        fitted("knn", tmp_path, backbone="tiny", **options)


def test_windows_of_another_scale_are_refused_unless_an_option_allows_them(tmp_path):
    with pytest.raises(DetectorError, match=r"made for 0\.5 µm/px.*have 1 µm/px.*any_mpp=true"):
        fitted("knn", tmp_path, backbone="tiny", mpp=1.0)
    assert fitted("knn", tmp_path, backbone="tiny", mpp=1.0, any_mpp=True)
    assert fitted("knn", tmp_path, backbone="tiny", mpp=0.59)
    with pytest.raises(DetectorError, match=r"µm/px"):
        fitted("student-teacher", tmp_path, backbone="tiny", mpp=0.61)


def test_the_default_window_is_the_encoders():
    cls = registry.load("knn")
    size = cls.input_size
    assert size(cls.Options(backbone="tiny"), tile_px=100, mpp=0.25) == 64
    assert size(cls.Options(backbone="uni"), tile_px=512, mpp=0.5) == 256
    assert size(cls.Options(backbone="uni", input_px=224), tile_px=512, mpp=0.5) == 224
    assert size(cls.Options(backbone="squeezenet1_1"), tile_px=512, mpp=0.5) == 512
    assert size(cls.Options(), tile_px=512, mpp=0.5) == 512


def test_a_method_that_trains_the_encoder_keeps_it_and_asks_first(tmp_path, caplog):
    options = {"max_steps": 2, "batch": 4, "val_interval": 2, "backbone": "tiny"}
    with pytest.raises(DetectorError, match=r"would be trained and held by the run \(licence: for"):
        fitted("outlier-exposure", tmp_path, **options)
    with caplog.at_level(logging.WARNING):
        found, _ = fitted("outlier-exposure", tmp_path, **options, carry_weights=True)
    assert "the run holds the weights of tiny" in caplog.text
    loaded = again(found, "outlier-exposure")
    np.testing.assert_allclose(loaded.score(ASKED), found.score(ASKED), rtol=1e-5, atol=1e-6)


def test_an_encoder_can_be_stated_inline(tmp_path, encoders):
    (encoders / "encoders.yaml").unlink()
    path = encoders / "tiny.bin"
    found, _ = fitted("knn", tmp_path, weights=str(path), encoder={"name": "mine", **TINY})
    assert found.options.backbone == "mine"
    np.testing.assert_array_equal(again(found, "knn").score(ASKED), found.score(ASKED))
