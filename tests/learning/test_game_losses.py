"""Losses of adversarial games by hand, and players that are trained apart by one optimiser."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from wsiad.learning.adversarial_game import Match
from wsiad.learning.devices import drawing
from wsiad.learning.game_losses import GameOptions, Player, PlayerOptions, adam_of, descend_alone

REAL, MADE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.3, -2.0, 1.5])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(loss):
    real, made = REAL.double().numpy(), MADE.double().numpy()
    match loss:
        case "bce" | "bce-saturating":
            critic = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(made)).mean()
            plain = -np.log(sigmoid(made))
            return critic, plain if loss == "bce" else np.log(1 - sigmoid(made))
        case "lsgan":
            critic = 0.5 * ((real - 1) ** 2).mean() + 0.5 * (made**2).mean()
            return critic, 0.5 * (made - 1) ** 2
        case "hinge":
            critic = (0 + 2 + 0.5) / 3 + (1.3 + 0 + 2.5) / 3
            return critic, -made


@pytest.mark.parametrize("loss", ["bce", "bce-saturating", "lsgan", "hinge"])
def test_losses_by_hand(loss):
    found = GameOptions(loss=loss).game_loss()
    assert not found.needs_mix
    critic, opponent = expected(loss)
    assert found.critic(lambda x: x, Match(REAL, MADE)).item() == pytest.approx(critic, rel=1e-6)
    np.testing.assert_allclose(found.opponent(MADE).numpy(), opponent, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "hidden"),
    [
        ("bce", np.log1p(np.exp(REAL.numpy()))),
        ("bce-saturating", np.log(sigmoid(REAL.numpy()))),
        ("lsgan", 0.5 * REAL.numpy() ** 2),
        *((loss, REAL.numpy()) for loss in ("hinge", "wasserstein-gp", "bce-ratio")),
    ],
)
def test_a_maker_of_real_inputs_minimises_the_game_with_labels_exchanged(loss, hidden):
    found = GameOptions(loss=loss).game_loss()
    np.testing.assert_allclose(found.hiding(REAL).numpy(), hidden, rtol=1e-6)


def test_the_opponent_of_a_ratio_minimises_the_log_of_the_odds():
    """Rosca et al. 2017: −log σ(D) + log (1 − σ(D)), against a critic of cross entropy."""
    ratio, plain = (GameOptions(loss=loss).game_loss() for loss in ("bce-ratio", "bce"))
    made = MADE.numpy()
    odds = -np.log(sigmoid(made)) + np.log(1 - sigmoid(made))
    np.testing.assert_allclose(ratio.opponent(MADE).numpy(), odds, rtol=1e-5)
    assert ratio.critic is plain.critic


@pytest.mark.parametrize(
    ("loss", "value"), [("bce", 2 * math.log(2)), ("lsgan", 0.25), ("hinge", 2.0)]
)
def test_a_critic_that_knows_nothing_has_the_known_loss(loss, value):
    guess = 0.5 if loss == "lsgan" else 0.0
    found = GameOptions(loss=loss).game_loss()
    known = found.critic(lambda x: torch.full_like(x, guess), Match(REAL, MADE))
    assert known.item() == pytest.approx(value)


def test_saturating_loss_loses_its_gradient_where_the_critic_is_sure():
    slopes = {}
    for loss in ("bce", "bce-saturating"):
        judged = torch.tensor([-12.0], requires_grad=True)
        GameOptions(loss=loss).game_loss().opponent(judged).sum().backward()
        slopes[loss] = judged.grad.item()
    assert slopes["bce"] == pytest.approx(-1, rel=1e-4)
    assert -1e-4 < slopes["bce-saturating"] < 0


def test_wasserstein_penalises_a_linear_critic_by_its_slope():
    found = GameOptions(gradient_penalty=10).game_loss()
    assert found.needs_mix
    match = Match(REAL[:, None], MADE[:, None], torch.tensor([0.1, 0.5, 0.9]))
    loss = found.critic(lambda x: 3 * x.flatten(), match)
    assert loss.item() == pytest.approx(3 * (MADE.mean() - REAL.mean()).item() + 10 * 4, rel=1e-5)
    torch.testing.assert_close(found.opponent(MADE), -MADE)


def networks():
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in ("maker", "critic")}).double()


def players(nets):
    return (
        Player([nets["maker"]], 0.01, (0.5, 0.9)),
        Player([nets["critic"]], 0.03, (0.0, 0.99), weight_decay=0.1),
    )


def losses(nets, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, 3)))
    made = nets["maker"](x)
    return nets["critic"](made).square().mean(), nets["critic"](x).mean()


def test_one_optimiser_for_all_players_is_one_for_each():
    shared, apart = networks(), networks()
    maker, critic = players(shared)
    together = adam_of([maker, critic], rate=0.02)(shared)
    own = [
        torch.optim.Adam(apart["maker"].parameters(), lr=0.01, betas=(0.5, 0.9)),
        torch.optim.Adam(
            apart["critic"].parameters(), lr=0.03, betas=(0.0, 0.99), weight_decay=0.1
        ),
    ]
    for group in together.param_groups:  # as the training does at every step
        group["lr"] = 0.02 * group["factor"]
    for step in range(5):
        for _ in range(2):  # two updates of the critic for one of the maker
            descend_alone(together, losses(shared, step)[1], critic)
            own[1].zero_grad()
            losses(apart, step)[1].backward()
            own[1].step()
        descend_alone(together, losses(shared, step)[0], maker)
        own[0].zero_grad()
        losses(apart, step)[0].backward()
        own[0].step()
    for first, second in zip(shared.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_step_of_one_player_leaves_the_others_unchanged():
    nets = networks()
    maker, critic = players(nets)
    optimiser = adam_of([maker, critic], rate=0.01)(nets)
    before = {name: p.detach().clone() for name, p in nets.named_parameters()}
    descend_alone(optimiser, losses(nets, 1)[0], maker, clip=0.5)
    moved = {
        name.split(".")[0]
        for name, p in nets.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert moved == {"maker"}
    assert all(p.grad is None for p in nets["critic"].parameters())


def test_a_parameter_without_a_player_is_refused():
    nets = networks()
    with pytest.raises(ValueError, match=r"critic\.weight belongs to no player"):
        adam_of(players(nets)[:1], rate=0.01)(nets)


def test_defaults_of_a_player_are_those_of_dcgan():
    found = PlayerOptions()
    assert (found.learning_rate, found.betas, found.updates) == (2e-4, (0.5, 0.999), 1)


def test_global_draws_follow_the_seed_and_are_restored():
    cpu = torch.device("cpu")
    before = torch.random.get_rng_state()
    found = []
    for seed in ((1, 7, 3), (1, 7, 3), (1, 7, 4)):
        with drawing(cpu, *seed):
            found.append(torch.randn(4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
