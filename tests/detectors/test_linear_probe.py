import numpy as np
import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from support.labelled import PX, anomalies, healthy, tiles
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors._labelled import LabelledVectors, standardisation
from wsiad.detectors.linear_probe import (
    LinearProbe,
    LinearProbeOptions,
    discriminant,
    logistic,
    nearest_to_usual,
)
from wsiad.learning.detector import FitContext, InputSpec, State

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SMALL = {"layers": ("features.3",), "magnify": 1, "places": 4}


def probe(**options):
    return LinearProbe(LinearProbeOptions(**{**SMALL, **options}), InputSpec(TilePx(PX), Mpp(1)))


def context(folder, labelled, *, seed=1):
    return FitContext(
        seed=seed, device=CPU, folder=folder, weights="random", quiet=True, anomalies=labelled
    )


def fitted(folder, labelled=None, **options):
    found = probe(**options)
    return found, found.fit(healthy(), context(folder, labelled or anomalies()))


@pytest.mark.parametrize("options", [{}, {"head": "lda"}, {"statistics": "mean"}])
def test_stripes_are_told_from_noise(tmp_path, options):
    found, report = fitted(tmp_path, **options)
    scores = found.score(np.concatenate([tiles(40, seed=8), tiles(40, seed=9, anomalous=True)]))
    assert roc_auc_score(np.repeat([0, 1], 40), scores) > 0.9
    assert report.notes["anomalous_tiles"] == 6
    areas = report.notes["cross_validated_auroc"]
    assert f"{report.notes['strength']:g}" in areas


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_discriminant_is_the_closed_form(share):
    mixing = RNG.normal(size=(7, 7))
    common, few = RNG.normal(size=(300, 7)) @ mixing, RNG.normal(size=(5, 7)) + 2
    weight, bias = discriminant(common)(few, share)
    covariance = shrunk_covariance(np.cov(common.T, bias=True), shrinkage=share)
    expected = np.linalg.solve(covariance, few.mean(axis=0) - common.mean(axis=0))
    np.testing.assert_allclose(weight, expected, rtol=1e-8)
    middle = (few.mean(axis=0) + common.mean(axis=0)) / 2
    assert middle @ weight + bias == pytest.approx(0)


def test_discriminant_is_that_of_sklearn_where_both_classes_are_alike():
    one = RNG.normal(size=(200, 4)) * [1, 2, 3, 4]
    away = np.array([1.0, -1.0, 0.5, 0.2])
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(
        np.concatenate([one, one + away]), np.repeat([0, 1], 200)
    )
    weight, bias = discriminant(one)(one + away, 1e-12)
    np.testing.assert_allclose(weight, model.coef_[0], rtol=1e-6)
    assert bias == pytest.approx(model.intercept_[0], rel=1e-6)


def test_logistic_is_the_optimum_of_the_balanced_loss():
    common, few = RNG.normal(size=(200, 3)), RNG.normal(size=(8, 3)) + 1
    weight, bias = logistic(common)(few, 0.5)
    # The gradient of ½|w|² + C Σ c · log-loss, with c = N / (2 N_class), vanishes.
    values, labels = np.concatenate([common, few]), np.repeat([0.0, 1.0], [200, 8])
    balance = np.where(labels == 1, 208 / 16, 208 / 400)
    error = balance * (1 / (1 + np.exp(-(values @ weight + bias))) - labels)
    np.testing.assert_allclose(weight + 0.5 * values.T @ error, 0, atol=0.02)
    assert abs(error.sum()) < 0.02


def test_the_usual_strength_stays_unless_the_folds_tell_another_to_be_better():
    # The folds differ much, the second strength is better in all: by .01, .02 and .03, whose mean
    # is .02 and standard error .0058.
    usual, better = [0.5, 0.7, 0.9], [0.51, 0.72, 0.93]
    assert nearest_to_usual({1: usual, 2: better}) == 2
    # It is better by .02 on average, and worse in one: the standard error is .0306.
    assert nearest_to_usual({1: usual, 2: [0.48, 0.72, 0.96]}) == 1
    # The third is the best, and the second behind it by no more than chance.
    assert nearest_to_usual({1: usual, 2: [0.62, 0.78, 0.99], 3: [0.6, 0.8, 1.0]}) == 2
    assert nearest_to_usual({1: usual, 2: usual}) == 1
    # One or two folds say too little.
    assert nearest_to_usual({1: [0.6], 2: [0.7], 3: [0.65]}) == 1
    assert nearest_to_usual({1: [0.6, 0.7], 2: [0.7, 0.8]}) == 1


