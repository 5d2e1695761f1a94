"""Areas under ROC curves against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from wsiad.evaluation.auc import (
    delong,
    placements,
    roc_band,
    roc_curve,
    slide_auc,
    slide_weights,
    tile_auroc,
)


def classes(seed, m=12, n=17, *, digits=1):
    rng = np.random.default_rng(seed)
    return (
        np.round(rng.normal(0.6, 1, m), digits),
        np.round(rng.normal(0, 1, n), digits),
    )


def sklearn_auc(positive, negative):
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return roc_auc_score(labels, np.concatenate([positive, negative]))


def brute_force_delong(positive, negative):
    """DeLong, DeLong and Clarke-Pearson's formulae over all pairs."""
    wins = np.array(
        [[1.0 if p > q else 0.5 if p == q else 0.0 for q in negative] for p in positive]
    )
    of_positive, of_negative = wins.mean(axis=1), wins.mean(axis=0)
    area = wins.mean()
    m, n = wins.shape
    s10 = sum((v - area) ** 2 for v in of_positive) / (m - 1)
    s01 = sum((v - area) ** 2 for v in of_negative) / (n - 1)
    return area, np.sqrt(s10 / m + s01 / n)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("digits", [0, 1, 6])
def test_area_and_error_by_brute_force(seed, digits):
    positive, negative = classes(seed, digits=digits)
    area, error = delong(positive, negative)
    assert (area, error) == pytest.approx(brute_force_delong(positive, negative), abs=1e-12)
    assert area == pytest.approx(sklearn_auc(positive, negative), abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("digits", [0, 1, 6])
def test_placements_are_those_of_midranks_to_the_bit(seed, digits):
    positive, negative = classes(seed, digits=digits)
    positive[:2] = negative[:3] = -np.inf
    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))  # Sun & Xu 2014
    of_positive, of_negative = placements(positive, negative)
    np.testing.assert_array_equal(of_positive, (ranks[:m] - rankdata(positive)) / n)
    np.testing.assert_array_equal(of_negative, 1 - (ranks[m:] - rankdata(negative)) / m)


def test_a_score_that_is_no_number_has_no_place():
    some = np.array([1.0, 2.0])
    for classes in ((some, np.array([np.nan, 0.0])), (np.array([np.nan, 0.0]), some)):
        assert np.isnan(placements(*classes)).all()
        assert np.isnan(delong(*classes)).all()


def test_an_answer_by_hand():
    # 9.5 of 12 pairs.
    positive, negative = np.array([0.9, 0.6, 0.4]), np.array([0.6, 0.5, 0.3, 0.1])
    assert delong(positive, negative)[0] == pytest.approx(9.5 / 12)
    assert round(9.5 / 12, 6) == 0.791667


def test_all_scores_equal_are_worth_one_half():
    assert delong(np.ones(5), np.ones(7))[0] == 0.5
    assert slide_auc(np.ones(5), np.ones(7)).interval_undefined


def test_an_area_below_one_half_stays_below():
    positive, negative = classes(2)
    estimate = slide_auc(-positive, -negative)
    assert estimate.value < 0.5
    assert estimate.value == pytest.approx(1 - slide_auc(positive, negative).value)
    assert 0 < estimate.low < estimate.value < estimate.high < 1


def test_minus_infinity_is_the_lowest_score():
    positive, negative = np.array([2.0, -np.inf, 1.0]), np.array([-np.inf, 0.0])
    assert delong(positive, negative)[0] == pytest.approx((2 + 0.5 + 2) / 6)


def test_the_interval_is_logit_transformed():
    positive, negative = classes(1)
    area, error = brute_force_delong(positive, negative)
    centre, half = np.log(area / (1 - area)), 1.959963984540054 * error / (area * (1 - area))
    estimate = slide_auc(positive, negative)
    assert estimate.low == pytest.approx(1 / (1 + np.exp(half - centre)))
    assert estimate.high == pytest.approx(1 / (1 + np.exp(-half - centre)))


def test_the_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true_area = 0.9213503964748574  # of normals two standard deviations apart
    covered = 0
    for _ in range(400):
        estimate = slide_auc(rng.normal(2, 1, 49), rng.normal(0, 1, 80))
        covered += estimate.low <= true_area <= estimate.high
    assert 0.92 < covered / 400 < 0.98


