"""Paired differences against brute force, and as often significant as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from wsiad.evaluation.auc import TilePool, delong, slide_weights
from wsiad.evaluation.comparison import (
    auc_difference,
    bootstrap_p,
    delong_pair,
    froc_differences,
    tile_difference,
)
from wsiad.evaluation.froc import OPERATING_POINTS, Pool
from wsiad.evaluation.matching import PROTOCOLS, SlideHits

V1, V2 = PROTOCOLS["camelyon16-2016"], PROTOCOLS["camelyon16-dataset"]


def paired_scores(seed, m=14, n=19, *, digits=1):
    """Scores of two results that share what is hard about a slide, with ties."""
    rng = np.random.default_rng(seed)
    tumour, normal = rng.normal(0.8, 1, m), rng.normal(0, 1, n)
    return tuple(
        np.round(np.array([c + rng.normal(0, s, len(c)) for s in (0.3, 0.9)]), digits)
        for c in (tumour, normal)
    )


def brute_force(positive, negative):
    """DeLong's S10, S01 and S over all pairs, by loops as the paper's sums stand."""
    k, m, n = len(positive), positive.shape[1], negative.shape[1]
    psi = np.array(
        [
            [[1.0 if p > q else 0.5 if p == q else 0.0 for q in negative[r]] for p in positive[r]]
            for r in range(k)
        ]
    )
    theta = psi.mean(axis=(1, 2))
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    s = np.zeros((k, k))
    for r in range(k):
        for t in range(k):
            s10 = sum((v10[r][i] - theta[r]) * (v10[t][i] - theta[t]) for i in range(m)) / (m - 1)
            s01 = sum((v01[r][j] - theta[r]) * (v01[t][j] - theta[t]) for j in range(n)) / (n - 1)
            s[r, t] = s10 / m + s01 / n
    return theta, s


@pytest.mark.parametrize("digits", [0, 1, 6])
@pytest.mark.parametrize("seed", range(6))
def test_covariance_and_test_by_brute_force(seed, digits):
    positive, negative = paired_scores(seed, digits=digits)
    areas, covariance = delong_pair(positive, negative)
    theta, s = brute_force(positive, negative)
    np.testing.assert_allclose(areas, theta, atol=1e-12)
    np.testing.assert_allclose(covariance, s, atol=1e-12)
    for i in range(2):
        assert (areas[i], math.sqrt(covariance[i, i])) == pytest.approx(
            delong(positive[i], negative[i])
        )
    found = auc_difference(positive, negative)
    contrast = np.array([-1, 1])
    error = math.sqrt(contrast @ s @ contrast)
    z = (theta[1] - theta[0]) / error
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    ends = theta[1] - theta[0] + np.array([-1, 1]) * stats.norm.ppf(0.975) * error
    assert (found.estimate.low, found.estimate.high) == pytest.approx(tuple(ends))
    assert (found.a, found.b) == pytest.approx(tuple(theta))


def test_the_difference_is_second_less_first():
    positive, negative = paired_scores(1)
    there, back = auc_difference(positive, negative), auc_difference(positive[::-1], negative[::-1])
    assert there.estimate.value == -back.estimate.value
    assert there.estimate.low == -back.estimate.high
    assert there.p == back.p


def test_pairing_narrows_the_interval():
    positive, negative = paired_scores(3, 60, 60, digits=6)
    positive[1], negative[1] = positive[0] + positive[1] / 10, negative[0] + negative[1] / 10
    found = auc_difference(positive, negative)
    apart = math.hypot(*(delong(positive[i], negative[i])[1] for i in range(2)))
    assert found.estimate.high - found.estimate.low < apart * 2 * 1.96 / 2


def test_no_difference_is_found_significant_as_often_as_it_says():
    rng = np.random.default_rng(0)
    significant = 0
    for _ in range(400):
        hard = [rng.normal(1, 1, 49), rng.normal(0, 1, 80)]
        sides = [np.array([c + rng.normal(0, 0.7, len(c)) for _ in range(2)]) for c in hard]
        significant += auc_difference(*sides).p < 0.05
    assert 0.025 < significant / 400 < 0.085


def test_what_cannot_be_known_of_a_difference_is_said():
    one = np.array([[1.0, 2.0], [1.0, 2.0]])
    same = auc_difference(one, one - 0.5)
    assert (same.estimate.value, same.p, same.estimate.low) == (0.0, None, None)
    assert "variance is 0" in same.estimate.interval_undefined
    none = auc_difference(np.zeros((2, 0)), one)
    assert (none.a, none.estimate.value) == (None, None)
    assert "no tumour slide" in none.estimate.undefined
    single = auc_difference(one[:, :1], one)
    assert "fewer than two" in single.estimate.interval_undefined


# FROC


def random_hits(seed, slides=7):
    """Two results on the same slides: lesions are as many on either."""
    rng = np.random.default_rng(seed)
    lesions = [*rng.integers(0, 4, slides - 2), 1, 2]
    return [
        [
            SlideHits(
                np.round(rng.random(n), 2) * (rng.random(n) < found),
                np.round(rng.random(rng.integers(0, 9)), 2),
                int(n),
            )
            for n in lesions
        ]
        for found in (0.6, 0.9)
    ]


@pytest.mark.parametrize("rules", [V1, V2])
@pytest.mark.parametrize("seed", range(3))
def test_froc_differences_are_those_of_repeated_slides(seed, rules):
    a, b = random_hits(seed)
    found = froc_differences(Pool(a, rules), Pool(b, rules), resamples=80, seed=seed)
    assert len(found) == 1 + len(OPERATING_POINTS)
    drawn = []
    for weights in slide_weights(len(a), resamples=80, seed=seed):
        sides = []
        for hits in (a, b):
            repeated = [hit for hit, times in zip(hits, weights, strict=True) for _ in range(times)]
            at = Pool(repeated, rules).sensitivities()
            sides.append(None if at is None else np.array([at.mean(), *at]))
        if sides[0] is not None:
            drawn.append(sides[1] - sides[0])
    drawn = np.array(drawn)
    values = [Pool(hits, rules).sensitivities() for hits in (a, b)]
    whole = [np.array([at.mean(), *at]) for at in values]
    for index, difference in enumerate(found):
        assert difference.a == pytest.approx(whole[0][index])
        assert difference.estimate.value == pytest.approx(whole[1][index] - whole[0][index])
        low, high = np.quantile(drawn[:, index], [0.025, 0.975])
        assert (difference.estimate.low, difference.estimate.high) == pytest.approx((low, high))
        below, above = (drawn[:, index] <= 0).sum(), (drawn[:, index] >= 0).sum()
        assert difference.p == pytest.approx(min(1, 2 * (1 + min(below, above)) / (len(drawn) + 1)))


def test_froc_differences_that_are_not_defined():
    nothing = [SlideHits(np.zeros(0), np.array([0.5]), 0)] * 3
    found = froc_differences(Pool(nothing, V1), Pool(nothing, V1), resamples=9, seed=0)
    assert all("no lesion" in one.estimate.undefined for one in found)
    single = [SlideHits(np.array([0.5]), np.array([0.25]), 1), *nothing]
    found = froc_differences(Pool(single, V2), Pool(single, V2), resamples=9, seed=0)
    assert found[0].estimate.value == 0
    assert "fewer than two slides" in found[0].estimate.interval_undefined


def test_a_p_value_is_never_zero_and_never_above_one():
    assert bootstrap_p(np.full(999, 0.1)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.zeros(50)) == 1
    assert bootstrap_p(np.array([-1.0, 1.0, 1.0])) == 1
    assert bootstrap_p(np.array([-1.0, *[1.0] * 98])) == pytest.approx(4 / 100)


# Tiles


def test_tile_differences_are_those_of_repeated_slides():
    rng = np.random.default_rng(2)
    sides = [
        (
            [rng.normal(shift, 1, rng.integers(1, 20)) for _ in range(5)],
            [rng.normal(0, 1, rng.integers(3, 30)) for _ in range(5)],
        )
        for shift in (0.3, 1.2)
    ]
    found = tile_difference(*(TilePool(*side) for side in sides), resamples=60, seed=4)
    drawn = []
    for weights in slide_weights(5, resamples=60, seed=4):
        chosen = np.repeat(np.arange(5), weights)
        areas = [
            delong(*(np.concatenate([part[i] for i in chosen]) for part in side))[0]
            for side in sides
        ]
        drawn.append(areas[1] - areas[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high), abs=1e-12)
    assert found.p == pytest.approx(bootstrap_p(np.array(drawn)))
    none = [np.zeros(0)] * 5
    missing = tile_difference(TilePool(none, sides[0][1]), TilePool(*sides[1]), resamples=5, seed=0)
    assert "no tumour tile" in missing.estimate.undefined
