"""Tiles in all the ways in which they can lie, and scores averaged over them."""

import itertools

import numpy as np
import pytest
import torch

from support.feature_detectors import TILES, fitted_on_tiles
from support.runs import Channel
from wsiad.core.geometry import Mpp, TilePx
from wsiad.heatmaps.window_batches import WindowBatch, score_windows
from wsiad.learning.detector import BY_QUARTERS, DetectorOptions, InputSpec, turned, turned_back

RNG = np.random.default_rng(3)
WAYS = range(8)


class Ramp(Channel):
    """Counts a pixel the more the farther it is down and to the right: no two ways are alike."""

    channel, places = 0, 4

    def score_places(self, tiles):
        steps = np.arange(tiles.shape[1], dtype=np.float64)
        weights = steps[:, None] + 3 * steps
        part = tiles.shape[1] // self.places
        weighed = (tiles[..., 0] * weights).reshape(
            len(tiles), self.places, part, self.places, part
        )
        return weighed.mean(axis=(2, 4)).astype(np.float32)


def ramp(**options):
    return Ramp(DetectorOptions(**options), InputSpec(TilePx(8), Mpp(1)))


def independent(tile):
    """The eight, by another way: quarter turns, with and without a mirror."""
    return [np.rot90(side, k) for side in (tile, np.fliplr(tile)) for k in range(4)]


def test_there_are_eight_ways_and_back():
    tiles = RNG.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    found = [turned(tiles, way) for way in WAYS]
    np.testing.assert_array_equal(found[0], tiles)
    for number, tile in enumerate(tiles):
        asked = {way[number].tobytes() for way in found}
        assert asked == {np.ascontiguousarray(one).tobytes() for one in independent(tile)}
        assert len(asked) == 8
    for way in WAYS:
        np.testing.assert_array_equal(turned_back(found[way], way), tiles)


def test_tensors_are_turned_as_arrays_are_and_copied():
    tiles = RNG.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    for way in WAYS:
        tensor = torch.from_numpy(tiles.copy())
        found = turned(tensor, way)
        np.testing.assert_array_equal(found.numpy(), turned(tiles, way))
        tensor.zero_()
        assert found.any()


def test_quarter_turns_and_their_mirror_images_are_the_eight():
    tiles = RNG.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    assert sorted(BY_QUARTERS) == list(WAYS)
    for number, way in enumerate(BY_QUARTERS):
        expected = np.rot90(tiles, number % 4, (1, 2))
        expected = expected.swapaxes(1, 2) if number >= 4 else expected
        np.testing.assert_array_equal(turned(tiles, way), expected)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_one_after_the_other_is_one_of_them_again(count):
    """The first 1, 2, 4 and 8 are groups; so a score over them is the same for a turned tile."""
    square = np.arange(9).reshape(1, 3, 3)
    ways = {turned(square, way).tobytes() for way in range(count)}
    for first, second in itertools.product(range(count), repeat=2):
        assert turned(turned(square, first), second).tobytes() in ways


@pytest.mark.parametrize("count", [2, 4, 8])
def test_places_are_the_mean_over_turned_tiles(count):
    tiles = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found, plain = ramp(orientations=count), ramp()
    # By numpy's own turns: (mirrored upside down, quarter turns after it).
    ways = [(0, 0), (0, 2), (1, 0), (1, 2), (0, 1), (0, 3), (1, 1), (1, 3)][:count]
    expected = np.zeros((3, 4, 4))
    for mirrored, quarters in ways:
        there = np.rot90(tiles[:, ::-1] if mirrored else tiles, quarters, (1, 2))
        back = np.rot90(plain.score_places(there), -quarters, (1, 2))
        expected += (back[:, ::-1] if mirrored else back) / count
    np.testing.assert_allclose(found.score_map(tiles), expected, rtol=1e-6)
    np.testing.assert_allclose(found.score(tiles), expected.mean(axis=(1, 2)), rtol=1e-6)
    assert found.score_map(tiles).dtype == np.float32
    assert found.score_map(tiles[:0]).shape == (0, 4, 4)
    for way in range(count):
        np.testing.assert_allclose(found.score(turned(tiles, way)), found.score(tiles), rtol=1e-6)
    assert np.abs(plain.score(turned(tiles, 1)) - plain.score(tiles)).max() > 1


def test_one_orientation_is_the_tile_as_it_lies():
    tiles = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ramp().score_map(tiles), ramp().score_places(tiles))


def test_heatmaps_are_scored_in_all_orientations():
    tiles = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    at = np.arange(5, dtype=np.int32)
    found = ramp(orientations=8)
    batches = list(score_windows(found, iter([WindowBatch(tiles, at, at)]), batch=2))
    np.testing.assert_array_equal(
        np.concatenate([one.places for one in batches]), found.score_map(tiles)
    )
    np.testing.assert_array_equal(
        np.concatenate([one.scores for one in batches]), found.score(tiles)
    )


def test_nearest_neighbours_see_a_mirrored_tile_as_the_same(tmp_path):
    found = fitted_on_tiles("knn", tmp_path, places=2, orientations=8)
    once = fitted_on_tiles("knn", tmp_path / "once", places=2)
    mirrored = np.ascontiguousarray(TILES[:3, :, ::-1])
    np.testing.assert_allclose(found.score(mirrored), found.score(TILES[:3]), rtol=1e-4)
    apart = np.abs(once.score(mirrored) - once.score(TILES[:3]))
    assert apart.max() > 1e-3 * once.score(mirrored).max() > 0
