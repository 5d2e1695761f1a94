"""Adversarial games: the gradient penalty, losses, several critics, and a training along one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from support.builders import Dying
from support.tiny_dpa import CPU, HEALTHY, SMOOTH, equal
from wsiad.detectors._trained import TrainedOptions
from wsiad.learning.adversarial_game import (
    AdversarialGame,
    Adversary,
    Match,
    Side,
    WassersteinLoss,
    drawn_mix,
    gradient_penalty,
)
from wsiad.learning.checkpoint import descend
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.learning.devices import Ranks
from wsiad.learning.loop import Training


def images(seed, count=4, edge=8):
    made = torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed))
    return made.double() * 2 - 1


def linear(slope):
    return lambda x: (x * slope).flatten(1).sum(dim=1)


def square(x):
    """Half the squared length: its slope at x is x."""
    return x.flatten(1).square().sum(dim=1) / 2


# --- the gradient penalty -----------------------------------------------------------------


def test_penalty_of_a_linear_critic_is_that_of_its_slope():
    slope = images(1, count=1)
    found = gradient_penalty(linear(slope), images(2))
    assert found.item() == pytest.approx((slope.norm().item() - 1) ** 2)


@pytest.mark.parametrize("shape", [(4,), (5, 1, 1), (3, 2, 2)])
def test_penalty_is_taken_between_real_and_made(shape):
    generator = torch.Generator().manual_seed(2)
    real, made = (torch.randn(4, *shape, generator=generator).double() for _ in range(2))
    mix = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    found = gradient_penalty(square, Match(real, made, mix).between())
    at = [m * r + (1 - m) * f for m, r, f in zip(mix, real, made, strict=True)]
    assert found.item() == pytest.approx(np.mean([(z.norm().item() - 1) ** 2 for z in at]))


def test_penalty_reaches_the_critic_and_not_the_points():
    slope = images(1, count=1).requires_grad_()
    points = images(2).requires_grad_()
    gradient_penalty(linear(slope), points).backward()
    size = slope.detach().norm()
    torch.testing.assert_close(slope.grad, 2 * (size - 1) * slope.detach() / size)
    assert points.grad is None


def test_a_loss_that_looks_between_needs_to_know_where():
    with pytest.raises(AssertionError, match="there is no mix"):
        Match(images(1), images(2)).between()


@pytest.mark.parametrize("drift_of", ["both", "real"])
def test_wasserstein_loss_by_hand(drift_of):
    slope, real, made = images(1, count=1), images(2), images(3)
    match = Match(real, made, torch.rand(4, dtype=torch.float64))
    found = WassersteinLoss(10, 0.5, drift_of)(linear(slope), match)
    of_real, of_made = (linear(slope)(x).numpy() for x in (real, made))
    drift = (of_real**2).mean() + ((of_made**2).mean() if drift_of == "both" else 0)
    expected = of_made.mean() - of_real.mean() + 0.5 * drift
    assert found.item() == pytest.approx(expected + 10 * (slope.norm().item() - 1) ** 2)


def test_draws_follow_seed_and_place_and_are_dealt_to_processes():
    like = images(1)
    one = drawn_mix(6, seed=1, at=(3, 0), ranks=Ranks(), like=like)
    assert one.dtype == torch.float64
    assert ((one >= 0) & (one <= 1)).all()
    assert torch.equal(one, drawn_mix(6, seed=1, at=(3, 0), ranks=Ranks(), like=like))
    for other in ({"seed": 2, "at": (3, 0)}, {"seed": 1, "at": (3, 1)}):
        assert not torch.equal(one, drawn_mix(6, **other, ranks=Ranks(), like=like))
    parts = [drawn_mix(3, seed=1, at=(3, 0), ranks=Ranks(rank, 2), like=like) for rank in (0, 1)]
    assert torch.equal(torch.sort(torch.cat(parts)).values, torch.sort(one).values)


# --- several critics ----------------------------------------------------------------------


def logistic(critic, match):
    """The loss of the first adversarial networks: real is 1, made is 0."""
    of_real, of_made = critic(match.real), critic(match.made)
    return functional.softplus(-of_real).mean() + functional.softplus(of_made).mean()


def least_squares(critic, match):
    return (critic(match.real) - 1).square().mean() + critic(match.made).square().mean()


def networks(seed=0):
    """A coder, a decoder, and critics of images, of latents and of pairs of images."""
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "coder": nn.Linear(12, 3),
            "decoder": nn.Linear(3, 12),
            "of_images": nn.Linear(12, 1),
            "of_latents": nn.Linear(3, 1),
            "of_pairs": nn.Linear(24, 1),
        }
    ).double()


def scalar(network):
    return lambda x: network(x).flatten()


def sides(nets):
    """Three critics that see three kinds of things, with three losses."""

    def rebuilt(x):
        return nets["decoder"](nets["coder"](x))

    return [
        Side(
            lambda batch: scalar(nets["of_images"]),
            lambda batch: Match(batch["x"], nets["decoder"](batch["z"]), batch["mix"]),
            WassersteinLoss(),
        ),
        Side(
            lambda batch: scalar(nets["of_latents"]),
            lambda batch: Match(batch["z"], nets["coder"](batch["x"])),
            logistic,
        ),
        Side(
            lambda batch: scalar(nets["of_pairs"]),
            lambda batch: Match(
                torch.cat([batch["x"], batch["x"]], dim=1),
                torch.cat([batch["x"], rebuilt(batch["x"])], dim=1),
            ),
            least_squares,
        ),
    ]


def batches(count):
    rng = np.random.default_rng(5)
    return [
        {
            "x": torch.from_numpy(rng.normal(size=(6, 12))),
            "z": torch.from_numpy(rng.normal(size=(6, 3))),
            "mix": torch.from_numpy(rng.random(6)),
        }
        for _ in range(count)
    ]


def test_a_game_reaches_its_critics_alone():
    nets = networks()
    AdversarialGame(sides(nets)).critics_loss(batches(1)[0]).backward()
    reached = {name.split(".")[0] for name, p in nets.named_parameters() if p.grad is not None}
    assert reached == {"of_images", "of_latents", "of_pairs"}


def test_a_game_of_three_is_three_games_of_one():
    together, apart = networks(), networks()
    game = AdversarialGame(sides(together))
    critics = [together["of_images"], together["of_latents"], together["of_pairs"]]
    optimiser = torch.optim.Adam([p for one in critics for p in one.parameters()], lr=0.01)
    game.train_critics(batches(5), lambda loss: descend(optimiser, loss))
    names = ("of_images", "of_latents", "of_pairs")
    own = [torch.optim.Adam(apart[name].parameters(), lr=0.01) for name in names]
    for batch in batches(5):
        for side, adam in zip(sides(apart), own, strict=True):
            with torch.no_grad():
                match = side.match(batch)
            adam.zero_grad()
            side.loss(side.critic(batch), match).backward()
            adam.step()
    assert not torch.equal(together["of_pairs"].weight, networks()["of_pairs"].weight)
    for first, second in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_batches_are_asked_for_one_by_one():
    nets, done = networks(), []

    def asked():
        for number, batch in enumerate(batches(3)):
            assert len(done) == number
            yield batch

    AdversarialGame(sides(nets)).train_critics(asked(), done.append)
    assert len(done) == 3


def test_a_game_without_a_side_is_refused():
    with pytest.raises(ValueError, match="needs a side"):
        AdversarialGame([])


# --- along with a training ----------------------------------------------------------------


class Rebuilding(nn.Module):
    """Rebuilds the mean colour of a window through three numbers."""

    def __init__(self):
        super().__init__()
        self.coder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, colours):
        return self.decoder(self.coder(colours))


def colours(windows):
    return windows.float().mean(dim=(1, 2)) / 127.5 - 1


class TwoCritics(Adversary):
    """A critic of colours and one of latents, with losses of their own."""

    def __init__(self, module, **values):
        self._module = module
        torch.manual_seed(4)
        self.critics = nn.ModuleDict({"image": nn.Linear(3, 1), "latent": nn.Linear(3, 1)})
        found = [
            Side(lambda b: scalar(self.critics["image"]), self._colours, WassersteinLoss()),
            Side(lambda b: scalar(self.critics["latent"]), self._latents, logistic),
        ]

        def adam(critics):
            groups = [
                {"params": list(critics["image"].parameters())},
                {"params": list(critics["latent"].parameters()), "factor": 0.5},
            ]
            return torch.optim.Adam(groups, betas=(0.5, 0.9))

        super().__init__(
            AdversarialGame(found), self.critics, learning_rate=0.01, optimiser=adam, **values
        )

    def _colours(self, batch):
        x, at = batch
        mix = drawn_mix(len(x), seed=1, at=at, ranks=Ranks(), like=x)
        return Match(x, self._module(x), mix)

    def _latents(self, batch):
        x, at = batch
        z = np.random.default_rng([1, 9, *at]).normal(size=(len(x), 3)).astype(np.float32)
        return Match(torch.from_numpy(z), self._module.coder(x))

    def batch(self, windows, at, stage):
        return colours(windows), at

    def opponent_losses(self, windows, step, stage):
        x = colours(windows)
        y = self._module(x)
        distance = (x - y).abs().mean(dim=1)
        fooled = scalar(self.critics["image"])(y)
        return distance - 0.1 * fooled, distance


def trained(folder, *, steps, fit=HEALTHY.fit):
    torch.manual_seed(3)
    module = Rebuilding()
    adversary = TwoCritics(module, steps=3, ranks=Ranks())
    training = Training(
        module,
        lambda windows: (colours(windows) - module(colours(windows))).abs().mean(dim=1),
        tiles=HealthyTiles(fit, HEALTHY.stop),
        size=32,
        options=TrainedOptions(batch=5, val_interval=3, checkpoint_seconds=1e-9),
        context=FitContext(
            seed=1, device=CPU, folder=folder, budget=Budget(max_steps=steps), quiet=True
        ),
        identity={},
        started=0.0,
        adversary=adversary,
    )
    training.run()
    return module, adversary


def test_a_killed_training_with_several_critics_ends_like_one_that_was_not(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    module, adversary = trained(tmp_path / "whole", steps=8)
    for count in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", steps=8, fit=Dying(SMOOTH[:22], count))
    again, adversary_again = trained(tmp_path / "killed", steps=8)
    assert equal(module.state_dict(), again.state_dict())
    assert equal(adversary.tensors(), adversary_again.tensors())
    names = set(adversary.tensors())
    assert {"critic.image.weight", "critic_adam_exp_avg.latent.weight"} <= names


def test_critics_take_their_steps_before_each_of_the_module(tmp_path):
    adversary = trained(tmp_path, steps=4)[1]
    assert adversary.draws == 4
    taken = {int(value) for name, value in adversary.tensors().items() if "adam_step" in name}
    assert taken == {12}
    adversary.restart()
    assert not any("adam" in name for name in adversary.tensors())
