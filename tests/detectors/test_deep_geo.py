import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.deep_geo import (
    DeepGeo,
    DeepGeoOptions,
    GeometricClassifier,
    GeometricTransforms,
    fit_dirichlet,
    log_right,
    shown,
)
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.networks.wide_resnet import WideResNet
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def moments(p):
    return np.log(p).mean(axis=0), p.mean(axis=0), np.square(p).mean(axis=0)


def test_transforms_are_flip_then_shift_then_turn():
    image = RNG.integers(0, 256, (3, 8, 8)).astype(np.float32)
    found = GeometricTransforms(8)(
        torch.from_numpy(image).expand(72, -1, -1, -1), torch.arange(72)
    ).numpy()
    number = 0
    for flip in (False, True):
        for down in (-2, 0, 2):
            for across in (-2, 0, 2):
                for turns in range(4):
                    x = image[:, :, ::-1] if flip else image
                    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="symmetric")
                    x = padded[:, 2 - down : 10 - down, 2 - across : 10 - across]
                    np.testing.assert_array_equal(found[number], np.rot90(x, turns, (1, 2)))
                    number += 1
    assert len({x.tobytes() for x in found}) == 72


def test_every_image_has_its_own_transform():
    images = torch.rand(3, 3, 8, 8)
    transforms = GeometricTransforms(8)
    which = torch.tensor([5, 70, 16])
    each = torch.cat([transforms(images[i : i + 1], which[i : i + 1]) for i in range(3)])
    assert torch.equal(transforms(images, which), each)


def test_wide_resnet_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = WideResNet(28, 10, 10)
    assert sum(p.numel() for p in network.parameters()) == 36_479_194
    assert WideResNet(10, 1, 72)(torch.rand(2, 3, 16, 16)).shape == (2, 72)
    with pytest.raises(DetectorError, match="depth of 12"):
        WideResNet(12, 1, 72)


def test_dirichlet_is_recovered_from_draws():
    alpha = np.array([0.3, 2.0, 7.0, 1.0])
    found = fit_dirichlet(*moments(RNG.dirichlet(alpha, 20_000)))
    np.testing.assert_allclose(found, alpha, rtol=0.05)


@pytest.mark.parametrize("alpha", [[0.2, 0.05, 0.1], [3, 1, 0.5], [900, 1000, 1100]])
def test_dirichlet_is_the_likeliest(alpha):
    p = np.clip(RNG.dirichlet(alpha, 60), 1e-12, 1)
    found = fit_dirichlet(*moments(p))
    logs = np.log(p).mean(axis=0)
    # Where the likelihood is greatest its gradient is zero, by each parameter's scale.
    gradient = digamma(found.sum()) - digamma(found) + logs
    assert np.abs(gradient * found).max() < 1e-2

    def negative(log_alpha):
        a = np.exp(log_alpha)
        return -(gammaln(a.sum()) - gammaln(a).sum() + (a - 1) @ logs)

    best = minimize(negative, np.log(found) + 0.3, method="Nelder-Mead", tol=1e-10)
    assert negative(np.log(found)) <= best.fun + 1e-6


def test_answers_that_never_differ_have_no_distribution():
    p = np.full((10, 3), 1 / 3)
    with pytest.raises(DetectorError, match="the same for all healthy tiles"):
        fit_dirichlet(*moments(p))


def test_score_is_that_of_the_definition():
    torch.manual_seed(1)
    network = GeometricClassifier(WideResNet(10, 1, 72).eval(), 8, shrink=2)
    network.alpha.copy_(torch.rand(72, 72) * 3)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found = network.unusualness(images)
        small = images.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)) * 2 - 1
        for image in range(2):
            total = 0.0
            for t in range(72):
                x = network.transforms(small[image : image + 1], torch.tensor([t]))
                p = torch.softmax(network.classifier(x)[0], dim=0).double()
                total += float(((network.alpha[t].double() - 1) * p.log()).sum())
            assert float(found[image]) == pytest.approx(-total / 72, rel=1e-4)


def test_it_knows_tiles_whose_orientation_it_cannot_tell(tmp_path):
    """Healthy tiles have one bright corner, and a gradient; strange ones are noise."""
    ramp = np.linspace(30, 200, 16)
    healthy = np.zeros((60, 16, 16, 3)) + ramp[:, None, None] + RNG.normal(0, 5, (60, 16, 16, 3))
    healthy[:, :, :, 2] = ramp[None, None, :] + RNG.normal(0, 5, (60, 16, 16))
    healthy = healthy.clip(0, 255).astype(np.uint8)
    options = DeepGeoOptions(
        width=1, shrink=1, batch=32, val_interval=40, dirichlet_tiles=40, learning_rate=3e-3
    )
    found = DeepGeo(options, InputSpec(TilePx(16), Mpp(1)))
    context = FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(80), quiet=True)
    report = found.fit(HealthyTiles(ArrayTiles(healthy[:40]), ArrayTiles(healthy[40:50])), context)
    assert report.notes["best_stop_loss"] < 2  # log 72 = 4.3 is that of a guess
    assert report.notes["dirichlet_tiles"] == 40
    strange = RNG.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    scores = found.score_places(strange)
    assert scores.shape == (10, 1, 1)
    assert found.score(strange).min() > found.score(healthy[50:]).max()


