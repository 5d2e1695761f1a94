"""Codes of vectors: their distances bound those of the vectors, and who is nearest stays exact."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from wsiad.core.compiled import BLOCK, CODE, multiplies_bytes
from wsiad.detectors import _bank, _byte_blocks, _cells, _codes
from wsiad.detectors._bank import Bank
from wsiad.detectors._byte_blocks import Blocks
from wsiad.detectors._codes import Codes


@pytest.fixture(params=["bytes", "floats"])
def kind(request, monkeypatch):
    """Codes are bytes where the processor multiplies them quickly, and floats elsewhere."""
    if request.param == "bytes" and not multiplies_bytes():
        pytest.skip("this processor has no instructions for products of bytes")
    monkeypatch.setattr(_codes, "multiplies_bytes", lambda: request.param == "bytes")
    return request.param


def uneven(count, channels, *, seed=0):
    """Vectors of few large and many small directions, some of them far out."""
    rng = np.random.default_rng(seed)
    found = rng.standard_t(3, size=(count, channels)) * (6 / np.arange(1, channels + 1))
    return torch.from_numpy(found.astype(np.float32))


@pytest.mark.parametrize(
    ("bank", "asked"),
    [
        (uneven(700, 128), uneven(90, 128, seed=1)),
        (uneven(700, 128), 40 * uneven(90, 128, seed=1)),  # beyond the codes
        (uneven(700, 128) + 1000, uneven(90, 128, seed=1) + 1000),
        (uneven(700, 5), uneven(90, 5, seed=1)),  # fewer channels than dimensions
        (uneven(700, 128) * 1e-12, uneven(90, 128, seed=1) * 1e-12),
        (torch.full((700, 16), 3.0), uneven(90, 16)),  # one vector many times
    ],
)
def test_no_distance_is_smaller_than_its_bound(bank, asked, kind):
    codes = Codes.found(bank, in_bytes=kind == "bytes")
    held, found = codes.coded(bank), codes.coded(asked)
    true = cdist(asked.double(), bank.double())
    coded = codes.scale * cdist(found.codes.double(), held.codes.double())
    bound = coded - found.errors[:, None].astype(float) - held.errors[None]
    assert (bound <= true).all()
    for one in (held, found):
        squares = one.codes.double().square().sum(dim=1)
        assert (np.abs(one.squares - squares.numpy()) <= codes.rounding * squares.numpy()).all()


def test_bounds_rule_out_most(kind):
    """Otherwise nothing is gained: of vectors like those of networks few need their distance."""
    bank, asked = even(4000), even(100, seed=1)
    codes = Codes.of(bank)
    assert (codes.turn is not None) == (kind == "bytes")
    held, found = codes.coded(bank), codes.coded(asked)
    coded = codes.scale * cdist(found.codes.double(), held.codes.double())
    bound = coded - found.errors[:, None] - held.errors[None]
    assert (bound <= cdist(asked, bank).min(axis=1, keepdims=True)).mean() < 0.01


def even(count, *, seed=0):
    """Vectors of large and small directions, none of them far out."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((count, 128)) * (1 / np.arange(1, 129))
    return torch.from_numpy(found.astype(np.float32))


@pytest.mark.parametrize("far", [1, 10, 1000])
def test_vectors_beyond_the_codes_are_ruled_out_too(far, monkeypatch):
    """Tumour can be far from a healthy bank: it is compared in floats, as fast as others."""
    monkeypatch.setattr(_cells, "_IN_A_CELL", 100)
    compared = []
    for room in (_codes, _byte_blocks):
        monkeypatch.setattr(room, "square_distance", lambda *two: compared.append(0) or plain(*two))
        monkeypatch.setattr(room, "enter", room.enter.py_func)
    for name in ("_any_below", "_lowest", "_most"):
        monkeypatch.setattr(_codes, name, getattr(_codes, name).py_func)
    monkeypatch.setattr(_byte_blocks, "_least", _byte_blocks._least.py_func)
    monkeypatch.setattr(_bank, "refine", _codes.refine.py_func)
    monkeypatch.setattr(_bank, "compare", _byte_blocks.compare.py_func)
    bank, asked = even(2000), far * even(20, seed=1)
    found = Bank(bank).nearest(asked, 1)[1].numpy()[:, 0]
    np.testing.assert_array_equal(found, cdist(asked.double(), bank.double()).argmin(axis=1))
    assert len(compared) < 0.03 * len(bank) * len(asked)


