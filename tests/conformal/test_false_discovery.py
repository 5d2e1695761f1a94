"""Windows that stand out at a stated false-discovery rate, by hand and on healthy cohorts."""

import numpy as np
import pytest

from wsiad.conformal.false_discovery import healthy_slides_needed, lowest, standing_out
from wsiad.core.errors import EvaluationError


def test_rates_are_expected_over_observed():
    cohort = [np.array([0.0, 1, 5, 6]), np.array([0.0, 0, 0, 5.5])]
    healthy = [np.array([0.0, 1.0, 2, 5]), np.array([0.0, 0])]
    low, high = standing_out(cohort, healthy, most_share=0.25)
    assert (low.threshold, low.windows, low.slides) == (5.5, 2, 2)
    assert (low.window_rate, low.share) == (0, 0.25)  # no healthy window is at 5.5
    assert low.slide_rate == pytest.approx(2 * (1 / 3) / 2)
    assert (high.threshold, high.windows, high.slides) == (6, 1, 1)
    found = standing_out(cohort, healthy, most_share=0.375)[0]
    assert (found.threshold, found.windows) == (5, 3)
    assert found.window_rate == pytest.approx(8 * (0.25 + 0) / 2 / 3)
    assert found.slide_rate == pytest.approx(2 * (2 / 3) / 2)
    assert found.rate == found.slide_rate


def test_ties_stay_together():
    cohort = [np.array([0.0, 0, 3, 3])]
    assert standing_out(cohort, [np.zeros(3)], most_share=0.25) == []
    (found,) = standing_out(cohort, [np.zeros(3)], most_share=0.5)
    assert (found.threshold, found.windows) == (3, 2)


def test_lowest_threshold_that_keeps_the_rate_on_enough_slides():
    rng = np.random.default_rng(0)
    healthy = [rng.normal(size=200) for _ in range(40)]
    cohort = [rng.normal(size=200) + 6 * (np.arange(200) < 20) for _ in range(6)]
    cohort += [rng.normal(size=200) for _ in range(6)]
    found = standing_out(cohort, healthy, most_share=0.2)
    chosen, why = lowest(found, rate=0.2, least_slides=4)
    assert why == ""
    assert chosen.rate <= 0.2
    below = [one for one in found if one.threshold < chosen.threshold]
    assert all(one.rate > 0.2 for one in below)
    none, why = lowest(found, rate=0.2, least_slides=13)
    assert none is None
    assert "at least 13 are needed" in why
    none, why = lowest(found, rate=0.001, least_slides=4)
    assert none is None
    assert "at most 0% are allowed" in why


def test_healthy_cohorts_rarely_let_anything_through():
    """Slides differ, so windows of a slide are high together; the rate is one of slides."""
    rng = np.random.default_rng(1)

    def slide():
        return rng.normal(size=50) * rng.lognormal(sigma=0.5)

    through = 0
    for _ in range(200):
        found = standing_out(
            [slide() for _ in range(10)], [slide() for _ in range(60)], most_share=0.1
        )
        through += lowest(found, rate=0.2, least_slides=2)[0] is not None
    assert through <= 0.2 * 200 + 3 * np.sqrt(200 * 0.2 * 0.8)


def test_healthy_slides_needed():
    assert healthy_slides_needed(40, rate=0.2, slides=40) == 4
    assert healthy_slides_needed(24, rate=0.2, slides=4) == 29
    cohort, healthy = [np.array([9.0])] * 4 + [np.array([0.0])] * 20, [np.zeros(1)] * 29
    found = standing_out(cohort, healthy, most_share=0.2)
    assert lowest(found, rate=0.2, least_slides=4)[0]
    found = standing_out(cohort, healthy[1:], most_share=0.2)
    assert lowest(found, rate=0.2, least_slides=4)[0] is None


@pytest.mark.parametrize(
    ("cohort", "healthy"),
    [([], [[1.0]]), ([[1.0]], []), ([[]], [[1.0]]), ([[np.nan]], [[1.0]]), ([[1.0]], [[np.inf]])],
)
def test_nothing_to_compare_is_an_error(cohort, healthy):
    with pytest.raises(EvaluationError):
        standing_out(
            [np.array(one, float) for one in cohort],
            [np.array(one, float) for one in healthy],
            most_share=0.5,
        )
