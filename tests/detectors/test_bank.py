"""The search in a bank finds who brute force in float64 finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from support.feature_detectors import CPU, TILES, detector, distances, fitted_on_tiles, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors import _bank, _cells
from wsiad.detectors._bank import Bank
from wsiad.detectors.knn import NearestNeighbours
from wsiad.learning.feature_source import batch_maps

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def small_cells(monkeypatch):
    """Banks of a test are small, and are divided all the same."""
    monkeypatch.setattr(_cells, "_IN_A_CELL", 40)
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
    assert search.parted
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
        lambda n, seed: mixed(n, 3, seed=seed),
        lambda n, seed: grouped(n, spread=1e-3, seed=seed) * np.float32(1e-4),
    ],
    ids=["groups", "correlated", "noise", "far from zero", "three channels", "tight and tiny"],
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
    through = _bank._Search.through

    def counting(search, rows, starts):
        ranked.append(np.diff(starts) @ np.diff(search.cells.starts))
        through(search, rows, starts)

    monkeypatch.setattr(_bank._Search, "through", counting)
    Bank(torch.from_numpy(bank)).nearest(asked, 1)
    assert 0 < sum(ranked) < 0.5 * asked.shape[0] * len(bank)


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


@pytest.mark.parametrize("shape", [(599, 64), (5, 3)])
def test_small_banks_are_compared_directly(shape):
    bank, asked = mixed(*shape), mixed(30, shape[1], seed=1)
    search = Bank(torch.from_numpy(bank))
    assert not search.parted
    np.testing.assert_array_equal(
        search.nearest(torch.from_numpy(asked), 2)[1].numpy(), expected(bank, asked, 2)
    )


def test_a_bank_is_prepared_once(monkeypatch):
    made = []

    class Counting(Bank):
        def __init__(self, vectors, **others):
            made.append(vectors)
            super().__init__(vectors, **others)

    monkeypatch.setattr(_bank, "Bank", Counting)
    one, other = torch.from_numpy(grouped(700)), torch.from_numpy(grouped(700, seed=3))
    asked = torch.from_numpy(grouped(3, seed=1))
    found = detector("knn")
    for bank in (one, one, other, other):
        indices = found.nearest_of_bank(asked, {"bank": bank}, 1)[1][:, 0]
        assert indices.tolist() == expected(bank.numpy(), asked.numpy(), 1)[:, 0].tolist()
    assert [id(bank) for bank in made] == [id(one), id(other)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("knn", {"neighbours": 3}),
        ("knn", {"metric": "cosine", "orientations": 2}),
        ("knn", {"candidates": 4}),
        ("patchcore", {"coreset": 0.6, "reweight": True}),
        ("knn", {"places": 1, "pooling": "mean"}),
    ],
)
def test_batches_that_are_searched_together_score_as_each_alone(name, options, tmp_path):
    found = fitted_on_tiles(name, tmp_path, **options)
    tiles = np.random.default_rng(7).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)
    batches = np.split(tiles, [1, 4, 5, 9])
    alone = [found.score_map(one) for one in batches]
    for one, other in zip(batch_maps(found, iter(batches)), alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(batch_maps(found, iter(())))


def test_features_wait_for_others_only_within_a_bound(tmp_path, monkeypatch):
    found = fitted_on_tiles("knn", tmp_path, places=8)
    tiles = np.random.default_rng(7).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    asked, nearest = [], Bank.nearest

    def counting(self, vectors, count):
        asked.append(len(vectors))
        return nearest(self, vectors, count)

    monkeypatch.setattr(Bank, "nearest", counting)
    assert len(list(batch_maps(found, np.split(tiles, 12)))) == 12
    assert asked == [12 * 64]
    channels = found._fitted["bank"].shape[1]
    for limit, expected_sizes in ((300, [320, 320, 128]), (1, [64] * 12)):
        monkeypatch.setattr(_bank, "_HELD_VALUES", limit * channels)
        asked.clear()
        ahead, taken = iter(np.split(tiles, 12)), []
        maps = batch_maps(found, (taken.append(one) or one for one in ahead))
        next(maps)
        assert 64 * len(taken) == expected_sizes[0]
        assert len(list(maps)) == 11
        assert asked == expected_sizes


def test_an_unfitted_detector_scores_no_batches():
    with pytest.raises(DetectorError, match="not fitted"):
        next(batch_maps(detector("knn"), [TILES[:1]]))


def probed(search, bank, asked, count):
    """Indices by brute force among the vectors of the cells that are probed."""
    cells = search._cells
    asked = torch.from_numpy(asked)
    away = torch.cdist(cells.reduced(asked).double(), cells.centres.double())
    near = away.argsort(dim=1)[:, : search.probes].numpy()
    belongs = search.state()["belongs"].numpy()
    squares = cdist(asked.numpy().astype(np.float64), bank.astype(np.float64), "sqeuclidean")
    inside = (belongs[None, :, None] == near[:, None]).any(axis=2)
    return np.argsort(np.where(inside, squares, np.inf), axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("probes", [1, 3])
def test_probes_find_the_nearest_of_their_cells(count, probes):
    bank, asked = mixed(900, 64), mixed(150, 64, seed=1)
    search = Bank(torch.from_numpy(bank), probes=probes)
    found, indices = search.nearest(torch.from_numpy(asked), count)
    right = probed(search, bank, asked, count)
    np.testing.assert_array_equal(indices.numpy(), right)
    away = np.linalg.norm(asked[:, None].astype(np.float64) - bank[right], axis=2)
    np.testing.assert_allclose(found.numpy(), away, rtol=1e-5)
    assert (right != expected(bank, asked, count)).any(), "too easy a bank"
    # The way of other devices is tested on this one.
    for one, other in zip(
        search.nearest_by_products(torch.from_numpy(asked), count), (found, indices), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("probes", [22, 1000])
def test_as_many_probes_as_cells_are_exact(probes):
    bank, asked = mixed(900, 64), mixed(60, 64, seed=1)
    search = Bank(torch.from_numpy(bank), probes=probes)
    assert len(search._cells.centres) <= 22
    for way in (search.nearest, search.nearest_by_products):
        indices = way(torch.from_numpy(asked), 2)[1]
        np.testing.assert_array_equal(indices.numpy(), expected(bank, asked, 2))


def test_more_neighbours_than_the_probed_cells_have():
    """Neighbours are then looked for in all cells, each once."""
    bank, asked = grouped(700, groups=30), grouped(50, groups=30, seed=1)
    search = Bank(torch.from_numpy(bank), probes=1)
    sizes = np.bincount(search.state()["belongs"].numpy())
    count = int(np.median(sizes)) + 1
    for way in (search.nearest, search.nearest_by_products):
        found, indices = way(torch.from_numpy(asked), count)
        assert all(len(set(row)) == count for row in indices.tolist())
        assert torch.isfinite(found).all()
        assert (found.diff(dim=1) >= 0).all()
        right = expected(bank, asked, count)
        complete = (np.sort(indices.numpy()) == np.sort(right)).all(axis=1)
        assert complete.any()


def test_cells_are_kept_and_found_again():
    vectors, asked = torch.from_numpy(mixed(900, 64)), torch.from_numpy(mixed(90, 64, seed=1))
    first = Bank(vectors, probes=2)
    for state in (first.state(), Bank(vectors.clone(), probes=2).state()):
        assert all(torch.equal(state[name], part) for name, part in first.state().items())
    # Cells of a run are those of the run, whatever this version would make.
    other = {**first.state(), "belongs": first.state()["belongs"].flip(0)}
    again = Bank(vectors, probes=2, state=other)
    assert torch.equal(again.state()["belongs"], other["belongs"])
    assert not torch.equal(again.nearest(asked, 1)[1], first.nearest(asked, 1)[1])
    # Exact neighbours do not depend on the cells, bad ones included.
    exact = Bank(vectors, state=other).nearest(asked, 2)
    np.testing.assert_array_equal(exact[1].numpy(), expected(vectors.numpy(), asked.numpy(), 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: {**state, "belongs": state["belongs"][1:]},
        lambda state: {**state, "belongs": state["belongs"] + 100},
        lambda state: {**state, "belongs": state["belongs"] - 1},
        lambda state: {**state, "centres": state["centres"][:, 1:]},
        lambda state: {**state, "centres": state["centres"] * torch.nan},
        lambda state: {**state, "axes": state["axes"][1:]},
        lambda state: {name: part for name, part in state.items() if name != "mean"},
    ],
)
def test_cells_that_are_not_those_of_the_bank_are_refused(damage, tmp_path):
    found = fitted_on_tiles("knn", tmp_path, probes=2)
    state = found.state()
    prefix = "fitted.cells."
    cells = {n.removeprefix(prefix): t for n, t in state.tensors.items() if n.startswith(prefix)}
    assert cells
    others = {name: t for name, t in state.tensors.items() if not name.startswith(prefix)}
    damaged = {prefix + name: part for name, part in damage(cells).items()}
    again = NearestNeighbours(found.options, found.spec)
    with pytest.raises(DetectorError, match="not that of this detector"):
        again.load_state(replace(state, tensors={**others, **damaged}), CPU)


@pytest.mark.parametrize("name", ["knn", "patchcore"])
def test_a_run_with_probes_scores_the_same_when_it_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_bank, "_LEAST_VECTORS", 100)
    exact = fitted_on_tiles(name, tmp_path / "exact")
    found = fitted_on_tiles(name, tmp_path, probes=1)
    tiles = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    scores, least = found.score_places(tiles), exact.score_places(tiles)
    assert found._bank.parted
    again = type(found)(found.options, found.spec)
    monkeypatch.setattr(_cells, "_parted", None)  # the run has them
    again.load_state(found.state(), CPU)
    np.testing.assert_array_equal(again.score_places(tiles), scores)
    assert (scores >= least).all()


def test_a_run_without_probes_keeps_no_cells(tmp_path):
    names = fitted_on_tiles("knn", tmp_path).state().tensors
    assert [name for name in names if name.startswith("fitted.")] == ["fitted.bank"]


def test_probes_need_one_cell_and_no_candidates():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        detector("knn", probes=0)
    with pytest.raises(ValueError, match="without candidates"):
        detector("knn", probes=1, candidates=2)


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
    tiles = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    again = NearestNeighbours(found.options, found.spec)
    again.load_state(found.state(), CPU)
    np.testing.assert_array_equal(again.score_places(tiles), found.score_places(tiles))
