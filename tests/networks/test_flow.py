import math

import numpy as np
import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.flow import Flow


def flow(channels, *, seed=0, trained=True, **options):
    torch.manual_seed(seed)
    found = Flow(channels, **{"steps": 4, **options}).double()
    if trained:  # a new one is the identity, but for the order of the channels
        for parameter in found.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return found


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_new_flow_is_a_normal_distribution():
    found, x = flow(6, trained=False), maps(3, 6, 2, 2)
    expected = 0.5 * x.square().sum(dim=1) + 3 * math.log(2 * math.pi)
    torch.testing.assert_close(found.scores(x), expected)
    assert float(found.scores(torch.zeros(1, 6, 1, 1)).detach()) == pytest.approx(
        3 * math.log(2 * math.pi)
    )
    losses = found.losses(x, None)
    torch.testing.assert_close(losses, expected.sum(dim=(1, 2)) / 24)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (5, {}),
        (6, {"kernels": (3, 1)}),
        (3, {"squeezes": 1, "hidden_ratio": 2.0}),
        (5, {"limit": "tanh"}),
    ],
)
def test_a_flow_is_inverted(channels, options):
    found, x = flow(channels, **options), maps(2, channels, 4, 4)
    z, _ = found(x)
    assert not torch.allclose(z.flatten(), x.flatten())
    torch.testing.assert_close(found.inverse(z), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 1, 1), {}),
        ((2, 3, 3), {"kernels": (3, 1)}),
        ((1, 4, 4), {"squeezes": 1}),
        ((4, 1, 1), {"limit": "tanh"}),
    ],
)
def test_the_determinant_is_that_of_autograd(shape, options):
    found, x = flow(shape[0], **options), maps(1, *shape)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: found(v.view(1, *shape))[0].flatten(), x
    )
    size = x.numel()
    expected = torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet
    assert abs(float(expected)) > 0.1
    torch.testing.assert_close(found(x)[1].sum(), expected)


def test_a_step_with_tanh_is_the_block_of_freia():
    found, x = flow(6, steps=1, clamp=1.9, limit="tanh"), maps(2, 6, 1, 1)
    step = found.steps[0]
    with torch.no_grad():
        step.log_scale.zero_()
        step.shift.zero_()
    kept, changed = x[:, step.order[:3]], x[:, step.order[3:]]
    outputs = 0.1 * step.network(kept)
    log_scale = 1.9 * torch.tanh(outputs[:, :3])
    z, determinant = found(x)
    torch.testing.assert_close(z[:, :3], kept)
    torch.testing.assert_close(z[:, 3:], changed * log_scale.exp() + outputs[:, 3:])
    torch.testing.assert_close(determinant, log_scale.sum(dim=1))


@pytest.mark.parametrize("limit", ["atan", "tanh"])
def test_log_scales_are_limited(limit):
    found, x = flow(4, clamp=0.1, steps=1, limit=limit), 1e6 * maps(1, 4, 1, 1)
    with torch.no_grad():
        found.steps[0].log_scale.zero_()
    assert float(found(x)[1].detach().abs().max()) <= 2 * 0.1


def test_places_of_1_x_1_convolutions_are_on_their_own():
    found, x = flow(4), maps(2, 4, 3, 3)
    alone = found.scores(x[:1, :, 1:2, 2:3])
    torch.testing.assert_close(found.scores(x)[:1, 1:2, 2:3], alone)


def test_the_probability_is_without_the_determinant():
    found, x = flow(4, probability=True), maps(2, 4, 3, 3)
    z, _ = found(x)
    torch.testing.assert_close(found.scores(x), -torch.exp(-z.square().mean(dim=1) / 2))


def test_noise_fills_the_gaps_of_pixels():
    found, x = flow(3, noise=2 / 256, squeezes=1), maps(2, 3, 4, 4)
    drawn = found.draw(x, np.random.default_rng(0))
    assert drawn.shape == x.shape
    torch.testing.assert_close(
        found.losses(x, drawn), found.losses(x + 2 / 256 * (drawn - 0.5), None)
    )
    assert flow(3).draw(x, np.random.default_rng(0)) is None


def test_one_channel_and_odd_maps_are_refused():
    with pytest.raises(DetectorError, match="at least two channels"):
        Flow(1, steps=1)
    with pytest.raises(DetectorError, match="maps of 3 × 3 cannot be divided by 2"):
        flow(3, squeezes=1)(maps(1, 3, 3, 3))
