"""Games of ``reconstruction``: the gradients that reach each player, and known judgements."""

import numpy as np
import pytest
import torch

from support.tiny_detectors import CPU, HEALTHY, SMOOTH, context
from wsiad.core.config import build
from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.reconstruction.reconstruction_detector import Reconstruction
from wsiad.detectors.reconstruction.reconstruction_games import (
    GameBatch,
    ReconstructionGame,
    drawn_codes,
    latent_critic_of,
)
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_training import RestorationLoss
from wsiad.learning.detector import InputSpec
from wsiad.networks.code_critics import LatentCritic
from wsiad.networks.conv_stack import seeded

TINY = {
    "network": {"widths": [4, 6], "norm": "none"},
    "latent_channels": 3,
    "critic_network": {"widths": [4, 4], "norm": "layer"},
    "latent_critic_widths": [5],
    "batch": 6,
    "val_interval": 4,
}
BOTH = {"image_game": "reconstruction", "latent_game": "gaussian"}


def options(**given):
    games = {name: given.get(name, "none") != "none" for name in ("image_game", "latent_game")}
    idle = {
        name
        for name, of in (("critic_network", "image_game"), ("latent_critic_widths", "latent_game"))
        if not games[of]
    }
    tiny = {name: value for name, value in TINY.items() if name not in idle}
    return build(ReconstructionOptions, {**tiny, **given})


def game(**given):
    model = seeded(lambda: ReconstructionModel(options(**given), 32), 1)
    return ReconstructionGame(RestorationLoss(model, 1), latent_critic_of(model, 1), seed=1)


def batch(seed=0):
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return GameBatch(x, np.random.default_rng(seed))


def fitted(folder, steps=11, **given):
    found = Reconstruction(options(**given), InputSpec(TilePx(32), Mpp(1)))
    folder.mkdir(exist_ok=True)
    found.fit(HEALTHY, context(folder, steps))
    return found


@pytest.mark.parametrize("loss", ["wasserstein-gp", "bce", "lsgan", "hinge"])
def test_critics_are_reached_by_their_losses_alone(loss):
    found = game(**BOTH, game={"loss": loss})
    found._game.critics_loss(batch()).backward()
    reached = {n.split(".")[0] for n, p in found.module.named_parameters() if p.grad is not None}
    assert reached == {"image_critic", "latent"}


def test_loss_of_the_autoencoder_is_the_sum_of_its_terms():
    found = game(**BOTH, image_game_weight=0.5, latent_game_weight=2.0, game={"loss": "lsgan"})
    with torch.no_grad():
        total, distance = found.opponent_losses(batch())
        x = batch().x
        made, code = found.model(x).image, found.model.encoder(x)
        critic = (found.model.image_critic(made) - 1).square().mean() / 2
        latent = (found._latent_critic(code) - 1).square().mean() / 2
    torch.testing.assert_close(distance, (made - x).square().mean())
    torch.testing.assert_close(total, distance + 0.5 * critic + 2 * latent)


def test_a_judgement_that_moves_the_decoder_leaves_the_encoder():
    slopes = []
    for given in (
        {"image_game": "reconstruction", "image_game_moves": "decoder"},
        {"image_game": "reconstruction"},
    ):
        found = game(**given, image_game_weight=3.0)
        total, _ = found.opponent_losses(batch())
        x = batch().x
        plain = (found.model(x).image - x).square().mean()
        own = list(found.model.encoder.parameters())
        slopes.append(
            [torch.autograd.grad(loss, own, retain_graph=True) for loss in (total, plain)]
        )
    for first, second in zip(*slopes[0], strict=True):
        torch.testing.assert_close(first, second)
    assert not torch.allclose(slopes[1][0][0], slopes[1][1][0])


