import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_distances

from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import _vectors
from wsiad.detectors.knn import KnnOptions, NearestNeighbours
from wsiad.learning.detector import FitContext, HealthyTiles, InputSpec
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import check_detector

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
    with pytest.raises(
        DetectorError, match=r"^2 healthy vectors are too few.* or set fewer neighbours\.$"
    ):
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


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.05, 3), (0.5, 32), (1, 64)])
def test_pooling_by_the_mean_of_the_top_share(share, count):
    places = np.random.default_rng(0).permutation(64).astype(np.float32).reshape(1, 8, 8)
    found = detector(pooling="top", pooling_top=share).pool(places)
    assert found[0] == pytest.approx(np.arange(64 - count, 64).mean())
    assert detector(pooling="top").pool(places[:0]).shape == (0,)


def test_cosine_distance_is_that_of_scikit_learn():
    healthy = RNG.normal(size=(200, 6)).astype(np.float32)
    asked = RNG.normal(size=(30, 6)).astype(np.float32)
    found = detector(metric="cosine", neighbours=3)
    distance = found.distance(torch.from_numpy(asked), found.fit_vectors(healthy)).numpy()
    expected = np.sort(cosine_distances(asked, healthy), axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=1e-7)


PIXELS = {
    "backbone": "pixels",
    "layers": ("level0", "level1"),
    "backbone_args": {"patch": 5, "projections": 4},
    "places": 4,
}


def spade(folder, **options):
    found = detector(**PIXELS, candidates=3, **options)
    context = FitContext(seed=1, device=CPU, folder=folder, quiet=True)
    found.fit(HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)), context)
    return found


def features(found, tiles):
    return found._features(torch.from_numpy(tiles)).numpy().reshape(len(tiles), 16, -1)


@pytest.mark.parametrize("layer", [None, "level1"])
def test_candidates_are_those_of_brute_force(layer, tmp_path):
    """SPADE: the nearest tiles by the mean of one layer, then the nearest of their places."""
    found = spade(tmp_path, candidate_layer=layer)
    asked = np.random.default_rng(7).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    bank, own = features(found, TILES), features(found, asked)
    image, place = (slice(None),) * 2 if layer is None else (slice(4, 8), slice(0, 4))
    away = cdist(own.mean(axis=1)[:, image], bank.mean(axis=1)[:, image])
    expected = np.stack(
        [
            cdist(tile[:, place], bank[np.argsort(row)[:3]][..., place].reshape(48, -1)).min(axis=1)
            for tile, row in zip(own, away, strict=True)
        ]
    )
    np.testing.assert_allclose(found.score_places(asked).reshape(4, 16), expected, rtol=1e-4)

    whole = spade(tmp_path, candidate_layer=layer, compare="tiles")
    scores = whole.score_places(asked)
    assert scores.shape == (4, 1, 1)
    expected = np.sort(away, axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(scores[:, 0, 0], expected, rtol=1e-4)


def test_a_tile_of_the_fit_finds_itself(tmp_path):
    found = spade(tmp_path)
    np.testing.assert_allclose(found.score_places(TILES), 0, atol=1e-6)
    cosine = spade(tmp_path, metric="cosine")
    np.testing.assert_allclose(cosine.score_places(TILES), 0, atol=1e-6)


def test_complete_tiles_are_kept_as_far_as_vectors_are_allowed(tmp_path):
    kept = spade(tmp_path, fit_vectors=100).state().tensors["fitted.bank"]
    assert kept.shape == (6, 16, 8)
    every = features(spade(tmp_path), TILES)
    for tile in kept.numpy():
        assert (np.abs(every - tile).max(axis=(1, 2)) < 1e-6).any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compare": "tiles"}, "need candidates"),
        ({"candidate_layer": "level0"}, "need candidates"),
        ({"candidates": 2, "candidate_layer": "level0"}, "one of several layers"),
        (
            {"candidates": 2, "candidate_layer": "level3", "layers": ("level0",)},
            "one of several layers",
        ),
    ],
)
def test_options_of_candidates_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        KnnOptions(**options)


def test_too_few_tiles_for_the_candidates(tmp_path):
    few = r"^2 healthy tiles are too few for 3 candidates\. .* more tiles, or set fewer cand"
    with pytest.raises(DetectorError, match=few):
        spade(tmp_path, fit_vectors=32)


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "cosine", "pooling": "top"},
        {"candidates": 3},
        {"candidates": 3, "candidate_layer": "level1"},
        {"candidates": 3, "compare": "tiles", "metric": "cosine"},
    ],
)
def test_option_families_conform(options):
    check_detector(NearestNeighbours, {**PIXELS, **options}, input_px=32)


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
