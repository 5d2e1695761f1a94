import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from support.feature_detectors import detector, distances, mixed
from wsiad.core.errors import DetectorError


@pytest.mark.parametrize("gamma", ["scale", 0.3])
@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_score_is_scikit_learns_decision(gamma, nu):
    healthy, asked = mixed(300, 8), 1.3 * mixed(60, 8, seed=1)
    found = detector("ocsvm", gamma=gamma, nu=nu, pca_components=4)
    scores = distances(found, healthy, asked)
    machine = OneClassSVM(gamma=gamma, nu=nu, tol=1e-6)
    reference = make_pipeline(StandardScaler(), PCA(4, svd_solver="full"), machine)
    reference.fit(healthy.astype(np.float64))
    expected = -reference.decision_function(asked.astype(np.float64)) / (nu * len(healthy))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_nu_is_the_share_outside():
    healthy = mixed(1000, 5)
    scores = distances(detector("ocsvm", nu=0.2), healthy, healthy)
    assert (scores > 0).mean() == pytest.approx(0.2, abs=0.02)


def test_far_away_is_outside_and_levels_off():
    healthy = mixed(200, 5)
    found = detector("ocsvm")
    scores = distances(found, healthy, np.array([[1e3] * 5, [1e4] * 5], np.float32))
    assert scores[0] == scores[1] == found.fit_vectors(healthy)["rho"]


def test_too_few_vectors():
    with pytest.raises(DetectorError, match=r"19 healthy vectors are too few .* needs 20"):
        detector("ocsvm", nu=0.1).fit_vectors(mixed(19, 4))
