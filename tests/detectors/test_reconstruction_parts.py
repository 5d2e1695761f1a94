"""Scales, structure, attention and response of ``reconstruction``, against hand-made toys."""

import pytest
import torch
from torch import nn

from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.detectors.reconstruction.reconstruction_model import ImageTerms, ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_scores import attended, score_places
from wsiad.detectors.reconstruction.reconstruction_training import RestorationLoss
from wsiad.detectors.reconstruction.restoration_tasks import Made, NoTask, View
from wsiad.networks.conv_stack import seeded
from wsiad.networks.image_parts import gaussian_pyramid, laplacian_pyramid, nuclei_map

TINY = {"network": {"widths": [4, 6, 8]}, "latent_channels": 3, "places": 4}
SPATIAL = {"spatial": True, "latent_channels": 5}
GAME = {"image_game": "reconstruction", "critic_network": {"widths": [4, 4]}}


def options(**given):
    return build(ReconstructionOptions, {**TINY, **given})


def model(**given):
    return seeded(lambda: ReconstructionModel(options(**given), 32), 1).eval()


def images(seed=0, count=2, edge=32):
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scored(network, x):
    return score_places(network, x, network.options.restoration())


class Copies(nn.Module):
    """Gives what an encoder or a decoder receives, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.head = factor, nn.Identity()

    def features(self, x):
        return [x * self.factor]

    def forward(self, x, skips=()):
        return x * self.factor


def copying(factor, scales=3, **given):
    network = model(scales=scales, **given)
    for part in (network, *network.coarser):
        part.encoder, part.decoder = Copies(1.0), Copies(factor)
    return network


# --- scales -----------------------------------------------------------------------------------


def test_autoencoders_that_copy_their_bands_restore_all_scales():
    network, x = copying(1.0), images()
    made = network(x)
    for found, expected in zip((made.image, *made.coarser), gaussian_pyramid(x, 3), strict=True):
        torch.testing.assert_close(found, expected)
    assert scored(network, x).max() < 1e-10
    assert RestorationLoss(network, 1).losses(x, None, draw=False).max() < 1e-10


def test_a_black_out_of_all_bands_leaves_the_square_of_every_scale():
    network, x = copying(0.0), images()
    expected = sum(one.square().mean(dim=(1, 2, 3)) for one in gaussian_pyramid(x, 3))
    torch.testing.assert_close(scored(network, x).mean(dim=(1, 2)), expected)
    torch.testing.assert_close(RestorationLoss(network, 1).losses(x, None, draw=False), expected)
    flat = torch.full((1, 3, 32, 32), 0.5)
    torch.testing.assert_close(scored(network, flat), torch.full((1, 4, 4), 3 * 0.25))


def test_a_lost_band_is_missed_at_its_scale_and_finer_ones():
    network, x = copying(1.0), images()
    network.coarser[0].decoder = Copies(0.0)
    made, bands = network(x), laplacian_pyramid(x, 3)
    missed = [
        target - image
        for target, image in zip(gaussian_pyramid(x, 3), (made.image, *made.coarser), strict=True)
    ]
    torch.testing.assert_close(missed[1], bands[1])
    assert missed[0].abs().max() > 0.1
    assert missed[2].abs().max() < 1e-6


def test_a_sum_counts_the_values_of_each_scale():
    terms = ImageTerms({"l1": 1.0}, {"l1": 1.0}, reduction="sum")
    x = torch.zeros(1, 3, 32, 32)
    made = Made(x + 1, None, torch.zeros(1), (torch.full((1, 3, 16, 16), 2.0),))
    assert terms.losses(View(made, x)).item() == 3 * 32**2 + 2 * 3 * 16**2
    torch.testing.assert_close(terms.pixels(View(made, x)), torch.full((1, 32, 32), 3.0))


def test_each_band_has_its_own_autoencoder_with_as_many_places():
    network = model(scales=3, **SPATIAL)
    x = images()
    assert network.vectors(x).shape == (2, 3 * 5 * 4 * 4)
    assert [len(band.encoder.levels) for band in network.coarser] == [2, 1]
    made = network(x)
    assert [one.shape[-1] for one in (made.image, *made.coarser)] == [32, 16, 8]
    count = sum(p.numel() for p in network.learnt().parameters())
    alone = [model(network={"widths": [4, 6, 8][:n]}, **SPATIAL).learnt() for n in (3, 2, 1)]
    assert count == sum(p.numel() for one in alone for p in one.parameters())


def test_an_input_that_cannot_be_halved_is_refused():
    with pytest.raises(DetectorError, match="cannot be halved for 3 scales"):
        ReconstructionModel(options(scales=3), 16)


# --- structure --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, SPATIAL, {"spatial": True, "latent_channels": None}])
def test_the_decoder_sees_the_structure_at_all_resolutions(given):
    network, x = model(structure="nuclei", **given), images()
    with torch.no_grad():
        made = network(x).image
        assert made.shape == x.shape
        # Of an image with the same structure and the same code, the same is made.
        code = network.encoder(x)
        skips = network.structure.features(nuclei_map(x))
        both = torch.cat([code, network.structure.head(skips[-1])], dim=1)
        torch.testing.assert_close(network.decoded(both, skips).image, made)
        for level in range(len(skips)):
            other = [one + (number == level) for number, one in enumerate(skips)]
            both = torch.cat([code, network.structure.head(other[-1])], dim=1)
            assert not torch.allclose(network.decoded(both, other).image, made)


def test_the_image_itself_passes_by_its_code_alone():
    """If the code is cut, what is made depends on the structure alone."""
    network, x = model(structure="nuclei"), images()
    with torch.no_grad():
        for parameter in network.encoder.head.parameters():
            parameter.zero_()
        grey = nuclei_map(x)
        made = network(x).image
        network.structure.features = lambda _: type(network.structure).features(
            network.structure, grey
        )
        assert torch.equal(network(images(5)).image, made)


def test_loss_and_score_add_the_difference_of_the_structures():
    terms = {"l1": 2.0, "nuclei": 0.5}
    found = ImageTerms(terms, {"l1": 1.0, "nuclei": 3.0})
    x, y = images(1), images(2)
    view = View(Made(y, None, torch.zeros(2)), x)
    pixels = (x - y).abs().mean(dim=(1, 2, 3))
    nuclei = (nuclei_map(x) - nuclei_map(y)).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found.losses(view), 2 * pixels + 0.5 * nuclei)
    torch.testing.assert_close(found.places(view, 4).mean(dim=(1, 2)), pixels + 3 * nuclei)


# --- attention --------------------------------------------------------------------------------


def looking(features, reads):
    """A model whose last level has given features (N, C, m, m), and whose latent reads channels."""
    network = model(network={"widths": [2], "norm": "none"}, latent="vae", latent_channels=1)
    network.encoder.features = lambda x: [features.clone().requires_grad_()]
    places = features[0, 0].numel()

    class Reads(nn.Module):
        def forward(self, maps):
            found = (maps.mean(dim=(2, 3)) * torch.tensor(reads)).sum(dim=1, keepdim=True)
            return torch.cat([found * places, found * 0], dim=1)

    network.encoder.head = Reads()
    return network


def test_attention_is_the_positive_part_of_the_weighted_features_over_its_maximum():
    features = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    network = looking(features, (1.0, -0.5))
    expected = (features[:, 0] - 0.5 * features[:, 1]).relu()
    expected = expected / expected.amax(dim=(1, 2), keepdim=True)
    with torch.no_grad():
        found = attended(network, images(count=3))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    network.options = options(latent="vae", score="inattention")
    torch.testing.assert_close(scored(network, images(count=3)), 1 - expected)


def test_attention_everywhere_costs_nothing_and_none_costs_its_weight():
    for shade, cost in ((1.0, 0.0), (-1.0, 1.0)):
        network = looking(torch.full((2, 2, 4, 4), shade), (1.0, 1.0))
        with torch.no_grad():
            assert (1 - attended(network, images())).mean().item() == pytest.approx(cost)


def test_the_attention_term_is_added_and_moves_the_encoder():
    given = {"latent": "vae", **SPATIAL, "network": {"widths": [4, 6], "norm": "none"}}
    plain, network = model(**given), model(**given, attention_weight=0.3)
    x = images()
    total, before = (
        RestorationLoss(one, 1).losses(x, None, draw=False) for one in (network, plain)
    )
    spread = 1 - attended(network, x).mean(dim=(1, 2))
    assert 0 < spread.min() < 1
    torch.testing.assert_close(total, before + 0.3 * spread)
    own = list(network.encoder.parameters())
    slopes = torch.autograd.grad(spread.sum(), own, allow_unused=True)
    assert any(slope is not None and slope.abs().max() > 0 for slope in slopes)
    with torch.no_grad():  # as in a validation
        held = RestorationLoss(network, 1).losses(x, None, draw=False)
    assert not held.requires_grad
    torch.testing.assert_close(held, total.detach())


# --- response ---------------------------------------------------------------------------------


class Shade(nn.Module):
    """Makes an image darker by a weight for each colour."""

    def __init__(self, shades):
        super().__init__()
        self.options = options(score="response")
        self.terms = ImageTerms({"l2": 1.0}, {"l2": 1.0})
        self.shades = nn.Parameter(torch.tensor(shades))

    def learnt(self):
        return nn.ParameterDict({"shades": self.shades})

    def forward(self, x):
        return Made(x * (1 - self.shades.view(1, 3, 1, 1)), None, x.new_zeros(len(x)))


def test_the_response_is_the_norm_of_the_slope_by_the_weights():
    """E = mean (s x)², so that ∂E/∂s = 2 s mean x² / 3 for each colour."""
    toy, x = Shade([0.1, -0.2, 0.3]), images(count=3)
    expected = 2 * toy.shades.detach() * x.square().mean(dim=(2, 3)) / 3
    with torch.inference_mode():
        found = score_places(toy, x, NoTask())
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found[:, 0, 0], expected.norm(dim=1))


def test_without_a_residual_there_is_no_response():
    assert score_places(Shade([0.0, 0.0, 0.0]), images(), NoTask()).abs().max() == 0


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"scales": 4}, "must not exceed"),
        ({"scales": 2, "latent": "vae"}, "scales needs latent: plain"),
        ({"scales": 2, "code_weight": 1.0}, "without code_weight"),
        ({"scales": 2, "attention_weight": 1.0}, "attention_weight"),
        ({"scales": 2, "task": "puzzle"}, "scales needs task"),
        ({"scales": 2, "score": "projection"}, "scales needs score"),
        ({"scales": 2, **GAME, "image_game": "prior"}, "scales needs image_game"),
        ({"scales": 2, "loss": "uncertainty"}, "learnt variance"),
        ({"scales": 2, "network": {"output": "tanh"}}, "network.output: none"),
        ({"structure": "nuclei", "latent": "vae"}, "structure needs latent: plain"),
        ({"structure": "nuclei", "scales": 2}, "scales: 1"),
        ({"structure": "nuclei", **GAME, "image_game": "prior"}, "structure needs a tile"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        options(**given)


def test_a_plain_autoencoder_has_no_further_parts():
    assert {name.split(".")[0] for name in model().state_dict()} == {
        "encoder",
        "decoder",
        "held_out",
    }


@pytest.mark.parametrize("latent", ["memory", "quantised"])
def test_a_latent_without_channels_of_its_own_is_looked_up_as_the_last_level_made_it(latent):
    network = model(latent=latent, spatial=True, latent_channels=None).eval()
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        deepest = network.encoder.features(x)[-1]
        looked_up = network.latent(deepest).value
        assert looked_up.shape == deepest.shape == (2, 8, 4, 4)
        torch.testing.assert_close(network(x).image, network.decoder(looked_up))
    names = [name for name, _ in network.named_parameters()]
    assert not [name for name in names if name.startswith(("encoder.head", "decoder.tail"))]
