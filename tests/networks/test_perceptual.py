import importlib

import numpy as np
import pytest
import torch
from torch import nn

from wsiad.core.errors import DetectorError, WeightsError
from wsiad.networks import vgg
from wsiad.networks.perceptual import ChannelStatistics, RelativePerceptualL1, channel_statistics
from wsiad.networks.torchvision_models import operators_load, torchvision_models
from wsiad.networks.vgg import LAYERS, Vgg19

TENSORS = vgg.random_tensors(0)


def images(seed, count=3, edge=32):
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distance(layers=None, **options):
    layers = layers or {"relu2_2": 1.0}
    network = Vgg19(TENSORS, list(layers))
    statistics = channel_statistics(network, [images(9) * 0.5 + 0.5])
    return RelativePerceptualL1(network, statistics, layers, **options)


def test_layer_positions_are_those_of_torchvision():
    features = torchvision_models().vgg19(weights=None).features
    assert len(LAYERS) == len(features) == 37
    for name, index in LAYERS.items():
        kind = {"conv": nn.Conv2d, "relu": nn.ReLU, "pool": nn.MaxPool2d}[name[:4]]
        assert isinstance(features[index], kind), name
    assert [LAYERS[name] for name in ("conv1_1", "relu3_2", "conv4_2", "relu4_2", "pool5")] == [
        0, 13, 21, 22, 36,
    ]  # fmt: skip


def test_features_equal_torchvisions_own_network():
    full = torchvision_models().vgg19(weights=None).eval()
    own = Vgg19(full.state_dict(), ["relu1_2", "conv2_1", "pool2"])
    x = images(1, 2) * 0.5 + 0.5
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    found = own(x)
    with torch.no_grad():
        for name, last in (("relu1_2", 3), ("conv2_1", 5), ("pool2", 9)):
            expected = full.features[: last + 1]((x - mean) / std)
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_contrast_stretches_about_white():
    x = images(1, 2) * 0.5 + 0.5
    found = Vgg19(TENSORS, ["relu2_2"], contrast=3)(x)["relu2_2"]
    expected = Vgg19(TENSORS, ["relu2_2"])(1 - 3 * (1 - x))["relu2_2"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_layers_down_to_the_deepest_are_needed():
    shallow = {key: TENSORS[key] for key in vgg.needed_keys(["relu2_1"])}
    assert sorted(shallow) == sorted(
        f"features.{i}.{part}" for i in (0, 2, 5) for part in ("weight", "bias")
    )
    assert set(Vgg19(shallow, ["relu2_1"]).state_dict()) == set(shallow)


def test_network_is_frozen():
    assert not any(p.requires_grad for p in Vgg19(TENSORS, ["relu4_2"]).parameters())


def test_padding_changes_the_border_and_only_it():
    zeros, reflect = (Vgg19(TENSORS, ["conv1_1"], padding=p) for p in ("zeros", "reflect"))
    x = images(2, 1)
    a, b = zeros(x)["conv1_1"], reflect(x)["conv1_1"]
    assert torch.equal(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])
    assert not torch.allclose(a[..., 0, :], b[..., 0, :])


@pytest.mark.parametrize("layer", ["relu6_1", "conv3_5", "r42", "fc1"])
def test_unknown_layer_is_refused(layer):
    with pytest.raises(DetectorError, match="no layer"):
        Vgg19(TENSORS, [layer])


def test_missing_and_misshapen_tensors_are_refused():
    missing = {k: t for k, t in TENSORS.items() if k != "features.19.bias"}
    with pytest.raises(WeightsError, match=r"features\.19\.bias is missing"):
        Vgg19(missing, ["relu4_1"])
    with pytest.raises(WeightsError, match=r"features\.19\.bias is missing"):
        Vgg19(missing, ["relu3_1"])  # it is not needed, but these are no whole weights
    with pytest.raises(WeightsError, match=r"features\.1\.running_mean belongs to no part"):
        Vgg19({**TENSORS, "features.1.running_mean": torch.zeros(16)}, ["relu3_1"])
    renamed = {f"module.{key}": t for key, t in TENSORS.items()}
    assert Vgg19(renamed, ["relu3_1"]).state_dict().keys() <= TENSORS.keys()
    wrong = {**TENSORS, "features.5.weight": torch.zeros(32, 17, 3, 3)}
    with pytest.raises(WeightsError, match=r"features\.5\.weight has the shape"):
        Vgg19(wrong, ["relu3_1"])
    wrong = {**TENSORS, "features.5.bias": torch.zeros(31)}
    with pytest.raises(WeightsError, match=r"features\.5\.bias has the shape"):
        Vgg19(wrong, ["relu3_1"])


