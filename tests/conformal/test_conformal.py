"""Conformal p-values: brute force, and simulations in which the slides differ a lot."""

import numpy as np
import pytest
from scipy import stats

from wsiad.conformal.p_values import (
    HealthyReference,
    HealthyRegions,
    attainable,
    benjamini_hochberg,
    slides_needed,
)
from wsiad.core.errors import EvaluationError


def brute_p(groups, score):
    shares = [np.mean([other >= score for other in group]) if len(group) else 0 for group in groups]
    return (1 + sum(shares)) / (len(groups) + 1)


def test_p_values_are_what_counting_gives():
    rng = np.random.default_rng(0)
    groups = [rng.integers(0, 30, size=size) / 4 for size in (1, 7, 0, 20, 3, 0, 11)]
    asked = np.concatenate([np.arange(-1, 9, 0.25), [100.0]])
    found = HealthyReference.of(groups).p_values(asked.reshape(-1, 1))
    assert found.shape == (len(asked), 1)
    np.testing.assert_allclose(found[:, 0], [brute_p(groups, s) for s in asked], rtol=1e-12)


def test_one_score_a_slide_counts_slides():
    reference = HealthyReference.of([np.array([v]) for v in (3.0, 1.0, 2.0, 2.0)])
    assert reference.p_values([0.0, 1.0, 2.0, 2.5, 3.0, 3.1]).tolist() == [1, 1, 0.8, 0.4, 0.4, 0.2]
    assert reference.smallest_p == 0.2


def test_never_0_and_never_above_1():
    groups = [np.random.default_rng(n).normal(size=997) for n in range(7)]
    p = HealthyReference.of(groups).p_values([-1e30, 1e30])
    assert p.tolist() == [pytest.approx(1.0, abs=1e-12), 1 / 8]
    assert p[0] <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(EvaluationError, match="not a finite number"):
        HealthyReference.of([np.array([1.0]), np.array([bad])])
    with pytest.raises(EvaluationError, match="no p-value"):
        HealthyReference.of([np.array([1.0])]).p_values([bad])


def test_no_slide_is_no_reference():
    with pytest.raises(EvaluationError, match="no healthy slide"):
        HealthyReference.of([])
    everything = HealthyReference.of([np.empty(0)] * 4).p_values([-5.0, 5.0])
    assert everything.tolist() == [0.2, 0.2]


def test_how_many_slides_a_level_needs():
    for level in (0.3, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001):
        needed = slides_needed(level)
        assert 1 / (needed + 1) <= level < 1 / needed
        assert attainable(level, needed) == pytest.approx(1 / (needed + 1))
        assert attainable(level, needed - 1) == 0
    assert attainable(0.05, 59) == 0.05


# Slides that differ much more than the tiles of a slide do, and the more tiles the stranger.
def simulated_slides(rng, count):
    effects = rng.normal(size=count) * 3
    sizes = 1 + rng.poisson(np.exp(np.clip(effects, -2, 3)) * 4)
    return [rng.normal(effect, 1, size) for effect, size in zip(effects, sizes, strict=True)]


@pytest.fixture(scope="module")
def tile_draws():
    """p-values of a random tile of a new slide: by slide, and pooled over all tiles."""
    rng, n = np.random.default_rng(1), 39
    by_slide, pooled = [], []
    for _ in range(2500):
        *healthy, new = simulated_slides(rng, n + 1)
        score = rng.choice(new)
        by_slide.append(HealthyReference.of(healthy).p_values(score)[()])
        together = np.concatenate(healthy)
        pooled.append((1 + (together >= score).sum()) / (len(together) + 1))
    return np.array(by_slide), np.array(pooled)


@pytest.mark.parametrize("level", [0.025, 0.05, 0.1, 0.2, 0.5])
def test_a_random_tile_of_a_new_slide_alarms_no_more_often_than_stated(tile_draws, level):
    by_slide, _ = tile_draws
    assert (by_slide <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(by_slide))


