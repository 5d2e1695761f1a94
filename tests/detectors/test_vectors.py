import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from support.feature_detectors import mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors import _vectors
from wsiad.detectors._vectors import (
    fit_projection,
    nearest,
    project,
    shrink,
    square_distances,
    whitening,
)
from wsiad.learning.feature_source import pooled


def projected(vectors, *args, **kwargs):
    return project(torch.from_numpy(vectors), fit_projection(vectors, *args, **kwargs)).numpy()


@pytest.mark.parametrize("count", [300, 6])  # more vectors than channels, and fewer
@pytest.mark.parametrize("components", [3, 0.8, None])
@pytest.mark.parametrize("whiten", [False, True])
def test_projection_is_that_of_standardised_pca(count, components, whiten):
    vectors = mixed(count, 9)
    found = projected(vectors, components, standardise=True, whiten=whiten)
    pipeline = PCA(components, svd_solver="full", whiten=whiten)
    expected = pipeline.fit_transform(StandardScaler().fit_transform(vectors.astype(np.float64)))
    expected = expected[:, : found.shape[1]]  # without the last, which is zero of few vectors
    assert found.shape[1] >= min(pipeline.n_components_, count - 1)
    # Axes have no sign; whitening enlarges the rounding of the smallest ones.
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=5e-4 if whiten else 2e-5)


def test_constant_channels_and_alike_vectors():
    vectors = mixed(50, 4)
    vectors[:, 2] = 7
    assert projected(vectors, None, standardise=True, whiten=True).shape == (50, 3)
    with pytest.raises(DetectorError, match=r"4 channels span 3 dimensions, fewer than the 4"):
        fit_projection(vectors, 4)
    with pytest.raises(DetectorError, match="all alike"):
        fit_projection(np.ones((9, 4), np.float32), 2)
    with pytest.raises(
        DetectorError,
        match=r"^1 healthy vector is too few for principal components\. Fit on more tiles\.$",
    ):
        fit_projection(vectors[:1], 2)


def test_shrunk_covariance_and_its_whitening():
    covariance = np.array([[4.0, 1.0], [1.0, 2.0]])
    found = shrink(covariance, 0.5)
    np.testing.assert_allclose(found, [[3.5, 0.5], [0.5, 2.5]])
    white = whitening(found, 9)
    np.testing.assert_allclose(white.T @ white, np.linalg.inv(found))
    with pytest.raises(DetectorError, match="9 healthy vectors of 2 channels is singular"):
        whitening(np.ones((2, 2)), 9)


def test_square_distances():
    one, two = mixed(20, 5) - 3, mixed(30, 5, seed=1) - 3
    found = square_distances(torch.from_numpy(one), torch.from_numpy(two)).numpy()
    np.testing.assert_allclose(found, cdist(one, two) ** 2, rtol=1e-4, atol=1e-4)
    assert square_distances(torch.from_numpy(one), torch.from_numpy(one)).min() >= 0


def test_blocks_hold_no_more_than_the_bound(monkeypatch):
    monkeypatch.setattr(_vectors, "_BLOCK_VALUES", 10)
    sizes = []

    def double(part):
        sizes.append(len(part))
        return 2 * part[:, 0]

    found = _vectors.in_blocks(double, torch.arange(7.0)[:, None], 4)
    assert sizes == [2, 2, 2, 1]
    assert found.tolist() == [0, 2, 4, 6, 8, 10, 12]


@pytest.fixture
def strict():
    """Make every warning of PyTorch an error, also the one that it gives once."""
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


@pytest.mark.parametrize("shape", [(8,), (2, 4, 8)])
def test_a_bank_of_another_shape_is_an_error_without_a_warning(strict, shape):
    for compare in (square_distances, lambda vectors, bank: nearest(vectors, bank, 1)):
        with pytest.raises((RuntimeError, IndexError), match=r"[Dd]imension"):
            compare(torch.zeros(3, 8), torch.zeros(shape))


def test_features_of_no_tiles_have_no_deviation_and_warn_of_none(strict):
    assert pooled(torch.zeros(0, 4, 3), "mean-std").shape == (0, 6)
    one = pooled(torch.tensor([[[1.0, 2.0]]]), "mean-std")
    assert one.tolist() == [[1, 2, 0, 0]]
