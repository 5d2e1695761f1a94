"""The terms of the loss of dpa: pixels alone, and a critic that is trained along."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.builders import Dying
from support.tiny_dpa import CPU, HEALTHY, SMOOTH, context, detector, equal, tiny_vgg
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.detectors._perceptual import statistics_by_px
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.detectors.dpa.adversarial_term import seeded_critic
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.detectors.dpa.objective import Objective
from wsiad.learning.batches import endless, on_device, random_crops
from wsiad.learning.detector import HealthyTiles, State
from wsiad.learning.metrics import read_metrics
from wsiad.learning.stages import Stage
from wsiad.networks.autoencoder import images_of, seeded_autoencoder
from wsiad.networks.growing import seeded_growing
from wsiad.networks.perceptual import RelativePerceptualL1, channel_statistics
from wsiad.networks.vgg import Vgg19
from wsiad.store.dataset import ArrayTiles

ADVERSARIAL = {"adversarial_weight": 0.1, "checkpoint_seconds": 1e-9}
GROWING = {
    "start_px": 8,
    "stabilise_steps": 2,
    "transition_steps": 2,
    "layers": {8: {"relu1_2": 1.0}, 16: {"relu1_2": 1.0}},
    "batch": {8: 4},
}  # 2 × 8 px, 2 to 16, 2 × 16, 2 to 32, then 32 px from step 8 on


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_vgg(), path)
    return str(path)


def images(seed, count=4, edge=8):
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the critic -----------------------------------------------------------------------


def test_critic_at_all_resolutions():
    critic = seeded_critic(32, 8, 1, channels=4, blocks="residual18")
    for px in (8, 16, 32):
        assert critic(images(1, edge=px), px=px).shape == (4,)
    x = images(2, edge=16)
    below = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(critic(x, px=16, alpha=0.0), critic(below, px=8))
    torch.testing.assert_close(critic(x, px=16, alpha=1 - 1e-9), critic(x, px=16))


def test_critic_follows_the_seed_and_is_not_the_encoder():
    first, again, other = (
        seeded_critic(32, 32, seed, channels=4, blocks="residual18") for seed in (1, 1, 2)
    )
    assert equal(first.state_dict(), again.state_dict())
    assert not equal(first.state_dict(), other.state_dict())
    encoder = seeded_autoencoder(DpaOptions(latent_px=8).shape(32), 1).encoder
    assert not torch.equal(first.encoder[0].weight, encoder[0].weight)


# --- training -------------------------------------------------------------------------


def by_hand(weights, *, steps, adversarial_weight=0.0, image_weight=0.0):
    """Train as the detector does, in plain torch."""
    options = DpaOptions(latent_px=8)
    network = Vgg19(tiny_vgg(), ["relu2_2"])
    stated = detector().options
    statistics, _ = statistics_by_px(
        stated, {32: network}, HEALTHY.fit, size=32, seed=1, device=CPU
    )
    distance = RelativePerceptualL1(
        network, statistics[32], {"relu2_2": 1.0}, image_weight=image_weight
    ).to(memory_format=torch.channels_last)
    module = seeded_autoencoder(options.shape(32), 1).to(memory_format=torch.channels_last)
    critic = seeded_critic(32, 32, 1, channels=4, blocks="residual18")
    critic = critic.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    critic_adam = torch.optim.Adam(critic.parameters(), lr=2e-4)
    draws = 3 if adversarial_weight else 1
    batches = endless(HEALTHY.fit, draws * 6, seed=1)
    for step in range(steps):
        windows = random_crops(on_device(next(batches).tiles, CPU), 32, seed=1, step=step)
        parts = [images_of(windows[i * 6 : (i + 1) * 6]) for i in range(draws)]
        for number, x in enumerate(parts[:-1]):
            y = module(x).detach()
            drawn = np.random.default_rng([1, 1 << 33, step, number]).random(6, dtype=np.float32)
            mix = torch.from_numpy(drawn).view(6, 1, 1, 1)
            between = (mix * x + (1 - mix) * y).requires_grad_()
            of_real, of_fake = critic(x, px=32), critic(y, px=32)
            (slope,) = torch.autograd.grad(critic(between, px=32).sum(), between, create_graph=True)
            loss = of_fake.mean() - of_real.mean()
            loss = loss + 1e-3 * (of_real.square().mean() + of_fake.square().mean())
            loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
            critic_adam.zero_grad()
            loss.backward()
            critic_adam.step()
        x = parts[-1]
        y = module(x)
        loss = distance(x, y)
        if adversarial_weight:
            loss = loss - adversarial_weight * critic(y, px=32)
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
    batches.close()
    return {f"autoencoder.{name}": tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    "terms",
    [{}, {"image_weight": 0.5}, {"adversarial_weight": 0.5}],
    ids=["published", "pixels", "critic"],
)
def test_training_against_a_loop_by_hand(tmp_path, weights, terms):
    """What is trained without a critic is what it always was, to the bit."""
    found = detector(**terms, val_interval=100)
    found.fit(HEALTHY, context(tmp_path, weights, steps=7))
    expected = by_hand(weights, steps=7, **terms)
    own = {name: found.state().tensors[name] for name in expected}
    assert equal(own, expected)


def test_the_critic_changes_the_training_and_not_the_score(tmp_path, weights):
    plain, adversarial = detector(), detector(adversarial_weight=1.0)
    plain.fit(HEALTHY, context(tmp_path / "plain", weights))
    report = adversarial.fit(HEALTHY, context(tmp_path / "adversarial", weights))
    assert "without it" in report.notes["adversarial_term"]
    assert not equal(plain.state().tensors, adversarial.state().tensors)
    assert plain.state().tensors.keys() == adversarial.state().tensors.keys()  # no critic is kept
    # Held-out losses are the distance alone, which is the score.
    x = SMOOTH[22:, 4:36, 4:36]
    last = read_metrics(tmp_path / "adversarial" / "metrics.csv")[-1].stop_loss
    losses = {row.stop_loss for row in read_metrics(tmp_path / "adversarial" / "metrics.csv")}
    assert adversarial.score(x).mean() == pytest.approx(min(losses - {None}), rel=1e-5)
    assert last is not None


@pytest.mark.parametrize(
    ("options", "killed_after"),
    [({}, (3, 4)), ({"growing": GROWING}, (3, 5, 3)), ({"ema_decay": 0.9, "layers": {}}, (4,))],
    ids=["one resolution", "growing", "pixels and average"],
)
def test_killed_fit_ends_like_one_that_was_not(tmp_path, weights, options, killed_after):
    options = {**ADVERSARIAL, "image_weight": 0.5, **options}
    whole, resumed = detector(**options), detector(**options)
    first = whole.fit(HEALTHY, context(tmp_path / "whole", weights, steps=14))
    for batches in killed_after:
        dying = HealthyTiles(Dying(SMOOTH[:22], batches), HEALTHY.stop)
        with pytest.raises(KeyboardInterrupt):
            detector(**options).fit(dying, context(tmp_path / "killed", weights, steps=14))
    second = resumed.fit(HEALTHY, context(tmp_path / "killed", weights, steps=14))
    assert equal(whole.state().tensors, resumed.state().tensors)
    assert first.notes["best_stop_loss"] == second.notes["best_stop_loss"]
    rows = [
        [(row.step, row.train_loss, row.stop_loss) for row in read_metrics(folder / "metrics.csv")]
        for folder in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"adversarial_weight": 0.2}, "adversarial_weight 0.1 (now 0.2)"),
        ({"adversarial": {"drift": 0}}, "adversarial.drift 0.001 (now 0.0)"),
        (
            {"adversarial_weight": 0},
            "adversarial_weight 0.1 (now not stated), adversarial {'learning_rate': 0.0002, ",
        ),
    ],
)
def test_resuming_with_another_critic_is_refused(tmp_path, weights, change, named):
    detector(**ADVERSARIAL).fit(HEALTHY, context(tmp_path, weights, steps=2))
    with pytest.raises(RunError, match=rf"with another {re.escape(named)}.*\. Train"):
        detector(**{**ADVERSARIAL, **change}).fit(HEALTHY, context(tmp_path, weights, steps=3))


def test_identity_without_a_critic_is_as_it_was():
    assert not {"adversarial", "adversarial_weight"} & DpaOptions().identity(limit=5).keys()


def test_size_that_a_critic_cannot_halve(tmp_path, weights):
    small = HealthyTiles(ArrayTiles(SMOOTH[:22, :24, :24]), ArrayTiles(SMOOTH[22:, :24, :24]))
    found = detector(input_px=24, latent_px=6, **ADVERSARIAL)
    with pytest.raises(DetectorError, match="24 px cannot be halved down to 4 px"):
        found.fit(small, context(tmp_path, weights))


def test_objective_without_a_critic_equals_the_growing_one_at_its_last_stage(weights):
    network = Vgg19(tiny_vgg(), ["relu2_2"])
    statistics = channel_statistics(network, [images(5, edge=32) * 0.5 + 0.5])
    distance = RelativePerceptualL1(network, statistics, {"relu2_2": 1.0})
    shape = DpaOptions(latent_px=8).shape(32)
    windows = on_device(SMOOTH[:3, :32, :32], CPU)
    grown = seeded_growing(shape, 8, 1)
    one = Objective(seeded_autoencoder(shape, 1), {32: distance}, size=32)(windows)
    other = Objective(grown, {32: distance}, size=32)(windows, Stage(32))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


# --- pixels alone ---------------------------------------------------------------------


@pytest.mark.parametrize("growing", [None, {**GROWING, "layers": {}}])
def test_pixels_alone_need_no_network(tmp_path, growing):
    found = detector(layers={}, image_weight=2.0, growing=growing, latent_px=8)
    report = found.fit(HEALTHY, context(tmp_path, str(tmp_path / "there is no such file"), 12))
    assert report.notes["weights"]["source"].startswith("none")
    tensors = found.state().tensors
    assert {name.split(".")[0] for name in tensors} == {"autoencoder"}
    tiles = SMOOTH[:, 4:36, 4:36]
    x = tiles.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
    with torch.no_grad():
        y = found._module()(torch.from_numpy(x).float()).double().numpy()
    difference = 2 * np.abs(x - y).mean(axis=1)
    np.testing.assert_allclose(found.score(tiles), difference.mean(axis=(1, 2)), rtol=1e-4)
    places = difference.reshape(len(x), 4, 8, 4, 8).mean(axis=(2, 4))
    np.testing.assert_allclose(found.score_places(tiles), places, rtol=1e-4)
    again = DeepPerceptualAutoencoder(found.options, found.spec)
    state = found.state()
    again.load_state(State(state.tensors, json.loads(json.dumps(state.values))), CPU)
    np.testing.assert_array_equal(again.score_places(tiles), found.score_places(tiles))


def test_places_of_pixels_fill_an_image_of_any_size():
    distance = RelativePerceptualL1(None, {}, {}, image_weight=1.0)
    for edge, places in ((64, 8), (96, 12), (60, 15), (20, 5)):
        x, y = images(1, edge=edge), images(2, edge=edge)
        found = distance.places(x, y)
        assert found.shape == (4, places, places)
        torch.testing.assert_close(found.mean(dim=(1, 2)), distance(x, y))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": {}},
        {"layers": {}, "image_weight": 1, "growing": {"layers": {16: {"relu1_2": 1.0}}}},
        {"adversarial_weight": -1},
        {"adversarial": {"critic_steps": 0}},
    ],
)
def test_bad_options(options):
    with pytest.raises(ConfigError):
        detector(**options)


def test_layers_need_a_network():
    with pytest.raises(DetectorError, match="need a network"):
        RelativePerceptualL1(None, {}, {"relu1_1": 1.0})
