import logging

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from support.feature_detectors import detector, distances, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors._vectors import random_state


def two_clouds(count, *, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal((0, 0, 0), (1, 0.5, 0.2), (count, 3))
    second = rng.normal((8, -8, 4), (0.3, 1, 2), (count, 3))
    return np.concatenate([first, second]).astype(np.float32)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_likelihood_is_that_of_scikit_learn(covariance):
    healthy, asked = two_clouds(300), two_clouds(20, seed=1)
    options = {"gaussians": 2, "covariance": covariance, "shrinkage": 0.0, "pca_components": None}
    found = detector("gmm", seed=5, **options)
    scores = distances(found, healthy, asked)
    # In the axes of the data: their rotation changes a mixture of diagonal covariances, so
    # scikit-learn is given the same axes.
    kept = found.fit_vectors(healthy)
    matrix, centre = kept["matrix"].double().numpy(), kept["centre"].double().numpy()
    values = (healthy.astype(np.float64) - centre) @ matrix
    reference = GaussianMixture(
        2,
        covariance_type=covariance,
        reg_covar=1e-6 * values.var(axis=0).mean(),
        random_state=random_state(5),
    ).fit(values)
    expected = -reference.score_samples((asked - centre) @ matrix)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_one_shrunk_gaussian_orders_as_the_mahalanobis_distance():
    healthy, asked = mixed(400, 6), mixed(50, 6, seed=1)
    scores = distances(detector("gmm", gaussians=1, shrinkage=0.2), healthy, asked)
    distance = distances(detector("gaussian", shrinkage=0.2), healthy, asked)
    # −log p = d² / 2 + a constant.
    offset = scores - distance**2 / 2
    np.testing.assert_allclose(offset, offset[0], rtol=1e-3)


def test_between_two_healthy_clouds_is_strange():
    asked = np.array([[0, 0, 0], [8, -8, 4], [4, -4, 2]], np.float32)
    scores = distances(detector("gmm", gaussians=2, shrinkage=0.0), two_clouds(300), asked)
    assert scores[2] > scores[:2].max() + 5


def test_too_few_vectors_and_no_convergence(caplog):
    few = r"^7 healthy vectors are too few for a mixture of 4 Gaussians\..* fewer gaussians\.$"
    with pytest.raises(DetectorError, match=few):
        detector("gmm", gaussians=4).fit_vectors(mixed(7, 3))
    with caplog.at_level(logging.WARNING):
        detector("gmm", gaussians=4, max_iterations=1).fit_vectors(mixed(200, 3))
    assert "did not converge in 1 rounds" in caplog.text