def test_pooled_tiles_would_alarm_more_often_than_stated():
    """What the reference by slide is for: tiles of one slide are not so many witnesses."""
    rng, level = np.random.default_rng(2), 0.01
    alarms = []
    for _ in range(2000):
        *healthy, new = (rng.normal(effect, 0.3, 50) for effect in rng.normal(size=20) * 3)
        score, together = rng.choice(new), np.concatenate(healthy)
        alarms.append((1 + (together >= score).sum()) / (len(together) + 1) <= level)
        assert HealthyReference.of(healthy).p_values(score) > level  # 19 slides cannot say it
    assert np.mean(alarms) > 3 * level


def test_slides_alarm_exactly_as_stated():
    rng, n = np.random.default_rng(3), 19
    scores = rng.gumbel(size=(20_000, n + 1))
    p = (1 + (scores[:, :n] >= scores[:, n:]).sum(axis=1)) / (n + 1)
    for row in range(50):
        reference = HealthyReference.of(list(scores[row, :n, None]))
        assert reference.p_values(scores[row, n]) == p[row]
    for level in (0.05, 0.1, 0.12):
        assert (p <= level).mean() == pytest.approx(attainable(level, n), abs=0.006)


def brute_bh(p, fdr):
    """The rule as Benjamini and Hochberg state it: indices that are rejected."""
    ranked = np.argsort(p)
    last = max(
        (k for k in range(1, len(p) + 1) if round(p[ranked[k - 1]] - k / len(p) * fdr, 9) <= 0),
        default=0,
    )
    return set(ranked[:last].tolist())


def test_adjusted_p_values_reject_what_the_rule_rejects():
    rng = np.random.default_rng(4)
    for _ in range(200):
        p = rng.integers(1, 41, size=rng.integers(1, 15)) / 40
        q = benjamini_hochberg(p)
        for fdr in (0.033, 0.1, 0.15, 0.31):
            assert set(np.flatnonzero(q <= fdr).tolist()) == brute_bh(p, fdr)
        padded = benjamini_hochberg(p, tests=len(p) + 3)
        np.testing.assert_allclose(
            padded, benjamini_hochberg(np.concatenate([p, np.ones(3)]))[: len(p)]
        )
        assert (padded >= q).all()


def test_adjusted_p_values_of_a_known_case():
    q = benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(q, [0.02, 0.04, 0.04, 0.02])
    assert benjamini_hochberg(np.empty(0)).tolist() == []


@pytest.mark.parametrize(("p", "tests"), [([1.1], None), ([np.nan], None), ([0.1, 0.2], 1)])
def test_senseless_p_values_are_refused(p, tests):
    with pytest.raises(EvaluationError):
        benjamini_hochberg(np.array(p), tests=tests)


def simulated_regions(rng, count, *, spread):
    """Regions of healthy slides: many slides have none, and those of a slide are alike."""
    sizes = rng.poisson(1.5, size=count) * rng.integers(0, 2, size=count)
    effects = rng.normal(size=count) * spread
    return [
        rng.exponential(size=size) + effect for size, effect in zip(sizes, effects, strict=True)
    ]


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_healthy_slides_have_significant_regions_no_more_often_than_stated(spread):
    rng, n, fdr = np.random.default_rng(5), 39, 0.1
    any_significant, any_family_wise, one_at_random = [], [], []
    for _ in range(2000):
        *healthy, new = simulated_regions(rng, n + 1, spread=spread)
        found = HealthyRegions.of(healthy).judge(new, fdr=fdr)
        any_significant.append(found.significant.any())
        any_family_wise.append((found.p_family_wise <= fdr).any())
        one_at_random.append(len(new) > 0 and rng.choice(found.p) <= fdr)
    bound = fdr + 3 * np.sqrt(fdr * (1 - fdr) / 2000)
    for alarms in (any_significant, any_family_wise, one_at_random):
        assert 0.03 < np.mean(alarms) <= bound