def test_what_cannot_be_known_is_said():
    some = np.array([1.0, 2.0, 3.0])
    assert slide_auc(np.zeros(0), some).value is None
    assert "no tumour slide" in slide_auc(np.zeros(0), some).undefined
    assert "no normal slide" in slide_auc(some, np.zeros(0)).undefined
    perfect = slide_auc(some + 10, some)
    assert (perfect.value, perfect.low, perfect.high) == (1.0, None, None)
    assert "variance is 0" in perfect.interval_undefined
    single = slide_auc(some[:1], some)
    assert single.value is not None
    assert "fewer than two" in single.interval_undefined


def test_the_curve_is_that_of_sklearn():
    positive, negative = classes(3)
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    x, y, _ = sklearn_roc_curve(
        labels, np.concatenate([positive, negative]), drop_intermediate=False
    )
    found = roc_curve(positive, negative)
    np.testing.assert_allclose(found[0], x, atol=1e-12)
    np.testing.assert_allclose(found[1], y, atol=1e-12)


def test_the_band_lies_around_the_curve():
    positive, negative = classes(3, 40, 40)
    grid = np.linspace(0, 1, 11)
    low, high = roc_band(positive, negative, grid, resamples=200, seed=0)
    curve = np.interp(grid, *roc_curve(positive, negative))
    assert (low <= curve).all()
    assert (curve <= high).all()
    assert (high - low).max() > 0.1
    assert roc_band(positive, np.zeros(0), grid, resamples=20, seed=0) is None


# Tiles


def tiles(seed, slides=6):
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, 1, slides)  # what the tiles of one slide share
    positive = [np.round(rng.normal(1 + s, 1, rng.integers(0, 30)), 1) for s in shift]
    negative = [np.round(rng.normal(s, 1, rng.integers(5, 60)), 1) for s in shift]
    positive[0] = np.zeros(0)
    return positive, negative


@pytest.mark.parametrize("seed", range(4))
def test_tile_auroc_and_its_interval_by_brute_force(seed):
    positive, negative = tiles(seed)
    estimate = tile_auroc(positive, negative, resamples=60, seed=seed)
    expected = sklearn_auc(np.concatenate(positive), np.concatenate(negative))
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    drawn = []
    for weights in slide_weights(len(positive), resamples=60, seed=seed):
        chosen = np.repeat(np.arange(len(positive)), weights)
        pools = [np.concatenate([scores[i] for i in chosen]) for scores in (positive, negative)]
        if all(len(pool) for pool in pools):
            drawn.append(sklearn_auc(*pools))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)


def test_an_interval_over_slides_is_wider_than_one_over_tiles():
    rng = np.random.default_rng(1)
    shift = rng.normal(0, 1, 12)
    positive = [rng.normal(1 + s, 0.5, 200) for s in shift]
    negative = [rng.normal(s, 0.5, 200) for s in shift]
    by_slide = tile_auroc(positive, negative, resamples=200, seed=0)
    by_tile = slide_auc(np.concatenate(positive), np.concatenate(negative))
    assert by_slide.high - by_slide.low > 3 * (by_tile.high - by_tile.low)


def test_tile_auroc_without_a_class_or_over_one_slide():
    some, none = np.arange(5.0), np.zeros(0)
    assert "no tumour tile" in tile_auroc([none], [some], resamples=5, seed=0).undefined
    assert "no healthy tile" in tile_auroc([some], [none], resamples=5, seed=0).undefined
    assert "no tumour tile" in tile_auroc([], [], resamples=5, seed=0).undefined
    one = tile_auroc([some, none], [some, some], resamples=5, seed=0)
    assert one.value == 0.5
    assert one.low is None
    assert "fewer than two slides" in one.interval_undefined


def test_draws_are_of_as_many_slides_and_repeat_with_their_seed():
    draws = list(slide_weights(7, resamples=600, seed=5))
    assert len(draws) == 600
    assert all(weights.sum() == 7 for weights in draws)
    np.testing.assert_array_equal(draws, list(slide_weights(7, resamples=600, seed=5)))
    assert np.mean(draws, axis=0) == pytest.approx(np.ones(7), abs=0.15)
