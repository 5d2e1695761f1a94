"""Backbones of timm, with random weights: nothing is downloaded."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from support.feature_detectors import TILES, detector, fitted_on_tiles
from wsiad.core.errors import DetectorError, WeightsError
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.networks import features
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.store.dataset import ArrayTiles

torchvision_models()
timm = pytest.importorskip("timm", reason="the optional dependency timm is not installed")

CPU = torch.device("cpu")
RESNET = "timm/resnet10t"


def images(edge=64):
    return torch.rand(2, 3, edge, edge, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_timms_own_extractor():
    name = "timm/resnet10t"
    tensors = features.random_tensors(name, 0)
    own = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2)).eval()
    own.load_state_dict(tensors, strict=False)
    backbone = BackboneFeatures(name, ["layer1", "layer2"], 1, tensors)
    mean, std = (torch.tensor(own.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = own((images() - mean) / std)
        found = backbone.maps(backbone.normalised(images()))
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_lies_deeper_is_not_computed():
    backbone = BackboneFeatures(RESNET, ["layer1"], 1, features.random_tensors(RESNET, 0))
    seen = []
    backbone.network.layer2.register_forward_hook(lambda *_: seen.append(1))
    assert backbone(images()).shape == (2, 1, 1, 64)
    assert not seen


def test_tokens_of_a_transformer_become_a_map_of_its_patches():
    name = "timm/test_vit"  # timm's own tiny one for tests
    tensors = features.random_tensors(name, 0)
    backbone = BackboneFeatures(name, ["blocks.1"], 4, tensors)
    own = timm.create_model("test_vit", dynamic_img_size=True, num_classes=0).eval()
    own.load_state_dict(tensors)
    with torch.no_grad():
        x = backbone.normalised(images())
        (expected,) = own.forward_intermediates(x, [1], norm=False, intermediates_only=True)
        (found,) = backbone.maps(x)
    assert found.shape == (2, 64, 4, 4)
    torch.testing.assert_close(found, expected)
    assert backbone.mean.flatten().tolist() == pytest.approx(own.pretrained_cfg["mean"])


def test_detectors_take_them_and_keep_them(tmp_path):
    options = {"backbone": RESNET, "layers": ["layer2"], "places": 4}
    found = fitted_on_tiles("knn", tmp_path, **options)
    again = detector("knn", **options)
    again.load_state(found.state(), CPU)
    assert (again.score_places(TILES[:3]) == found.score_places(TILES[:3])).all()


def test_student_of_a_timm_teacher(tmp_path):
    found = detector(
        "student-teacher", backbone=RESNET, layers=["layer2"], places=4, batch=6, max_steps=2
    )
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    found.fit(tiles, FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True))
    again = detector("student-teacher", **found.options.model_dump(exclude_unset=True))
    again.load_state(found.state(), CPU)
    assert (again.score_places(TILES[:3]) == found.score_places(TILES[:3])).all()


def test_weights_come_from_a_file_or_not_at_all(tmp_path, monkeypatch):
    def fit(weights):
        found = detector("knn", backbone=RESNET, layers=["layer1"])
        tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
        context = FitContext(seed=1, device=CPU, folder=tmp_path, weights=weights, quiet=True)
        return found.fit(tiles, context)

    monkeypatch.setattr(torch.hub, "download_url_to_file", pytest.fail)
    with pytest.raises(WeightsError, match=r"not downloaded.*--weights FILE.*huggingface"):
        fit(None)
    path = tmp_path / "model.safetensors"
    whole = timm.create_model("resnet10t").state_dict()
    save_file(whole, path)
    assert fit(str(path)).notes["weights"]["source"] == str(path)
    save_file({k: t for k, t in whole.items() if k != "layer1.0.conv1.weight"}, path)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight is missing.*timm's keys"):
        fit(str(path))


def test_unknown_network_and_layer_and_wrong_size():
    with pytest.raises(DetectorError, match=r"no network 'resnet10x'.*resnet18|such as"):
        features.random_tensors("timm/resnet10x", 0)
    with pytest.raises(DetectorError, match=r"no layer 'features\.4'.*layer1"):
        BackboneFeatures(RESNET, ["features.4"], 1, features.random_tensors(RESNET, 0))
    with pytest.raises(DetectorError, match="not a map of features"):
        BackboneFeatures(RESNET, ["global_pool"], 1, features.random_tensors(RESNET, 0))(images())
    name = "timm/mixer_s32_224"
    network = BackboneFeatures(name, ["blocks.0"], 1, features.random_tensors(name, 0))
    with pytest.raises(DetectorError, match="does not accept images of 64 px"):
        network(images())


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DetectorError, match=r"timm is not installed.*pip install wsiad\[timm\]"):
        features.random_tensors(RESNET, 0)
