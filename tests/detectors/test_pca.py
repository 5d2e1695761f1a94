import numpy as np
import pytest
from sklearn.decomposition import PCA

from support.feature_detectors import detector, distances, mixed
from wsiad.core.errors import DetectorError


@pytest.mark.parametrize("components", [3, 0.9])
def test_error_is_that_of_scikit_learns_reconstruction(components):
    healthy, asked = mixed(300, 8), mixed(40, 8, seed=1)
    found = distances(detector("pca", components=components), healthy, asked)
    pca = PCA(components, svd_solver="full").fit(healthy.astype(np.float64))
    reconstructed = pca.inverse_transform(pca.transform(asked.astype(np.float64)))
    expected = np.square(asked - reconstructed).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_distance_to_a_known_line():
    along = np.linspace(-5, 5, 21, dtype=np.float32)
    line = np.stack([along, 2 * along + 1, np.zeros_like(along)], axis=1)
    asked = np.array([[30, 61, 0], [0, 1, 7], [-2, 2, 0]], np.float32)
    # (-2, 1) is at right angles to the line.
    found = distances(detector("pca", components=1), line, asked)
    np.testing.assert_allclose(found, [0, 49, 5], atol=1e-4)


def test_components_that_leave_nothing_are_refused():
    with pytest.raises(DetectorError, match="4 principal components of 4 channels reconstruct"):
        detector("pca", components=4).fit_vectors(mixed(50, 4))
