"""Simplified outlines: near the old ones, valid, with their holes, of about their area."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from support.builders import make_heatmap
from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Box, Microns, PixelMap, Size, Spacing
from wsiad.heatmaps.outline_simplification import default_tolerance, simplify
from wsiad.heatmaps.regions import find_regions

SPACING = Spacing(0.25, 0.4)
BOUNDS = Box(3.0, 7.0, 9000.0, 9000.0)


def heatmap_of(scores):
    placement = PixelMap(12.25, 13.5, 64.3, 40.2)
    return make_heatmap(scores, placement, size=Size(9500, 9500), bounds=BOUNDS, spacing=SPACING)


def regions_of(scores, threshold=0.5):
    return find_regions(heatmap_of(scores), threshold=threshold, limit=10_000).kept


def in_um(polygon):
    return shapely.transform(polygon, lambda p: p * (SPACING.x, SPACING.y))


def blobs(seed, shape=(60, 70)):
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [blobs, lambda s: np.random.default_rng(s).random((40, 40))])
def test_an_outline_stays_within_its_tolerance_and_valid(make, seed, factor):
    tolerance = Microns(factor * default_tolerance(heatmap_of(make(seed))))
    for region in regions_of(make(seed)):
        drawn = simplify(region, tolerance=tolerance, spacing=SPACING, bounds=BOUNDS)
        assert drawn.tolerance in (0, tolerance / 2, tolerance)
        old, new = in_um(region.polygon), in_um(drawn.polygon)
        assert new.is_valid
        assert len(new.interiors) == len(old.interiors)
        for a, b in zip(
            (old.exterior, *old.interiors), (new.exterior, *new.interiors), strict=True
        ):
            assert a.hausdorff_distance(b) <= drawn.tolerance + 1e-6
        assert new.area == pytest.approx(old.area, rel=0.05)
        kept = ("area", "max_score", "mean_score")
        assert [getattr(drawn, k) for k in kept] == [getattr(region, k) for k in kept]


def test_steps_of_a_slanting_outline_go_and_small_regions_stay_as_they_are():
    image = np.zeros((80, 80))
    y, x = np.mgrid[:80, :80]
    image[(np.abs(x - 40) + np.abs(y - 40)) <= 30] = 1  # a diamond: steps all around
    image[2, 2] = 1
    big, small = sorted(regions_of(image), key=lambda region: -region.area)
    tolerance = default_tolerance(heatmap_of(image))
    drawn = simplify(big, tolerance=tolerance, spacing=SPACING, bounds=BOUNDS)
    corners = [shapely.get_num_coordinates(r.polygon) for r in (big, drawn)]
    assert corners[1] < corners[0] / 4
    assert simplify(small, tolerance=tolerance, spacing=SPACING, bounds=BOUNDS) == small


def test_no_tolerance_is_the_outline_itself():
    (region, *_) = regions_of(blobs(0))
    assert simplify(region, tolerance=Microns(0.0), spacing=SPACING, bounds=BOUNDS) is region
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError):
            simplify(region, tolerance=Microns(bad), spacing=SPACING, bounds=BOUNDS)


def test_an_outline_of_very_many_corners_is_left(monkeypatch):
    big = max(regions_of(blobs(0)), key=lambda region: region.area)
    tolerance = default_tolerance(heatmap_of(blobs(0)))
    assert simplify(big, tolerance=tolerance, spacing=SPACING, bounds=BOUNDS) != big
    corners = shapely.get_num_coordinates(big.polygon)
    monkeypatch.setattr("wsiad.heatmaps.outline_simplification._MOST_CORNERS", corners - 1)
    assert simplify(big, tolerance=tolerance, spacing=SPACING, bounds=BOUNDS) is big
