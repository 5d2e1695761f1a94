import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from support.feature_detectors import CPU, TILES, detector, distances, fitted_on_tiles, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors.patchcore import greedy_coreset
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.store.dataset import ArrayTiles


def radius(vectors, chosen):
    return cdist(vectors, vectors[list(chosen)]).min(axis=1).max()


def test_coreset_is_the_greedy_one():
    vectors = mixed(60, 5)
    found = greedy_coreset(torch.from_numpy(vectors), 12, seed=2).tolist()
    away = cdist(vectors.astype(np.float64), vectors.astype(np.float64))
    expected = [found[0]]
    while len(expected) < 12:
        expected.append(int(away[expected].min(axis=0).argmax()))
    assert found == expected


@pytest.mark.parametrize("seed", range(5))
def test_coreset_is_at_most_twice_as_wide_as_the_best(seed):
    vectors = mixed(11, 2, seed=seed)
    found = greedy_coreset(torch.from_numpy(vectors), 3, seed=seed).tolist()
    best = min(radius(vectors, chosen) for chosen in itertools.combinations(range(11), 3))
    assert best <= radius(vectors, found) + 1e-6 <= 2 * best + 2e-6


@pytest.mark.parametrize("projection", [None, 16])
def test_coreset_has_one_of_every_far_cluster(projection):
    rng = np.random.default_rng(0)
    centres = 100 * rng.normal(size=(7, 64))
    vectors = np.repeat(centres, 30, axis=0) + rng.normal(size=(210, 64))
    found = greedy_coreset(
        torch.from_numpy(vectors.astype(np.float32)), 7, seed=1, projection=projection
    )
    assert sorted(found // 30) == list(range(7))


def test_copies_are_chosen_once_and_the_seed_decides():
    copies = torch.from_numpy(np.repeat(mixed(5, 3), 4, axis=0))
    assert len(greedy_coreset(copies, 12, seed=0)) == 5
    vectors = torch.from_numpy(mixed(100, 20))
    first, again, other = (
        greedy_coreset(vectors, 10, seed=seed, projection=4).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_whole_coreset_is_the_nearest_neighbour():
    healthy, asked = mixed(200, 6), mixed(30, 6, seed=1)
    scores = distances(detector("patchcore", coreset=1.0), healthy, asked)
    np.testing.assert_allclose(scores, cdist(asked, healthy).min(axis=1), rtol=1e-5)


def test_weights_of_nine_neighbours():
    healthy, asked = mixed(300, 6) / 4, mixed(30, 6, seed=1) / 4
    found = detector("patchcore", coreset=0.2, reweight=True)
    bank = found.fit_vectors(healthy)["bank"].numpy().astype(np.float64)
    assert len(bank) == 60
    away = cdist(asked, bank)
    expected = []
    for row in away:
        nearest = row.argmin()
        around = np.argsort(cdist(bank[[nearest]], bank)[0])[:9]
        expected.append(row[nearest] * (1 - np.exp(row[nearest]) / np.exp(row[around]).sum()))
    np.testing.assert_allclose(distances(found, healthy, asked), expected, rtol=1e-4)


def test_too_few_vectors():
    with pytest.raises(DetectorError, match="1 healthy vector is too few for a coreset"):
        detector("patchcore").fit_vectors(mixed(1, 3))
    with pytest.raises(DetectorError, match="5 healthy vectors are too few for the weights of 9"):
        detector("patchcore", reweight=True).fit_vectors(mixed(50, 3))


def test_two_layers_and_their_neighbourhoods_by_default(tmp_path):
    found = fitted_on_tiles("patchcore", tmp_path, places=2)
    assert found.state().values["channels"] == 128 + 256
    assert found._backbone.neighbourhood == 3
    layers = detector("patchcore", backbone="wide_resnet50_2").options.chosen_layers()
    assert layers == ("layer2", "layer3")


def test_it_looks_through_the_network_that_comes_along(tmp_path):
    found = detector("patchcore", backbone="wsiad", places=2)
    tiles = ArrayTiles(TILES)
    found.fit(HealthyTiles(tiles, tiles), FitContext(seed=1, device=CPU, folder=tmp_path))
    assert found.score(TILES[:2]).shape == (2,)


def test_given_layers_are_used():
    assert detector("patchcore", layers=["features.3"]).options.chosen_layers() == ("features.3",)
