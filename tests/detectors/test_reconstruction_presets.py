"""Presets of ``reconstruction`` fit 64 px, and have the published losses and scores."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from wsiad.core.config import build
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_training import RestorationLoss
from wsiad.detectors.reconstruction.restoration_tasks import Made, View

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


VALUES = 3 * 64 * 64
C1, C2 = 0.01**2, 0.03**2
LIGHT = 1 - (2 * 0.5 * 1 + C1) / (0.5**2 + 1**2 + C1)
"""1 − SSIM of a grey and a white image, of 0.5 and 1: their contrasts agree."""
LOSSES = {
    **dict.fromkeys(("ae-l1", "spatial-ae", "context-encoder"), (VALUES, 0)),
    **dict.fromkeys(("spatial-vae", "anovaegan"), (VALUES, 1)),
    **dict.fromkeys(("ae-l2", "aae", "itsr", "response-score"), (1, 0)),
    **dict.fromkeys(("arnet", "puzzle-ae", "avid", "scadn"), (1, 0)),
    **dict.fromkeys(("vae", "projection"), (1, 0.005)),
    "memae": (1, 0.0002),
    "vq-vae": (1, 0.25),
    "lsa": (VALUES, 1),
    "ae-u": (math.exp(-2) + 2, 0),
    "vae-probability": (VALUES * (math.exp(-2) + 2), 2),
    "ae-ssim": (LIGHT, 0),
    "riad": (1 + 0 + LIGHT, 0),
    **dict.fromkeys(("alocc", "ognet"), (0.4, 0)),
    "ocgan": (10, 0),
}
"""Published loss of an error of 1 in every value, and weight of the latent's penalty."""


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_fixed_error_is_the_published_one(name):
    """A grey image, 0 in [−1, 1], is made white, with 2 as the log variance and 3 as penalty."""
    with torch.device("meta"):  # the loss of an answer needs no weights
        found = RestorationLoss(model(name), seed=0)
    x, error = torch.zeros(1, 3, 64, 64), LOSSES[name]
    made = Made(x + 1, torch.full_like(x, 2), torch.full((1,), 3.0))
    loss = found.of_view(x, View(made, x), draw=False).item()
    assert loss == pytest.approx(error[0] + 3 * error[1], rel=1e-5)


@pytest.mark.parametrize(("name", "widths"), [("aae", (50, 50)), ("constrained-aae", (100, 50))])
def test_the_errors_of_adversarial_autoencoders_are_means(name, widths):
    """The game has the weight 1: beside a sum of squares it would not count."""
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
