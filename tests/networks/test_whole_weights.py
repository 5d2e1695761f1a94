"""Weights load whole or not at all: no key left over, missing or of another shape."""

import pytest
import torch
from safetensors.torch import save_file

from support.feature_detectors import TILES, detector
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, WeightsError
from wsiad.detectors import registry
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.networks import features, vgg, weights
from wsiad.networks.features import BackboneFeatures, settle
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.store.dataset import ArrayTiles

SQUEEZENET = features.random_tensors("squeezenet1_1", 0)
CPU = torch.device("cpu")
VIT = "timm/test_vit"


def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def looked(tensors, backbone="squeezenet1_1", layers=("features.4",), **options):
    return BackboneFeatures(backbone, layers, 1, tensors, **options)


@pytest.fixture
def timm():
    torchvision_models()
    return pytest.importorskip("timm", reason="the optional dependency timm is not installed")


def test_keys_left_over_are_named():
    with pytest.raises(WeightsError, match=r"^w\.pth: extra belongs to no part of the network"):
        looked({**SQUEEZENET, "extra": torch.zeros(2)}, source="w.pth")
    many = {f"ls.{i}": torch.zeros(1) for i in range(48)}
    with pytest.raises(WeightsError, match=r"ls\.0, ls\.1, ls\.2 and 45 more belong") as error:
        looked({**SQUEEZENET, **many})
    assert len(str(error.value)) < 300


def test_a_hole_is_an_error_also_where_it_is_not_needed():
    holed = {k: t for k, t in SQUEEZENET.items() if k != "features.12.expand3x3.weight"}
    with pytest.raises(WeightsError, match=r"features\.12\.expand3x3\.weight is missing"):
        looked(holed)


def test_other_shapes_and_whole_numbers_are_named():
    for tensor, words in (
        (torch.zeros(64, 1, 3, 3), r"has the shape \(64, 1, 3, 3\), not \(64, 3, 3, 3\)"),
        (torch.zeros(64, 3, 3, 3, dtype=torch.int8), "holds int8, not float32"),
    ):
        with pytest.raises(WeightsError, match=rf"features\.0\.weight {words}"):
            looked({**SQUEEZENET, "features.0.weight": tensor})


def test_a_classifier_may_be_there_or_not_and_of_any_number_of_classes():
    expected = looked(SQUEEZENET)
    assert expected.left_off == ["classifier.1.weight", "classifier.1.bias"]
    bare = {k: t for k, t in SQUEEZENET.items() if not k.startswith("classifier")}
    two = {**bare, "classifier.1.weight": torch.zeros(2, 512, 1, 1)}
    two["classifier.1.bias"] = torch.zeros(2)
    for tensors, off in ((bare, 0), (two, 2)):
        found = looked(tensors)
        assert torch.equal(found(images()), expected(images()))
        assert len(found.left_off) == off
    with pytest.raises(WeightsError, match=r"fc\.weight belongs to no part"):  # another network's
        looked({**bare, "fc.weight": torch.zeros(2, 512)})
    with pytest.raises(WeightsError, match=r"classifier\.1\.weight has the shape"):
        looked({**bare, "classifier.1.weight": torch.zeros(2, 100, 1, 1)})


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "encoder.", "module.model.", "_orig_mod.module."]
)
def test_prefixes_are_understood(prefix):
    found = looked({prefix + k: t for k, t in SQUEEZENET.items()})
    assert torch.equal(found(images()), looked(SQUEEZENET)(images()))
    with pytest.raises(WeightsError, match=r"head\.weight belongs to no part"):
        looked({**{prefix + k: t for k, t in SQUEEZENET.items()}, "head.weight": torch.zeros(1)})


def test_a_name_with_and_without_its_prefix_is_refused():
    both = {**SQUEEZENET, **{f"module.{k}": t for k, t in SQUEEZENET.items()}}
    with pytest.raises(WeightsError, match=r"occurs twice|belong to no part"):
        looked(both)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "teacher"])
def test_wrapped_state_dicts_are_found(tmp_path, key):
    path = tmp_path / "w.pth"
    torch.save({key: {f"module.{k}": t for k, t in SQUEEZENET.items()}, "epoch": 3}, path)
    found = settle("auto", str(path), seed=0)
    assert found.name == "squeezenet1_1"
    assert torch.equal(looked(found.weights.tensors)(images()), looked(SQUEEZENET)(images()))


def test_the_running_average_is_preferred_and_said(tmp_path, caplog):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, path)
    assert weights.read_file(path).tensors["a"].item() == 1
    assert "using state_dict_ema, not state_dict" in caplog.text


def test_a_slim_vgg_may_have_prefixes():
    slim = vgg.random_tensors(0)
    layers = ("features.8",)
    expected = looked(slim, "vgg19", layers)(images())
    renamed = {f"module.{k}": t for k, t in slim.items()}
    assert torch.equal(looked(renamed, "vgg19", layers)(images()), expected)
    with pytest.raises(WeightsError, match=r"features\.1\.weight belongs to no part"):
        looked({**slim, "features.1.weight": torch.zeros(16)}, "vgg19", layers)


