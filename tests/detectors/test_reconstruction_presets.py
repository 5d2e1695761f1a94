"""Presets of ``reconstruction`` are the published networks: sizes, counts, losses, scores."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from wsiad.core.config import build
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions

ZOO = Path(__file__).parents[2] / "configs/zoo"


def preset(name):
    return yaml.safe_load((ZOO / f"{name}.yaml").read_text("utf-8"))


NAMES = sorted(
    path.stem for path in ZOO.glob("*.yaml") if preset(path.stem)["detector"] == "reconstruction"
)


def model(name):
    options = build(ReconstructionOptions, preset(name)["options"])
    return ReconstructionModel(options, 64)


def count(module):
    return sum(p.numel() for p in module.parameters())


def conv(a, b, k, bias=True):
    return a * b * k * k + (b if bias else 0)


def dense(a, b):
    return a * b + b


def medianomaly(outputs=16, latent=16, colours=3):
    levels = (3, 16, 32, 64, 64)
    down = sum(conv(a, b, 4, bias=False) + 2 * b for a, b in pairwise(levels))
    ups = (64, 64, 32, 16, colours)
    up = sum(conv(a, b, 4, bias=False) for a, b in pairwise(ups)) + 2 * sum(ups[1:-1])
    middle = dense(1024, 2048) + 4096 + dense(2048, outputs)
    return down + middle + dense(latent, 2048) + 4096 + dense(2048, 1024) + up


def baur(spatial):
    widths = (3, 32, 64, 128)
    down = sum(conv(a, b, 5) + 2 * b for a, b in pairwise(widths))
    up = sum(conv(a, b, 5) + 2 * b for a, b in pairwise((128, 64, 32, 32)))
    end = conv(32, 3, 1)
    if spatial:
        return down + up + end
    middle = conv(128, 16, 1) + 32 + dense(16 * 64, 128)
    return down + up + end + middle + dense(128, 16 * 64) + conv(16, 128, 1) + 256


def scale_space():
    total = 0
    for widths in ((32, 64, 128), (32, 64), (32,)):
        total += sum(conv(a, b, 5) + 2 * b for a, b in pairwise((3, *widths)))
        total += conv(widths[-1], 128, 1) + conv(128, widths[-1], 1)
        total += sum(conv(a, b, 5) + 2 * b for a, b in pairwise((*widths[::-1], 32)))
        total += conv(32, 3, 1)
    return total


def ognet():
    widths = (3, 64, 128, 256, 512)
    down = sum(conv(a, b, 5) + 2 * b for a, b in pairwise(widths))
    up = sum(conv(a, b, 5) for a, b in pairwise(widths[::-1])) + 2 * (256 + 128 + 64)
    return down + up + down + dense(512 * 4 * 4, 1)


def riad():
    down = sum(conv(a, b, 4) + 2 * b for a, b in pairwise((3, 64, 128, 256, 512, 512)))
    ups = [(512, 512), (1024, 256), (512, 128), (256, 64)]
    return down + sum(conv(a, b, 4) + 2 * b for a, b in ups) + conv(128, 3, 4)


COUNTS = {
    "ae-l2": medianomaly(),
    "vae": medianomaly(outputs=32),
    "ae-u": medianomaly(colours=6),
    "vae-probability": medianomaly(outputs=32, colours=6),
    "expvae": medianomaly(outputs=64, latent=32),
    "ae-l1": baur(spatial=False),
    "spatial-ae": baur(spatial=True),
    "riad": riad(),
    "scale-space-ae": scale_space(),
    "ognet": ognet(),
}


def test_there_is_a_preset_of_every_counted_system():
    assert set(NAMES) >= COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_formulas(name):
    assert count(model(name)) == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_it_is_and_fits_64_px(name):
    found = preset(name)
    about = found["about"]
    assert {"system", "paper", "published", "adapted", "gpu"} == about.keys()
    assert about["published"]
    network = model(name).eval()
    with torch.no_grad():
        made = network(torch.zeros(1, 3, 64, 64))
    assert made.image.shape == (1, 3, 64, 64)


def test_a_sum_of_absolute_errors_is_a_sum():
    """The loss of Baur's autoencoder of a wholly wrong image is its number of values."""
    from wsiad.detectors.reconstruction.restoration_tasks import Made, View

    x = torch.zeros(1, 3, 64, 64)
    made = Made(x + 1, None, torch.zeros(1))
    assert model("ae-l1").terms.losses(View(made, x)).item() == 12_288
    assert model("ae-l2").terms.losses(View(made, x)).item() == 1


@pytest.mark.parametrize(("name", "widths"), [("aae", (50, 50)), ("constrained-aae", (100, 50))])
def test_the_errors_of_adversarial_autoencoders_are_means(name, widths):
    """The game has the weight 1: beside a sum of squares it would not count."""
    from wsiad.detectors.reconstruction.restoration_tasks import Made, View

    x = torch.zeros(1, 3, 64, 64)
    found = model(name)
    assert found.terms.losses(View(Made(x + 2, None, torch.zeros(1)), x)).item() == 4
    assert found.options.latent_game_weight == 1
    assert found.options.latent_critic_widths == widths


def test_the_score_of_riad_is_the_highest_place_of_a_smoothed_map_of_edges():
    options = model("riad").options
    assert options.judged_terms() == {"msgms": 1.0}
    assert (options.pooling, options.smooth) == ("max", 21)
    assert options.terms() == {"l2": 1.0, "msgms": 1.0, "ssim": 1.0}
