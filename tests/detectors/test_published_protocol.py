"""Options with which a method is trained as published: fixed steps, statistics, networks."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.tiny_dpa import HEALTHY, SMOOTH, context, detector, equal, tiny_vgg
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.detectors.deep_geo import DeepGeoOptions, GeometricClassifier
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.detectors.piad import PiadOptions
from wsiad.learning.detector import HealthyTiles
from wsiad.learning.training_options import LoopOptions
from wsiad.networks.autoencoder import seeded_encoder
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.networks.vgg_statistics import imagenet_statistics
from wsiad.networks.wide_resnet import WideResNet
from wsiad.runs.presets import load_preset
from wsiad.store.dataset import ArrayTiles


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_vgg(), path)
    return str(path)


def test_keep_last_takes_all_steps_and_ignores_held_out_tiles(tmp_path, weights):
    stops = {"patience": 0, "min_delta": 10.0}
    options = {"val_interval": 2}
    with pytest.raises(ConfigError, match="patience does nothing with keep: last"):
        detector(keep="last", **stops)
    states = []
    for name, stop in (("a", SMOOTH[22:]), ("b", 255 - SMOOTH[:8])):
        found = detector(keep="last", **options)
        tiles = HealthyTiles(HEALTHY.fit, ArrayTiles(stop))
        report = found.fit(tiles, context(tmp_path / name, weights, steps=7))
        assert (report.ended_by, report.steps) == ("max-steps", 7)
        assert report.notes["best_step"] == 7
        states.append(found.state().tensors)
    assert equal(*states)
    stopped = detector(**options, **stops)
    report = stopped.fit(HEALTHY, context(tmp_path / "c", weights, steps=7))
    assert report.ended_by == "early-stopping"
    assert report.steps < 7


def test_a_killed_training_that_keeps_the_last_weights_ends_alike(tmp_path, weights):
    whole, resumed = detector(keep="last"), detector(keep="last")
    whole.fit(HEALTHY, context(tmp_path / "a", weights, steps=9))
    detector(keep="last").fit(HEALTHY, context(tmp_path / "b", weights, steps=5))
    resumed.fit(HEALTHY, context(tmp_path / "b", weights, steps=9))
    assert equal(whole.state().tensors, resumed.state().tensors)


def test_identities_of_older_checkpoints_do_not_change():
    for options in (DpaOptions(), PiadOptions(), DeepGeoOptions()):
        identity = options.identity(limit=9)
        later = {"keep", "statistics", "critic_channels", "epochs", "log_offset", "initialisation"}
        assert not later & identity.keys()
    assert DeepGeoOptions().identity(limit=9).keys() - LoopOptions.model_fields.keys() == {
        *("depth", "width", "shrink", "dirichlet_tiles", "weight_decay"),
    }
    separate = DeepGeoOptions(heads="separate", score="softmax").identity(limit=9)
    assert (separate["heads"], separate["score"]) == ("separate", "softmax")
    assert DpaOptions(keep="last").identity(limit=9)["keep"] == "last"
    assert PiadOptions(critic_channels=3).identity(limit=9)["critic_channels"] == 3


def test_dpa_takes_the_statistics_of_imagenet(tmp_path):
    found = detector(statistics="imagenet", layers={"relu1_2": 1.0})
    path = tmp_path / "wide.safetensors"
    save_file(tiny_vgg((64, 6, 6, 8, 8)), path)
    report = found.fit(HEALTHY, context(tmp_path / "a", str(path), steps=1))
    assert report.notes["statistics"].startswith("ImageNet")
    shipped = imagenet_statistics(["relu1_2"])["relu1_2"]
    assert torch.equal(found.state().tensors["statistics.relu1_2.std"], shipped.std)


def test_statistics_of_imagenet_are_refused_for_another_network(tmp_path, weights):
    with pytest.raises(DetectorError, match="have 64 channels, and the network has 4"):
        detector(statistics="imagenet", layers={"relu1_2": 1.0}).fit(
            HEALTHY, context(tmp_path / "a", weights, steps=1)
        )
    with pytest.raises(ConfigError, match="not two of them"):
        build(DpaOptions, {"statistics": "imagenet", "statistics_file": "s.json"})


def test_the_image_critic_of_piad_has_its_own_widths():
    options = PiadOptions(critic_channels=(32, 64, 128, 128, 128))
    assert options.shape(64).channels == (32, 64, 128, 256, 256)
    critic = options.shape(64, critic=True)
    assert (critic.channels, critic.latent_channels) == ((32, 64, 128, 128, 128), 1)
    default = PiadOptions().shape(64, critic=True)
    assert default.channels == (32, 64, 128, 256, 256)
    network = seeded_encoder(critic, 0)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 1, 1)
    assert max(p.shape[0] for p in network.parameters()) == 128


@pytest.mark.parametrize(("offset", "p"), [(0.0, 1 / 72), (1e-6, 1 / 72 + 1e-6), (0.5, 37 / 72)])
def test_deep_geo_adds_its_offset_before_the_logarithm(offset, p):
    network = GeometricClassifier(WideResNet(10, 1, 72), 8, shrink=1).eval()
    last = network.classifier.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)  # all answers are equally likely
    network.alpha.fill_(3.0)
    with torch.no_grad():
        found = network.unusualness(torch.rand(2, 3, 8, 8), offset=offset)
    np.testing.assert_allclose(found.numpy(), -72 * 2 * math.log(p), rtol=1e-6)


def test_epochs_of_deep_geo_count_all_transforms():
    options = DeepGeoOptions(epochs=3, batch=128)
    assert options.bounded(128).max_steps == 3 * 72
    assert options.bounded(129).max_steps == 218  # 217.7
    assert DeepGeoOptions().bounded(10).max_steps == DeepGeoOptions().max_steps
    assert DeepGeoOptions(epochs=3, max_steps=5).bounded(1000).max_steps == 5


@pytest.mark.parametrize(("by", "connections"), [("fan-in", 3 * 9), ("fan-out", 16 * 9)])
def test_initial_weights_are_scaled_by_connections(by, connections):
    torch.manual_seed(0)
    weight = WideResNet(10, 1, 72, initialisation=by).layers[0].weight
    assert weight.std().item() == pytest.approx((2 / connections) ** 0.5, rel=0.15)


def test_the_preset_of_deep_if_names_eleven_layers_of_the_published_network():
    torchvision_models()  # torchvision's own operators may be missing, which timm would trip over
    timm = pytest.importorskip("timm")
    preset = load_preset("deep-if")
    name = preset.options["backbone"].removeprefix("timm/")
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    shapes = {}
    for layer in preset.options["layers"]:
        network.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: shapes.update({layer: output.shape})
        )
    edge = round(preset.options["input_px"] * preset.options["magnify"])
    with torch.no_grad():
        network(torch.zeros(1, 3, edge, edge, device="meta"))
    assert edge == 299
    assert list(shapes) == preset.options["layers"]  # from the finest, eleven in all
    channels = [shape[1] for shape in shapes.values()]
    assert channels == [32, 32, 64, 64, 80, 192, 192, 320, 1088, 2080, 1536]
    assert network.default_cfg["mean"] == network.default_cfg["std"] == (0.5, 0.5, 0.5)
