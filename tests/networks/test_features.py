from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.feature_detectors import CPU, TILES, detector
from wsiad.core.errors import DetectorError, WeightsError
from wsiad.learning.detector import FitContext, HealthyTiles, State
from wsiad.networks import features, vgg, weights
from wsiad.networks.features import BackboneFeatures, settle
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.store.dataset import ArrayTiles

SQUEEZENET = features.random_tensors("squeezenet1_1", 0)
REAL = Path(__file__).parents[3] / "shared" / "weights" / "squeezenet1_1.safetensors"


def images(count=2, edge=64):
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(1))


def normalised(x):
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    return (x - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def test_features_are_those_of_the_network_pooled():
    full = torchvision_models().squeezenet1_1(weights=None).eval()
    full.load_state_dict(SQUEEZENET)
    x = images()
    with torch.no_grad():
        shallow = full.features[:5](normalised(x))
        deep = full.features[5:8](shallow)
    assert shallow.shape[2:] == (15, 15)
    found = BackboneFeatures("squeezenet1_1", ["features.4", "features.7"], 1, SQUEEZENET)(x)
    expected = torch.cat([shallow.mean(dim=(2, 3)), deep.mean(dim=(2, 3))], dim=1)
    torch.testing.assert_close(found[:, 0, 0], expected, rtol=1e-4, atol=1e-5)
    grid = BackboneFeatures("squeezenet1_1", ["features.4"], 5, SQUEEZENET)(x)
    expected = shallow.unfold(2, 3, 3).unfold(3, 3, 3).mean(dim=(4, 5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(grid, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contrast", [1, 2])
@pytest.mark.parametrize("name", ["squeezenet1_1", "pixels"])
def test_features_of_tiles_are_those_of_their_images_to_the_bit(name, contrast):
    tiles = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    layers, tensors = (["features.4"], SQUEEZENET) if name != "pixels" else (["level0"], {})
    network = BackboneFeatures(name, layers, 4, tensors, contrast=contrast)
    for some in (tiles, tiles[:1], tiles.transpose(1, 2)):
        images = some.permute(0, 3, 1, 2)
        assert torch.equal(network(images), network(images.float() / 255))


@pytest.mark.parametrize("contrast", [0.5, 2])
def test_contrast_stretches_about_white(contrast):
    x = images()
    names = ("squeezenet1_1", ["features.4"], 5, SQUEEZENET)
    found = BackboneFeatures(*names, contrast=contrast)(x)
    expected = BackboneFeatures(*names)(1 - contrast * (1 - x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, BackboneFeatures(*names)(x), atol=0.01)


@pytest.mark.parametrize("name", ["gaussian", "linear-probe"])
def test_detectors_on_frozen_features_look_through_the_contrast(name):
    options = {"backbone": "squeezenet1_1", "layers": ("features.3",), "places": 4, "magnify": 1}
    plain, stretched = (detector(name, contrast=contrast, **options) for contrast in (1, 2))
    for one in (plain, stretched):
        one._set_backbone(SQUEEZENET, "zeros")
    absorbed = TILES[:2] // 2
    found, expected = stretched.embed(255 - absorbed), plain.embed(255 - 2 * absorbed)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(found - plain.embed(255 - absorbed)).max() > 0.1


def test_resnet():
    tensors = features.random_tensors("resnet18", 0)
    network = BackboneFeatures("resnet18", ["layer1", "layer2"], 4, tensors)
    assert network(images()).shape == (2, 4, 4, 64 + 128)
    assert not any(key.startswith("network.layer3") for key in network.state_dict())


def test_neighbourhood_averages_what_is_inside():
    x = images(1)
    plain, smooth = (
        BackboneFeatures("squeezenet1_1", ["features.4"], 15, SQUEEZENET, neighbourhood=edge)(x)[0]
        for edge in (1, 3)
    )
    expected = torch.stack(
        [
            plain[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean(dim=(0, 1))
            for row in range(15)
            for column in range(15)
        ]
    )
    torch.testing.assert_close(smooth.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_layers_deeper_than_needed_may_be_absent():
    needed = BackboneFeatures("squeezenet1_1", ["features.3"], 1, SQUEEZENET).network.state_dict()
    assert 0 < len(needed) < len(SQUEEZENET)
    again = BackboneFeatures("squeezenet1_1", ["features.3"], 1, needed)
    assert torch.equal(again(images()), again(images()))


def test_unknown_backbone_layer_and_weights():
    with pytest.raises(DetectorError, match=r"no network 'resnet17'.*resnet18"):
        BackboneFeatures("resnet17", ["layer1"], 1, {})
    with pytest.raises(DetectorError, match=r"no layer 'layer1'.*features\.4"):
        BackboneFeatures("squeezenet1_1", ["layer1"], 1, SQUEEZENET)
    with pytest.raises(WeightsError, match=r"features\.0\.weight is missing"):
        BackboneFeatures("squeezenet1_1", ["features.4"], 1, {})
    cut = BackboneFeatures("squeezenet1_1", ["features.3"], 1, SQUEEZENET).network.state_dict()
    with pytest.raises(WeightsError, match=r"end with features\.3\.expand3x3\.bias.*not as deep"):
        BackboneFeatures("squeezenet1_1", ["features.4"], 1, cut)
    holed = {k: v for k, v in SQUEEZENET.items() if k != "features.0.bias"}
    with pytest.raises(WeightsError, match=r"features\.0\.bias is missing"):
        BackboneFeatures("squeezenet1_1", ["features.4"], 1, holed)
    wrong = {**SQUEEZENET, "features.0.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(WeightsError, match=r"features\.0\.weight has the shape"):
        BackboneFeatures("squeezenet1_1", ["features.4"], 1, wrong)


def test_more_places_than_features_are_refused():
    network = BackboneFeatures("squeezenet1_1", ["features.4"], 16, SQUEEZENET)
    with pytest.raises(DetectorError, match=r"16 × 16 places .* 15 × 15"):
        network(images())


def test_random_tensors_follow_the_seed():
    digests = [
        weights.tensors_sha256(features.random_tensors("squeezenet1_1", seed)) for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.skipif(not REAL.is_file(), reason="the folder shared/ with real weights is absent")
def test_published_squeezenet_weights_fit():
    found = weights.read_file(REAL)
    network = BackboneFeatures("squeezenet1_1", ["features.4"], 4, found.tensors)
    assert network(images()).std() > 0


def test_vgg_of_other_widths_and_padding():
    """The features are those of the perceptual network, which reads any widths."""
    tensors = vgg.random_tensors(1)
    for padding in ("zeros", "reflect"):
        own = vgg.Vgg19(tensors, ["relu3_2"], padding=padding)
        network = BackboneFeatures("vgg19", ["features.13"], 2, tensors, padding=padding)
        expected = nn.functional.adaptive_avg_pool2d(own(images())["relu3_2"], 2)
        torch.testing.assert_close(network(images()), expected.permute(0, 2, 3, 1))
    untrained = features.seeded_network("vgg19", ["features.13"], 1, like=network.network)
    assert untrained(images())["features.13"].shape == own(images())["relu3_2"].shape


def test_padding_that_weights_state():
    assert features.stated_padding({}) == "zeros"
    assert features.stated_padding({"padding": "reflect"}) == "reflect"
    with pytest.raises(WeightsError, match="unknown padding 'wrap'"):
        features.stated_padding({"padding": "wrap"})


@pytest.mark.parametrize("name", ["knn", "student-teacher"])
def test_slim_vgg_file_is_a_backbone_of_detectors(tmp_path, name):
    path = tmp_path / "slim.safetensors"
    save_file(vgg.random_tensors(1), path, metadata={"padding": "reflect"})
    options = {"backbone": "vgg19", "layers": ["features.8"], "places": 4, "carry_weights": True}
    steps = {"max_steps": 2, "batch": 6} if name == "student-teacher" else {}
    found = detector(name, **options, **steps)
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights=str(path), quiet=True)
    found.fit(tiles, context)
    state = found.state()
    assert state.values["padding"] == "reflect"
    again = detector(name, **options, **steps)
    again.load_state(state, CPU)
    assert (again.score_places(TILES[:3]) == found.score_places(TILES[:3])).all()
    zeros = detector(name, **options, **steps)
    zeros.load_state(State(state.tensors, {**state.values, "padding": "zeros"}), CPU)
    assert (zeros.score_places(TILES[:3]) != found.score_places(TILES[:3])).any()


@pytest.mark.parametrize("asked", [None, "random", "imagenet", "weights.safetensors"])
def test_a_file_named_as_backbone_is_refused_before_its_weights_are_looked_for(asked):
    with pytest.raises(DetectorError, match=r"no network '/data/resnet\.pth'.*--weights"):
        settle("/data/resnet.pth", asked, seed=0)
