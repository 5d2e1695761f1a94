import numpy as np
import pytest
import torch

from wsiad.networks.energy_model import EnergyModel


def energy(shape=(3, 1, 1), *, seed=0, **options):
    torch.manual_seed(seed)
    found = EnergyModel(shape, **{"widths": (5,), **options}).double()
    torch.nn.init.normal_(found.bias)
    return found


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_layers_the_reconstruction_is_the_bias():
    found, x = energy(widths=(), reconstruction=True), maps(4, 3, 1, 1)
    torch.testing.assert_close(found.reconstructed(x), found.bias.expand(4, 3, 1, 1))
    torch.testing.assert_close(found.scores(x), (x - found.bias).square().sum(dim=1))
    torch.testing.assert_close(found.energy(x), 0.5 * (x - found.bias).square().sum(dim=1))


def test_one_layer_reads_back_with_the_same_weights():
    """x − ∇E = b + Wᵀσ(Wx + c)."""
    found, x = energy(), maps(4, 3, 1, 1)
    weight, c = found.layers[0].weight[:, :, 0, 0], found.layers[0].bias
    v, b = x[:, :, 0, 0], found.bias[:, 0, 0]
    expected = b + torch.sigmoid(v @ weight.T + c) @ weight
    torch.testing.assert_close(found.reconstructed(x)[:, :, 0, 0], expected, rtol=0, atol=1e-12)
    hidden = torch.nn.functional.softplus(v @ weight.T + c).sum(dim=1)
    torch.testing.assert_close(found.energy(x)[:, 0, 0], 0.5 * (v - b).square().sum(dim=1) - hidden)


SHAPES = [
    {"widths": (4, 3), "kernel": 3},
    {"widths": (4,), "kernel": 3, "stride": 2},
    {"widths": (4,), "kernel": 3, "stride": 2, "dense": 6},
]


@pytest.mark.parametrize("options", SHAPES)
def test_the_gradient_is_that_of_differences(options):
    found, x = energy((2, 8, 8), **options), maps(1, 2, 8, 8)
    away = maps(1, 2, 8, 8, seed=1)
    with torch.no_grad():
        difference = (found._total(x + 1e-5 * away) - found._total(x - 1e-5 * away)) / 2e-5
        gradient = x - found.reconstructed(x)
    torch.testing.assert_close((gradient * away).sum()[None], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", SHAPES)
def test_places_add_up_to_the_energy(options):
    found, x = energy((2, 8, 8), **options), maps(3, 2, 8, 8)
    torch.testing.assert_close(found.energy(x).sum(dim=(1, 2)), found._total(x))


def test_training_removes_noise_and_scoring_needs_no_gradient():
    found, x = energy((2, 4, 4), widths=(4,), kernel=3, noise=0.5), maps(3, 2, 4, 4)
    drawn = found.draw(x, np.random.default_rng(0))
    losses = found.losses(x, drawn)
    expected = (x - found.reconstructed(x + 0.5 * drawn)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())
    with torch.inference_mode():
        assert torch.equal(found.losses(x, drawn), losses.detach())


def test_more_noise_than_signal_is_learnt_away():
    """The posterior mean of N(0, s²) under noise of deviation 1 shrinks towards the mean."""
    torch.manual_seed(0)
    found = EnergyModel((1, 1, 1), widths=())
    optimiser = torch.optim.Adam(found.parameters(), lr=0.05)
    rng = np.random.default_rng(0)
    x = torch.full((64, 1, 1, 1), 3.0)
    for _ in range(200):
        optimiser.zero_grad()
        found.losses(x, found.draw(x, rng)).mean().backward()
        optimiser.step()
    assert float(found.bias) == pytest.approx(3, abs=0.01)