def test_without_weight_a_game_changes_nothing(tmp_path):
    """A reconstruction against a critic whose judgement does not count is a plain one."""
    with_game = fitted(tmp_path / "game", image_game="reconstruction", image_game_weight=0.0)
    plain = fitted(tmp_path / "plain")
    mine, its = with_game.state().tensors, plain.state().tensors
    assert len(mine) > len(its)
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_a_critic_that_knows_nothing_gives_a_half():
    found = Reconstruction(
        options(image_game="reconstruction", score="critic", game={"loss": "bce"}),
        InputSpec(TilePx(32), Mpp(1)),
    )
    model = ReconstructionModel(found.options, 32)
    with torch.no_grad():
        for parameter in model.image_critic.parameters():
            parameter.zero_()
    found._network = model
    assert found.score(SMOOTH[:3, :32, :32]).tolist() == [0.5] * 3


def test_a_critic_that_finds_a_tile_real_scores_it_low():
    for loss in ("bce", "hinge"):
        found = Reconstruction(
            options(image_game="reconstruction", score="critic", game={"loss": loss}),
            InputSpec(TilePx(32), Mpp(1)),
        )
        model = seeded(lambda found=found: ReconstructionModel(found.options, 32), 1)
        found._network = model.eval()
        tiles = SMOOTH[:6, :32, :32]
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            judged = model.image_critic(model(x).image).numpy()
        assert found.score(tiles).argsort().tolist() == (-judged).argsort().tolist()


def by_place(**given):
    return Reconstruction(
        options(
            image_game="reconstruction", score="critic", game={"loss": "lsgan"},
            critic_by_place=True, places=4, **given,
        ),
        InputSpec(TilePx(32), Mpp(1)),
    )  # fmt: skip


def test_a_critic_of_places_finds_where_a_tile_is_strange():
    """The critic's weights are such that it finds bright pixels real."""
    found = by_place(critic_scores="tile", critic_network={"widths": [1], "kernel": 4,
                     "norm": "none", "activation": "none"})  # fmt: skip
    model = ReconstructionModel(found.options, 32)
    with torch.no_grad():
        for weights in (
            model.image_critic.encoder.levels[0][0],
            model.image_critic.encoder.head[0],
        ):
            weights.weight.fill_(1.0 / weights.weight.numel())
            weights.bias.zero_()
    found._network = model.eval()
    tiles = np.full((2, 32, 32, 3), 255, np.uint8)
    tiles[1, 16:24, 24:] = 0
    healthy, strange = found.score_map(tiles)
    assert healthy[1, 1] == pytest.approx(-1)
    different = np.abs(strange - healthy) > 1e-6
    assert np.unravel_index(strange.argmax(), (4, 4)) == (2, 3)
    assert not different[0].any()
    assert not different[:, :2].any()
    # The score of a tile is that of its strangest place if it is pooled so.
    loud = by_place(critic_scores="tile", critic_network=found.options.critic_network.model_dump(),
                    pooling="max")  # fmt: skip
    loud._network = model
    np.testing.assert_array_equal(loud.score(tiles), [healthy.max(), strange.max()])