def test_the_share_of_false_regions_is_kept_where_lesions_are_mixed_in():
    rng, n, fdr = np.random.default_rng(6), 99, 0.2
    false, true = [], []
    for _ in range(800):
        *healthy, new = simulated_regions(rng, n + 1, spread=1.0)
        scores = np.concatenate([new, rng.normal(9, 1, size=4)])  # the last are lesions
        significant = HealthyRegions.of(healthy).judge(scores, fdr=fdr).significant
        false.append(significant[: len(new)].sum() / max(1, significant.sum()))
        true.append(significant[len(new) :].mean())
    assert np.mean(false) <= fdr
    assert np.mean(true) > 0.9


def unequal_slide(rng):
    """One strange region among 2**k usual ones, the stranger the larger k; or no region."""
    kind = rng.integers(0, 11)
    if kind > 4:
        return np.empty(0)
    return np.concatenate([[kind + rng.random()], -9 - rng.random(2**kind - 1)])


def test_the_rule_alone_would_alarm_more_often_than_stated():
    """Benjamini-Hochberg over regions whose number goes with their scores, on healthy slides."""
    rng, n, fdr = np.random.default_rng(8), 199, 0.2
    rule, kept = [], []
    for _ in range(400):
        *healthy, new = (unequal_slide(rng) for _ in range(n + 1))
        found = HealthyRegions.of(healthy).judge(new, fdr=fdr)
        rule.append((found.q <= fdr).any())
        kept.append(found.significant.any())
    assert np.mean(rule) > 1.5 * fdr
    assert np.mean(kept) <= fdr + 3 * np.sqrt(fdr * (1 - fdr) / 400)


def test_nothing_is_significant_where_the_strongest_region_is_usual():
    """Many regions that are each rather rare, on a slide whose strongest is not."""
    healthy = [np.array([10.0, *np.zeros(40)]) for _ in range(20)]
    found = HealthyRegions.of(healthy).judge(np.full(5, 9.0), fdr=0.1)
    assert (found.q <= 0.1).all()
    assert found.p_family_wise.tolist() == [1.0] * 5
    assert not found.significant.any()
    higher = HealthyRegions.of(healthy).judge(np.array([11.0, *[9.0] * 4]), fdr=0.1)
    assert higher.significant.all()


def test_a_slide_without_regions():
    regions = HealthyRegions.of([np.empty(0), np.array([1.0])])
    assert len(regions.judge(np.empty(0), fdr=0.1).significant) == 0
    assert regions.judge(np.array([2.0]), fdr=0.1).p.tolist() == pytest.approx([1 / 3])


def test_left_out_regions_count_as_tests():
    regions = HealthyRegions.of([np.array([1.0])] * 39)
    few = regions.judge(np.array([2.0]), fdr=0.1)
    many = regions.judge(np.array([2.0]), fdr=0.1, tests=10)
    assert few.q[0] == pytest.approx(1 / 40)
    assert many.q[0] == pytest.approx(10 / 40)
    assert (few.significant[0], many.significant[0]) == (True, False)


def test_batches_of_slides_keep_the_false_discovery_rate():
    """Benjamini-Hochberg over slides that share one reference (Bates et al. 2023)."""
    rng, fdr, shares = np.random.default_rng(7), 0.2, []
    for _ in range(600):
        reference = HealthyReference.of(list(rng.normal(size=(99, 1))))
        p = reference.p_values(np.concatenate([rng.normal(size=10), rng.normal(4, 1, size=5)]))
        rejected = benjamini_hochberg(p) <= fdr
        shares.append(rejected[:10].sum() / max(1, rejected.sum()))
    assert 0 < np.mean(shares) <= fdr * 10 / 15 + 3 * np.std(shares) / np.sqrt(600)
    assert stats.sem(shares) < 0.02
