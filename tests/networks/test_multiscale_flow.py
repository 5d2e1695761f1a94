import math

import numpy as np
import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.multiscale_flow import ActNorm, Glow


def glow(channels, *, trained=True, **options):
    torch.manual_seed(0)
    found = Glow(channels, **{"scales": 2, "steps": 2, "hidden": 4, **options}).double()
    if trained:  # of a new one, couplings are the same for all inputs and priors are standard
        for name, parameter in found.named_parameters():
            if "weight" not in name or "network" in name or "priors" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return found


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("channels", "options"), [(3, {}), (1, {"scales": 1}), (2, {"scales": 3, "steps": 1})]
)
def test_glow_is_inverted(channels, options):
    found, x = glow(channels, **options), maps(2, channels, 8, 8)
    numbers, _ = found(x)
    assert sum(z[0].numel() for z in numbers) == x[0].numel()
    torch.testing.assert_close(found.inverse(numbers), x, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((1, 4, 4), {}), ((3, 4, 4), {"steps": 1}), ((2, 4, 4), {"scales": 1})],
)
def test_the_likelihood_is_exact(shape, options):
    """The log determinant is that of the Jacobian by autograd."""
    found, x = glow(shape[0], **options), maps(1, *shape)

    def flat(v):
        return torch.cat([z.flatten() for z in found(v.view(1, *shape))[0]])

    jacobian = torch.autograd.functional.jacobian(flat, x).reshape(x.numel(), x.numel())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    logarithm = sum(one.sum() for one in found(x)[1])
    assert abs(float(expected)) > 0.1
    torch.testing.assert_close(logarithm, expected)
    density = 0.5 * flat(x).square().sum() + x.numel() / 2 * math.log(2 * math.pi) - expected
    torch.testing.assert_close(found.surprise(x).sum(), density)
    torch.testing.assert_close(found.losses(x, None)[0], density / x.numel())


def test_a_new_glow_is_normal_but_for_the_scale_of_its_couplings():
    """Every coupling begins with the scale σ(2), and rotations keep lengths."""
    found, x = glow(3, trained=False, scales=1, steps=1), maps(2, 3, 4, 4)
    scale = 1 / (1 + math.exp(-2))
    (z,), (logarithm,) = found(x)
    np.testing.assert_allclose(logarithm.detach(), 6 * math.log(scale), rtol=1e-5)
    lengths = (z * torch.tensor([1.0] * 6 + [1 / scale] * 6)[:, None, None]).square()
    torch.testing.assert_close(
        lengths.sum(dim=(1, 2, 3)), x.square().sum(dim=(1, 2, 3)), rtol=1e-5, atol=0
    )


def test_a_first_batch_normalises_the_activations():
    norm, x = ActNorm(3).double(), 5 + 2 * maps(7, 3, 4, 4)
    norm.begin(x)
    torch.testing.assert_close(norm(x).mean(dim=(0, 2, 3)), torch.zeros(3).double())
    np.testing.assert_allclose(norm(x).square().mean(dim=(0, 2, 3)).detach(), 1, rtol=1e-4)
    torch.testing.assert_close(norm.inverse(norm(x)), x)
    found, asked = glow(3, trained=False), 5 + 2 * maps(7, 3, 8, 8)
    before = found.losses(asked, None).mean()
    found.begin(asked, None)
    seen = []
    for steps in found.scales:
        for step in steps:
            step.norm.register_forward_hook(lambda _m, _x, y: seen.append(y))
    assert float((before - found.losses(asked, None).mean()).detach()) > 1
    assert len(seen) == 4
    for y in seen:
        torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(y.shape[1]).double())
        np.testing.assert_allclose(y.square().mean(dim=(0, 2, 3)).detach(), 1, rtol=1e-4)


def test_noise_fills_the_gaps_of_pixels():
    found, x = glow(3, noise=0.5), maps(2, 3, 8, 8)
    drawn = found.draw(x, np.random.default_rng(0))
    torch.testing.assert_close(found.losses(x, drawn), found.losses(x + 0.5 * (drawn - 0.5), None))
    assert glow(3).draw(x, np.random.default_rng(0)) is None


def test_maps_that_cannot_be_halved_are_refused():
    with pytest.raises(DetectorError, match="maps of 6 × 6 cannot be halved at 2 scales"):
        glow(3)(maps(1, 3, 6, 6))
