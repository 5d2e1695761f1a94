"""``gan``: closed forms of its scores, gradients of its players, resuming, published networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from support.tiny_detectors import CPU, HEALTHY, SMOOTH, TINY, context, useful
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.gan import Gan
from wsiad.detectors.gan.gan_games import EncoderLoss, GanBatch, GanGame
from wsiad.detectors.gan.gan_model import GanModel
from wsiad.detectors.gan.gan_options import GanOptions
from wsiad.detectors.gan.gan_scores import by_parts, found_codes, score_places
from wsiad.learning.detector import InputSpec
from wsiad.learning.game_losses import Player
from wsiad.learning.loop import Training
from wsiad.networks.code_critics import LatentCritic, PairCritic, joined
from wsiad.networks.conv_stack import seeded

ZOO = Path(__file__).parents[2] / "configs/zoo"
BCE = {"game": {"loss": "bce"}}
JOINT = {"inversion": "joint", **BCE}
SMALL = {
    "pair_network": {"widths": [4, 4], "kernel": 5, "norm": "none", "dropout": 0.2},
    "code_widths": [4],
    "pair_widths": [5],
    "latent_critic_widths": [4],
    "batch": 4,
    "val_interval": 4,
}
FAMILIES = {
    "descent": {"inversion": "descent", **BCE},
    "encoder": {},
    "bigan": JOINT,
    "alad": {**JOINT, "joint": "alad"},
    "alpha": {**JOINT, "joint": "alpha", "game": {"loss": "bce-ratio"}},
    "simultaneous": {"inversion": "simultaneous", "score": "code"},
}


def options(**given):
    return build(GanOptions, useful("gan", {**TINY["gan"], **SMALL}, given))


def model(px=32, **given):
    chosen = options(**given)
    return seeded(lambda: GanModel(chosen, px), 1).eval()


def images(count=3, px=32, seed=0):
    return torch.rand(count, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def detector(**given):
    return Gan(options(**given), InputSpec(TilePx(32), Mpp(1)))


def fitted(folder, steps=6, **given):
    found = detector(**given)
    folder.mkdir(exist_ok=True)
    return found, found.fit(HEALTHY, context(folder, steps))


class Linear(nn.Module):
    """A generator or encoder that is a matrix."""

    def __init__(self, matrix, *, images=None):
        super().__init__()
        self.matrix, self._images = nn.Parameter(matrix), images

    def forward(self, x):
        found = x.flatten(1) @ self.matrix.T
        return found.view(-1, 3, self._images, self._images) if self._images else found


def basis(rows, columns, seed=0):
    """Orthonormal columns."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q


# --- closed forms of the scores -----------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_descent_to_a_linear_generator_is_the_residual_of_pca(reduction):
    found = model(
        px=8,
        inversion="descent",
        score="pixels",
        reduction=reduction,
        descent_steps=300,
        descent_rate=0.05,
        network={"widths": [4]},
        critic_network={"widths": [4]},
    )
    w, x = basis(192, 3), images(px=8)
    found.generator = Linear(w, images=8)
    flat = x.flatten(1)
    residual = (flat - flat @ w @ w.T).square().sum(dim=1)
    scores = score_places(found, x).mean(dim=(1, 2)) * (192 if reduction == "mean" else 1)
    torch.testing.assert_close(scores, residual, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_codes(found, x), flat @ w, rtol=1e-2, atol=1e-2)


def test_weights_of_the_parts_make_the_published_score_of_anogan():
    found = model(
        **FAMILIES["descent"],
        score={"pixels": 0.9, "features": 0.1},
        distance="l1",
        reduction="sum",
    )
    x, z = images(), torch.zeros(3, 3)
    with torch.no_grad():
        made, f = found.made(z), found.critics["image"].features
        expected = 0.9 * (x - made).abs().sum(dim=(1, 2, 3))
        expected = expected + 0.1 * (f(x) - f(made)).abs().sum(dim=(1, 2, 3))
        scores = by_parts(found, x, z).mean(dim=(1, 2))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)


def test_the_best_of_the_starts_counts():
    """Of two minima of a double well, a start ends in the nearer: the deeper one is scored."""

    class Wells(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, z):
            left = (z[:, :1] + 1).square() + 0.1
            value = torch.where(z[:, :1] < 0, left, (z[:, :1] - 1).square()) * self.one
            return value.view(-1, 1, 1, 1).expand(-1, 3, 32, 32)

    given = {"inversion": "descent", "score": "pixels", "distance": "l1", "descent_steps": 300}
    ends = {}
    for starts in (1, 8):
        found = model(**given, descent_starts=starts, descent_rate=0.05)
        found.generator = Wells()
        ends[starts] = score_places(found, torch.zeros(2, 3, 32, 32)).mean(dim=(1, 2))
    assert ends[8].max() < 0.02
    assert (ends[8] <= ends[1] + 1e-6).all()


