"""Non-maximum suppression against brute force and the published cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.builders import make_heatmap
from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Microns, PixelMap, Size, Spacing
from wsiad.heatmaps.peaks import DEFAULT_RADIUS, find_peaks

CASES = Path(__file__).parents[3] / "shared" / "cases" / "nms"
MPP = 0.243
SPACING = Spacing(MPP, MPP)


def heatmap_of(scores, *, scale=64.0, spacing=SPACING, size=None, x=0.0, y=0.0):
    return make_heatmap(scores, PixelMap(x, y, scale, scale), size=size, spacing=spacing)


def brute_force(scores, threshold, near):
    """Take the largest (first in row-major order), clear what is near, repeat."""
    left = np.where(np.isnan(scores), -np.inf, scores.astype(np.float64))
    rows, columns = np.indices(scores.shape)
    found = []
    while left.max() > threshold:
        row, column = np.unravel_index(left.argmax(), left.shape)
        found.append((int(row), int(column)))
        left[near(rows - row, columns - column)] = -np.inf
    return found


def positions(detections, scale=64.0):
    return [(round(d.y / scale - 0.5), round(d.x / scale - 0.5)) for d in detections]


@pytest.mark.parametrize("levels", [0, 6])
@pytest.mark.parametrize("radius", [1, 2.5, 5])
def test_disc_equals_brute_force(levels, radius):
    rng = np.random.default_rng(7)
    scores = rng.normal(size=(41, 57)).astype(np.float32)
    if levels:  # many ties
        scores = np.round(scores * levels / 4).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    found = find_peaks(
        heatmap_of(scores), threshold=-0.5, radius=Microns(radius * 64 * MPP), suppression="disc"
    )
    expected = brute_force(scores, -0.5, lambda y, x: y**2 + x**2 <= radius**2 + 1e-9)
    assert positions(found) == expected
    assert [d.score for d in found] == [scores[place] for place in expected]


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_square_equals_brute_force(radius):
    rng = np.random.default_rng(8)
    scores = np.round(rng.normal(size=(37, 44)) * 2).astype(np.float32)
    found = find_peaks(
        heatmap_of(scores), threshold=0, radius=Microns(radius * 64 * MPP), suppression="square"
    )

    def near(y, x):
        return (y >= -radius) & (y < radius) & (x >= -radius) & (x < radius)

    assert positions(found) == brute_force(scores, 0, near)


@pytest.mark.parametrize("level", [(6, 12, "ncrf_level6_radius12"), (7, 6, "ncrf_level7_radius6")])
@pytest.mark.parametrize(
    "name", ["single", "two_close", "plateau", "edge", "threshold_exact", "random"]
)
def test_square_gives_the_published_points(name, level):
    if not CASES.exists():
        pytest.skip("the reference cases are not at hand")
    power, radius, key = level
    scores = np.load(CASES / f"{name}.npy", allow_pickle=False)
    expected = json.loads((CASES / "expected.json").read_text())["expected"][name][key]
    scale = float(2**power)
    found = find_peaks(
        heatmap_of(scores, scale=scale),
        threshold=0.5,
        radius=Microns(radius * scale * MPP),
        suppression="square",
    )
    points = {(d.x, d.y): d.score for d in found}
    assert points == pytest.approx({(x, y): p for p, x, y in expected}, abs=1e-5)
    assert len(found) == len(expected)
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)


def test_threshold_is_strict():
    scores = np.zeros((5, 5))
    scores[2, 2] = 0.5
    assert find_peaks(heatmap_of(scores), threshold=0.5) == []
    assert len(find_peaks(heatmap_of(scores), threshold=0.4999)) == 1


def test_the_default_radius_is_six_pixels_of_128():
    scores = np.zeros((1, 20))
    scores[0, 0], scores[0, 6], scores[0, 7] = 3, 2, 1
    found = find_peaks(heatmap_of(scores, scale=128.0), threshold=0.5, radius=DEFAULT_RADIUS)
    assert [d.score for d in found] == [3, 1]


def test_oblong_pixels_are_suppressed_by_distance():
    scores = np.zeros((1, 9))
    scores[0, 0], scores[0, 4], scores[0, 5] = 3, 2, 1
    wide = Spacing(MPP * 2, MPP)
    found = find_peaks(
        heatmap_of(scores, spacing=wide), threshold=0.5, radius=Microns(4.5 * 64 * MPP * 2)
    )
    assert [d.score for d in found] == [3, 1]


def test_the_limit_keeps_the_strongest():
    scores = np.random.default_rng(0).random((60, 60))
    everything = find_peaks(heatmap_of(scores), threshold=0.2)
    assert len(everything) > 7
    assert find_peaks(heatmap_of(scores), threshold=0.2, limit=7) == everything[:7]


def test_a_radius_beyond_the_map_leaves_one():
    scores = np.random.default_rng(0).random((30, 30))
    for name in ("disc", "square"):
        found = find_peaks(heatmap_of(scores), threshold=0, radius=Microns(1e9), suppression=name)
        assert len(found) == 1


def test_detections_never_lie_off_the_slide():
    """The last column sticks out by most of its width, the last row wholly."""
    scores = np.zeros((4, 4))
    scores[1, 3], scores[3, 0] = 2, 9
    heatmap = heatmap_of(scores, size=Size(3 * 64 + 10, 3 * 64))
    found = find_peaks(heatmap, threshold=1, radius=Microns(1))
    assert [(d.x, d.y, d.score) for d in found] == [(197.0, 96.0, 2.0)]


def regions_by_brute_force(scores, threshold, pool):
    """Grow each region pixel by pixel; its pixel nearest to the mean position."""
    left = {tuple(map(int, place)) for place in np.argwhere(scores > threshold)}
    found = []
    while left:
        region, waiting = [], [min(left)]
        left.discard(waiting[0])
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            near = {(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            waiting += near
            left -= near
        middle = np.mean(region, axis=0)
        centre = min((round(((np.array(p) - middle) ** 2).sum(), 9), p) for p in region)[1]
        value = pool([float(scores[place]) for place in region])
        found.append((-value, min(region), centre))
    return [(centre, -value) for value, _, centre in sorted(found)]


@pytest.mark.parametrize("name", ["regions-max", "regions-mean"])
@pytest.mark.parametrize("threshold", [0.3, 1.2])
def test_regions_equal_brute_force(name, threshold):
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=(40, 50)), 1).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    found = find_peaks(heatmap_of(scores), threshold=threshold, suppression=name)
    pool = max if name == "regions-max" else np.mean
    expected = regions_by_brute_force(scores, threshold, pool)
    assert len(expected) > 5
    strengths = np.array([d.score for d in found])
    np.testing.assert_allclose(strengths, [score for _, score in expected], atol=1e-9)
    assert sorted(positions(found)) == sorted(place for place, _ in expected)
    if name == "regions-max":  # means of equal value may differ by rounding
        assert positions(found) == [place for place, _ in expected]
    few = find_peaks(heatmap_of(scores), threshold=threshold, suppression=name, limit=3)
    assert few == found[:3]


def test_the_centre_of_a_crescent_lies_on_it():
    scores = np.zeros((9, 9), np.float32)
    scores[1:8, 1] = scores[1, 1:8] = scores[7, 1:8] = 1
    scores[7, 7] = 3
    found = find_peaks(heatmap_of(scores), threshold=0.5, suppression="regions-max")
    assert [(*positions([d])[0], d.score) for d in found] == [(4, 1, 3.0)]
    found = find_peaks(heatmap_of(scores), threshold=0.5, suppression="regions-mean")
    assert found[0].score == pytest.approx((18 + 3) / 19)


def test_regions_off_the_slide_and_empty_maps_give_nothing():
    scores = np.zeros((3, 3), np.float32)
    scores[2] = 5
    heatmap = heatmap_of(scores, size=Size(3 * 64, 2 * 64))
    assert find_peaks(heatmap, threshold=1, suppression="regions-max") == []
    nothing = heatmap_of(np.full((3, 3), np.nan))
    assert find_peaks(nothing, threshold=0, suppression="regions-mean") == []


@pytest.mark.parametrize("name", ["single", "two_close", "plateau", "edge", "threshold_exact"])
def test_regions_of_the_reference_maps_are_where_their_maxima_are(name):
    if not CASES.exists():
        pytest.skip("the reference cases are not at hand")
    scores = np.load(CASES / f"{name}.npy", allow_pickle=False)
    found = find_peaks(heatmap_of(scores), threshold=0.5, suppression="regions-max")
    expected = regions_by_brute_force(scores, 0.5, max)
    assert positions(found) == [place for place, _ in expected]
    assert found[0].score == pytest.approx(scores.max())


def test_no_candidates():
    assert find_peaks(heatmap_of(np.full((4, 4), np.nan)), threshold=-1e9) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": np.nan},
        {"threshold": 0, "radius": Microns(0)},
        {"threshold": 0, "radius": Microns(np.inf)},
        {"threshold": 0, "suppression": "ring"},
        {"threshold": 0, "limit": 0},
    ],
)
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        find_peaks(heatmap_of(np.zeros((2, 2))), **bad)