def by_formula(x, y, layer, statistics, relative):
    """Equation 1 and 2 of the paper, in numpy, from torchvision-like modules."""
    network = Vgg19(TENSORS, [layer])

    def normalised(image):
        f = network(image * 0.5 + 0.5)[layer].numpy().astype(np.float64)
        mean, std = (
            s.numpy().astype(np.float64)[:, None, None]
            for s in (statistics[layer].mean, statistics[layer].std)
        )
        return (f - mean) / np.where(std > 0, std, 1)

    scores, maps = [], []
    for a, b in zip(normalised(x), normalised(y), strict=True):
        scores.append(np.abs(a - b).sum() / np.abs(a).sum())
        size = np.abs(a).mean() if relative == "tile" else np.abs(a).mean(axis=0)
        maps.append(np.abs(a - b).mean(axis=0) / size)
    return np.array(scores), np.array(maps)


@pytest.mark.parametrize("layer", ["conv1_2", "relu2_2", "pool3"])
def test_published_score_against_the_formula(layer):
    loss = distance({layer: 1.0})
    x, y = images(3), images(4)
    scores, maps = by_formula(x, y, layer, loss.statistics, "tile")
    np.testing.assert_allclose(loss(x, y).numpy(), scores, rtol=1e-4)
    np.testing.assert_allclose(loss.places(x, y).numpy(), maps, rtol=1e-3, atol=1e-5)


def test_ratio_at_each_place_against_the_formula():
    loss = distance({"relu2_2": 1.0}, relative="place")
    x, y = images(3), images(4)
    _, maps = by_formula(x, y, "relu2_2", loss.statistics, "place")
    np.testing.assert_allclose(loss.places(x, y).numpy(), maps, rtol=1e-3)
    np.testing.assert_allclose(loss(x, y).numpy(), maps.mean(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("relative", ["tile", "place"])
def test_mean_over_places_is_the_score_for_several_layers(relative):
    loss = distance({"relu1_2": 1.0, "relu3_1": 3.0}, relative=relative)
    x, y = images(5), images(6)
    places = loss.places(x, y)
    assert places.shape == (3, 8, 8)
    torch.testing.assert_close(places.mean(dim=(1, 2)), loss(x, y), rtol=1e-5, atol=1e-6)


def test_layers_are_averaged_by_their_weights():
    x, y = images(5), images(6)
    first, second = distance({"relu1_2": 1.0})(x, y), distance({"relu3_1": 1.0})(x, y)
    both = distance({"relu1_2": 2.0, "relu3_1": 6.0})(x, y)
    torch.testing.assert_close(both, 0.25 * first + 0.75 * second)


def test_equal_images_have_no_distance():
    x = images(7)
    assert torch.equal(distance()(x, x), torch.zeros(3))


def test_gradient_reaches_the_reconstruction_alone():
    x, y = images(7).requires_grad_(), images(8).requires_grad_()
    distance()(x, y).mean().backward()
    assert x.grad is None
    assert y.grad.abs().sum() > 0


def test_channel_that_never_changes_is_not_scaled():
    network = Vgg19(TENSORS, ["conv1_1"])
    mean, std = torch.zeros(16), torch.ones(16)
    zero = std.clone()
    zero[3] = 0
    x, y = images(1), images(2)
    expected = RelativePerceptualL1(
        network, {"conv1_1": ChannelStatistics(mean, std)}, {"conv1_1": 1.0}
    )(x, y)
    found = RelativePerceptualL1(
        network, {"conv1_1": ChannelStatistics(mean, zero)}, {"conv1_1": 1.0}
    )(x, y)
    torch.testing.assert_close(found, expected)


def test_statistics_by_batches_equal_those_of_the_whole():
    network = Vgg19(TENSORS, ["relu2_2", "conv1_1"])
    x = images(1, 11) * 0.5 + 0.5
    found = channel_statistics(network, [x[:4], x[4:5], x[5:]])
    for layer, features in network(x).items():
        values = features.double().transpose(0, 1).flatten(1).numpy()
        np.testing.assert_allclose(found[layer].mean, values.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(found[layer].std, values.std(axis=1), rtol=1e-5)


def test_statistics_need_tiles_and_finite_features():
    network = Vgg19(TENSORS, ["conv1_1"])
    with pytest.raises(DetectorError, match="no tiles"):
        channel_statistics(network, [])
    with pytest.raises(DetectorError, match="not finite"):
        channel_statistics(network, [torch.full((1, 3, 8, 8), float("nan"))])


def test_weights_of_layers_must_be_positive():
    with pytest.raises(DetectorError, match="positive"):
        distance({"relu1_1": 0.0})


def test_torchvision_models_import_with_or_without_operators():
    assert importlib.import_module("torchvision.models") is torchvision_models()
    assert operators_load() in (True, False)