def test_tiles_are_not_flipped(tmp_path, monkeypatch):
    """With flips at random, half of the transforms would be the same as others."""
    from wsiad.learning import step

    asked = []
    whole = step.random_crops
    monkeypatch.setattr(
        step, "random_crops", lambda *a, **k: asked.append(k["flips"]) or whole(*a, **k)
    )
    tiles = HealthyTiles(*[ArrayTiles(RNG.integers(0, 256, (8, 16, 16, 3), np.uint8))] * 2)
    found = DeepGeo(DeepGeoOptions(width=1, shrink=1, batch=8), InputSpec(TilePx(16), Mpp(1)))
    found.fit(tiles, FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(1), quiet=True))
    assert asked == [False]


def test_separate_heads_see_turn_and_shifts_of_each_transform():
    """Each transform's number is that of its turn, then across, then down, then flip."""
    logits, which = torch.randn(72, 10), torch.arange(72)
    found = log_right(logits, which, "separate")
    number = 0
    for _flip in range(2):
        for down in range(3):
            for across in range(3):
                for turn in range(4):
                    own = logits[number]
                    parts = [(own[:4], turn), (own[4:7], across), (own[7:], down)]
                    right = sum(float(torch.log_softmax(p, 0)[a]) for p, a in parts)
                    assert float(found[number]) == pytest.approx(right, abs=1e-5)
                    number += 1
    guesses = log_right(torch.zeros(72, 10), which, "separate")
    torch.testing.assert_close(guesses, torch.full((72,), -float(np.log(4 * 3 * 3))))


def test_turns_alone_are_four_transforms_that_only_turn():
    images = torch.rand(4, 3, 8, 8)
    which = torch.tensor(shown("turn"))
    turns = [torch.rot90(one, turn, (1, 2)) for turn, one in enumerate(images)]
    found = [one.tolist() for one in GeometricTransforms(8)(images, which)]
    counter = [torch.rot90(one, -turn, (1, 2)).tolist() for turn, one in enumerate(images)]
    assert found in ([one.tolist() for one in turns], counter)
    logits = torch.randn(4, 4)
    right = torch.log_softmax(logits, 1).diagonal()
    torch.testing.assert_close(log_right(logits, which, "turn"), right)
    assert [len(shown(heads)) for heads in ("joint", "separate", "turn")] == [72, 72, 4]
    # An epoch shows every tile in each of its four turns.
    options = DeepGeoOptions(heads="turn", score="softmax", epochs=3, batch=10)
    assert options.bounded(25).max_steps == 30


def test_turns_alone_are_learnt_where_tiles_have_an_upright_position(tmp_path):
    """Healthy tiles are dark above; a tile that is dark on the left looks turned."""
    upright = RNG.integers(0, 40, (60, 16, 16, 3), np.uint8)
    upright[:, 8:] += 200
    options = DeepGeoOptions(
        heads="turn", score="softmax", width=1, shrink=1, batch=20, val_interval=20
    )
    found = DeepGeo(options, InputSpec(TilePx(16), Mpp(1)))
    tiles = HealthyTiles(ArrayTiles(upright[:40]), ArrayTiles(upright[40:50]))
    found.fit(tiles, FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(60), quiet=True))
    healthy, lying = found.score(upright[50:]), found.score(upright[50:].swapaxes(1, 2))
    assert healthy.max() < lying.min()
    assert healthy.mean() < 0.1


@pytest.mark.parametrize(("heads", "classes", "guess"), [("joint", 72, 72), ("separate", 10, 36)])
def test_softmax_score_is_that_of_right_answers(heads, classes, guess):
    torch.manual_seed(1)
    network = GeometricClassifier(WideResNet(10, 1, classes).eval(), 8, shrink=2, heads=heads)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found = network.wrongness(images)
        every = [network(images, torch.full((2,), t)) for t in range(72)]
        right = [log_right(x, torch.full((2,), t), heads) for t, x in enumerate(every)]
        torch.testing.assert_close(found.float(), -torch.stack(right).mean(dim=0))
        network.classifier.layers[-1].weight.zero_()
        network.classifier.layers[-1].bias.zero_()
        know_nothing = network.wrongness(images)
    torch.testing.assert_close(know_nothing, torch.full((2,), np.log(guess)).double())


@pytest.mark.parametrize("heads", ["separate", "turn"])
def test_other_heads_have_no_dirichlet_score(heads):
    with pytest.raises(ValueError, match="score: softmax"):
        DeepGeoOptions(heads=heads)


def test_sizes_that_do_not_fit():
    found = DeepGeo(DeepGeoOptions(shrink=3), InputSpec(TilePx(64), Mpp(1)))
    with pytest.raises(DetectorError, match="64 px cannot be shrunk by 3"):
        found._classifier(0)
