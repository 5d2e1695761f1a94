"""``reconstruction``: tasks, losses and scores against toys whose answers are known."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from support.tiny_detectors import CPU, HEALTHY, SMOOTH, context
from wsiad.core.config import build, idle_options_allowed
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.reconstruction.reconstruction_detector import Reconstruction
from wsiad.detectors.reconstruction.reconstruction_model import ImageTerms, ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_scores import projected, score_places
from wsiad.detectors.reconstruction.reconstruction_training import (
    RestorationLoss,
    _about_divergences,
    measure_held_out,
)
from wsiad.detectors.reconstruction.restoration_tasks import (
    ERASED,
    Erase,
    GreyTurn,
    Made,
    Noise,
    Puzzle,
    View,
    checkerboard,
    shuffled,
    stripes,
)
from wsiad.learning.batches import centre_crops
from wsiad.learning.detector import InputSpec
from wsiad.networks.conv_stack import seeded
from wsiad.runs.run import RunFolder

TINY = {
    "network": {"widths": [4, 6], "hidden": [8], "bias": False},
    "latent_channels": 3,
    "batch": 6,
    "val_interval": 4,
    "log_interval": 2,
}
U_NET = {"network": {"widths": [4, 6], "skips": True}, "spatial": True, "latent_channels": None}


def options(**given):
    return build(ReconstructionOptions, {**TINY, **given})


def detector(**given):
    return Reconstruction(options(**given), InputSpec(TilePx(32), Mpp(1)))


def model(**given):
    return seeded(lambda: ReconstructionModel(options(**given), 32), 1).eval()


def images(seed=0, count=2, edge=32):
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def made_of(image):
    return Made(image, None, image.new_zeros(len(image)))


def rng():
    return np.random.default_rng(3)


# --- tasks ----------------------------------------------------------------------------------

FILLED = [checkerboard((2, 4, 8), 3), stripes((4, 8))]


@pytest.mark.parametrize("task", FILLED)
def test_a_network_that_copies_gives_what_was_erased_everywhere(task):
    x = images() + 3
    views = [task.trained(made_of, x, rng()), *task.shown(made_of, x)]
    for view in views:
        assert (view.made.image == ERASED).all()
        assert view.target is x


@pytest.mark.parametrize("task", FILLED)
def test_a_network_of_one_colour_gives_it_everywhere(task):
    x = images()
    views = task.shown(lambda shown: made_of(torch.full_like(shown, 0.3)), x)
    assert len(views) == (3 if task is FILLED[0] else 4)
    assert all((view.made.image == 0.3).all() for view in views)


@pytest.mark.parametrize("task", FILLED)
def test_every_pixel_is_erased_in_one_set(task):
    erased = []

    def watching(shown):
        erased.append((shown == ERASED)[0, 0])
        return made_of(shown)

    x = images() + 3
    task.shown(watching, x)
    sets = 3 if task is FILLED[0] else 2
    for start in range(0, len(erased), sets):
        assert (torch.stack(erased[start : start + sets]).sum(dim=0) == 1).all()


def test_squares_have_the_stated_edge():
    erased = []
    checkerboard((8,), 2).shown(
        lambda shown: erased.append(shown == ERASED) or made_of(shown), images() + 3
    )
    blocks = erased[0][0, 0].view(4, 8, 4, 8).transpose(1, 2).flatten(2).float().mean(dim=2)
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    assert blocks.sum() == 8


def test_erased_squares_are_of_one_edge_and_the_target_is_all_of_it():
    x, seen = images(count=50) + 3, []
    view = Erase(5, 1).trained(lambda shown: seen.append(shown) or made_of(shown), x, rng())
    erased = (seen[0] == ERASED).all(dim=1)
    assert erased.sum(dim=(1, 2)).tolist() == [25] * 50
    assert len({tuple(one.nonzero()[0].tolist()) for one in erased}) > 20  # each has its own
    assert view.target is x
    assert Erase(5, 1).shown(made_of, x)[0].made.image is x


def test_noise_has_its_deviation_and_scoring_none():
    x = torch.zeros(8, 3, 32, 32)
    view = Noise(0.155).trained(made_of, x, rng())
    assert view.made.image.std().item() == pytest.approx(0.155, rel=0.02)
    assert view.target is x
    assert Noise(0.155).shown(made_of, x)[0].made.image is x


def test_grey_images_that_are_not_turned_are_shown_as_they_are():
    grey = images()[:, :1].expand(-1, 3, -1, -1)
    view = GreyTurn(turn=False).trained(made_of, grey, rng())
    torch.testing.assert_close(view.made.image, grey)
    turns = GreyTurn(turn=True).shown(made_of, grey)
    for number, view in enumerate(turns):
        torch.testing.assert_close(view.made.image, torch.rot90(grey, number, dims=(2, 3)))
        assert view.target is grey


def test_colours_are_lost():
    view = GreyTurn(turn=False).shown(made_of, images())[0]
    assert torch.equal(view.made.image[:, 0], view.made.image[:, 2])


def test_puzzle_shows_quarters_in_other_orders():
    x = images()
    assert torch.equal(shuffled(x, (0, 1, 2, 3)), x)
    turned = shuffled(x, (3, 2, 1, 0))
    assert torch.equal(turned[:, :, :16, :16], x[:, :, 16:, 16:])
    assert torch.equal(shuffled(turned, (3, 2, 1, 0)), x)
    shown = [view.made.image for view in Puzzle(23).shown(made_of, x)]
    assert len({tuple(one.flatten().tolist()) for one in shown}) == 23
    assert not any(torch.equal(one, x) for one in shown)


# --- losses ---------------------------------------------------------------------------------


def uncertain(residual, log_variance):
    x = torch.zeros(2, 3, 8, 8)
    made = Made(x + residual, torch.full_like(x, log_variance), torch.zeros(2))
    return View(made, x)


def test_uncertainty_is_best_at_the_square_of_the_residual():
    terms = ImageTerms({"uncertainty": 1.0}, {"uncertainty": 1.0})
    r = 0.3
    best = terms.losses(uncertain(r, math.log(r * r)))
    assert best.tolist() == pytest.approx([1 + math.log(r * r)] * 2, rel=1e-5)
    for other in (-0.2, 0.2):
        assert (terms.losses(uncertain(r, math.log(r * r) + other)) > best).all()
    # The score leaves the logarithm out.
    places = terms.places(uncertain(r, math.log(r * r)), 4)
    torch.testing.assert_close(places, torch.ones(2, 4, 4))


def test_log_variance_is_bounded():
    found = model(loss="uncertainty", network={"widths": [4], "norm": "none"})
    with torch.no_grad():
        for parameter in found.decoder.parameters():
            parameter.mul_(1e4)
        logs = found(images()).log_variance
    assert logs.abs().max() <= 10


def test_sum_is_as_many_times_the_mean_as_there_are_values():
    x, y = images(1), images(2)
    losses = [
        ImageTerms({"l1": 1.0, "l2": 2.0}, {"l1": 1.0}, reduction=reduction).losses(
            View(made_of(y), x)
        )
        for reduction in ("mean", "sum")
    ]
    torch.testing.assert_close(losses[0] * 3 * 32 * 32, losses[1])
    by_hand = (x - y).abs().mean(dim=(1, 2, 3)) + 2 * (x - y).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses[0], by_hand)


@pytest.mark.parametrize("loss", ["l1", "l2", "ssim", "msgms"])
def test_places_have_the_mean_of_the_loss(loss):
    terms = ImageTerms({loss: 1.0}, {loss: 1.0})
    view = View(made_of(images(1)), images(2))
    torch.testing.assert_close(terms.places(view, 8).mean(dim=(1, 2)), terms.losses(view))


def test_loss_of_ce_vae_is_that_of_both_images():
    found = model(task="erase", latent="vae", whole_weight=0.5, penalty_weight=0.1)
    loss = RestorationLoss(found, 1)
    x = images()
    with torch.no_grad():
        total = loss.losses(x, rng(), draw=False)
        erased = loss.restored(x, rng(), draw=False).made.image
        whole = found(x)
    expected = (erased - x).square().mean(dim=(1, 2, 3))
    expected = expected + 0.5 * (whole.image - x).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(total, expected + 0.1 * whole.penalty)


def test_loss_of_a_constrained_autoencoder_adds_the_change_of_the_code():
    found = model(code_weight=2.0)
    x = images()
    with torch.no_grad():
        total = RestorationLoss(found, 1).losses(x, rng(), draw=False)
        made = found(x).image
        change = (found.encoder(x) - found.encoder(made)).square().mean(dim=1)
    torch.testing.assert_close(total, (made - x).square().mean(dim=(1, 2, 3)) + 2 * change)


# --- a linear autoencoder is PCA ------------------------------------------------------------


def linear_autoencoder(x, rank):
    """A linear autoencoder of images of 8 px with the weights of PCA: levels move pixels alone."""
    linear = {"widths": [12], "kernel": 2, "norm": "none", "activation": "none", "bias": True}
    made = options(network=linear, latent_channels=rank, places=1)
    network = seeded(lambda: ReconstructionModel(made, 8), 1).double()
    moves = torch.eye(12, dtype=torch.float64).view(12, 3, 2, 2)
    level, dense = network.encoder.levels[0][0], network.encoder.head[1]
    back, undense = network.decoder.levels[0][0], network.decoder.tail[0]
    with torch.no_grad():
        for one in (level, back):
            one.weight.copy_(moves)
            one.bias.zero_()
        flat = level(x).flatten(1)
        mean = flat.mean(dim=0)
        axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:rank]
        dense.weight.copy_(axes)
        dense.bias.copy_(-axes @ mean)
        undense.weight.copy_(axes.T)
        undense.bias.copy_(mean)
    return network


def test_the_minimum_of_a_linear_autoencoder_is_pca():
    """There the score is the distance to the span of the components, and no weight has a slope."""
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(5, 192, generator=generator) * torch.tensor([3.0, 2, 1, 0.5, 0.2])[:, None]
    x = (torch.randn(24, 5, generator=generator) @ base / 10).view(24, 3, 8, 8).double()
    network = linear_autoencoder(x, 2)
    loss = RestorationLoss(network, 1).losses(x, rng(), draw=True).mean()
    loss.backward()
    assert max(p.grad.abs().max() for p in network.parameters()) < 1e-9
    flat = x.flatten(1) - x.flatten(1).mean(dim=0)
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:2]
    expected = (flat - flat @ axes.T @ axes).square().mean(dim=1)
    with torch.no_grad():
        found = score_places(network.eval(), x, network.options.restoration()).flatten()
        torch.testing.assert_close(found, expected)
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        assert RestorationLoss(network, 1).losses(x, rng(), draw=False).mean() > loss


# --- scores ---------------------------------------------------------------------------------


def test_probability_is_the_mean_over_draws_of_the_log_likelihood():
    found = model(latent="vae", loss="uncertainty", score="probability", score_draws=3)
    x = images()
    with torch.no_grad():
        places = score_places(found, x, found.options.restoration())
        mean, log = found.latent.parts(found.encoder(x))
        draws, total = np.random.default_rng(11), 0
        for _ in range(3):
            drawn = torch.from_numpy(draws.standard_normal((3,), dtype=np.float32))
            made = found.decoded(mean + drawn * (log / 2).exp())
            normal = torch.distributions.Normal(made.image, (made.log_variance / 2).exp())
            total = total - normal.log_prob(x).mean(dim=(1, 2, 3)) / 3
    torch.testing.assert_close(places.mean(dim=(1, 2)), total, rtol=1e-4, atol=1e-5)


def test_density_of_a_vae_is_its_divergence():
    found = model(latent="vae", score="density")
    x = images()
    with torch.no_grad():
        places = score_places(found, x, found.options.restoration())
        expected = found.latent.divergence(found.encoder(x)).sum(dim=1)
    assert places.shape == (2, 8, 8)
    torch.testing.assert_close(places.mean(dim=(1, 2)), expected)


def test_slope_is_that_of_finite_differences():
    found = model(latent="vae", score="gradient", gradient_of="divergence", places=32).double()
    x = images(count=1).double()
    places = score_places(found, x, found.options.restoration())[0]
    row, column, step, slopes = 7, 20, 1e-5, []
    with torch.no_grad():
        for colour in range(3):
            ends = []
            for sign in (-1, 1):
                moved = x.clone()
                moved[0, colour, row, column] += sign * step
                ends.append(found(moved).penalty.item())
            slopes.append(abs(ends[1] - ends[0]) / (2 * step))
    assert places[row, column].item() == pytest.approx(np.mean(slopes), rel=1e-4)
    found.options = options(
        latent="vae",
        score="gradient",
        gradient_of="divergence",
        gradient_by_distance=True,
        places=32,
    )
    times = score_places(found, x, found.options.restoration())[0]
    distance = (found(x).image - x).square().mean(dim=1)[0].detach()
    torch.testing.assert_close(times, places * distance)


class Keeps(nn.Module):
    """Keeps the left half of an image and makes the rest black: a projection."""

    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        kept = x.clone()
        kept[..., x.shape[-1] // 2 :] = 0
        return made_of(kept)


def test_projection_ends_at_the_projection_and_stays_there():
    chosen = options(score="projection", projection_weight=0.0, projection_steps=100)
    network, x = Keeps(chosen), images()
    there = network(x).image
    assert torch.equal(projected(network, there), there)
    found = projected(network, x)
    assert torch.equal(found[..., :16], x[..., :16])
    assert (found[..., 16:].abs() <= x[..., 16:].abs()).all()
    # By hand: r ← r − α · 2r · r² with α = 0.5, of values in half of the range.
    rest = x[..., 16:] / 2
    for _ in range(100):
        rest = rest - rest**3
    torch.testing.assert_close(found[..., 16:], rest * 2)
    assert rest.abs().max() < 0.08


class Exaggerates(Keeps):
    """Answers each change by one ten times as large, the other way."""

    def forward(self, x):
        return made_of(-10 * x)


def test_projection_stays_within_the_range_of_an_image():
    chosen = options(score="projection", projection_steps=100)
    found = projected(Exaggerates(chosen), images())
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 1


def test_attention_is_on_the_places_that_the_latent_reads():
    found = model(
        network={"widths": [4], "kernel": 4, "norm": "none"}, score="attention", places=16
    )
    dense = found.encoder.head[1]
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight.view(3, 4, 16, 16)[:, 1] = 1.0  # the second channel alone is read
        x = images()
        features = found.encoder.features(x)[-1]
    places = score_places(found, x, found.options.restoration())
    shares = places / places.flatten(1).sum(dim=1).view(-1, 1, 1)
    own = features[:, 1] / features[:, 1].flatten(1).sum(dim=1).view(-1, 1, 1)
    torch.testing.assert_close(shares, own)


def test_density_of_an_autoregressive_latent_is_scaled_by_held_out_tiles():
    given = {"latent": "autoregressive", "bins": 5, "estimator_channels": 2, "score": "density"}
    found = model(**given)
    with torch.no_grad():
        for parameter in found.encoder.head.parameters():
            parameter.mul_(30)  # codes that differ
    about = measure_held_out(found, HEALTHY.stop, size=32, seed=1, device=CPU)
    windows = centre_crops(torch.from_numpy(SMOOTH[20:]), 32)
    x = windows.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        scores = score_places(found, x, found.options.restoration()).mean(dim=(1, 2))
        made = found(x)
    parts = [(made.image - x).square().mean(dim=(1, 2, 3)), made.penalty]
    expected = sum((p - p.min()) / (p.max() - p.min()) for p in parts)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    assert np.shape(about["held_out_bounds"]) == (2, 2)


# --- the latent's collapse ------------------------------------------------------------------


def test_a_collapsed_latent_is_warned_of(caplog):
    with caplog.at_level(logging.INFO):
        about = _about_divergences(torch.tensor([0.5, 0.001]))
    assert about == {"latent_divergence": [0.5, 0.001], "latent_dimensions_used": 1}
    assert "0.5, 0.001" in caplog.text
    assert "collapsed" not in caplog.text
    assert _about_divergences(torch.tensor([0.002, 0.001]))["latent_dimensions_used"] == 0
    assert "the latent has collapsed" in caplog.text


# --- the detector ---------------------------------------------------------------------------


def test_score_is_the_distance_to_what_is_shown_as_reconstruction(tmp_path):
    found = detector(network={"widths": [4], "output": "tanh"}, loss="l2")
    report = found.fit(HEALTHY, context(tmp_path))
    assert report.steps == 11
    tiles = SMOOTH[:3, 4:36, 4:36]
    scores, made = found.score(tiles), found.reconstruct(tiles)
    difference = (made.astype(float) - tiles) / 127.5
    np.testing.assert_allclose(scores, (difference**2).mean(axis=(1, 2, 3)), rtol=0.02)


def test_latent_divergence_is_reported(tmp_path):
    found = detector(latent="vae")
    report = found.fit(HEALTHY, context(tmp_path))
    assert len(report.notes["latent_divergence"]) == 3
    assert report.notes["latent_dimensions_used"] in range(4)


def test_training_lowers_the_loss(tmp_path):
    def loss_after(steps):
        found = detector(learning_rate=5e-3)
        (tmp_path / str(steps)).mkdir()
        return found.fit(HEALTHY, context(tmp_path / str(steps), steps)).notes["best_stop_loss"]

    assert loss_after(60) < 0.8 * loss_after(1)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"network": {"skips": True}}, "needs a task"),
        ({**U_NET, "task": "stripes", "latent": "vae", "latent_channels": 3}, "latent: plain"),
        ({"network": {}, "latent": "autoregressive", "spatial": True}, "is a vector"),
        ({"latent_channels": None}, "only with spatial"),
        ({**U_NET, "network": {}, "latent": "vae"}, "not for a vae"),
        ({"smooth": 4}, "must be odd"),
        ({"judged_by": "perceptual"}, "needs it in the loss"),
        ({"judged_by": "uncertainty"}, "needs it in the loss"),
        ({"score": "probability", "latent": "vae"}, "loss: uncertainty"),
        ({"score": "density", "latent": "memory"}, "vae or autoregressive"),
        ({"score": "gradient", "gradient_of": "divergence"}, "needs latent: vae"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        options(**given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"noise": 0.3}, "noise does nothing with task: none"),
        ({"task": "noise", "erase_px": 3, "erase_count": 1}, "erase_px does nothing with task: no"),
        ({**U_NET, "task": "stripes", "squares": [2]}, "squares does nothing with task: stripes"),
        ({"task": "noise", "turn": True}, "turn does nothing with task: noise"),
        ({"latent": "vae", "memory_size": 5}, "memory_size does nothing with latent: vae"),
        ({"latent": "memory", "codes": 5}, "codes does nothing with latent: memory"),
        ({"bins": 5}, "bins does nothing with latent: plain"),
        ({"penalty_weight": 1.0}, "penalty_weight does nothing with latent: plain"),
        ({"score_draws": 5}, "score_draws does nothing with score: loss"),
        ({"projection_rate": 0.1}, "projection_rate does nothing with score: loss"),
        ({"score": "response", "judged_by": "l1"}, "judged_by does nothing with score: response"),
        ({"latent": "vae", "score": "attention", "smooth": 3}, "smooth does nothing with score"),
        ({"game": {"loss": "bce"}}, "game does nothing with image_game and latent_game: none"),
        ({"model_updates": 2}, "model_updates does nothing with image_game and latent_game"),
        ({"image_game_weight": 2.0}, "image_game_weight does nothing with image_game: none"),
        ({"latent_critic_widths": [3]}, "latent_critic_widths does nothing with latent_game: none"),
        ({"contrast": 2.0}, "contrast does nothing with a loss that is not perceptual"),
    ],
)
def test_options_that_do_nothing_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        options(**given)


def test_options_that_do_nothing_are_read_from_old_runs_and_of_a_search(tmp_path):
    with idle_options_allowed():
        found = options(noise=0.3, bins=5)
    assert found.idle() == {"noise": "task: none", "bins": "latent: plain"}
    plain = options()
    assert plain.idle() == {}
    old = Reconstruction(found, InputSpec(TilePx(32), Mpp(1)))
    old._network = ReconstructionModel(found, 32)
    run = RunFolder(tmp_path)
    run.save_detector(old, name="reconstruction")
    assert run.load_detector(CPU).options == found
    # Each option may be set to what it is anyway, as stored options are.
    assert options(**plain.model_dump(exclude={"network", "latent_channels"})) == plain


def test_places_must_divide_the_input(tmp_path):
    with pytest.raises(DetectorError, match="5 × 5 places do not divide"):
        detector(places=5).fit(HEALTHY, context(tmp_path))


def test_numbers_must_be_one_for_each_level():
    with pytest.raises(DetectorError, match="3 numbers were given as kernel for 2 levels"):
        model(network={"widths": [4, 4], "kernel": [4, 4, 4]})
