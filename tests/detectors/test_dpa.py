"""The Deep Perceptual Autoencoder with a tiny perceptual network."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.tiny_dpa import CPU, HEALTHY, RNG, SMOOTH, context, detector, equal, tiny_vgg
from wsiad.core.errors import ConfigError, DetectorError, RunError, WeightsError
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.learning.detector import HealthyTiles, State
from wsiad.networks import vgg
from wsiad.store.dataset import ArrayTiles


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_vgg(), path, metadata={"padding": "reflect"})
    return str(path)


def test_defaults_are_the_published_setting():
    options = DpaOptions()
    assert (options.batch, options.learning_rate, options.lr_schedule) == (128, 1e-3, "constant")
    assert (options.val_interval, options.min_delta, options.patience) == (1000, 1e-3, 3)
    assert (options.max_steps, options.layers) == (100_000, {"relu4_2": 1.0})
    shape = options.shape(64)
    assert (shape.image_px, shape.latent_px, shape.channels) == (64, 8, (4, 4, 4, 4))
    assert (shape.latent_channels, shape.blocks) == (4, "residual18")
    assert (options.pooling, options.relative) == ("mean", "tile")
    assert DeepPerceptualAutoencoder.default_input_px == 64


def test_fit_and_score(tmp_path, weights):
    found = detector(learning_rate=3e-3, val_interval=30)
    report = found.fit(HEALTHY, context(tmp_path / "run", weights, steps=120))
    assert (report.ended_by, report.steps) == ("max-steps", 120)
    assert report.notes["best_stop_loss"] < 0.9  # about 1 is a decoder that gives a constant
    assert report.notes["weights"]["source"] == weights
    assert report.notes["padding"] == "reflect"  # the file says so
    assert report.notes["statistics"] == "22 healthy tiles"
    noise = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    healthy = SMOOTH[22:26, :32, :32]
    places = found.score_places(healthy)
    assert places.shape == (4, 16, 16)
    assert places.dtype == np.float32
    np.testing.assert_allclose(found.score(healthy), places.mean(axis=(1, 2)), rtol=1e-6)
    assert found.score(noise).min() > found.score(healthy).max()


def test_killed_fit_ends_like_one_that_was_not(tmp_path, weights):
    whole, killed = detector(), detector()
    first = whole.fit(HEALTHY, context(tmp_path / "whole", weights, steps=11))

    class Dying(ArrayTiles):
        def shuffled(self, batch, **order):
            if order["epoch"] == 2:  # three batches an epoch: after step 6
                raise KeyboardInterrupt
            return super().shuffled(batch, **order)

    dying = HealthyTiles(Dying(SMOOTH[:22]), HEALTHY.stop)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(dying, context(tmp_path / "killed", weights, steps=11))
    resumed = detector()
    second = resumed.fit(HEALTHY, context(tmp_path / "killed", weights, steps=11))
    assert equal(whole.state().tensors, resumed.state().tensors)
    assert first.notes["best_stop_loss"] == second.notes["best_stop_loss"]


def test_resuming_with_other_weights_is_refused(tmp_path, weights):
    detector().fit(HEALTHY, context(tmp_path, weights))
    with pytest.raises(RunError, match="weights"):
        detector().fit(HEALTHY, context(tmp_path, "random", steps=9))
    with pytest.raises(RunError, match="channels"):
        detector(channels=6).fit(HEALTHY, context(tmp_path, weights, steps=9))


def test_options_of_scoring_alone_do_not_hinder_resuming(tmp_path, weights):
    detector().fit(HEALTHY, context(tmp_path, weights))
    assert detector(pooling="max").fit(HEALTHY, context(tmp_path, weights, steps=7)).steps == 7


def test_seed_decides(tmp_path, weights):
    states = []
    for number, seed in enumerate((1, 1, 2)):
        found = detector()
        found.fit(HEALTHY, context(tmp_path / str(number), weights, seed=seed))
        states.append(found.state().tensors)
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": {"relu1_2": 1.0, "conv3_1": 0.5}, "relative": "place", "contrast": 2},
        {"latent_px": 1, "channels": [3, 4, 5, 6], "latent_channels": 7, "blocks": "residual9"},
        {"image_weight": 0.5},
        {"lr_schedule": "cosine", "grad_clip": 1.0, "ema_decay": 0.9, "padding": "zeros"},
    ],
)
def test_state_round_trip(tmp_path, weights, options):
    found = detector(**options)
    found.fit(HEALTHY, context(tmp_path, weights))
    state = found.state()
    again = DeepPerceptualAutoencoder(found.options, found.spec)
    values = json.loads(json.dumps(state.values))
    again.load_state(State({k: t.clone() for k, t in state.tensors.items()}, values), CPU)
    tiles = SMOOTH[:, 4:36, 4:36]
    np.testing.assert_array_equal(again.score_places(tiles), found.score_places(tiles))
    assert equal(again.state().tensors, state.tensors)


def test_state_holds_no_more_of_the_network_than_needed(tmp_path, weights):
    found = detector()
    found.fit(HEALTHY, context(tmp_path, weights))
    kept = {k.removeprefix("perceptual.") for k in found.state().tensors if "perceptual" in k}
    assert kept == set(vgg.needed_keys(["relu2_2"]))


@pytest.mark.parametrize("shipped", [False, True])
def test_the_network_that_comes_along_is_refused_or_warned_of(tmp_path, weights, caplog, shipped):
    given = context(tmp_path, "wsiad" if shipped else weights)
    if shipped:
        with pytest.raises(DetectorError, match=r"lower than healthy tissue.*--accept-inverted"):
            detector().fit(HEALTHY, given)
        given = replace(given, accept_inverted=True)
    report = detector().fit(HEALTHY, given)
    assert ("lower than healthy tissue" in caplog.text) == shipped
    assert ("warning" in report.notes["weights"]) == shipped


def test_damaged_state_is_refused(tmp_path, weights):
    found = detector()
    found.fit(HEALTHY, context(tmp_path, weights))
    state = found.state()
    name = next(k for k in state.tensors if k.startswith("autoencoder"))
    for tensors, values in (
        ({k: t for k, t in state.tensors.items() if k != name}, state.values),
        ({**state.tensors, name: torch.zeros(2)}, state.values),
        ({k: t for k, t in state.tensors.items() if "statistics" not in k}, state.values),
        (state.tensors, {}),
    ):
        with pytest.raises(DetectorError, match="not that of this detector"):
            detector().load_state(State(tensors, values), CPU)


def test_statistics_of_a_file(tmp_path, weights):
    stored = {"relu2_2": {"mean": [0.5] * 6, "std": [2.0] * 6}}
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(stored))
    found = detector(statistics_file=str(path))
    found.fit(HEALTHY, context(tmp_path / "run", weights))
    assert found.state().tensors["statistics.relu2_2.std"].tolist() == [2.0] * 6
    path.write_text("{}")
    with pytest.raises(DetectorError, match="no statistics of the layers relu2_2"):
        detector(statistics_file=str(path)).fit(HEALTHY, context(tmp_path / "b", weights))


def test_random_weights_are_said_to_be(tmp_path):
    report = detector().fit(HEALTHY, context(tmp_path, "random", steps=1))
    assert report.notes["weights"]["source"] == "random"
    assert "mean nothing" in report.notes["weights"]["warning"]


def test_weights_that_are_not_deep_enough(tmp_path):
    path = tmp_path / "shallow.safetensors"
    save_file({k: tiny_vgg()[k] for k in vgg.needed_keys(["relu2_2"])}, path)
    with pytest.raises(WeightsError, match=r"end with features\.7\.bias.*lies beyond"):
        detector(layers={"relu3_1": 1.0}).fit(HEALTHY, context(tmp_path / "run", str(path)))


@pytest.mark.parametrize(
    "options",
    [{"layers": {"relu9_1": 1}}, {"layers": {}}, {"learning_rate": 0}, {"lr": 1}, {"latent_px": 0}],
)
def test_bad_options(options):
    with pytest.raises(ConfigError):
        detector(**options)


def test_sizes_that_do_not_fit():
    with pytest.raises(DetectorError, match="cannot be halved"):
        detector(input_px=60)


def test_tiles_smaller_than_the_input(tmp_path, weights):
    small = HealthyTiles(ArrayTiles(SMOOTH[:, :24, :24]), HEALTHY.stop)
    with pytest.raises(DetectorError, match="24 px are smaller"):
        detector().fit(small, context(tmp_path, weights))


def test_use_before_fit():
    with pytest.raises(DetectorError, match="not fitted"):
        detector().score(SMOOTH[:1, :32, :32])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_scores_like_the_cpu(tmp_path, weights):
    found = detector()
    found.fit(HEALTHY, context(tmp_path, weights, steps=20))
    on_gpu = DeepPerceptualAutoencoder(found.options, found.spec)
    on_gpu.load_state(found.state(), torch.device("cuda"))
    tiles = SMOOTH[:, 4:36, 4:36]
    np.testing.assert_allclose(on_gpu.score(tiles), found.score(tiles), rtol=2e-2)
