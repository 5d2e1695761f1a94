"""GANomaly and Skip-GANomaly: losses by hand, scores in closed form, published sizes, traps."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from support.tiny_detectors import CPU, SMOOTH
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.ganomaly import Ganomaly, GanomalyBatch, GanomalyGame, GanomalyOptions
from wsiad.learning.detector import InputSpec
from wsiad.networks.judged_autoencoder import Restored
from wsiad.runs.presets import load_preset

TINY = {
    "network": {"widths": [4, 6], "vector": "conv", "norm_first": False, "output": "tanh"},
    "latent_channels": 3,
    "critic_network": {"widths": [4, 5], "vector": "conv", "norm_first": False},
    "batch": 6,
}
SKIP = {
    **TINY,
    "network": {"widths": [4, 6], "skips": True},
    "spatial": True,
    "latent_channels": None,
    "loss": {"critic": 1, "l1": 50, "features": 1},
    "judged_by": {"l2": 0.9, "features": 0.1},
    "critic_vector": 7,
}


def detector(given=TINY, **more):
    return Ganomaly(
        build(GanomalyOptions, {**given, **more}, source="test"), InputSpec(TilePx(32), Mpp(1))
    )


def game(given=TINY, **more):
    found = detector(given, **more)
    return GanomalyGame(found._untrained(1), found.options, seed=1)


def batch(seed=0):
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return GanomalyBatch(x, np.random.default_rng(seed))


class Copy(nn.Module):
    """An autoencoder that returns its input, with given codes."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return Restored(x, self.first(x), self.second(x))


# --- losses ---------------------------------------------------------------------------


def test_losses_of_ganomaly_are_those_of_the_paper():
    found, x = game(), batch().x
    with torch.no_grad():
        total, steady = found.opponent_losses(batch())
        generator, critic = found.model.generator, found.model.critic
        code = generator.encoder(x)
        image = generator.decoder(code)
        pixels = functional.l1_loss(image, x)
        codes = functional.mse_loss(generator.second(image), code)
        features = [critic.encoder.features(one)[-1] for one in (image, x)]
        matching = functional.mse_loss(*features)
    torch.testing.assert_close(steady, 50 * pixels + codes)
    torch.testing.assert_close(total, 50 * pixels + codes + matching)


def test_losses_of_skip_ganomaly_are_those_of_the_paper():
    found, x = game(SKIP), batch().x
    with torch.no_grad():
        total, steady = found.opponent_losses(batch())
        skips = found.model.generator.encoder.features(x)
        image = found.model.generator.decoder(skips[-1], skips)
        critic = found.model.critic
        vectors = [critic.encoder(one) for one in (image, x)]
        fooled = functional.binary_cross_entropy_with_logits(critic(image), torch.ones(4))
        pixels, matching = functional.l1_loss(image, x), functional.mse_loss(*vectors)
    assert vectors[0].shape == (4, 7)
    torch.testing.assert_close(steady, 50 * pixels)
    torch.testing.assert_close(total, fooled + 50 * pixels + matching)


@pytest.mark.parametrize("given", [TINY, SKIP], ids=["ganomaly", "skip"])
def test_a_critic_minimises_its_cross_entropy_alone(given):
    """The code of Skip-GANomaly adds the distance of features, which then becomes small."""
    found, x = game(given), batch().x
    critic = found.model.critic
    with torch.no_grad():
        image = found.model.generator(x).image
    found.game.critics_loss(batch()).backward()
    mine = [parameter.grad.clone() for parameter in critic.parameters()]
    assert all(parameter.grad is None for parameter in found.model.generator.parameters())
    critic.zero_grad()
    entropy = functional.binary_cross_entropy_with_logits
    (entropy(critic(x), torch.ones(4)) + entropy(critic(image), torch.zeros(4))).backward()
    for first, parameter in zip(mine, critic.parameters(), strict=True):
        torch.testing.assert_close(first, parameter.grad)


def test_a_critic_that_has_won_keeps_its_weights():
    """The released codes draw them anew when the critic's loss falls below 1e-5."""
    found = game(
        critic={"learning_rate": 1e-6},
        critic_network={"widths": [4, 5], "norm": "none", "vector": "conv"},
    )
    windows = torch.from_numpy(SMOOTH[:6, :32, :32])
    model, x = found.model, windows.permute(0, 3, 1, 2).float() / 127.5 - 1
    model.generator = Copy(model.generator.encoder, model.generator.second)
    with torch.no_grad():  # for a copy: a half each; then a bias that finds all images real
        head = model.critic.encoder.head[0]
        head.weight.zero_()
        head.bias.fill_(20.0)
        assert functional.softplus(-model.critic(x)).mean() < 1e-5
    before = [parameter.detach().clone() for parameter in model.critic.parameters()]
    module = nn.ModuleDict({"model": model})
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-6)
    found._autoencoder = type(found._autoencoder)([model.generator], 1e-6)
    found.update(CPU)(windows, optimiser, 0)
    for first, parameter in zip(before, model.critic.parameters(), strict=True):
        assert (first - parameter).abs().max() <= 3e-6  # of 20, in float32