def test_a_critic_of_places_judges_the_reconstruction_or_the_tile():
    found, tile = by_place(), by_place(critic_scores="tile")
    model = seeded(lambda: ReconstructionModel(found.options, 32), 1).eval()
    found._network = model
    tiles = SMOOTH[:3, :32, :32]
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        critic = model.image_critic.encoder
        made, own = critic(model(x).image)[:, 0], critic(x)[:, 0]
    assert made.shape == (3, 8, 8)
    pool = torch.nn.functional.avg_pool2d
    np.testing.assert_allclose(found.score_map(tiles), -pool(made, 2), rtol=1e-4, atol=1e-6)
    model.options = tile.options
    np.testing.assert_allclose(found.score_map(tiles), -pool(own, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["lsgan", "wasserstein-gp"])
def test_losses_of_a_critic_of_places_are_means_over_them(loss):
    found = game(image_game="reconstruction", critic_by_place=True, game={"loss": loss})
    x = batch().x
    with torch.no_grad():
        total, plain = found.opponent_losses(batch())
        judged = found.model.image_critic.encoder(found.model(x).image)
    expected = (judged - 1).square().mean() / 2 if loss == "lsgan" else -judged.mean()
    assert judged.shape == (4, 1, 8, 8)
    torch.testing.assert_close(total, plain + expected)
    found._game.critics_loss(batch()).backward()


def test_options_of_later_versions_leave_old_runs_equal():
    assert not {"critic_by_place", "critic_scores"} & options().model_dump().keys()
    changed = options(image_game="reconstruction", critic_by_place=True)
    assert changed.identity(limit=3)["critic_by_place"]


def test_draws_are_those_of_the_prior():
    like = torch.zeros(4000, 3)
    rng = np.random.default_rng(1)
    uniform = options(latent_game="uniform", network={"widths": [4], "latent_activation": "tanh"})
    found = drawn_codes(uniform, like, rng)
    assert found.abs().max() <= 1
    assert found.std().item() == pytest.approx(3**-0.5, abs=0.01)
    found = drawn_codes(options(latent_game="gaussian"), like, rng)
    assert found.std().item() == pytest.approx(1, abs=0.03)
    assert drawn_codes(options(), torch.zeros(2, 3, 4, 4), rng).shape == (2, 3, 4, 4)


def test_a_latent_critic_sees_all_places():
    model = ReconstructionModel(options(latent_game="gaussian", spatial=True), 32)
    critic = latent_critic_of(model, 1)
    assert critic.layers[1].in_features == 3 * 8 * 8
    assert critic(torch.zeros(2, 3, 8, 8)).shape == (2,)
    assert sum(p.numel() for p in LatentCritic(3, (5, 4)).parameters()) == 20 + 24 + 5


def test_a_latent_critic_sees_the_codes_of_what_the_task_shows():
    """OCGAN's codes that are to be uniform are those of noisy tiles, as the decoder's are."""
    for task in ("noise", "erase", "none"):
        found = game(latent_game="gaussian", task=task, **{"noise": 3.0} if task == "noise" else {})
        match = found._code_match(batch())
        shown = found._loss.changed(batch().x, np.random.default_rng(0))
        assert torch.equal(shown, batch().x) == (task == "none")
        torch.testing.assert_close(match.made, found.model.encoder(shown).detach())
        seen = []
        found._loss._task.trained(
            lambda x, found=found, seen=seen: seen.append(x) or found.model(x),
            batch().x,
            np.random.default_rng(0),
        )
        torch.testing.assert_close(seen[0], shown)


def test_the_encoder_moves_to_what_its_critic_finds_near_the_prior():
    found = game(latent_game="gaussian", loss={"l2": 1e-9})
    x = batch().x
    before = found._latent_critic(found.model.encoder(x)).mean()
    total, _ = found.opponent_losses(batch())
    own = list(found.model.encoder.parameters())
    with torch.no_grad():
        for parameter, slope in zip(own, torch.autograd.grad(total, own), strict=True):
            parameter.sub_(0.1 * slope)
    assert found._latent_critic(found.model.encoder(x)).mean() > before


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"score": "critic"}, "needs an image_game"),
        ({"latent_game": "uniform"}, "tanh"),
        (
            {**BOTH, "image_game_moves": "decoder", "task": "noise"},
            "needs task: none",
        ),
        (
            {
                "image_game": "prior",
                "network": {"widths": [4], "skips": True},
                "task": "noise",
            },
            "without skips",
        ),
    ],
)
def test_games_that_do_not_fit_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        options(**given)


def test_the_step_is_a_function_of_its_number():
    windows = torch.from_numpy(SMOOTH[:6, :32, :32])
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found = game(**BOTH, latent="vae", task="none", model_updates=2)
        optimiser = found.optimiser()(found.module)
        update = found.update(CPU)
        for step in range(2):
            update(windows, optimiser, step)
        ends.append(torch.cat([p.flatten() for p in found.module.parameters()]))
    assert torch.equal(*ends)
