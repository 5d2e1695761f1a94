"""Presets of ``reconstruction`` fit 64 px, and have the published losses and scores."""

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
