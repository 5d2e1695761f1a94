import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.feature_detectors import detector
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, WeightsError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.piad import (
    GradientBalance,
    PerceptualImageAnomalyDetection,
    PiadBatch,
    PiadOptions,
    Players,
    latent_critic,
)
from wsiad.learning.adversarial_game import WassersteinLoss
from wsiad.learning.batches import endless, on_device, random_crops
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.networks.autoencoder import AutoencoderShape, seeded_autoencoder, seeded_encoder
from wsiad.networks.vgg import random_tensors
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SHAPE = AutoencoderShape(8, 1, (3, 4), 5, blocks="residual9")
CRITIC = AutoencoderShape(8, 1, (3, 4), 1, blocks="residual9")


def game():
    torch.manual_seed(3)
    return Players(seeded_autoencoder(SHAPE, 1), seeded_encoder(CRITIC, 2), latent_critic(5, 7))


def small(*, px=32, **options):
    return PerceptualImageAnomalyDetection(PiadOptions(**options), InputSpec(TilePx(px), Mpp(1)))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def absolute(x, y):
    return (x - y).abs().mean(dim=(1, 2, 3))


def test_balance_is_the_median_ratio_of_averages():
    balance = GradientBalance(3, alpha=0.1, records=4)
    assert balance.weight() == 1
    wanted, other = RNG.random((7, 3)) + 0.1, RNG.random((7, 3)) + 0.1
    averages, ratios = None, []
    for a, b in zip(wanted, other, strict=True):
        balance.record([torch.tensor([v]) for v in a], [torch.tensor([0.0, v]) for v in b])
        now = np.stack([a, b])
        averages = now if averages is None else 0.9 * averages + 0.1 * now
        ratios.append(averages[0] / averages[1])
    # Of twelve the lower one in the middle.
    last = np.sort(np.array(ratios[-4:]).flatten())
    assert balance.weight() == pytest.approx(last[5], rel=1e-5)


def test_critics_loss_reaches_no_more_than_the_critics():
    found = game()
    x, z = draw(4, 3, 8, 8), draw(4, 5, 1, 1, seed=1)
    found.game(WassersteinLoss()).critics_loss(PiadBatch(x, z, torch.rand(2, 4))).backward()
    reached = {name.split(".")[0] for name, p in found.named_parameters() if p.grad is not None}
    assert reached == {"image_critic", "latent_critic"}


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_generator_has_the_gradients_of_its_losses(weight):
    found = game()
    x, z = draw(4, 3, 8, 8), draw(4, 5, 1, 1, seed=1)
    found.generator_descent(x, z, absolute, weight=weight, record=False)
    reached = {name.split(".")[0] for name, p in found.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "decoder"}
    code = found.encoder(x)
    distance = weight * absolute(x, found.decoder(code)).mean()
    losses = {
        found.encoder: distance - found.latent_critic(code).mean(),
        found.decoder: distance - found.image_critic(found.decoder(z)).mean(),
    }
    for module, loss in losses.items():
        expected = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_adaptive_weight_makes_the_gradients_equally_long():
    found = game()
    x, z = draw(4, 3, 8, 8), draw(4, 5, 1, 1, seed=1)
    found.generator_descent(x, z, absolute, weight=None, record=True)
    one = found.encoder_balance.weight()
    again = game()
    again.generator_descent(x, z, lambda a, b: 8 * absolute(a, b), weight=None, record=True)
    assert again.encoder_balance.weight() == pytest.approx(one / 8, rel=1e-4)
    for first, second in zip(found.parameters(), again.parameters(), strict=True):
        if first.grad is not None:
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-6)


