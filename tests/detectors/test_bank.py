"""The search in a bank finds who brute force in float64 finds."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from support.feature_detectors import CPU, detector, distances, fitted_on_tiles, mixed
from wsiad.detectors import _bank
from wsiad.detectors._bank import Bank, LastBank
from wsiad.detectors.knn import NearestNeighbours

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def small_cells(monkeypatch):
    """Banks of a test are small, and are divided all the same."""
    monkeypatch.setattr(_bank, "_IN_A_CELL", 40)
    monkeypatch.setattr(_bank, "_LEAST_VECTORS", 600)


def grouped(count, channels=64, *, groups=20, spread=0.3, seed=0):
    """Vectors around some centres, of few large and many small directions, away from zero."""
    rng = np.random.default_rng(seed)
    scale = 4 / np.arange(1, channels + 1)
    centres = np.random.default_rng(1).normal(size=(groups, channels)) * scale
    found = centres[rng.integers(groups, size=count)]
    return (found + spread * scale * rng.normal(size=(count, channels)) + 2).astype(np.float32)


def expected(bank, asked, count):
    """Indices by brute force; of equally near vectors the first."""
    away = cdist(asked.astype(np.float64), bank.astype(np.float64), "sqeuclidean")
    return np.argsort(away, axis=1, kind="stable")[:, :count]


def check(bank, asked, count):
    search = Bank(torch.from_numpy(bank))
    assert search.reduced
    found, indices = search.nearest(torch.from_numpy(asked), count)
    right = expected(bank, asked, count)
    np.testing.assert_array_equal(indices.numpy(), right)
    away = np.linalg.norm(asked[:, None].astype(np.float64) - bank[right], axis=2)
    np.testing.assert_allclose(found.numpy(), away, rtol=1e-5)
    return search


@pytest.mark.parametrize("count", [1, 4, 50])
@pytest.mark.parametrize(
    "make",
    [
        lambda n, seed: grouped(n, seed=seed),
        lambda n, seed: mixed(n, 48, seed=seed),
        lambda n, seed: np.random.default_rng(seed).normal(size=(n, 100)).astype(np.float32),
        lambda n, seed: grouped(n, 300, seed=seed) + np.float32(1000),
        lambda n, seed: grouped(n, spread=1e-3, seed=seed) * np.float32(1e-4),
    ],
    ids=["groups", "correlated", "noise", "far from zero", "tight and tiny"],
)
def test_neighbours_are_those_of_brute_force(make, count):
    check(make(900, 0), make(150, 1), count)


def test_vectors_of_the_bank_and_far_ones():
    bank = grouped(1000)
    far = grouped(20, seed=2) * np.float32(100)
    check(bank, np.concatenate([bank[::7], far, np.zeros((1, 64), np.float32)]), 3)


def test_of_copies_the_first_are_found():
    bank = np.repeat(grouped(250), 4, axis=0)
    asked = np.concatenate([bank[:20], grouped(40, seed=1)])
    search = check(bank, asked, 1)
    check(bank, asked, 6)
    found, indices = search.nearest(torch.from_numpy(bank[[8]]), 6)
    assert indices[0, :4].tolist() == [8, 9, 10, 11]
    assert found[0, :4].tolist() == [0, 0, 0, 0]


def test_a_bank_of_one_vector_many_times():
    bank = np.repeat(grouped(1), 700, axis=0)
    found, indices = Bank(torch.from_numpy(bank)).nearest(torch.from_numpy(grouped(5, seed=1)), 3)
    assert indices.tolist() == [[0, 1, 2]] * 5
    assert (found > 0).all()


def test_a_bank_in_a_plane_has_no_rest():
    """Fewer directions than the reduction has: what it leaves is rounding alone."""
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(3, 64))
    bank, asked = ((rng.normal(size=(count, 3)) @ plane).astype(np.float32) for count in (800, 60))
    check(bank, asked, 2)


def test_vectors_off_the_directions_of_the_bank():
    """What separates them from the bank is all in the length that the reduction keeps."""
    bank = grouped(800)
    bank[:, 40:] = 2
    asked = bank[:50].copy()
    asked[:, 40:] += RNG.normal(size=(50, 24)).astype(np.float32)
    check(bank, asked, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_no_vector_depends_on_those_beside_it(count, monkeypatch):
    bank, asked = torch.from_numpy(grouped(900)), torch.from_numpy(grouped(90, seed=1))
    search = Bank(bank)
    together = search.nearest(asked, count)
    alone = [search.nearest(one, count) for one in asked.split(1)]
    monkeypatch.setattr(_bank, "_ASKED", 7)
    parts = search.nearest(asked, count)
    for which in range(2):
        assert torch.equal(together[which], torch.cat([one[which] for one in alone]))
        assert torch.equal(together[which], parts[which])


def test_the_number_of_threads_changes_nothing(monkeypatch):
    bank, asked = torch.from_numpy(grouped(900)), torch.from_numpy(grouped(200, seed=1))
    alone = Bank(bank).nearest(asked, 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = Bank(bank).nearest(asked, 2)
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


def test_most_of_a_bank_is_ruled_out(monkeypatch):
    """The bounds do their work: few vectors of a bank are compared."""
    bank, asked = grouped(3000), torch.from_numpy(grouped(100, seed=1))
    ranked = []
    refine = _bank._refine

    def counting(ranks, rows, order, *others):
        ranked.append(ranks.size)
        refine(ranks, rows, order, *others)

    monkeypatch.setattr(_bank, "_refine", counting)
    Bank(torch.from_numpy(bank)).nearest(asked, 1)
    assert sum(ranked) < 0.5 * asked.shape[0] * len(bank)


def test_values_that_are_not_numbers_give_none():
    search = Bank(torch.from_numpy(grouped(800)))
    asked = torch.from_numpy(grouped(4, seed=1))
    right = search.nearest(asked, 2)[0]
    asked[1, 3], asked[2, 5] = torch.nan, torch.inf
    found = search.nearest(asked, 2)[0]
    assert torch.equal(found[[0, 3]], right[[0, 3]])
    assert not torch.isfinite(found[[1, 2]]).any()


def test_none_asked():
    found, indices = Bank(torch.from_numpy(grouped(800))).nearest(torch.zeros(0, 64), 2)
    assert found.shape == indices.shape == (0, 2)
    assert indices.dtype == torch.int64


@pytest.mark.parametrize("shape", [(599, 64), (700, 47), (5, 3)])
def test_small_banks_are_compared_directly(shape):
    bank, asked = mixed(*shape), mixed(30, shape[1], seed=1)
    search = Bank(torch.from_numpy(bank))
    assert not search.reduced
    np.testing.assert_array_equal(
        search.nearest(torch.from_numpy(asked), 2)[1].numpy(), expected(bank, asked, 2)
    )


def test_a_bank_is_prepared_once(monkeypatch):
    made = []

    class Counting(Bank):
        def __init__(self, vectors):
            made.append(vectors)
            super().__init__(vectors)

    monkeypatch.setattr(_bank, "Bank", Counting)
    one, other = torch.from_numpy(grouped(700)), torch.from_numpy(grouped(700, seed=3))
    asked = torch.from_numpy(grouped(3, seed=1))
    last = LastBank()
    for bank in (one, one, other, other):
        found = last.nearest(asked, bank, 1)[1][:, 0]
        assert found.tolist() == expected(bank.numpy(), asked.numpy(), 1)[:, 0].tolist()
    assert [id(bank) for bank in made] == [id(one), id(other)]


@pytest.mark.parametrize("options", [{"neighbours": 3}, {"metric": "cosine"}])
def test_scores_of_knn_are_those_without_the_bounds(options, monkeypatch):
    healthy, asked = grouped(900), grouped(70, seed=1)
    reduced = distances(detector("knn", **options), healthy, asked)
    monkeypatch.setattr(_bank, "_LEAST_VECTORS", 10**9)
    np.testing.assert_array_equal(reduced, distances(detector("knn", **options), healthy, asked))


@pytest.mark.parametrize("options", [{}, {"reweight": True}])
def test_scores_of_patchcore_are_those_without_the_bounds(options, monkeypatch):
    healthy, asked = grouped(1500), grouped(70, seed=1)
    options = {"coreset": 0.5, "projection": None, **options}
    reduced = distances(detector("patchcore", **options), healthy, asked)
    monkeypatch.setattr(_bank, "_LEAST_VECTORS", 10**9)
    plain = distances(detector("patchcore", **options), healthy, asked)
    np.testing.assert_array_equal(reduced, plain)


def test_a_loaded_run_scores_the_same(tmp_path):
    found = fitted_on_tiles("knn", tmp_path)
    assert len(found._fitted["bank"]) > 600
    tiles = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    again = NearestNeighbours(found.options, found.spec)
    again.load_state(found.state(), CPU)
    np.testing.assert_array_equal(again.score_places(tiles), found.score_places(tiles))