def test_singular_covariance_is_refused():
    with pytest.raises(DetectorError, match="singular"):
        discriminant(np.ones((10, 3)))(np.zeros((2, 3)), 0.5)
    with pytest.raises(DetectorError, match="singular"):
        discriminant(RNG.normal(size=(3, 5)))(np.zeros((2, 5)), 1e-14)


def test_mean_of_the_places_is_the_score_of_the_mean(tmp_path):
    found, _ = fitted(tmp_path, statistics="mean")
    asked = tiles(5, seed=4, anomalous=True)
    assert found.score_places(asked).shape == (5, 4, 4)
    whole = found.distance(found.whole(torch.from_numpy(asked)), found._fitted).numpy()
    np.testing.assert_allclose(found.score(asked), whole, rtol=1e-4, atol=1e-4)
    assert fitted(tmp_path)[0].score_places(asked).shape == (5, 1, 1)
    assert found.score(asked[:0]).shape == (0,)


def test_statistics_are_mean_and_deviation_of_the_places(tmp_path):
    found, _ = fitted(tmp_path)
    asked = torch.from_numpy(tiles(3, seed=5))
    places = found._features(asked).numpy().reshape(3, 16, -1)
    expected = np.concatenate([places.mean(axis=1), places.std(axis=1)], axis=1)
    np.testing.assert_allclose(found.whole(asked).numpy(), expected, rtol=1e-4, atol=1e-5)


def vectors(groups, turns=2):
    count = len(groups) * turns
    return LabelledVectors(
        np.zeros((4, 2), np.float32),
        np.zeros((2, 2), np.float32),
        np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        np.repeat(groups, turns),
        np.arange(count) % turns == 0,
    )


def test_no_slide_and_no_tile_is_on_both_sides_of_a_fold():
    one = vectors(np.array([0, 0, 1, 2, 2, 3, 4, 5, 6]))
    folds = list(one.folds(3, seed=7))
    assert len(folds) == 3
    for on, test in folds:
        assert not set(one.groups[on]) & set(one.groups[test])
        assert not (test & ~one.upright).any()
    # Every tile is tested on once, as it is stored.
    np.testing.assert_array_equal(np.sum([test for _, test in folds], axis=0), one.upright)
    again = list(one.folds(3, seed=7))
    np.testing.assert_array_equal(folds, again)
    assert len(list(vectors(np.array([0, 1])).folds(5, seed=0))) == 2
    assert not list(vectors(np.array([0])).folds(5, seed=0))


def test_a_single_tile_is_enough(tmp_path):
    found, report = fitted(tmp_path, anomalies(1))
    assert "cross_validated_auroc" not in report.notes
    assert found.score(tiles(1, seed=3, anomalous=True)) > found.score(tiles(20, seed=8)).mean()


def test_tiles_of_one_slide_are_parted_by_tile(tmp_path):
    _, report = fitted(tmp_path, anomalies(4, slides=1))
    assert report.notes["cross_validated_auroc"]


def test_constant_channels_are_not_blown_up():
    found = np.array([[0.1, 1.0], [0.1, 3.0], [0.1, 2.0]], np.float32)
    mean, deviation = standardisation(found)
    usual = found[:, 1].std()
    np.testing.assert_allclose(mean, [0.1, 2])
    np.testing.assert_allclose(deviation, [usual / 100, usual], rtol=1e-6)
    with pytest.raises(DetectorError, match="all healthy tiles are alike"):
        standardisation(np.ones((3, 2), np.float32))


def test_state_round_trip_and_determinism(tmp_path):
    found, _ = fitted(tmp_path)
    again = probe()
    again.load_state(found.state(), CPU)
    asked = tiles(4, seed=6)
    np.testing.assert_array_equal(again.score(asked), found.score(asked))
    twin = fitted(tmp_path)[0].state()
    assert all(
        torch.equal(twin.tensors[key], value) for key, value in found.state().tensors.items()
    )
    assert twin.values == found.state().values


def test_state_of_something_else_is_refused(tmp_path):
    state = fitted(tmp_path)[0].state()
    for tensors in (
        {},
        {key: value for key, value in state.tensors.items() if key != "fitted.bias"},
        {**state.tensors, "fitted.weight": torch.zeros(3)},
    ):
        with pytest.raises(DetectorError, match="not that of this detector"):
            probe().load_state(State(tensors, {}), CPU)


def test_bad_use_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="learns from labelled anomalous tiles"):
        probe().fit(healthy(), context(tmp_path, None))
    with pytest.raises(DetectorError, match="not fitted"):
        probe().score(tiles(1, seed=0))
    from wsiad.core.config import build

    with pytest.raises(ConfigError, match="at most 1"):
        build(LinearProbeOptions, {"head": "lda", "strength": 2})