def test_one_adam_for_all_is_as_one_for_each():
    found = detector("piad", critic_learning_rate=0.01, learning_rate=0.002)
    shared = game()
    apart = game()
    optimiser = found._optimiser(shared)
    for group in optimiser.param_groups:
        group["lr"] = 0.002 * group.get("factor", 1)
    critics = nn.ModuleList([apart.image_critic, apart.latent_critic])
    own = torch.optim.Adam(critics.parameters(), lr=0.01, betas=(0.5, 0.99))
    for seed in range(3):
        x, z, shares = draw(4, 3, 8, 8, seed=seed), draw(4, 5, 1, 1), torch.rand(2, 4)
        for net, steps in ((shared, optimiser), (apart, own)):
            steps.zero_grad(set_to_none=True)
            net.game(WassersteinLoss()).critics_loss(PiadBatch(x, z, shares)).backward()
            steps.step()
    for first, second in zip(shared.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(first, second)
    moved, first = (next(net.image_critic.parameters()) for net in (shared, game()))
    assert not torch.equal(moved, first)


TINY = {
    "channels": [2, 3, 3, 4],
    "latent_channels": 5,
    "latent_critic_width": 8,
    "layers": {"relu1_2": 1.0},
    "batch": 7,
    "drift": 0.5,
    "reconstruction_weight": 2.5,
    "val_interval": 100,
}


def by_hand(tiles, distance, *, drift_of, steps):
    """Train as the detector does, in plain torch; return encoder and decoder."""
    shape = PiadOptions(**TINY).shape(32)
    autoencoder = seeded_autoencoder(shape, 1)
    judged = AutoencoderShape(32, 1, shape.channels, 1, blocks="residual9")
    torch.manual_seed(3)
    of_latents = latent_critic(5, 8)
    of_images = seeded_encoder(judged, 2)
    every = nn.ModuleList([autoencoder, of_latents, of_images])
    every.to(memory_format=torch.channels_last)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    adams = {
        module: torch.optim.Adam(module.parameters(), lr=rate, betas=(0.5, 0.99))
        for module, rate in (
            (encoder, 2e-4),
            (decoder, 2e-4),
            (of_images, 5e-4),
            (of_latents, 5e-4),
        )
    }
    batches = endless(tiles, 7, seed=1)
    for step in range(steps):
        windows = random_crops(on_device(next(batches).tiles, CPU), 32, seed=1, step=step)
        x = windows.permute(0, 3, 1, 2).float() / 255 * 2 - 1
        rng = np.random.default_rng([1, step, 1 << 33])
        z = torch.from_numpy(rng.standard_normal((7, 5, 1, 1), dtype=np.float32))
        shares = torch.from_numpy(rng.random((2, 7), dtype=np.float32))
        for own in (slice(0, 3), slice(3, 5)):
            with torch.no_grad():
                made, code = decoder(z[own]), encoder(x[own])
            pairs = ((of_images, x[own], made, shares[0]), (of_latents, z[own], code, shares[1]))
            for critic, real, fake, share in pairs:
                mix = share[own].view(-1, 1, 1, 1)
                between = (mix * real + (1 - mix) * fake).requires_grad_()
                of_real, of_fake = critic(real).flatten(), critic(fake).flatten()
                (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                drift = of_real.square().mean()
                drift = drift + of_fake.square().mean() if drift_of == "both" else drift
                loss = of_fake.mean() - of_real.mean() + 0.5 * drift
                loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
                adams[critic].zero_grad()
                loss.backward()
                adams[critic].step()
        code = encoder(x[5:])
        near = 2.5 * distance(x[5:], decoder(code)).mean()
        losses = {
            encoder: near - of_latents(code).mean(),
            decoder: near - of_images(decoder(z[5:])).mean(),
        }
        found = {
            module: torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
            for module, loss in losses.items()
        }
        for module, gradients in found.items():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.grad = gradient
            adams[module].step()
    batches.close()
    return autoencoder.state_dict()


@pytest.mark.parametrize("drift_of", ["real", "both"])
def test_training_against_a_loop_by_hand(tmp_path, drift_of):
    tiles = np.kron(RNG.integers(120, 240, (26, 5, 5, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    healthy = HealthyTiles(ArrayTiles(tiles[:20]), ArrayTiles(tiles[20:]))
    found = PerceptualImageAnomalyDetection(
        build(PiadOptions, {**TINY, "drift_of": drift_of}), InputSpec(TilePx(32), Mpp(1))
    )
    context = FitContext(
        seed=1, device=CPU, folder=tmp_path, budget=Budget(4), weights="random", quiet=True
    )
    found.fit(healthy, context)
    expected = by_hand(healthy.fit, found.network().distance, drift_of=drift_of, steps=4)
    state = found.state().tensors
    for name, tensor in expected.items():
        torch.testing.assert_close(state[f"autoencoder.{name}"], tensor, rtol=1e-4, atol=2e-6)
    untrained = seeded_autoencoder(found.options.shape(32), 1).state_dict()
    moved = max((expected[name] - tensor).abs().max() for name, tensor in untrained.items())
    assert moved > 2e-4  # a hundred times what may differ
    other = "both" if drift_of == "real" else "real"
    unlike = by_hand(healthy.fit, found.network().distance, drift_of=other, steps=4)
    assert max((expected[name] - tensor).abs().max() for name, tensor in unlike.items()) > 2e-5


def test_whose_outputs_drift_decides_and_is_not_written_where_it_is_as_before(tmp_path):
    plain, both = PiadOptions(), PiadOptions(drift_of="both")
    assert "drift_of" not in plain.model_dump(mode="json")
    assert "drift_of" not in plain.identity(limit=5)
    assert both.model_dump(mode="json")["drift_of"] == "both"
    assert both.identity(limit=5)["drift_of"] == "both"
    with pytest.raises(ConfigError, match="drift_of"):
        build(PiadOptions, {"drift_of": "made"})


def test_it_learns_the_healthy_and_knows_what_is_strange(tmp_path):
    smooth = np.kron(RNG.integers(120, 240, (40, 4, 4, 3)), np.ones((1, 8, 8, 1)))
    smooth = smooth.astype(np.uint8)
    found = small(
        channels=6,
        latent_channels=32,
        latent_critic_width=32,
        layers={"relu2_2": 1.0},
        batch=12,
        learning_rate=2e-3,
        reconstruction_weight=10,
        val_interval=25,
    )
    context = FitContext(
        seed=1, device=CPU, folder=tmp_path, budget=Budget(50), weights="random", quiet=True
    )
    report = found.fit(HealthyTiles(ArrayTiles(smooth[:30]), ArrayTiles(smooth[30:35])), context)
    assert report.notes["best_stop_loss"] < 0.8
    noise = RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    places = found.score_places(noise)
    assert places.shape == (5, 16, 16)
    assert found.score(noise).min() > found.score(smooth[35:]).max()


def test_bad_options(tmp_path):
    with pytest.raises(ConfigError, match="batch must exceed critic_updates"):
        build(PiadOptions, {"batch": 2})
    with pytest.raises(DetectorError, match="5 channel widths were given for the 4 resolutions"):
        PiadOptions().shape(32)
    tiles = HealthyTiles(*[ArrayTiles(np.zeros((4, 64, 64, 3), np.uint8))] * 2)
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    found = small(layers={"relu5_1": 1.0}, channels=4, px=8)
    with pytest.raises(DetectorError, match="8 px have no features"):
        found.fit(tiles, context)


@pytest.mark.parametrize("method", ["dpa", "piad"])
def test_weights_that_do_not_fit_name_their_file(tmp_path, method):
    tensors = random_tensors(0)
    tensors["features.0.weight"] = torch.zeros(4, 3, 5, 5)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    tiles = ArrayTiles(RNG.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    context = FitContext(
        seed=1, device=CPU, folder=tmp_path, budget=Budget(1), weights=str(path), quiet=True
    )
    found = detector(method, layers={"relu1_2": 1.0})
    with pytest.raises(WeightsError, match=r"features\.0\.weight has the shape") as error:
        found.fit(HealthyTiles(tiles, tiles), context)
    assert error.value.subject == str(path)
