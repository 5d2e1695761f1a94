"""Channel statistics of VGG19 over ImageNet, and of a file."""

import json

import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.vgg import LAYERS
from wsiad.networks.vgg_statistics import check_channels, imagenet_statistics, read_statistics

# Means over channels of the published file: mean and deviation.
PUBLISHED = {
    "relu1_2": (64, 0.512, 1.04),
    "relu2_2": (128, 0.798, 2.00),
    "relu3_2": (256, 1.424, 3.27),
    "relu4_2": (512, 1.073, 3.32),
}


@pytest.mark.parametrize("layer", PUBLISHED)
def test_shipped_statistics_are_the_published_ones(layer):
    found = imagenet_statistics([layer])[layer]
    channels, mean, std = PUBLISHED[layer]
    assert found.mean.shape == found.std.shape == (channels,)
    assert found.mean.mean().item() == pytest.approx(mean, abs=5e-3)
    assert found.std.mean().item() == pytest.approx(std, abs=5e-3)


def test_every_layer_has_shipped_statistics():
    found = imagenet_statistics(list(LAYERS))
    assert all(bool((one.std > 0).all() and one.mean.isfinite().all()) for one in found.values())
    with pytest.raises(DetectorError, match="no statistics of ImageNet for relu6_1"):
        imagenet_statistics(["relu6_1"])


def test_the_second_numbers_are_deviations():
    """A rectified Gaussian of the convolution's mean and deviation has about the ReLU's mean."""
    before = imagenet_statistics(["conv4_2"])["conv4_2"]
    after = imagenet_statistics(["relu4_2"])["relu4_2"]

    def rectified(std):
        z = torch.distributions.Normal(0.0, 1.0)
        ratio = before.mean / std
        return (before.mean * z.cdf(ratio) + std * z.log_prob(ratio).exp()).mean().item()

    by_deviation, by_variance = rectified(before.std), rectified(before.std.sqrt())
    found = after.mean.mean().item()
    assert abs(by_deviation - found) < abs(by_variance - found)


def test_long_and_short_names_are_read(tmp_path):
    path = tmp_path / "s.json"
    stored = {
        "relu4_2": {"mean": [1, 2], "std": [3, 4]},
        "r32": {"mean": [5], "std_named_var": [6]},
        "p1": {"mean": [7], "std": [0]},
    }
    path.write_text(json.dumps(stored))
    found = read_statistics(path, ["relu4_2", "relu3_2", "pool1"])
    assert found["relu4_2"].std.tolist() == [3, 4]
    assert (found["relu3_2"].mean.tolist(), found["relu3_2"].std.tolist()) == ([5], [6])
    assert found["pool1"].std.tolist() == [0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"relu4_2": 3}',
        '{"relu4_2": {"mean": [1]}}',
        '{"relu4_2": {"mean": [1, 2], "std": [1]}}',
        '{"relu4_2": {"mean": [[1]], "std": [[1]]}}',
        '{"relu4_2": {"mean": [NaN], "std": [1]}}',
        '{"relu4_2": {"mean": [1], "std": [-1]}}',
        '{"relu4_2": {"mean": ["x"], "std": [1]}}',
        "[" * 100_000,
    ],
)
def test_bad_files_are_refused(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(DetectorError, match="no statistics of the layers relu4_2"):
        read_statistics(path, ["relu4_2"])
    with pytest.raises(DetectorError, match="no statistics"):
        read_statistics(tmp_path / "gone.json", ["relu4_2"])


def test_statistics_of_another_network_are_refused():
    statistics = imagenet_statistics(["relu1_2"])
    check_channels(statistics, {"relu1_2": 64}, "ImageNet")
    with pytest.raises(DetectorError, match="have 64 channels, and the network has 16"):
        check_channels(statistics, {"relu1_2": 16}, "ImageNet")