@pytest.mark.parametrize("family", ["encoder", "bigan", "alad", "alpha"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_an_exact_inverse_scores_zero(family, distance):
    given = {
        "score": {"pixels": 1, "features": 1},
        "distance": distance,
        "latent_channels": 192,
        "network": {"widths": [4]},
        "encoder_network": {"widths": [4]},
        "critic_network": {"widths": [4]},
        **({"encoder_bound": None} if family == "encoder" else {}),
    }
    found, w = model(px=8, **{**FAMILIES[family], **given}), basis(192, 192)
    found.generator, found.encoder = Linear(w, images=8), Linear(w.T)
    x = images(px=8)
    assert score_places(found, x).abs().max() < 1e-3
    found.encoder = Linear(w.T * 0.5)
    assert score_places(found, x).min() > 1e-3


def test_length_of_the_code_of_a_linear_generator_is_that_of_its_pseudoinverse():
    """The encoder that a simultaneous training ends at is G⁺, and the score |G⁺x|."""
    found = model(px=8, **FAMILIES["simultaneous"], network={"widths": [4]})
    g = torch.randn(192, 3, generator=torch.Generator().manual_seed(1))
    inverse = torch.linalg.pinv(g)
    found.generator, found.encoder = Linear(g, images=8), Linear(inverse.clone())
    game, x = GanGame(found, seed=1), images(px=8)
    assert game.code_errors(torch.randn(20, 3)).max() < 1e-6
    expected = (x.flatten(1) @ inverse.T).norm(dim=1)
    torch.testing.assert_close(score_places(found, x).mean(dim=(1, 2)), expected)
    found.encoder.matrix.data.mul_(1.1)
    assert game.code_errors(torch.randn(20, 3)).mean() > 1e-3


def test_judgements_are_the_opponents_losses():
    x = images()
    found = model(**FAMILIES["alpha"], score={"critic": 1, "code-critic": 2})
    with torch.no_grad():
        z = found.code(x)
        expected = -found.critics["image"](x) - 2 * found.critics["code"](z)
        torch.testing.assert_close(score_places(found, x).mean(dim=(1, 2)), expected)
        found = model(**FAMILIES["bigan"], score="critic")
        z = found.code(x)
        judged = found.critics["pair"](joined(found.made(z), z))
        expected = -torch.nn.functional.logsigmoid(judged)
        torch.testing.assert_close(score_places(found, x).mean(dim=(1, 2)), expected)


def test_the_bound_is_that_of_the_code():
    x = images()
    with torch.no_grad():
        free = model(encoder_bound=None)
        raw = free.code(x)
        bounded = model(encoder_bound=3.0)
        torch.testing.assert_close(bounded.code(x), 3 * raw.tanh())
        joint = model(**JOINT)  # whose codes must reach all of the prior
        torch.testing.assert_close(joint.code(x), joint.encoder(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_depend_on_the_tile_alone(family):
    few = {"descent_steps": 4} if family == "descent" else {}
    found, x = model(**FAMILIES[family], **few), images(5)
    with torch.no_grad():
        together = score_places(found, x)
        alone = torch.cat([score_places(found, x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# --- losses and gradients -----------------------------------------------------------------


def reached(game, loss):
    game.module.zero_grad()
    loss.backward()
    return {
        name.rsplit(".", maxsplit=1)[0].split(".")[0]
        + ("." + name.split(".")[1] if name.startswith("critics") else "")
        for name, p in game.module.named_parameters()
        if p.grad is not None
    }


def batch(count=4):
    return GanBatch(images(count), np.random.default_rng(0))


CRITICS = {
    "descent": {"critics.image"},
    "bigan": {"critics.pair"},
    "alad": {"critics.pair", "critics.images", "critics.codes"},
    "alpha": {"critics.image", "critics.code"},
    "simultaneous": {"critics.image"},
}


@pytest.mark.parametrize("family", CRITICS)
@pytest.mark.parametrize("loss", ["bce", "wasserstein-gp"])
def test_critics_are_reached_by_their_losses_alone(family, loss):
    found = model(**{**FAMILIES[family], "game": {"loss": loss}})
    game = GanGame(found, seed=1)
    assert reached(game, game._game.critics_loss(batch())) == CRITICS[family]


def test_loss_of_bigan_is_that_of_exchanged_labels():
    found = model(**FAMILIES["bigan"])
    game, softplus = GanGame(found, seed=1), torch.nn.functional.softplus
    with torch.no_grad():
        x, z = images(4), found.drawn(4, np.random.default_rng(0))
        pair = found.critics["pair"]
        real, made = pair(joined(x, found.code(x))), pair(joined(found.made(z), z))
        expected = softplus(real).mean() + softplus(-made).mean()
        torch.testing.assert_close(game.makers_loss(batch()), expected)


def test_loss_of_alad_adds_reconstructed_images_and_codes():
    found = model(**FAMILIES["alad"])
    game, softplus = GanGame(found, seed=1), torch.nn.functional.softplus
    with torch.no_grad():
        x, z = images(4), found.drawn(4, np.random.default_rng(0))
        critics, code, made = found.critics, found.code(x), found.made(z)
        expected = (
            softplus(critics["pair"](joined(x, code))).mean()
            + softplus(-critics["pair"](joined(made, z))).mean()
            + softplus(-critics["images"](torch.cat([x, found.made(code)], 1))).mean()
            + softplus(-critics["codes"](torch.cat([z, found.code(made)], 1))).mean()
        )
        torch.testing.assert_close(game.makers_loss(batch()), expected)
        pairs = game._images_match(batch())
        torch.testing.assert_close(pairs.real, torch.cat([x, x], 1))
        torch.testing.assert_close(pairs.made[:, 3:], found.made(code))


def test_the_critic_of_images_of_an_alpha_gan_leaves_the_encoder():
    slopes = []
    for loss in ("bce-ratio", "bce"):
        given = {**FAMILIES["alpha"], "game": {"loss": loss}, "reconstruction_weight": 0.0}
        found = model(**given)
        with torch.no_grad():  # a critic of codes that judges all alike
            found.critics["code"].layers[-1].weight.zero_()
        game = GanGame(found, seed=1)
        total = game.makers_loss(batch())
        own = list(found.encoder.parameters())
        slopes += torch.autograd.grad(total, own, allow_unused=True, retain_graph=True)
        assert torch.autograd.grad(total, next(iter(found.generator.parameters())))[0].abs().sum()
    assert all(slope is None or not slope.abs().sum() for slope in slopes)


def test_a_simultaneous_encoder_moves_alone_with_its_loss():
    game = GanGame(model(**FAMILIES["simultaneous"]), seed=1)
    assert reached(game, game.code_errors(torch.randn(4, 3)).mean()) == {"encoder"}
    assert reached(game, game.makers_loss(batch())) == {"generator", "critics.image"}


@pytest.mark.parametrize("kind", ["izi", "izif", "ziz"])
def test_losses_of_the_encoder(kind):
    weight = {"feature_weight": 2.0} if kind == "izif" else {}
    found = model(encoder_loss=kind, encoder_bound=None, **weight)
    x, f = images(), found.critics["image"].features
    with torch.no_grad():
        z = found.drawn(3, np.random.default_rng(5))
        made = found.made(found.code(x))
        expected = {
            "izi": (x - made).square().mean(dim=(1, 2, 3)),
            "izif": (x - made).square().mean(dim=(1, 2, 3))
            + 2 * (f(x) - f(made)).square().mean(dim=(1, 2, 3)),
            "ziz": (z - found.code(found.made(z))).square().mean(dim=1),
        }[kind]
        loss = EncoderLoss(found, seed=1).losses(x, np.random.default_rng(5))
    torch.testing.assert_close(loss, expected)


def test_score_is_the_loss_of_the_encoder_as_published():
    found, x = model(score={"pixels": 1, "features": 1}), images()
    with torch.no_grad():
        loss = EncoderLoss(found, seed=1).losses(x, np.random.default_rng(0))
        torch.testing.assert_close(score_places(found, x).mean(dim=(1, 2)), loss)


def test_draws_are_those_of_the_prior():
    uniform = model(prior="uniform").drawn(4000, np.random.default_rng(1))
    assert uniform.abs().max() <= 1
    assert uniform.std().item() == pytest.approx(3**-0.5, abs=0.01)
    assert model().drawn(4000, np.random.default_rng(1)).std().item() == pytest.approx(1, abs=0.03)


# --- the fit ------------------------------------------------------------------------------


def test_generator_and_critic_stay_as_they_are_while_the_encoder_learns(tmp_path):
    whole, report = fitted(tmp_path / "a", steps=5, gan_steps=3)
    assert report.notes["generator"]["steps"] == 3
    assert report.steps == 5
    assert (tmp_path / "a" / "generator").is_dir()
    again, _ = fitted(tmp_path / "b", steps=5, gan_steps=3, max_steps=2)
    first, second = whole.state().tensors, again.state().tensors
    same = {name for name in first if torch.equal(first[name], second[name])}
    fixed = {name for name in first if not name.startswith("encoder.")}
    assert fixed <= same
    assert first.keys() - same


@pytest.mark.parametrize("nth", [2, 4, 6])
def test_a_killed_fit_ends_with_the_same_bits(tmp_path, monkeypatch, nth):
    """It is killed in the first training, before the second, and in it."""
    given = {"gan_steps": 3, "val_interval": 2, "checkpoint_seconds": 1e-9}
    whole, _ = fitted(tmp_path / "whole", **given)
    taken, step = 0, Training._step

    def dies(self, tiles):
        nonlocal taken
        taken += 1
        if taken == nth:
            raise KeyboardInterrupt
        step(self, tiles)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "killed", **given)
    resumed, _ = fitted(tmp_path / "killed", **given)
    mine, its = whole.state().tensors, resumed.state().tensors
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_a_step_is_a_function_of_its_number():
    windows, ends = torch.from_numpy(SMOOTH[:8, :32, :32].copy()), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        game = GanGame(model(**FAMILIES["alad"], spectral=True, critic_dropout=0.3), seed=1)
        game.module.train()
        optimiser = game.optimiser()(game.module)
        for step in range(2):
            game.update(CPU)(windows, optimiser, step)
        ends.append(torch.cat([p.flatten() for p in game.module.parameters()]))
    assert torch.equal(*ends)


def test_updates_of_the_critics_see_different_tiles():
    game, seen = GanGame(model(critic={"updates": 3}), seed=1), []
    whole = game._game.critics_loss
    game._game.critics_loss = lambda part: seen.append(part.x) or whole(part)
    windows = torch.from_numpy(SMOOTH[:12, :32, :32].copy())
    game.module.train()
    game.update(CPU)(windows, game.optimiser()(game.module), 0)
    assert [len(x) for x in seen] == [4, 4, 4]
    assert torch.equal(torch.cat(seen), windows.permute(0, 3, 1, 2).float() / 255 * 2 - 1)


def test_a_descent_states_what_a_tile_costs(tmp_path):
    _, report = fitted(tmp_path, **FAMILIES["descent"], descent_steps=40, descent_starts=2)
    assert report.notes["passes_per_tile"] == 80
    assert report.notes["best_step"] == report.steps == 6


def test_places_must_divide_the_input(tmp_path):
    with pytest.raises(DetectorError, match="5 × 5 places do not divide an input of 32 px"):
        fitted(tmp_path, places=5)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"score": "code-critic"}, "needs inversion: joint"),
        ({"inversion": "descent", "score": "code"}, "needs an inversion by an encoder"),
        ({"inversion": "descent", "score": "critic"}, "needs pixels or features"),
        ({"network": {"widths": [4], "skips": True}}, "passes by the code"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        options(**given)


# --- the published networks ---------------------------------------------------------------


def preset(name):
    values = yaml.safe_load((ZOO / f"{name}.yaml").read_text("utf-8"))
    return build(GanOptions, values["options"])


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_critics_features_of_f_anogan_are_its_last_level():
    found = GanModel(preset("f-anogan"), 64)
    with torch.no_grad():
        features = found.critics["image"].features(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 512, 4, 4)


def test_the_generator_of_bigan_has_the_published_layers():
    """Two dense layers, each normalised and activated, before one level more than for 28 px."""
    found = GanModel(preset("bigan"), 64)
    kinds = [type(one).__name__ for one in found.generator.tail]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Unflatten"]


def test_spectral_normalisation_leaves_the_last_layer():
    found = GanModel(preset("alad"), 64)
    names = {name for name, _ in found.named_parameters()}
    for last in ("critics.pair.end", "critics.codes.layers.7", "encoder.head.0"):
        assert f"{last}.weight" in names
    assert "encoder.levels.0.0.parametrizations.weight.original" in names
    assert not any(name.startswith("generator") and "parametrizations" in name for name in names)


def test_a_critic_of_pairs_sees_both():
    shape = options().critic_network.shape(32, latent_channels=None, spatial=True)
    critic = seeded(lambda: PairCritic(shape, 3, code_widths=(), widths=(5,)), 1).eval()
    x, z = images(), torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = critic(joined(x, z))
        assert own.shape == (3,)
        assert not torch.allclose(own, critic(joined(x, z + 1)))
        assert not torch.allclose(own, critic(joined(-x, z)))
    assert critic.both[0].in_features == 4 * 8 * 8 + 3
    assert count(LatentCritic(3, (), dropout=0.5)) == 4


def test_the_encoder_is_trained_at_its_own_rate():
    found = model(encoder_loss="izi", encoder_bound=None)
    loss, player = EncoderLoss(found, seed=1), Player([found.encoder], 1.0)
    sgd = torch.optim.SGD(found.encoder.parameters(), lr=0.1)
    windows = torch.from_numpy(SMOOTH[:4, :32, :32].copy())
    before = [p.clone() for p in found.generator.parameters()]
    with torch.no_grad():
        first = loss(windows).mean()
    for step in range(20):
        loss.update(CPU, player)(windows, sgd, step)
    with torch.no_grad():
        assert loss(windows).mean() < first
    assert all(
        torch.equal(*pair) for pair in zip(before, found.generator.parameters(), strict=True)
    )
