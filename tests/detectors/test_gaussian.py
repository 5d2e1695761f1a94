import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.detectors.gaussian import Gaussian, GaussianOptions
from wsiad.learning.detector import FitContext, HealthyTiles, InputSpec, State
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (24, 40, 40, 3), dtype=np.uint8)


def detector(**options):
    return Gaussian(GaussianOptions(**options), InputSpec(TilePx(32), Mpp(1)))


def fitted(tmp_path, tiles=TILES, **options):
    found = detector(**{"places": 2, **options})
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    return found, found.fit(HealthyTiles(ArrayTiles(tiles), ArrayTiles(tiles)), context)


def vectors(count=300, channels=7):
    mixing = RNG.normal(size=(channels, channels))
    return (RNG.normal(size=(count, channels)) @ mixing + 3).astype(np.float32)


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", 0.0, 0.2])
def test_distance_is_that_by_the_inverse_covariance(shrinkage):
    healthy, asked = vectors(), vectors(50)
    found = detector(shrinkage=shrinkage)
    distance = found.distance(torch.from_numpy(asked), found.fit_vectors(healthy)).numpy()
    exact = healthy.astype(np.float64)
    mean = exact.mean(axis=0)
    if shrinkage == "ledoit-wolf":
        covariance = LedoitWolf().fit(exact).covariance_
    else:
        covariance = np.cov(exact.T, bias=True)
        identity = np.eye(len(mean)) * np.trace(covariance) / len(mean)
        covariance = (1 - shrinkage) * covariance + shrinkage * identity
    away = asked - mean
    expected = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away))
    np.testing.assert_allclose(distance, expected, rtol=1e-3)


def test_singular_covariance_is_refused():
    with pytest.raises(DetectorError, match="5 healthy vectors of 7 channels is singular"):
        detector(shrinkage=0.0).fit_vectors(vectors(5))


@pytest.mark.parametrize("method", ["gaussian", "gmm", "pca", "ocsvm", "svdd"])
def test_features_that_are_all_alike_are_refused_with_the_weights_named(tmp_path, method):
    kind = registry.load(method)
    found = kind(kind.Options(places=1), InputSpec(TilePx(32), Mpp(1)))
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    alike = HealthyTiles(ArrayTiles(np.full_like(TILES, 90)), ArrayTiles(TILES))
    with pytest.raises(DetectorError, match=r"vectors are all alike\. Look at the weights of the"):
        found.fit(alike, context)


def test_fit_and_score(tmp_path):
    found, report = fitted(tmp_path)
    assert report.ended_by == "fitted"
    assert report.steps == 0
    assert report.notes["tiles"] == 24
    assert report.notes["vectors"] == 24 * 4
    assert report.notes["weights"]["source"] == "random"
    scored = TILES[:5, :32, :32]
    places = found.score_places(scored)
    assert places.shape == (5, 2, 2)
    assert places.dtype == np.float32
    flat = np.full((1, 32, 32, 3), 255, np.uint8)
    assert found.score(flat)[0] > found.score(scored).max()
    np.testing.assert_allclose(found.score_places(scored[2:3])[0], places[2], rtol=1e-4)


def test_no_tiles_no_scores(tmp_path):
    found, _ = fitted(tmp_path)
    assert found.score(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0,)


def test_vectors_are_a_sample_of_all_places(tmp_path):
    _, report = fitted(tmp_path, fit_vectors=60, fit_tiles=10)
    assert (report.notes["tiles"], report.notes["vectors"]) == (10, 40)
    _, report = fitted(tmp_path, fit_vectors=60)
    assert report.notes["vectors"] == 60


def test_state_round_trip(tmp_path):
    found, _ = fitted(tmp_path, l2_normalise=True)
    again = Gaussian(found.options, found.spec)
    again.load_state(found.state(), CPU)
    np.testing.assert_array_equal(again.score(TILES[:, :32, :32]), found.score(TILES[:, :32, :32]))
    assert again.state().values == found.state().values


def test_same_seed_same_detector(tmp_path):
    first, second = fitted(tmp_path)[0].state(), fitted(tmp_path)[0].state()
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)


def test_state_of_something_else_is_refused(tmp_path):
    found, _ = fitted(tmp_path)
    state = found.state()
    for tensors in (
        {},
        {k: t for k, t in state.tensors.items() if k != "fitted.mean"},
        {**state.tensors, "fitted.mean": torch.zeros(3)},
        {"autoencoder.x": torch.zeros(1)},
    ):
        with pytest.raises(DetectorError, match="not that of this detector"):
            detector(places=2).load_state(State(tensors, {}), CPU)


def test_use_before_fit_is_refused():
    with pytest.raises(DetectorError, match="not fitted"):
        detector().score(TILES[:, :32, :32])
    with pytest.raises(DetectorError, match="not fitted"):
        detector().state()


def test_tiles_smaller_than_the_input_are_refused(tmp_path):
    with pytest.raises(DetectorError, match="24 px are smaller"):
        fitted(tmp_path, tiles=TILES[:, :24, :24])
