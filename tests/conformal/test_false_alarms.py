"""Measured rates: intervals against other formulas, and their coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from wsiad.conformal.judgement import (
    clopper_pearson,
    count_slides,
    mean_interval,
    mean_share,
)
from wsiad.core.errors import EvaluationError


@pytest.mark.parametrize(("alarms", "slides"), [(0, 1), (0, 40), (3, 40), (20, 40), (40, 40)])
def test_the_interval_is_that_of_the_beta_quantiles(alarms, slides):
    low = stats.beta.ppf(0.025, alarms, slides - alarms + 1) if alarms else 0
    high = stats.beta.ppf(0.975, alarms + 1, slides - alarms) if alarms < slides else 1
    assert clopper_pearson(alarms, slides) == pytest.approx((low, high))


def test_no_alarm_on_few_slides_says_little():
    assert clopper_pearson(0, 40)[1] == pytest.approx(0.0881, abs=1e-4)  # rule of three and a bit
    with pytest.raises(EvaluationError, match="no rate"):
        clopper_pearson(0, 0)


@pytest.mark.parametrize("shape", [(0.05, 0.95), (0.5, 9.5), (2, 2)])
def test_the_interval_of_a_mean_covers(shape):
    rng = np.random.default_rng(0)
    mean, hits = shape[0] / sum(shape), 0
    for _ in range(400):
        low, high = mean_interval(rng.beta(*shape, size=25))
        hits += low <= mean <= high
    assert hits >= 0.95 * 400


@pytest.mark.parametrize("value", [0.0, 1e-14, 1e-9, 0.3, 1 - 1e-9, 1.0])
def test_the_interval_of_a_mean_holds_it(value):
    for count in (1, 5, 1000):
        low, high = mean_interval(np.full(count, value))
        assert 0 <= low <= value <= high <= 1
    assert high - low < 0.12


def test_shares_are_shares():
    for bad in ([1.2], [np.nan], []):
        with pytest.raises(EvaluationError):
            mean_interval(np.array(bad, float))


def alarms(count, slides):
    return np.arange(slides) < count


def test_verdicts():
    as_stated = count_slides("slides", alarms(6, 100), level=0.05, reference=99)
    more = count_slides("slides", alarms(13, 100), level=0.05, reference=99)
    fewer = count_slides("slides", alarms(0, 100), level=0.05, reference=99)
    found = [one.verdict for one in (as_stated, more, fewer)]
    assert found == ["as stated", "more than stated", "fewer than stated"]
    # Of 9 slides no p-value is as small as 0.05: no alarm is what was stated.
    assert count_slides("slides", alarms(0, 100), level=0.05, reference=9).verdict == "as stated"
    # A bound is kept by no alarm at all.
    bound = count_slides("significant regions", alarms(0, 100), level=0.1, reference=99)
    assert bound.verdict == "as stated"
    assert "0.130" in str(more)


def test_tiles_of_slides():
    calm = mean_share(np.full(50, 0.02), level=0.05)
    assert (calm.verdict, calm.rate) == ("as stated", pytest.approx(0.02))
    loud = mean_share(np.r_[np.ones(30), np.zeros(20)], level=0.05)
    assert (loud.verdict, loud.alarms) == ("more than stated", 30)


def test_the_chance_of_so_many_alarms_is_that_of_one_reference():
    """Simulated: a reference of 19 slides, 40 others; how often at least 5 alarms at 0.05."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(20_000, 59))
    highest = scores[:, :19].max(axis=1, keepdims=True)  # p = 1/20 above it, else more
    often = ((scores[:, 19:] > highest).sum(axis=1) >= 5).mean()
    found = count_slides("slides", alarms(5, 40), level=0.05, reference=19)
    assert found.chance == pytest.approx(often, abs=0.01)
    assert count_slides("slides", alarms(0, 40), level=0.05, reference=19).chance == 1
    assert count_slides("slides", alarms(1, 40), level=0.05, reference=9).chance == 0
    assert count_slides("slides", alarms(40, 40), level=1.0, reference=9).chance == 1
    few = ((scores[:, 19:] > highest).sum(axis=1) <= 0).mean()
    fewer = count_slides("slides", alarms(0, 200), level=0.05, reference=19)
    assert fewer.verdict == "fewer than stated"
    assert count_slides("slides", alarms(0, 40), level=0.05, reference=19).verdict == "as stated"
    assert 0 < fewer.chance < few  # of more slides it is less likely that none alarms