def with_scales(timm):
    """Weights of a transformer with LayerScale, as UNI's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = timm.create_model("test_vit", init_values=0.3, dynamic_img_size=True)
    generator = torch.Generator().manual_seed(1)
    for name, value in own.named_parameters():
        if ".ls" in name:
            value.data = torch.rand(value.shape, generator=generator)
    return own.eval(), {k: t.clone() for k, t in own.state_dict().items()}


def test_layer_scales_are_not_dropped(timm):
    own, tensors = with_scales(timm)
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma.*backbone_args.*init_values"):
        looked(tensors, VIT, ("norm",))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = looked(
        tensors,
        VIT,
        ("norm:cls", "norm"),
        arguments={"init_values": 1e-5},
        normalisation=(mean, std),
    )
    scaled = (images() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        tokens = own.forward_features(scaled)
    cls, patches = found.maps(found.normalised(images()))
    torch.testing.assert_close(cls[..., 0, 0], tokens[:, 0])
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, 1:])
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(found(images())[:, 0, 0], expected)
    assert found.left_off == ["head.weight", "head.bias"]


def test_arguments_that_the_file_needs_are_proposed(timm):
    reg = timm.create_model("test_vit", reg_tokens=4).state_dict()
    with pytest.raises(WeightsError, match=r"reg_token.*reg_tokens: N"):
        looked(reg, VIT, ("norm",))
    large = timm.create_model("test_vit", img_size=224).state_dict()
    with pytest.raises(WeightsError, match=r"pos_embed has the shape.*img_size"):
        looked(large, VIT, ("norm",))
    looked(large, VIT, ("norm",), arguments={"img_size": 224})


def test_a_layer_without_a_class_token(timm):
    for name, layer in (("timm/resnet10t", "layer1"), (VIT, "patch_embed.proj")):
        network = looked(features.random_tensors(name, 0), name, (f"{layer}:cls",))
        with pytest.raises(DetectorError, match="no class token"):
            network(images())


def test_tagged_names(timm):
    name = "timm/test_vit.r160_in1k"
    assert looked(features.random_tensors(name, 0), name, ("norm",))(images()).shape[-1] == 64
    with pytest.raises(DetectorError, match=r"no weights 'r161_in1k' of test_vit.*r160_in1k"):
        features.random_tensors("timm/test_vit.r161_in1k", 0)
    with pytest.raises(DetectorError, match=r"no network 'test_vitt'.*test_vit"):
        features.random_tensors("timm/test_vitt", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bogus": 1}, "bogus.*Correct backbone_args"),
        ({"depth": "many"}, "depth: 'many'"),
        ({"pretrained": True}, "pretrained is not for backbone_args"),
        ({"num_classes": 10}, "num_classes is not for backbone_args"),
        ({"checkpoint_path": "x.pth"}, "checkpoint_path is not for"),
        ({"mlp_layer": "os.system"}, "not an mlp_layer.*SwiGLUPacked"),
    ],
)
def test_arguments_that_timm_does_not_take(timm, arguments, words):
    with pytest.raises(DetectorError, match=words) as error:
        features.random_tensors(VIT, 0, arguments=arguments)
    assert "\n" not in str(error.value)


def test_arguments_that_change_nothing_are_taken(timm):
    """As the instructions of UNI and others have them."""
    _, tensors = with_scales(timm)
    published = {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
    found = looked(tensors, VIT, ("norm:cls",), arguments={**published, "pretrained": False})
    expected = looked(tensors, VIT, ("norm:cls",), arguments={"init_values": 1e-5})
    assert torch.equal(found(images()), expected(images()))
    assert found.left_off == ["head.weight", "head.bias"]


def test_arguments_are_for_timm():
    with pytest.raises(DetectorError, match="'squeezenet1_1' is not one"):
        looked(SQUEEZENET, arguments={"init_values": 1})


def test_normalisation_by_name_is_said_and_may_be_set(timm, caplog):
    tensors = features.random_tensors(VIT, 0)
    looked(tensors, VIT, ("norm",))
    assert not caplog.records  # a run's own
    looked(tensors, VIT, ("norm",), source="w.pth")
    assert "timm states for that name" in caplog.text
    caplog.clear()
    set_to = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    found = looked(tensors, VIT, ("norm",), source="w.pth", normalisation=set_to)
    assert not caplog.records
    assert found.mean.flatten().tolist() == pytest.approx(set_to[0])
    assert found.std.flatten().tolist() == pytest.approx(set_to[1])


@pytest.mark.parametrize("name", ["knn", "student-teacher"])
def test_detectors_keep_arguments_and_normalisation(timm, tmp_path, name):
    _, tensors = with_scales(timm)
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    options = {
        "backbone": VIT,
        "layers": ["blocks.1"],
        "places": 2,
        "backbone_args": {"init_values": "1e-5"},  # as YAML reads 1e-5
        "mean": [0.5, 0.6, 0.7],
        "std": [0.2, 0.3, 0.4],
    }
    steps = {"max_steps": 2, "batch": 6} if name == "student-teacher" else {}
    found = detector(name, **options, **steps)
    assert found.options.backbone_args == {"init_values": 1e-5}
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    report = found.fit(
        tiles, FitContext(seed=1, device=CPU, folder=tmp_path, weights=str(path), quiet=True)
    )
    assert report.notes["normalisation"] == {"mean": [0.5, 0.6, 0.7], "std": [0.2, 0.3, 0.4]}
    assert report.notes["weights"]["left_off"] == "its classifier: 2 keys"
    again = detector(name, **{**options, "mean": None, "std": None}, **steps)
    again.load_state(found.state(), CPU)
    assert (again.score_places(TILES[:3]) == found.score_places(TILES[:3])).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "set both mean and std"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0, 1, 1]}, r"std"),
        ({"backbone_args": {"depth": 10**9}}, "65536"),
        ({"backbone_args": {"x": {"y": 1}}}, r"backbone_args\.x: is neither a number"),
    ],
)
def test_options_that_are_not_valid(options, words):
    with pytest.raises(ConfigError, match=words):
        build(registry.load("knn").Options, options)


def test_every_detector_with_a_backbone_has_the_options():
    for name in registry.names():
        fields = registry.load(name).Options.model_fields
        if "backbone" in fields:
            assert {"backbone_args", "mean", "std"} <= fields.keys(), name
