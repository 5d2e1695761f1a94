"""Simplex noise: range, smoothness, isotropy, octaves, and the same noise from the same seed."""

import numpy as np
import pytest
import torch

from wsiad.networks.simplex_noise import simplex, simplex_images


def field(edge=256, step=0.05, seed=3, turn=0.0, count=1):
    """One field sampled on a grid that is turned by an angle."""
    y, x = torch.meshgrid(*[torch.arange(edge).float() * step] * 2, indexing="ij")
    sine, cosine = np.sin(turn), np.cos(turn)
    seeds = torch.arange(seed, seed + count)[:, None, None]
    return simplex(x * cosine - y * sine + 50, x * sine + y * cosine + 50, seeds)


def test_values_are_within_one_and_vary_as_stated():
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.uniform(0, 2000, 400_000).astype(np.float32)) for _ in range(2))
    found = simplex(x, y, torch.tensor([7]))
    assert found.abs().max() <= 1
    assert found.abs().max() > 0.95
    assert abs(float(found.mean())) < 0.01
    assert float(found.var()) == pytest.approx(0.2904, abs=0.004)


def test_it_is_continuous_and_zero_at_corners():
    fine = field(edge=200, step=1e-3)
    assert (fine[:, 1:] - fine[:, :-1]).abs().max() < 0.02
    assert simplex(torch.zeros(1), torch.zeros(1), torch.tensor([1])).abs().max() < 1e-6


def test_it_looks_alike_in_all_directions():
    """Differences over a distance are as large along either axis and along diagonals."""
    found = field(edge=200, step=0.1, count=12)
    along, across = found[:, :, 4:] - found[:, :, :-4], found[:, 4:] - found[:, :-4]
    slanted = field(edge=200, step=0.1, count=12, turn=np.pi / 4)
    ways = [
        part.square().mean() for part in (along, across, slanted[:, :, 4:] - slanted[:, :, :-4])
    ]
    assert max(ways) / min(ways) < 1.1


def test_fields_of_other_seeds_are_independent():
    found = field(edge=128, step=0.5, count=2)
    first, second = (one - one.mean() for one in found)
    assert abs(float((first * second).mean() / (first.std() * second.std()))) < 0.05
    assert torch.equal(field(seed=5), field(seed=5))


def test_octaves_have_variance_one_and_add_finer_structures():
    def drawn(octaves, decay=0.8):
        rng = np.random.default_rng(1)
        return simplex_images((40, 24, 24), rng, frequency=1 / 16, octaves=octaves, decay=decay)

    one, three = drawn(1), drawn(3)
    for found in (one, three):
        assert found.shape == (40, 24, 24)
        assert float(found.square().mean()) == pytest.approx(1, abs=0.15)
    rough = [float((f[:, 1:] - f[:, :-1]).square().mean()) for f in (one, three)]
    assert rough[1] > 3 * rough[0]
    torch.testing.assert_close(drawn(3, decay=1e-6), one, atol=1e-4, rtol=0)
