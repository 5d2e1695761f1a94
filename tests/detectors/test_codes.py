"""Codes of vectors: their distances bound those of the vectors, and their products are exact."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from wsiad.detectors import _bank, _cells, _codes
from wsiad.detectors._bank import Bank
from wsiad.detectors._codes import Codes


@pytest.fixture(params=["bytes", "floats"])
def kind(request, monkeypatch):
    """Codes are bytes where the processor multiplies them quickly, and floats elsewhere."""
    if request.param == "bytes" and not _codes.bytes_are_quick():
        pytest.skip("this processor has no instructions for products of bytes")
    monkeypatch.setattr(_codes, "bytes_are_quick", lambda: request.param == "bytes")
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
    monkeypatch.setattr(_bank, "square_distance", lambda *pair: compared.append(0) or plain(*pair))
    for name in ("_refine", "_any_below", "_lowest", "_most"):
        monkeypatch.setattr(_bank, name, getattr(_bank, name).py_func)
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


@pytest.mark.skipif(not _codes.bytes_are_quick(), reason="no products of bytes are used here")
def test_products_of_bytes_are_exact():
    """Also of the largest codes, whose sums some instructions cut off."""
    codes = Codes.of(even(700)).coded(even(64)).codes
    assert codes.dtype == torch.int8
    codes[:32] = 127
    codes[::3] = -127
    found = torch.empty(64, 64, dtype=torch.int32)
    _codes.products(codes, codes.T, found)
    whole = codes.numpy().astype(np.int64)
    np.testing.assert_array_equal(found.numpy(), whole @ whole.T)


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


def test_processors_without_such_instructions_are_noticed(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert not _codes.bytes_are_quick.__wrapped__()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    # Instructions that cut sums off at 32,767 are those of processors without VNNI.
    monkeypatch.setattr(torch, "_int_mm", lambda one, other, out: out.fill_(32_767), raising=False)
    assert not _codes.bytes_are_quick.__wrapped__()
