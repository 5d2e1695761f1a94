import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import _vectors
from wsiad.detectors.knn import KnnOptions, NearestNeighbours
from wsiad.learning.detector import FitContext, HealthyTiles, InputSpec
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (20, 40, 40, 3), dtype=np.uint8)


def detector(**options):
    return NearestNeighbours(KnnOptions(**options), InputSpec(TilePx(40), Mpp(1)))


@pytest.mark.parametrize("neighbours", [1, 4])
@pytest.mark.parametrize("block", [1 << 24, 1 << 12])
def test_distance_is_that_of_a_tree(neighbours, block, monkeypatch):
    monkeypatch.setattr(_vectors, "_BLOCK_VALUES", block)
    healthy = RNG.normal(size=(500, 6)).astype(np.float32)
    asked = RNG.normal(size=(77, 6)).astype(np.float32)
    found = detector(neighbours=neighbours)
    distance = found.distance(torch.from_numpy(asked), found.fit_vectors(healthy)).numpy()
    expected = cKDTree(healthy).query(asked, k=neighbours)[0].reshape(77, -1).mean(axis=1)
    np.testing.assert_allclose(distance, expected, rtol=1e-5)


def test_small_distances_far_from_the_origin_do_not_cancel():
    healthy = np.array([[1000.0, 1000.0], [2000.0, 0.0]], np.float32)
    asked = healthy + np.array([[0.0, 0.25], [0.0, 0.0]], np.float32)
    found = detector()
    distance = found.distance(torch.from_numpy(asked), found.fit_vectors(healthy)).numpy()
    np.testing.assert_array_equal(distance, [0.25, 0.0])


def test_too_few_vectors_are_refused():
    with pytest.raises(DetectorError, match="2 healthy vectors are too few"):
        detector(neighbours=3).fit_vectors(np.zeros((2, 4), np.float32))


def test_fit_score_and_round_trip(tmp_path):
    found = detector(places=4)
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    report = found.fit(HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)), context)
    assert report.notes["vectors"] == 20 * 16
    again = NearestNeighbours(found.options, found.spec)
    again.load_state(found.state(), CPU)
    other = RNG.integers(0, 64, (3, 40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(again.score_places(other), found.score_places(other))
    assert found.score(other).min() > 0
    # The tiles fill the input, so the window fitted on is the whole tile, flipped at most.
    assert found.score(TILES).mean() < found.score(other).mean()


def test_default_pooling_is_the_low_quantile_of_places():
    places = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    assert detector().pool(places)[0] == pytest.approx(0.05 * 63)
    assert detector(pooling="max").pool(places)[0] == 63
    assert detector(pooling="mean").pool(places)[0] == pytest.approx(31.5)


@pytest.mark.parametrize("times", [1.5, 2])
def test_magnified_tiles_are_those_of_another_library(tmp_path, times):
    """Enlarging within the detector is fitting on, and scoring, tiles that are larger."""
    larger = [cv2.resize(tile, None, fx=times, fy=times) for tile in TILES]
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    within = detector(places=4, magnify=times, layers=("features.6",))
    within.fit(HealthyTiles(ArrayTiles(TILES[:12]), ArrayTiles(TILES)), context)
    before = NearestNeighbours(
        KnnOptions(places=4, layers=("features.6",)), InputSpec(TilePx(round(40 * times)), Mpp(1))
    )
    before.fit(
        HealthyTiles(ArrayTiles(np.stack(larger[:12])), ArrayTiles(np.stack(larger))), context
    )
    # OpenCV interpolates in fixed point, so a value may be rounded otherwise.
    np.testing.assert_allclose(
        within.score_places(TILES[12:]), before.score_places(np.stack(larger[12:])), rtol=0.05
    )
    assert within.score_places(TILES[12:]).min() > 0
