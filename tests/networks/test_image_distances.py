"""Distances of images by pixel have the values that formulas and another library give."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from wsiad.networks.image_distances import (
    absolute,
    dissimilarity,
    edge_difference,
    mean_filtered,
    pooled,
    squared,
)

ALL = [absolute, squared, dissimilarity, edge_difference]
C1 = 0.01**2


def image(seed, edge=32, count=2):
    made = torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed))
    return made.double() * 2 - 1


def constant(value, edge=32):
    return torch.full((1, 3, edge, edge), value, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("distance", ALL)
def test_an_image_has_no_distance_to_itself(distance):
    x = image(1)
    found = distance(x, x.clone())
    assert found.shape == (2, 32, 32)
    assert found.abs().max() < 1e-9


def test_absolute_and_squared_by_hand():
    x, y = constant(0.25), constant(0.75)  # −0.5 and 0.5
    assert absolute(x, y).unique().item() == pytest.approx(1)
    y[:, 1] = x[:, 1]
    assert absolute(x, y).unique().item() == pytest.approx(2 / 3)
    assert squared(x, y * 2).unique().numpy() == pytest.approx((1.5**2 * 2 + 0.5**2) / 3)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (0.0, 1.0), (0.5, 0.5), (0.9, 0.1)])
def test_ssim_of_two_constants_is_that_of_their_light(a, b):
    found = dissimilarity(constant(a), constant(b))
    expected = 1 - (2 * a * b + C1) / (a * a + b * b + C1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_ssim_is_that_of_another_library_within_the_border():
    x, y = image(1, 40, 1), image(2, 40, 1)
    y = 0.5 * x + 0.5 * y
    _, other = structural_similarity(
        (x[0].permute(1, 2, 0).numpy() + 1) / 2,
        (y[0].permute(1, 2, 0).numpy() + 1) / 2,
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    inner = slice(5, -5)
    found = 1 - dissimilarity(x, y)[0, inner, inner].numpy()
    np.testing.assert_allclose(found, other.mean(axis=2)[inner, inner], rtol=1e-6)


def test_values_beyond_a_picture_are_clamped_for_ssim():
    x = constant(1.0)
    assert dissimilarity(x * 1.7, x).abs().max() < 1e-12


def test_images_that_are_too_small_for_ssim_are_refused():
    with pytest.raises(ValueError, match="too small for SSIM"):
        dissimilarity(image(1, 4), image(2, 4))


def test_edges_of_constants_are_alike_whatever_their_colour():
    assert edge_difference(constant(0.1), constant(0.9)).abs().max() < 1e-9


def test_edge_similarity_by_hand():
    """A ramp of slope s per pixel has the gradient 2 s everywhere (inside), a flat image has 0."""
    slope = 0.01
    ramp = (torch.arange(16) * slope).double().expand(1, 3, 16, 16) * 2 - 1
    found = edge_difference(ramp, constant(0.5, 16), scales=1)
    expected = 1 - 0.0026 / ((2 * slope) ** 2 + 0.0026)
    np.testing.assert_allclose(found[0, 2:-2, 2:-2].numpy(), expected, rtol=1e-3)


def test_mean_over_scales_is_the_mean_of_the_map():
    x, y = image(1), image(2)
    scales = [
        edge_difference(a, b, scales=1).mean()
        for factor in (1, 2, 4)
        for a, b in [tuple(torch.nn.functional.avg_pool2d(i, factor) for i in (x, y))]
    ]
    found = edge_difference(x, y, scales=3).mean()
    torch.testing.assert_close(found, torch.stack(scales).mean())


@pytest.mark.parametrize("distance", ALL)
def test_distances_have_finite_slopes(distance):
    x = torch.cat([image(1, count=1), constant(0.5)]).requires_grad_()
    distance(x, torch.cat([image(2, count=1), constant(0.5)])).mean().backward()
    assert torch.isfinite(x.grad).all()


def test_filter_and_places_by_hand():
    maps = torch.zeros(1, 8, 8)
    maps[0, 2, 3] = 9.0
    found = mean_filtered(maps, 3)
    assert found[0, 1:4, 2:5].unique().item() == pytest.approx(1)
    assert found.sum().item() == pytest.approx(9)
    assert torch.equal(mean_filtered(maps, 1), maps)
    places = pooled(maps, 2)
    assert places[0].tolist() == [[pytest.approx(9 / 16), 0], [0, 0]]
    assert mean_filtered(torch.ones(1, 8, 8), 21).unique().item() == pytest.approx(1)
