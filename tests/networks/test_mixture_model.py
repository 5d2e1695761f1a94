from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from wsiad.networks.mixture_model import Mixture, MixtureModel, _moments


def moments_of(weights, means, covariances):
    weights, means, covariances = map(np.asarray, (weights, means, covariances))
    second = weights[:, None, None] * (covariances + means[:, :, None] * means[:, None, :])
    return [torch.from_numpy(v) for v in (weights, weights[:, None] * means, second)]


def test_the_energy_of_a_normal_distribution_at_its_middle():
    mixture = Mixture.of(*moments_of([1.0], [[0.0, 0.0]], [np.eye(2)]))
    assert float(mixture.energy(torch.zeros(1, 2).double())) == pytest.approx(1.8379, abs=1e-4)


def test_the_energy_is_that_of_scipy():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 3, 3))
    covariances, means = root @ root.transpose(0, 2, 1), rng.normal(size=(2, 3))
    mixture = Mixture.of(*moments_of([0.3, 0.7], means, covariances))
    asked = rng.normal(size=(10, 3)) * 3
    logs = [
        np.log(w) + multivariate_normal(m, c).logpdf(asked)
        for w, m, c in zip([0.3, 0.7], means, covariances, strict=True)
    ]
    found = mixture.energy(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found, -logsumexp(logs, axis=0), rtol=1e-3)
    # One Gaussian: half of the squared Mahalanobis distance and of log det(2πΣ).
    one = Mixture.of(*moments_of([1.0], means[:1], covariances[:1]))
    away = asked - means[0]
    distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariances[0]), away)
    expected = 0.5 * distance + 0.5 * np.linalg.slogdet(2 * np.pi * covariances[0])[1]
    np.testing.assert_allclose(one.energy(torch.from_numpy(asked)).numpy(), expected, rtol=1e-3)


def test_far_away_nothing_underflows():
    mixture = Mixture.of(*moments_of([0.5, 0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]]))
    found = mixture.energy(torch.tensor([[1e3], [1e4]]).double())
    np.testing.assert_allclose(found.numpy(), [0.5 * 999**2, 0.5 * 9999**2], rtol=1e-4)


def test_inverse_variances_keep_gaussians_from_shrinking():
    mixture = Mixture.of(*moments_of([0.5, 0.5], np.zeros((2, 2)), [np.eye(2), np.eye(2) / 4]))
    assert float(mixture.inverse_variances()) == pytest.approx(2 + 8, rel=1e-4)


def test_gaussians_of_no_vector_are_no_error():
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    memberships = torch.tensor([[1.0, 0.0]]).expand(20, 2).double()
    energy = Mixture.of(*_moments(z, memberships)).energy(z)
    assert bool(torch.isfinite(energy).all())


def model(**options):
    torch.manual_seed(0)
    return MixtureModel(6, **{"widths": (5,), "code": 2, "gaussians": 3, "hidden": 4, **options})


MAPS = torch.randn(12, 6, 2, 2, generator=torch.Generator().manual_seed(1))


def test_the_mixture_is_that_of_all_vectors_however_they_are_divided():
    one, other = model().eval(), model().eval()
    one.settle([MAPS])
    other.settle([MAPS[:7], MAPS[7:8], MAPS[8:]])
    z, _ = one.latent(MAPS.permute(0, 2, 3, 1).flatten(0, 2))
    gamma = one.memberships(z)
    expected = (gamma.T @ z) / gamma.sum(dim=0)[:, None]
    torch.testing.assert_close(one.means, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(one.weights, gamma.mean(dim=0))
    torch.testing.assert_close(other.lower, one.lower)
    last = model().eval()
    last.settle([MAPS[8:]])  # the mixture of the last batch is another one
    assert not torch.allclose(last.means, one.means, rtol=1e-2)
    torch.testing.assert_close(one.scores(MAPS)[3:4], one.scores(MAPS[3:4]))


def test_z_holds_the_code_the_relative_error_and_the_cosine():
    found = model().eval()
    vectors = MAPS[:, :, 0, 0]
    z, error = found.latent(vectors)
    restored = found.decoder(found.encoder(vectors))
    away = (vectors - restored).norm(dim=1) / vectors.norm(dim=1)
    cosine = (vectors * restored).sum(dim=1) / (vectors.norm(dim=1) * restored.norm(dim=1))
    torch.testing.assert_close(z, torch.cat([z[:, :2], away[:, None], cosine[:, None]], dim=1))
    torch.testing.assert_close(error, (vectors - restored).square().mean(dim=1))


def test_the_loss_is_error_energy_and_inverse_variances():
    found = model(energy_weight=0.5, variance_weight=0.25).eval()
    z, error = found.latent(MAPS.permute(0, 2, 3, 1).flatten(0, 2))
    mixture = Mixture.of(*_moments(z.double(), found.memberships(z).double()))
    expected = (error + 0.5 * mixture.energy(z.double())).reshape(12, 4).mean(dim=1)
    expected = expected + 0.25 * mixture.inverse_variances()
    torch.testing.assert_close(found.losses(MAPS, None).double(), expected, rtol=1e-5, atol=1e-5)


def test_dropout_is_drawn_in_the_training_alone():
    found = model(dropout=0.5)
    drawn = found.train().draw(MAPS, np.random.default_rng(0))
    assert drawn.shape == (48, 4)
    assert set(drawn.unique().tolist()) == {0.0, 2.0}
    assert found.eval().draw(MAPS, np.random.default_rng(0)) is None


def test_the_published_network_has_its_number_of_parameters():
    """KDD: 118-60-30-10-1, and 3-10-4 for four Gaussians."""
    found = MixtureModel(118, widths=(60, 30, 10), code=1, gaussians=4)
    sizes = [118, 60, 30, 10, 1, 10, 30, 60, 118]
    expected = sum(a * b + b for a, b in pairwise(sizes))
    expected += 3 * 10 + 10 + 10 * 4 + 4
    assert sum(p.numel() for p in found.parameters()) == expected