def plain(one, other):
    """Square of a distance as the search compares it."""
    return float(((one.astype(float) - other) ** 2).sum())


@pytest.mark.usefixtures("kind")
def test_floats_take_the_place_of_bytes_that_are_too_coarse():
    """A vector far out would make a step as long as the distances of all others."""
    bank = even(4000)
    bank[17] *= 1e4
    assert Codes.of(bank).turn is None


def test_codes_lie_in_blocks_of_their_cell():
    """What only fills a block is farther than all codes, however long a vector's own are."""
    vectors = even(41)
    codes = Codes.found(vectors, in_bytes=True)
    order, starts = np.random.default_rng(0).permutation(41), np.array([0, 16, 17, 41])
    coded = codes.coded(vectors, torch.from_numpy(order))
    held = Blocks.of(coded, order=order, starts=starts, scale=codes.scale)
    assert held.begins.tolist() == [0, 1, 2, 4]
    places = [*range(16), 16, *range(32, 56)]
    fours = held.values.reshape(4, CODE // 4, BLOCK, 4).transpose(0, 2, 1, 3).reshape(-1, CODE)
    np.testing.assert_array_equal(fours[places].astype(int) - 128, coded.codes.numpy())
    np.testing.assert_array_equal(-2 * held.sums[places], coded.squares // 2 * 2)
    filling = np.setdiff1d(np.arange(64), places)
    largest = 127 * 255 * CODE  # of a product with any code
    least = _byte_blocks._least(np.inf, 1.0, 1.0, 0.0, -128 * 127 * CODE)
    assert (held.sums[filling] + largest < least).all()
    assert (held.sums[places] - 2 * largest >= _byte_blocks._least(np.inf, 1.0, 1.0, 0.0, 0)).all()
    np.testing.assert_array_equal(
        held.errors, [coded.errors[:16].max(), coded.errors[16], coded.errors[17:].max()]
    )


@pytest.mark.parametrize("count", [1, 3])
def test_neighbours_do_not_depend_on_the_kind_of_the_codes(count, kind, monkeypatch):
    monkeypatch.setattr(_cells, "_IN_A_CELL", 40)
    monkeypatch.setattr(_bank, "_LEAST_VECTORS", 600)
    bank = even(2000)
    asked = torch.cat([even(60, seed=1), bank[:40], 1000 * uneven(10, 128)])
    asked[7, 3] = torch.nan
    search = Bank(bank)
    assert search.parted
    assert (Codes.of(bank).turn is not None) == (kind == "bytes")
    found = search.nearest(asked, count)[1].numpy()
    right = np.argsort(cdist(asked.double(), bank.double()), axis=1, kind="stable")[:, :count]
    finite = np.arange(len(asked)) != 7
    np.testing.assert_array_equal(found[finite], right[finite])
    assert not found[7].any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("asked", [1, 7, 8, 9, 100])
def test_any_number_of_vectors_is_compared_by_any_number_of_threads(
    asked, threads, kind, monkeypatch
):
    """Vectors are compared eight at a time; what these lack must not count."""
    monkeypatch.setattr(_cells, "_IN_A_CELL", 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    bank, some = even(1100), even(asked, seed=2)
    distances, found = Bank(bank).nearest(some, 2)
    right = np.argsort(cdist(some.double(), bank.double()), axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(found.numpy(), right)
    assert (Codes.of(bank).turn is not None) == (kind == "bytes")
    assert (distances[:, 0] <= distances[:, 1]).all()


SEARCH = """
import torch
from wsiad.core.compiled import multiplies_bytes
from wsiad.detectors._bank import Bank
drawn = torch.Generator().manual_seed(0)
bank, asked = (torch.randn(count, 70, generator=drawn) for count in (1100, 50))
found = Bank(bank).nearest(asked, 1)[1][:, 0]
print(multiplies_bytes(), bool((found == torch.cdist(asked, bank).argmin(dim=1)).all()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "told",
    [
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"},
        {"NUMBA_DISABLE_JIT": "1"},
    ],
)
def test_processors_without_the_instruction_compare_floats(told, tmp_path):
    """LLVM would end the process at an instruction that the processor lacks."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **told}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
