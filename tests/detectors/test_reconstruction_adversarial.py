"""OGNet's second phase, OCGAN's mined codes, adversarial inputs, against hand-made toys."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from support.tiny_detectors import HEALTHY, SMOOTH, context
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.reconstruction.old_generator import OldWeights, SecondPhaseLoss
from wsiad.detectors.reconstruction.reconstruction_detector import Reconstruction
from wsiad.detectors.reconstruction.reconstruction_games import (
    GameBatch,
    ReconstructionGame,
    latent_critic_of,
    mined,
)
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_training import RestorationLoss, attacked
from wsiad.detectors.reconstruction.restoration_tasks import Made, NoTask, Puzzle, stripes
from wsiad.learning.checkpoint import CHECKPOINT
from wsiad.learning.detector import InputSpec
from wsiad.learning.loop import Training
from wsiad.networks.conv_stack import seeded

TINY = {
    "network": {"widths": [4, 6]},
    "latent_channels": 3,
    "critic_network": {"widths": [4, 4]},
    "batch": 6,
    "val_interval": 4,
    "log_interval": 2,
}
OGNET = {
    "task": "noise",
    "image_game": "reconstruction",
    "game": {"loss": "bce"},
    "score": "critic",
    "keep": "last",
    "second_phase_steps": 5,
    "old_steps": 3,
}
OCGAN = {
    "network": {"widths": [4, 6], "latent_activation": "tanh", "norm": "none"},
    "critic_network": {"widths": [4, 4], "norm": "none"},
    "latent_critic_widths": [5],
    "image_game": "prior",
    "latent_game": "uniform",
    "game": {"loss": "bce"},
    "mining_steps": 1,
}


def options(**given):
    idle = set() if given.get("image_game", "none") != "none" else {"critic_network"}
    tiny = {name: value for name, value in TINY.items() if name not in idle}
    return build(ReconstructionOptions, {**tiny, **given})


def model(**given):
    return seeded(lambda: ReconstructionModel(options(**given), 32), 1)


def detector(**given):
    return Reconstruction(options(**given), InputSpec(TilePx(32), Mpp(1)))


def fitted(folder, steps=7, **given):
    found = detector(**{**OGNET, **given})
    folder.mkdir(exist_ok=True)
    return found, found.fit(HEALTHY, context(folder, steps))


def images(seed=0, count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the second phase -------------------------------------------------------------------------


class Shades(nn.Module):
    """Makes images of another brightness; its critic reads the mean."""

    def __init__(self, chosen, shade):
        super().__init__()
        self.options, self.shade = chosen, nn.Parameter(torch.tensor(shade))
        self.image_critic = lambda x: x.mean(dim=(1, 2, 3))

    def learnt(self):
        return nn.ParameterDict({"shade": self.shade})

    def forward(self, x):
        return Made(x + self.shade, None, x.new_zeros(len(x)))


def test_loss_of_the_second_phase_is_that_of_its_four_kinds_of_images():
    toy = Shades(options(**OGNET, made_share=0.7, old_share=0.6), 0.5)
    old = OldWeights(toy)
    old.take(toy)
    with torch.no_grad():
        toy.shade.fill_(0.1)
    means = torch.tensor([0.3, -0.2, 0.9])
    x = means.view(-1, 1, 1, 1).expand(-1, 3, 4, 4)

    def good(m):
        return math.log(1 + math.exp(-m))

    def bad(m):
        return math.log(1 + math.exp(m))

    found = SecondPhaseLoss(toy, old).losses(x)
    expected = []
    for number, mean in enumerate(means.tolist()):
        second, third = (means[(number + more) % 3].item() for more in (1, 2))
        pseudo = (second + 0.5 + third + 0.5) / 2 + 0.1
        expected.append(
            0.7 * good(mean + 0.1) + 0.3 * good(mean) + 0.6 * bad(mean + 0.5) + 0.4 * bad(pseudo)
        )
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_old_generator_is_the_model_at_that_step():
    network = model(**OGNET).eval()
    old, x = OldWeights(network), images()
    with pytest.raises(DetectorError, match="before the step of its old generator"):
        old.made(network, x)
    old.take(network)
    with torch.no_grad():
        before = network(x).image
        for parameter in network.learnt().parameters():
            parameter.add_(0.1)
        assert not torch.allclose(network(x).image, before)
        assert torch.equal(old.made(network, x), before)


def test_the_second_phase_trains_the_critic_alone(tmp_path):
    _, report = fitted(tmp_path / "both")
    both = fitted(tmp_path / "both")[0].state().tensors
    first = fitted(tmp_path / "first", second_phase_steps=0, old_steps=1_000)[0].state().tensors
    assert report.steps == 5
    assert report.notes["first_phase"]["steps"] == 7
    changed = {name.split(".")[0] for name in both if not torch.equal(both[name], first[name])}
    assert changed == {"image_critic"}


def test_the_old_generator_decides_the_second_phase(tmp_path):
    ends = [fitted(tmp_path / str(steps), old_steps=steps)[0].state().tensors for steps in (3, 6)]
    changed = {n.split(".")[0] for n in ends[0] if not torch.equal(ends[0][n], ends[1][n])}
    assert changed == {"image_critic"}


@pytest.mark.parametrize("nth", [3, 5, 9])  # before and after the old generator; second phase
def test_two_trainings_that_were_killed_end_like_ones_that_were_not(tmp_path, monkeypatch, nth):
    whole, _ = fitted(tmp_path / "whole")
    step, taken = Training._step, 0

    def dies(self, tiles):
        nonlocal taken
        taken += 1
        if taken == nth:
            raise KeyboardInterrupt
        step(self, tiles)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "killed")
    resumed, _ = fitted(tmp_path / "killed")
    mine, its = whole.state().tensors, resumed.state().tensors
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    for part in (CHECKPOINT, f"first_phase/{CHECKPOINT}"):
        ends = [load_file(tmp_path / folder / part) for folder in ("whole", "killed")]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    tiles = SMOOTH[:, 4:36, 4:36]
    np.testing.assert_array_equal(whole.score_places(tiles), resumed.score_places(tiles))


def test_a_longer_first_training_does_not_end_with_the_second_of_a_shorter_one(tmp_path):
    fitted(tmp_path)
    with pytest.raises(
        RunError,
        match=r"max_steps \d \(now 9\), which would change the number of steps of the first phase",
    ):
        fitted(tmp_path, steps=9)


def test_a_first_training_without_its_old_generator_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="7 steps end before the old generator"):
        fitted(tmp_path, old_steps=8)


# --- mined codes ------------------------------------------------------------------------------


def test_a_mined_code_takes_the_steps_of_the_formula():
    weights, codes = torch.tensor([1.5, -2.0, 0.0]), torch.tensor([[0.3, -0.4, 0.9]])
    at = codes.clone().atanh()
    for _ in range(2):
        u = at.tanh()
        at = at - 0.25 * torch.sigmoid(u @ weights)[:, None] * weights * (1 - u**2)
    found = mined(codes, lambda code: code @ weights, steps=2, rate=0.25)
    torch.testing.assert_close(found, at.tanh())
    assert found[0, 2] == pytest.approx(0.9)
    assert (found @ weights < codes @ weights).all()
    assert not found.requires_grad


@pytest.mark.parametrize("rate", [1e-9, 2.0, 1e6])
def test_mined_codes_stay_within_the_bounds_of_the_latent(rate):
    codes = torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = mined(codes, lambda code: 100 * code.sum(dim=1), steps=3, rate=rate)
    assert (found.abs() < 1).all()
    if rate < 1:
        torch.testing.assert_close(found, codes)


def mining_game(**given):
    network = model(**{**OCGAN, **given})
    return ReconstructionGame(RestorationLoss(network, 1), latent_critic_of(network, 1), seed=1)


def batch(step=0):
    return GameBatch(images(), np.random.default_rng(3), step)


def test_the_classifier_learns_reconstructions_from_images_of_drawn_codes():
    found = mining_game()
    match = found._game.sides[-1].match(batch())
    torch.testing.assert_close(match.real, found.model(batch().x).image)
    with torch.no_grad():
        reached = {n for n, p in found.module.named_parameters() if p.grad is not None}
    assert reached == set()
    found._game.sides[-1].critic_loss(batch()).backward()
    reached = {n.split(".")[0] for n, p in found.module.named_parameters() if p.grad is not None}
    assert reached == {"classifier"}


def test_images_of_mined_codes_look_less_real_to_the_classifier():
    found = mining_game(mining_rate=50.0, mining_steps=3)
    plain, moved = (found._from_prior(batch(), mine=mine) for mine in (False, True))
    assert (found._classifier(moved) < found._classifier(plain)).all()


def test_mining_begins_at_its_step():
    found = mining_game(mining_from=5, mining_rate=1e3)
    plain = found._from_prior(batch())
    assert torch.equal(found._from_prior(batch(4), mine=True), plain)
    assert not torch.equal(found._from_prior(batch(5), mine=True), plain)


def test_critics_see_codes_that_were_not_mined():
    found, plain = mining_game(mining_rate=1e3), mining_game(mining_steps=0)
    seen = [one._game.sides[0].match(batch()).made for one in (found, plain)]
    assert torch.equal(*seen)


# --- adversarial inputs -----------------------------------------------------------------------


def made_of(image):
    return Made(image, None, image.new_zeros(len(image)))


def squares(view):
    return (view.made.image - view.target).square().mean(dim=(1, 2, 3))


def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize("steps", [1, 4])
def test_an_attack_makes_a_dim_copy_dimmer(steps):
    """Of y = x / 2, the error grows fastest where what is shown is pulled to 0."""
    x = images() * 0.4 + torch.where(images() > 0, 0.5, -0.5)
    x = torch.where(x.abs() > 0.45, x, 0.6)
    view = attacked(
        NoTask(), lambda shown: made_of(shown / 2), x, rng(), loss=squares, most=0.1, steps=steps
    )
    torch.testing.assert_close(view.made.image, (x - 0.1 * x.sign()) / 2)
    assert view.target is x


def test_an_attack_stays_within_its_bound_and_the_range_of_images():
    shown = []
    x = images() * 1.2
    x = x.clamp(-1, 1)
    attacked(
        NoTask(),
        lambda one: shown.append(one.detach()) or made_of(one**3),
        x,
        rng(),
        loss=squares,
        most=0.2,
        steps=3,
    )
    assert len(shown) == 4
    assert all((one - x).abs().max() <= 0.2 + 1e-6 and one.abs().max() <= 1 for one in shown)


@pytest.mark.parametrize("task", [Puzzle(4), stripes((4, 8))])
def test_an_attack_sees_the_draws_of_the_task_and_leaves_the_next(task):
    x, plain, mine = images(), rng(), rng()
    expected = task.trained(made_of, x, plain)
    view = attacked(task, made_of, x, mine, loss=squares, most=0.0, steps=2)
    assert torch.equal(view.made.image, expected.made.image)
    assert plain.random() == mine.random()


def test_an_attack_raises_the_loss_that_is_trained_and_not_the_held_out_one():
    given = {"task": "puzzle", "network": {"widths": [4, 6], "skips": True, "norm": "none"}}
    given |= {"spatial": True, "latent_channels": None}
    loss, plain = (
        RestorationLoss(model(**given, **attack), 1)
        for attack in ({"attack": 0.2, "attack_steps": 2}, {})
    )
    x = images()
    harder, easier = (one.losses(x, rng(), draw=True) for one in (loss, plain))
    assert (harder > easier).all()
    harder.mean().backward()
    assert all(p.grad is not None for p in loss.model.encoder.parameters())
    held = [one.losses(x, rng(), draw=False) for one in (loss, plain)]
    torch.testing.assert_close(*held)


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({**OCGAN, "latent_game": "gaussian"}, "mining_steps needs image_game: prior"),
        ({"mining_steps": 1}, "mining_steps needs image_game: prior"),
        ({**OGNET, "keep": "best"}, "needs keep: last"),
        ({**OGNET, "critic_by_place": True}, "no critic_by_place"),
        ({**OGNET, "game": {"loss": "lsgan"}}, "game: bce"),
        ({**OGNET, "image_game": "prior", "score": "loss"}, "image_game: reconstruction"),
        ({"critic_by_place": True}, "critic_by_place does nothing with image_game: none"),
        ({"attack_steps": 2}, "attack_steps does nothing with attack: 0"),
        ({**OCGAN, "mining_steps": 0, "mining_rate": 1.0}, "mining_rate does nothing with mining_"),
        ({"old_share": 0.5}, "old_share does nothing with second_phase_steps: 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        options(**given)


def test_options_that_change_nothing_are_not_part_of_a_training():
    """Checkpoints of before there was a second phase are still read."""
    plain, with_phase = options(), options(**OGNET)
    assert "second_phase_steps" not in plain.identity(limit=5)
    assert with_phase.identity(limit=5)["second_phase_steps"] == 5
