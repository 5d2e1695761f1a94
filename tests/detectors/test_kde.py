import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity

from support.feature_detectors import detector, distances, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors import kde
from wsiad.detectors._vectors import project


def test_score_is_scipys_density_by_scotts_rule():
    healthy, asked = mixed(400, 4), mixed(30, 4, seed=1)
    scores = distances(detector("kde", pca_components=None), healthy, asked)
    expected = -gaussian_kde(healthy.T.astype(np.float64)).logpdf(asked.T)
    # The density in whitened components differs by the constant of the change of variables.
    offset = np.linalg.slogdet(np.cov(healthy.T.astype(np.float64)))[1] / 2
    np.testing.assert_allclose(scores + offset, expected, rtol=1e-4)


@pytest.mark.parametrize("bandwidth", [0.2, 1.5])
def test_score_is_scikit_learns_density(bandwidth):
    healthy, asked = mixed(300, 9), mixed(30, 9, seed=1)
    found = detector("kde", pca_components=3, bandwidth=bandwidth)
    fitted = found.fit_vectors(healthy)
    reference = KernelDensity(bandwidth=bandwidth).fit(fitted["bank"].double().numpy())
    values = project(torch.from_numpy(asked), fitted).double().numpy()
    expected = -reference.score_samples(values)
    np.testing.assert_allclose(distances(found, healthy, asked), expected, rtol=1e-5, atol=1e-5)


def test_likeliest_bandwidth_is_that_of_a_search():
    bank = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32))
    found = kde.likeliest_bandwidth(bank, seed=3)
    order = np.random.default_rng(3).permutation(500)
    values = bank.double().numpy()
    held, rest = values[order[::5]], values[np.delete(order, np.s_[::5])]
    tried = kde._TRIED * 400 ** (-1 / 6)
    means = [KernelDensity(bandwidth=h).fit(rest).score(held) for h in tried]
    assert found == pytest.approx(tried[np.argmax(means)])
    assert tried[0] < found < tried[-1]


def test_likelihood_sees_structure_that_scott_smooths_away():
    rng = np.random.default_rng(0)
    healthy = (rng.normal(0, 0.01, (400, 2)) + rng.choice([-1, 1], (400, 2))).astype(np.float32)
    between = np.zeros((1, 2), np.float32)
    fitted = {
        rule: detector("kde", pca_components=2, bandwidth=rule) for rule in ("scott", "likelihood")
    }
    gaps = {
        rule: distances(d, healthy, between)[0] - distances(d, healthy, healthy[:9]).mean()
        for rule, d in fitted.items()
    }
    assert gaps["likelihood"] > 10 * gaps["scott"]


def test_too_few_vectors():
    with pytest.raises(DetectorError, match="9 healthy vectors are too few for a kernel density"):
        detector("kde").fit_vectors(mixed(9, 4))
    with pytest.raises(DetectorError, match="span 4 dimensions, fewer than the 16"):
        detector("kde").fit_vectors(mixed(50, 4))
