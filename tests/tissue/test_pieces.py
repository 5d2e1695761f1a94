"""Pieces and holes of a mask against scikit-image and SciPy."""

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import remove_small_objects

from wsiad.tissue import artefacts as pieces
from wsiad.tissue.artefacts import bands, without_small_holes, without_small_pieces


@pytest.fixture(params=[0.3, 0.5, 0.62, 0.0, 1.0])
def mask(request):
    return np.random.default_rng(3).random((97, 61)) < request.param


@pytest.mark.parametrize("least", [0, 1, 2.5, 7, 40, 1e9])
def test_small_pieces_are_those_of_scikit_image(mask, least, monkeypatch):
    monkeypatch.setattr(pieces, "_BAND_PX", 500)
    expected = remove_small_objects(mask, max_size=math.ceil(least) - 1) if least > 0 else mask
    np.testing.assert_array_equal(without_small_pieces(mask, min_px=least), expected)


@pytest.mark.parametrize("least", [0, 1, 2.5, 7, 40, 1e9])
def test_small_holes_are_those_that_scipy_fills(mask, least):
    holes = ndimage.binary_fill_holes(mask) & ~mask
    large = remove_small_objects(holes, max_size=math.ceil(least) - 1) if least > 0 else holes
    expected = mask | (holes & ~large)
    np.testing.assert_array_equal(without_small_holes(mask, min_px=least), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_slivers(shape):
    full, empty = np.ones(shape, bool), np.zeros(shape, bool)
    assert without_small_pieces(full, min_px=full.size).all()
    assert not without_small_pieces(full, min_px=full.size + 1).any()
    assert not without_small_holes(empty, min_px=1e9).any()
    assert without_small_holes(full, min_px=1e9).all()


def test_bands_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr(pieces, "_BAND_PX", 100)
    for width in (1, 30, 99, 100, 101, 5000):
        rows = [row for band in bands(57, width) for row in range(57)[band]]
        assert rows == list(range(57))
    assert list(bands(0, 5)) == []
