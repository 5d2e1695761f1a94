import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from support.feature_detectors import detector, distances, mixed
from wsiad.detectors._vectors import random_state
from wsiad.detectors.deep_if import _isolating_splits, _rounded_down


@pytest.mark.parametrize(("trees", "samples", "count"), [(100, 256, 1000), (7, 50, 30)])
def test_score_is_that_of_scikit_learn(trees, samples, count):
    healthy, asked = mixed(count, 12), 2 * mixed(500, 12, seed=1)
    scores = distances(
        detector("deep-if", seed=3, trees=trees, max_samples=samples), healthy, asked
    )
    forest = IsolationForest(
        n_estimators=trees, max_samples=min(samples, count), random_state=random_state(3)
    )
    expected = -forest.fit(healthy).score_samples(asked)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_splits_expected_of_few_samples():
    # By counting: three samples are isolated in 1, 2 and 2 splits, whichever is first.
    np.testing.assert_allclose(_isolating_splits(np.array([1, 2])), [0, 1])
    harmonic = 2 * np.sum(1 / np.arange(1, 256)) - 2 * 255 / 256
    assert _isolating_splits(np.array([256]))[0] == pytest.approx(harmonic, rel=1e-3)


def test_rounded_thresholds_split_alike():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    thresholds = (values.astype(np.float64) + np.nextafter(values, np.float32(np.inf))) / 2
    found = _rounded_down(thresholds)
    assert found.dtype == np.float32
    for near in (values, np.nextafter(values, np.float32(np.inf))):
        np.testing.assert_array_equal(near <= found, near.astype(np.float64) <= thresholds)


def test_default_layers_are_the_deepest():
    squeezenet = detector("deep-if", backbone="squeezenet1_1")
    assert squeezenet.options.chosen_layers() == ("features.12",)
    assert detector("deep-if", backbone="resnet18").options.chosen_layers() == ("layer4",)
    assert detector("deep-if", layers=["features.3"]).options.chosen_layers() == ("features.3",)


def test_seed_decides():
    healthy, asked = mixed(300, 5), mixed(20, 5, seed=1)
    one, other = (distances(detector("deep-if", seed=seed), healthy, asked) for seed in (0, 1))
    assert not np.array_equal(one, other)