def test_noise_is_at_the_input_and_not_in_the_target():
    found = game(noise=0.5, loss={"features": 1, "l1": 1}, judged_by={"l1": 1})
    found.model.generator = Copy(lambda x: x, lambda x: None)
    _, steady = found.opponent_losses(batch())
    assert steady.item() == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.02)
    windows = torch.from_numpy(SMOOTH[:2, :32, :32])
    assert found(windows).tolist() == [0.0, 0.0]


def test_held_out_losses_do_not_depend_on_the_critic():
    windows, found = torch.from_numpy(SMOOTH[:6, :32, :32]), game()
    before = found(windows)
    with torch.no_grad():
        for parameter in found.model.critic.parameters():
            parameter.zero_()
    torch.testing.assert_close(found(windows), before)
    assert before.shape == (6,)


@pytest.mark.parametrize("given", [TINY, {**SKIP, "noise": 0.1}], ids=["ganomaly", "skip"])
def test_a_step_is_a_function_of_its_number(given):
    windows = torch.from_numpy(SMOOTH[:6, :32, :32])
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found = game(given, critic={"updates": 2}, game={"loss": "wasserstein-gp"})
        optimiser = found.optimiser()(found.model)
        for step in range(2):
            found.update(CPU)(windows, optimiser, step)
        ends.append(torch.cat([p.flatten() for p in found.model.parameters()]))
    assert torch.equal(*ends)


# --- scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", [TINY, SKIP], ids=["ganomaly", "skip"])
def test_a_perfect_copy_with_equal_encoders_scores_zero(given):
    found = detector(given)
    model = found._untrained(1).eval()
    first = model.generator.encoder
    other = found._untrained(2).eval().generator.encoder
    tiles = SMOOTH[:3, :32, :32]
    found._network = model
    assert (found.score(tiles) > 0).all()
    model.generator = Copy(first, first)
    assert found.score(tiles).tolist() == [0.0] * 3
    model.generator = Copy(first, other)
    assert (found.score(tiles) > 0).all() == ("code" in given.get("judged_by", {"code": 1}))


def test_scores_are_the_published_means():
    tiles = SMOOTH[:3, :32, :32]
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
    for given in (TINY, SKIP):
        found = detector(given)
        found._network = model = found._untrained(1).eval()
        with torch.no_grad():
            made = model.generator(x)
            if given is TINY:
                expected = (made.code - made.again).square().mean(dim=1)
            else:
                pixels = (x - made.image).square().mean(dim=(1, 2, 3))
                vectors = model.critic.encoder(x) - model.critic.encoder(made.image)
                expected = 0.9 * pixels + 0.1 * vectors.square().mean(dim=1)
        np.testing.assert_allclose(found.score(tiles), expected, rtol=1e-5)
        places = found.score_map(tiles)
        assert places.shape == (3, 8, 8)
        assert (places.std(axis=(1, 2)) > 0).all() == (given is SKIP)


def test_features_of_the_critic_are_scored_by_place():
    found = detector(judged_by={"features": 1})
    found._network = model = found._untrained(1).eval()
    tiles = SMOOTH[:3, :32, :32]
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        image = model.generator(x).image
        maps = [model.critic.encoder.features(one)[-1] for one in (x, image)]
    expected = (maps[0] - maps[1]).square().mean(dim=1)
    np.testing.assert_allclose(found.score_map(tiles), expected, rtol=1e-4)


# --- sizes and refusals ---------------------------------------------------------------


def preset(name):
    options = build(GanomalyOptions, load_preset(name).options, source=name)
    return Ganomaly(options, InputSpec(TilePx(64), Mpp(1)))._untrained(0).eval()


def test_codes_and_features_have_the_published_sizes():
    found = preset("ganomaly")
    made = found.generator(torch.zeros(1, 3, 64, 64))
    assert (made.code.shape, made.again.shape) == ((1, 100), (1, 100))
    assert found.critic.features(made.image).shape == (1, 512, 4, 4)
    found = preset("skip-ganomaly")
    assert found.generator(torch.zeros(1, 3, 64, 64)).code.shape == (1, 512, 1, 1)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loss": {"l1": 1, "code": 1}}, "needs features or critic"),
        ({"loss": {"features": 1, "code": 1}}, "needs l1 or l2"),
        ({"loss": {"features": 1, "l1": 1}}, "needs code in the loss"),
        ({**SKIP, "judged_by": {"l2": 1}}, "can copy its input"),
        ({"latent_channels": None}, "null only with spatial"),
        ({"batch": 1}, "batch must be 2"),
        ({"judged_by": {}}, "judged_by"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        build(GanomalyOptions, {**TINY, **given}, source="test")


def test_places_that_do_not_divide_the_input_are_refused():
    with pytest.raises(DetectorError, match="5 × 5 places"):
        detector(places=5)._untrained(0)
