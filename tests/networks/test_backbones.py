"""Which backbone is meant where it is left open."""

import logging
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.builders import stained
from wsiad.core.config import build
from wsiad.core.errors import WeightsError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.learning.training_options import LoopOptions
from wsiad.networks import features, vgg, weights
from wsiad.networks.features import settle
from wsiad.store.dataset import ArrayTiles


@pytest.fixture
def no_internet(monkeypatch):
    def official(model):
        raise WeightsError("not at hand", subject=model)

    monkeypatch.setattr(weights, "official", official)


def test_without_imagenet_the_shipped_network_is_taken_and_said(no_internet, caplog):
    with caplog.at_level(logging.WARNING):
        found = settle("auto", None, seed=0)
    assert (found.name, found.weights.source) == ("wsiad", "wsiad lymph_node.safetensors")
    assert "not at hand" in caplog.text
    assert weights.resolve(None, model="vgg19", random_tensors=dict).source == found.weights.source


def test_a_network_that_was_named_is_not_replaced(no_internet):
    for name, asked in (("resnet18", None), ("squeezenet1_1", None), ("auto", "imagenet")):
        with pytest.raises(WeightsError, match="not at hand"):
            settle(name, asked, seed=0)
    with pytest.raises(WeightsError):
        weights.resolve("imagenet", model="vgg19", random_tensors=dict)


def test_imagenet_is_preferred(monkeypatch):
    given = weights.Weights({}, "torchvision", "0", {})
    monkeypatch.setattr(weights, "official", lambda model: given)
    assert settle("auto", None, seed=0).name == "squeezenet1_1"
    assert settle("auto", None, seed=0).weights is given


def test_a_file_says_of_which_network_it_is(tmp_path):
    squeezenet, slim, other = (tmp_path / f"{n}.safetensors" for n in ("squeeze", "slim", "other"))
    save_file(features.random_tensors("squeezenet1_1", 0), squeezenet)
    save_file(vgg.random_tensors(0), slim)
    save_file({"layer1.weight": vgg.random_tensors(0)["features.0.weight"]}, other)
    assert settle("auto", str(squeezenet), seed=0).name == "squeezenet1_1"
    assert settle("auto", str(slim), seed=0).name == "vgg19"
    assert settle("auto", "wsiad", seed=0).name == "wsiad"
    assert settle("auto", "random", seed=0).name == "squeezenet1_1"
    with pytest.raises(WeightsError, match="neither") as error:
        settle("auto", str(other), seed=0)
    assert "backbone=" in str(error.value)


@pytest.mark.parametrize("blocks", ["6-12-24-16", "6-12-32-32", "6-12-48-32"])
def test_a_densenet_is_known_by_its_file(tmp_path, blocks):
    names = {"6-12-24-16": "densenet121", "6-12-32-32": "densenet169", "6-12-48-32": "densenet201"}
    tensors = {
        f"features.denseblock{block}.denselayer{layer}.conv2.weight": torch.zeros(1)
        for block, count in enumerate(map(int, blocks.split("-")), start=1)
        for layer in range(1, count + 1)
    }
    save_file(tensors, tmp_path / "dense.safetensors")
    assert settle("auto", str(tmp_path / "dense.safetensors"), seed=0).name == names[blocks]


@pytest.mark.parametrize("change", ["whole", "without classifier", "zero classifier", "old names"])
def test_knn_looks_through_a_densenet_of_its_file(tmp_path, change):
    tensors = features.random_tensors("densenet121", 0)
    if change == "without classifier":
        tensors = {k: t for k, t in tensors.items() if not k.startswith("classifier")}
    if change == "zero classifier":
        tensors |= {k: torch.zeros_like(t) for k, t in tensors.items() if k.startswith("classif")}
    path = tmp_path / "dense.safetensors"
    if change == "old names":
        old = {re.sub(r"(denselayer\d+\.\w+)([12])\.", r"\1.\2.", k): t for k, t in tensors.items()}
        assert old.keys() != tensors.keys()
        tensors = old
    save_file(tensors, path)
    cls = registry.load("knn")
    spec = InputSpec(TilePx(64), Mpp(0.972))
    detector = cls(build(cls.Options, {}), spec)
    tiles = np.stack([stained(64, 64, seed=seed) for seed in range(4)])
    context = FitContext(
        seed=0, device=torch.device("cpu"), folder=tmp_path, budget=Budget(), weights=str(path)
    )
    report = detector.fit(HealthyTiles(ArrayTiles(tiles[:3]), ArrayTiles(tiles[3:])), context)
    assert report.notes["backbone"] == "densenet121"
    assert report.notes["layers"] == ["features.transition1"]
    assert report.notes["channels"] == 128
    own = features.BackboneFeatures(
        "densenet121", ["features.transition1"], 1, features.random_tensors("densenet121", 0)
    )
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    expected = own(images).flatten(1).numpy()
    assert np.allclose(detector.embed(tiles), expected, rtol=1e-3, atol=1e-4)


def test_the_shipped_network_is_no_resnet():
    with pytest.raises(WeightsError, match="slim VGG19"):
        settle("resnet18", "wsiad", seed=0)
    assert settle("vgg19", "wsiad", seed=0).weights.source.startswith("wsiad")
    assert settle("wsiad", None, seed=0).weights.source.startswith("wsiad")


@pytest.mark.parametrize(
    "name", ["knn", "padim", "deep-if", "student-teacher", "reverse-distillation"]
)
def test_detectors_look_through_the_shipped_network(name, tmp_path):
    tiles = np.stack([stained(64, 64, seed=seed) for seed in range(6)])
    cls = registry.load(name)
    options = {"batch": 3, "val_interval": 1} if issubclass(cls.Options, LoopOptions) else {}
    spec = InputSpec(TilePx(64), Mpp(1.0))
    found = cls(build(cls.Options, options), spec)
    context = FitContext(seed=0, device=torch.device("cpu"), folder=tmp_path, budget=Budget(1),
                         weights="wsiad", quiet=True)  # fmt: skip
    report = found.fit(HealthyTiles(ArrayTiles(tiles), ArrayTiles(tiles[:3])), context)
    assert report.notes["backbone"] == "wsiad"
    again = cls(build(cls.Options, options), spec)
    again.load_state(found.state(), torch.device("cpu"))
    others = np.stack([stained(64, 64, seed=10 + seed) for seed in range(3)])
    np.testing.assert_allclose(again.score(others), found.score(others), rtol=1e-5, atol=1e-6)
    assert np.ptp(found.score(others)) > 0
