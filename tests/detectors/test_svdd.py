import numpy as np
import pytest
from scipy.optimize import minimize

from support.feature_detectors import detector, distances, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors.svdd import ball_centre, geometric_median


@pytest.mark.parametrize("nu", [0.05, 0.3, 0.55])
def test_ball_is_that_of_the_quadratic_programme(nu):
    values = np.random.default_rng(1).normal(size=(30, 3)) ** 2
    squares = np.square(values).sum(axis=1)
    bound = 1 / (nu * len(values))

    def dual(alpha):
        centre = alpha @ values
        return centre @ centre - alpha @ squares, 2 * values @ centre - squares

    solved = minimize(
        dual,
        np.full(30, 1 / 30),
        jac=True,
        bounds=[(0, min(bound, 1))] * 30,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-9, "maxiter": 1000},
    )
    assert solved.success
    # Strong convexity turns a gap of 1e-4 R² into at most 1e-2 R between the centres.
    radius = np.sqrt(np.square(values - solved.x @ values).sum(axis=1).max())
    assert np.linalg.norm(ball_centre(values, nu) - solved.x @ values) < 0.01 * radius


def test_smallest_ball_around_known_triangles():
    right = np.array([[0.0, 0], [4, 0], [0, 3]])  # the hypotenuse is a diameter
    np.testing.assert_allclose(ball_centre(right, 1e-3), [2, 1.5], atol=0.03)
    equal = np.array([[0.0, 0], [2, 0], [1, np.sqrt(3)]])
    np.testing.assert_allclose(ball_centre(equal, 1e-3), [1, 1 / np.sqrt(3)], atol=0.02)


def test_nu_of_one_is_the_mean():
    values = mixed(50, 4).astype(np.float64)
    np.testing.assert_allclose(ball_centre(values, 1.0), values.mean(axis=0))


def test_geometric_median():
    values = mixed(40, 3).astype(np.float64)

    def total(point):
        return np.linalg.norm(values - point, axis=1).sum()

    expected = minimize(total, values.mean(axis=0), tol=1e-10).x
    np.testing.assert_allclose(geometric_median(values), expected, atol=1e-4)
    # Where a vector itself is the median, as one of three quarters of copies is.
    copies = np.array([[1.0, 2]] * 9 + [[50, 60]] * 3)
    np.testing.assert_allclose(geometric_median(copies), [1, 2], atol=1e-6)


@pytest.mark.parametrize("centre", ["ball", "median"])
def test_nu_is_the_share_outside(centre):
    healthy = mixed(1000, 5)
    scores = distances(detector("svdd", nu=0.2, centre=centre), healthy, healthy)
    assert (scores > 0).mean() == pytest.approx(0.2, abs=0.01)
    assert distances(detector("svdd", centre=centre), healthy, 100 + healthy[:5]).min() > 0


def test_median_withstands_strange_vectors_among_healthy_ones():
    healthy = mixed(200, 5)
    spoilt = np.concatenate([healthy, np.full((10, 5), 500, np.float32)])

    def moved(centre):
        found = detector("svdd", centre=centre, pca_components=None)
        fitted = {key: value.double().numpy() for key, value in found.fit_vectors(spoilt).items()}
        point = np.linalg.solve(fitted["matrix"].T, fitted["ball"]) + fitted["centre"]
        return np.linalg.norm(point - healthy.mean(axis=0))

    assert moved("median") < 0.1 * moved("ball")


def test_too_few_vectors():
    with pytest.raises(DetectorError, match=r"19 healthy vectors are too few .* needs 20"):
        detector("svdd", nu=0.1).fit_vectors(mixed(19, 4))
