"""Regions against rasterising their polygons back and an independent union of boxes."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy import ndimage

from support.builders import make_heatmap
from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Box, PixelMap, Spacing, SquareMicrons
from wsiad.heatmaps.regions import find_regions

SPACING = Spacing(0.25, 0.5)


def heatmap_of(scores, *, bounds=None, x=12.25, y=-3.5, scale_x=10.5, scale_y=7.25):
    bounds = bounds or Box(-1e6, -1e6, 2e6, 2e6)
    return make_heatmap(scores, PixelMap(x, y, scale_x, scale_y), bounds=bounds, spacing=SPACING)


def union_of_pixels(mask, placement):
    rows, columns = np.nonzero(mask)
    x, y = placement.to_level0(columns.astype(float), rows.astype(float))
    return shapely.union_all(
        shapely.box(x, y, x + placement.scale_x, y + placement.scale_y)
    ).normalize()


@pytest.mark.parametrize("density", [0.2, 0.5, 0.59, 0.7, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_union_of_pixels(seed, density):
    """Noise is the hardest outline: holes in holes, corners that touch."""
    scores = np.random.default_rng(seed).random((31, 27))
    heatmap = heatmap_of(scores)
    threshold = 1 - density
    found = find_regions(heatmap, threshold=threshold, limit=10_000)
    labels, count = ndimage.label(heatmap.scores > threshold)
    assert len(found.kept) == count
    assert found.left_out == 0
    by_area = {}
    for i in range(1, count + 1):
        expected = union_of_pixels(labels == i, heatmap.placement)
        by_area[expected.centroid.wkt, round(expected.area, 3)] = (expected, labels == i)
    for region in found.kept:
        polygon = region.polygon
        assert polygon.is_valid
        assert polygon.area > 0
        expected, mask = by_area.pop(
            min(
                by_area,
                key=lambda key: by_area[key][0].symmetric_difference(polygon).area,
            )
        )
        assert polygon.symmetric_difference(expected).area == pytest.approx(0, abs=1e-6)
        assert len(polygon.interiors) == len(expected.interiors)
        assert region.max_score == pytest.approx(heatmap.scores[mask].max())
        assert region.mean_score == pytest.approx(heatmap.scores[mask].mean(), rel=1e-6)
        pixel_um2 = 10.5 * 0.25 * 7.25 * 0.5
        assert region.area == pytest.approx(mask.sum() * pixel_um2)
    assert not by_area


def test_vertices_are_corners_on_pixel_edges_only():
    scores = np.zeros((6, 6))
    scores[1:5, 1:5] = 1
    scores[2, 2] = 0
    heatmap = heatmap_of(scores, x=100, y=200, scale_x=8, scale_y=8)
    (region,) = find_regions(heatmap, threshold=0.5).kept
    assert shapely.get_num_coordinates(region.polygon) == 5 + 5
    assert region.polygon.exterior.is_closed
    assert region.polygon.bounds == (108, 208, 140, 240)
    assert region.polygon.interiors[0].bounds == (116, 216, 124, 224)


@pytest.mark.parametrize(
    "picture",
    [
        # Two gaps that touch in a corner; a gap that touches the outside in a corner.
        ["#####", "#.###", "##.##", "#####"],
        ["#####", "###.#", "##.##", "#####"],
        ["####", "#.##", "##.#", "###."],
        [".###", "#.##", "####"],
        ["###.", "##.#", "####"],
        ["##.##", "#...#", "##.##", "#####"],
    ],
)
def test_corners_that_touch_give_valid_polygons(picture):
    scores = np.array([[character == "#" for character in line] for line in picture], float)
    heatmap = heatmap_of(scores)
    count = ndimage.label(scores)[1]
    found = find_regions(heatmap, threshold=0.5)
    assert len(found.kept) == count
    whole = shapely.union_all([region.polygon for region in found.kept])
    assert all(region.polygon.is_valid for region in found.kept)
    assert whole.symmetric_difference(union_of_pixels(scores > 0, heatmap.placement)).area < 1e-9


def test_pixels_that_touch_in_a_corner_are_apart():
    assert len(find_regions(heatmap_of([[1, 0], [0, 1]]), threshold=0.5).kept) == 2


def test_sorted_by_strength_and_limited():
    scores = np.zeros((3, 9))
    scores[0, 0], scores[0, 2], scores[0, 4:6], scores[0, 7] = 3, 5, 5, 4
    found = find_regions(heatmap_of(scores), threshold=1, limit=3)
    assert [(r.max_score, round(r.area / (10.5 * 0.25 * 7.25 * 0.5))) for r in found.kept] == [
        (5, 2),
        (5, 1),
        (4, 1),
    ]
    assert found.left_out == 1


def test_small_regions_are_neither_kept_nor_left_out():
    scores = np.zeros((3, 9))
    scores[0, 0], scores[0, 4:6] = 9, 5
    pixel = 10.5 * 0.25 * 7.25 * 0.5
    found = find_regions(heatmap_of(scores), threshold=1, min_area=SquareMicrons(1.5 * pixel))
    assert [region.max_score for region in found.kept] == [5]
    assert found.left_out == 0


def test_clipped_to_the_bounds():
    """Bounds cut through columns and rows; pixels beyond do not join what is within."""
    scores = np.ones((6, 6))
    scores[2, :4] = 0  # joined on the right only, beyond the bounds
    heatmap = heatmap_of(scores, x=0, y=0, scale_x=10, scale_y=10, bounds=Box(13, 5, 27 - 0.4, 50))
    found = find_regions(heatmap, threshold=0.5)
    boxes = sorted(region.polygon.bounds for region in found.kept)
    assert boxes == [(13, 5, 39.6, 20), (13, 30, 39.6, 55)]
    for region in found.kept:
        assert region.polygon.is_valid
        assert region.area == pytest.approx(region.polygon.area * 0.25 * 0.5)


def test_slivers_at_the_bounds_are_left_aside():
    heatmap = heatmap_of(
        np.ones((2, 3)), x=0, y=0, scale_x=10, scale_y=10, bounds=Box(0, 0, 20.3, 20)
    )
    (region,) = find_regions(heatmap, threshold=0.5).kept
    assert region.polygon.bounds == (0, 0, 20, 20)


def test_unscored_and_equal_to_the_threshold_is_nothing():
    scores = np.full((4, 4), np.nan)
    scores[0, 0] = 0.5
    found = find_regions(heatmap_of(scores), threshold=0.5)
    assert found.kept == ()
    assert found.left_out == 0


@pytest.mark.parametrize("bad", [{"threshold": np.nan}, {"threshold": 0, "limit": 0}])
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        find_regions(heatmap_of(np.zeros((2, 2))), **bad)
