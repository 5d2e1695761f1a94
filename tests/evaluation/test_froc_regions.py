"""Lesions of a mask: merging, holes, isolated tumour cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from wsiad.evaluation.matching import evaluation_mask

LEVEL5_UM = 0.243 * 32


def naive(tumour, pixel_um):
    """The same on the whole mask at once, as the official scripts do it."""
    near = ndimage.distance_transform_edt(~tumour) < 75 / (pixel_um * 2)
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    axes = [region.axis_major_length for region in measure.regionprops(labels)]
    return labels, axes


def discs(shape, *circles):
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, dtype=bool)
    for row, column, radius in circles:
        mask |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return mask


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pixel_um", [LEVEL5_UM, 1.4, 3.1, 31.0, 100.0])
def test_working_around_tumour_only_changes_nothing(seed, pixel_um):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((240, 360)), rng.uniform(1, 6))
    tumour = noise > np.quantile(noise, rng.uniform(0.97, 0.999))
    tumour[rng.integers(0, 240, 5), rng.integers(0, 360, 5)] = True
    tumour[0, :3] = tumour[-1, -1] = True  # at the border, where a hole may be open
    labels, axes = naive(tumour, pixel_um)
    found = evaluation_mask(tumour, pixel_um=pixel_um)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.axes_px, axes, rtol=1e-9)
    assert len(axes) > (pixel_um > 5)  # where widening does not make them one


def test_a_lesion_within_the_hole_of_another_belongs_to_it():
    ring = discs((300, 300), (150, 150, 120)) & ~discs((300, 300), (150, 150, 100))
    tumour = ring | discs((300, 300), (150, 150, 10))
    labels, _ = naive(tumour, LEVEL5_UM)
    found = evaluation_mask(tumour, pixel_um=LEVEL5_UM)
    np.testing.assert_array_equal(found.labels, labels)
    assert len(found.axes_px) == 1
    assert found.labels[150, 110] == 1


def test_a_gap_of_eight_pixels_merges_and_one_of_nine_does_not():
    tumour = np.zeros((80, 200), dtype=bool)
    tumour[20:60, 10:50] = tumour[20:60, 58:98] = True
    tumour[20:60, 107:147] = True
    assert len(evaluation_mask(tumour, pixel_um=LEVEL5_UM).axes_px) == 2


def test_the_axis_after_widening_tells_isolated_tumour_cells():
    # Known axes of widened discs of radius 3, 8, 12, 13, 14 and 20 pixels.
    radii = (3, 8, 12, 13, 14, 20)
    tumour = discs((100, 700), *((50, 60 + 110 * i, r) for i, r in enumerate(radii)))
    found = evaluation_mask(tumour, pixel_um=LEVEL5_UM)
    by_column = sorted(
        (int(np.flatnonzero((found.labels == n).any(axis=0))[0]), n, axis)
        for n, axis in enumerate(found.axes_px, start=1)
    )
    axes = [axis for _, _, axis in by_column]
    np.testing.assert_allclose(axes, [15.0, 24.7, 32.5, 34.77, 36.69, 48.8], atol=0.06)
    assert found.itc == {number for _, number, axis in by_column if axis < 275 / LEVEL5_UM}
    assert found.lesions == 2


def test_a_mask_without_tumour_has_no_regions():
    found = evaluation_mask(np.zeros((40, 50), dtype=bool), pixel_um=LEVEL5_UM)
    assert found.axes_px == ()
    assert found.lesions == 0
    assert not found.labels.any()
    assert evaluation_mask(np.zeros((0, 0), dtype=bool), pixel_um=1.0).lesions == 0


def test_the_tumour_of_a_large_mask_is_that_of_its_neighbourhood():
    tumour = np.zeros((6250, 6250), dtype=bool)  # level 5 of 200,000 pixels to a side
    tumour[3000:3100, 3000:3100] = True
    found = evaluation_mask(tumour, pixel_um=LEVEL5_UM)
    near = np.s_[2900:3200, 2900:3200]
    alone = evaluation_mask(tumour[near], pixel_um=LEVEL5_UM)
    np.testing.assert_array_equal(found.labels[near], alone.labels)
    assert np.count_nonzero(found.labels) == np.count_nonzero(alone.labels)
    assert found.axes_px == alone.axes_px
    assert found.lesions == 1


@pytest.mark.filterwarnings("ignore:.*major_axis_length.*:FutureWarning")
def test_regions_agree_with_monai():
    utils = pytest.importorskip("monai.apps.pathology.utils", reason="MONAI is not installed")
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.standard_normal((200, 260)), 4)
    tumour = noise > np.quantile(noise, 0.93)
    labels = utils.compute_multi_instance_mask(tumour.astype(int), 75 / (LEVEL5_UM * 2))
    found = evaluation_mask(tumour, pixel_um=LEVEL5_UM)
    np.testing.assert_array_equal(found.labels, labels)
    cells = utils.compute_isolated_tumor_cells(labels, 275 / LEVEL5_UM)
    assert found.itc == set(cells)
    assert cells
    assert found.lesions
