"""Parts of a picture: a pyramid loses nothing, and the map of nuclei shows haematoxylin alone."""

import numpy as np
import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.image_parts import (
    check_scales,
    collapsed,
    enlarged,
    gaussian_pyramid,
    halved,
    laplacian_pyramid,
    nuclei_difference,
    nuclei_map,
)
from wsiad.stain.profile import reference_profile

STAINS = reference_profile("macenko").stains


def images(seed=0, edge=32):
    return torch.rand(2, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stained(haematoxylin, eosin):
    """Return an image of one colour with shares of the reference's concentrations."""
    density = haematoxylin * STAINS.strength[0] * np.array(STAINS.haematoxylin)
    density = density + eosin * STAINS.strength[1] * np.array(STAINS.eosin)
    colour = torch.from_numpy(np.exp(-density)).float() * 2 - 1
    return colour.view(1, 3, 1, 1).expand(1, 3, 4, 4)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_bands_make_up_the_images_of_all_scales(scales):
    x = images()
    bands = laplacian_pyramid(x, scales)
    assert [band.shape[-1] for band in bands] == [32, 16, 8][:scales]
    for found, expected in zip(collapsed(bands), gaussian_pyramid(x, scales), strict=True):
        torch.testing.assert_close(found, expected)


def test_one_colour_is_in_the_coarsest_band_alone():
    *finer, coarsest = laplacian_pyramid(torch.full((1, 3, 32, 32), 0.3), 3)
    assert all(band.abs().max() < 1e-6 for band in finer)
    torch.testing.assert_close(coarsest, torch.full((1, 3, 8, 8), 0.3))


def test_halving_blurs_by_the_binomial_filter():
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 8, 8] = 1
    found = halved(x)[0, 0]
    row = torch.zeros(8)
    row[3:6] = torch.tensor([1, 6, 1]) / 16
    torch.testing.assert_close(found, row[:, None] * row[None])
    assert enlarged(halved(x)).shape == x.shape


@pytest.mark.parametrize("edge", [36, 16])
def test_an_image_that_cannot_be_halved_is_refused(edge):
    with pytest.raises(DetectorError, match=f"{edge} px cannot be halved for 4 scales"):
        check_scales(edge, 4)
    check_scales(40, 4)


@pytest.mark.parametrize(
    ("haematoxylin", "eosin", "expected"),
    [(0, 0, 0), (0.5, 0, 0.5), (1, 0, 1), (0, 1, 0), (0.25, 0.5, 0.25), (1.2, 0, 1)],
)
def test_the_map_of_nuclei_is_the_concentration_of_haematoxylin(haematoxylin, eosin, expected):
    found = nuclei_map(stained(haematoxylin, eosin))
    assert found.shape == (1, 1, 4, 4)
    torch.testing.assert_close(found, torch.full_like(found, expected), atol=1e-5, rtol=0)


def test_the_difference_of_nuclei_does_not_see_eosin():
    first, second = stained(0.5, 0.2), stained(0.75, 0.6)
    found = nuclei_difference(first, second)
    torch.testing.assert_close(found, torch.full((1, 4, 4), 0.25), atol=1e-5, rtol=0)
    assert nuclei_difference(stained(0.5, 0.2), stained(0.5, 0.6)).max() < 1e-5


def test_values_beyond_the_range_are_those_of_its_ends():
    x = images() * 3
    assert torch.equal(nuclei_map(x), nuclei_map(x.clamp(-1, 1)))
