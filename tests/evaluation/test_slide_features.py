"""The 31 features of a heatmap by hand-written arithmetic, and the forest on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage, spatial, stats

from wsiad.evaluation.slide_classifier import NAMES, cross_validated_forest, slide_features

# Lengths of border pixels by their neighbours on the border: Benkrid et al., 2000.
STEPS = dict.fromkeys((5, 7, 15, 17, 25, 27), 1.0)
STEPS |= dict.fromkeys((21, 33), math.sqrt(2)) | dict.fromkeys((13, 23), (1 + math.sqrt(2)) / 2)


def grow(mask):
    """8-connected regions as arrays of (row, column)."""
    left = {tuple(map(int, place)) for place in np.argwhere(mask)}
    regions = []
    while left:
        waiting = [left.pop()]
        region = []
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            near = {(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            waiting += near
            left -= near
        regions.append(np.array(sorted(region)))
    return regions


def shape(region):
    """Area, perimeter, eccentricity, extent, solidity and longest axis of one region."""
    area = len(region)
    box = np.ptp(region, axis=0) + 1
    image = np.zeros(box + 2, bool)
    image[tuple((region - region.min(axis=0) + 1).T)] = True
    border = [
        (r, c)
        for r, c in np.argwhere(image)
        if not (image[r - 1, c] and image[r + 1, c] and image[r, c - 1] and image[r, c + 1])
    ]
    on = set(map(tuple, border))
    perimeter = 0.0
    for r, c in border:
        sides = sum((r + y, c + x) in on for y, x in ((0, 1), (1, 0), (0, -1), (-1, 0)))
        corners = sum((r + y, c + x) in on for y in (-1, 1) for x in (-1, 1))
        perimeter += STEPS.get(1 + 2 * sides + 10 * corners, 0.0)
    moments = np.cov(region.T, bias=True).reshape(2, 2)
    small, large = np.linalg.eigvalsh(moments).clip(0)
    eccentricity = math.sqrt(1 - small / large) if large else 0.0
    # The hull of the middles of the pixels' edges, and the pixels whose centre it holds.
    corners = np.concatenate([region + d for d in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))])
    planes = spatial.ConvexHull(corners).equations
    grid = np.argwhere(np.ones(box, bool)) + region.min(axis=0)
    hull = (grid @ planes[:, :2].T + planes[:, 2] <= 1e-9).all(axis=1).sum()
    return area, perimeter, eccentricity, area / box.prod(), area / hull, 4 * math.sqrt(large)


def five(values):
    values = np.array(values, float)
    if np.ptp(values) < 1e-9:
        return [values.max(), values.mean(), 0, 0, 0]
    return [
        values.max(),
        values.mean(),
        np.var(values),
        stats.skew(values),
        stats.kurtosis(values),
    ]


def by_hand(values, high, low):
    strong, weak = grow(values >= high), grow(values > low)
    if not strong:
        return [0.0] * 31
    shapes, weak_shapes = [shape(r) for r in strong], [shape(r) for r in weak]
    largest = max(weak_shapes, key=lambda found: found[0])
    pixels = sum(len(region) for region in strong)
    means = [values[tuple(region.T)].mean() for region in strong]
    features = [
        len(strong),
        pixels / np.isfinite(values).sum(),
        largest[0],
        largest[5],
        pixels,
        np.mean(means),
    ]
    for index, kind in ((0, shapes), (1, shapes), (2, shapes), (3, weak_shapes), (4, shapes)):
        features += five([found[index] for found in kind])
    return features


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thresholds", [(0.9, 0.5), (229 / 255, 127 / 255), (0.97, 0.97)])
def test_features_equal_hand_written_arithmetic(seed, thresholds):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(60, 80)), rng.uniform(0.5, 3))
    values = stats.rankdata(noise).reshape(noise.shape) / noise.size
    values[rng.random(values.shape) < 0.05] = np.nan
    values[:, :5] = np.nan
    found = slide_features(values, high=thresholds[0], low=thresholds[1])
    expected = by_hand(values, *thresholds)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert len(NAMES) == len(set(NAMES)) == len(found) == 31
    assert found[0] > 1


def test_one_square_has_known_features():
    values = np.full((20, 20), 0.2)
    values[:2] = np.nan
    values[5:9, 5:9] = 0.95
    found = dict(zip(NAMES, slide_features(values), strict=True))
    assert found["regions high"] == 1
    assert found["area high / tissue"] == 16 / 360
    assert found["area of largest region low"] == found["pixels high"] == 16
    # 4 sqrt of the variance of 0, 1, 2, 3.
    assert found["longest axis of largest region low"] == pytest.approx(4 * math.sqrt(1.25))
    assert found["mean of region means high"] == pytest.approx(0.95)
    assert found["perimeter high mean"] == pytest.approx(12)
    assert found["eccentricity high max"] == pytest.approx(0)
    assert found["extent low mean"] == found["solidity high mean"] == 1
    assert all(found[f"area high {name}"] == 0 for name in ("variance", "skewness", "kurtosis"))


def test_thresholds_are_inclusive_above_and_exclusive_below():
    values = np.zeros((9, 9))
    values[4, 4] = 0.9
    values[0, 0] = 0.5
    found = slide_features(values)
    assert found[0] == 1
    assert found[2] == 1  # 0.5 is not more than 0.5
    assert not slide_features(np.full((5, 5), 0.8999)).any()
    assert not slide_features(np.full((5, 5), np.nan)).any()


def test_diagonal_pixels_are_one_region():
    values = np.eye(4)
    assert slide_features(values)[0] == 1


# The forest


def study(seed, *, signal):
    rng = np.random.default_rng(seed)
    tumour = np.arange(40) < 15
    features = rng.normal(size=(40, 31))
    features[tumour, 4] += signal
    return features, tumour


def test_the_forest_finds_what_is_there_and_nothing_else():
    result = cross_validated_forest(*study(0, signal=5), seed=0, trees=50)
    assert result.slide_auc.value > 0.95
    assert result.folds == 5
    areas = [
        cross_validated_forest(*study(i, signal=0), seed=0, trees=30).slide_auc.value
        for i in range(4)
    ]
    # It would be 1 if a forest had seen the slides that it judges.
    assert 0.25 < np.mean(areas) < 0.7


def test_every_slide_is_judged_by_a_forest_that_has_not_seen_it():
    features, tumour = study(1, signal=0)
    before = cross_validated_forest(features, tumour, seed=3, trees=30).probabilities
    again = cross_validated_forest(features, tumour, seed=3, trees=30).probabilities
    np.testing.assert_array_equal(before, again)
    # A label that nothing else explains: were it learnt, its own probability would be high.
    features[:] = 0
    features[0, 0] = 9
    assert cross_validated_forest(features, tumour, seed=3, trees=30).probabilities[0] < 0.6


def test_few_slides_give_few_folds_or_nothing():
    features = np.zeros((5, 31))
    tumour = np.array([True, True, False, False, False])
    assert cross_validated_forest(features, tumour, seed=0, trees=5).folds == 2
    alone = cross_validated_forest(features[1:], tumour[1:], seed=0)
    assert alone.probabilities is None
    assert "fewer than two slides" in alone.slide_auc.undefined
    values = alone.as_json(["a", "b", "c", "d"], (0.9, 0.5))
    assert values["slide_auc"]["value"] is None
    assert values["note"].startswith("supervised")
