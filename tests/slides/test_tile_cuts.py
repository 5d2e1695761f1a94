"""Rectangles cut at the edges of a file's tiles, put together again pixel by pixel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiad.core.geometry import Size
from wsiad.slides.tile_cache import cut_by_tile, inside

LENGTH = st.integers(1, 40)
CORNERS = st.lists(st.tuples(st.integers(-30, 90), st.integers(-30, 90)), max_size=5)


@given(CORNERS, st.builds(Size, LENGTH, LENGTH), st.builds(Size, LENGTH, LENGTH))
@settings(max_examples=100, deadline=None)
def test_every_pixel_comes_once_and_from_where_it_lies(corners, size, tile):
    level = Size(70, 50)
    at = np.arange(level.width * level.height).reshape(level.height, level.width)
    padded = np.pad(at, ((0, tile.height), (0, tile.width)), constant_values=-9)
    found = np.full((len(corners), size.height, size.width), -1)
    seen = []
    for row, column, cuts in cut_by_tile(corners, size, tile, level):
        seen.append((row, column))
        y, x = row * tile.height, column * tile.width
        pixels = padded[y : y + tile.height, x : x + tile.width]
        assert cuts
        for cut in cuts:
            part = found[cut.rectangle][cut.asked]
            assert part.size == cut.pixels == pixels[cut.own].size > 0
            assert (part == -1).all()
            part[:] = pixels[cut.own]
    assert len(seen) == len(set(seen))
    for (x, y), rectangle in zip(corners, found, strict=True):
        rows, columns = np.mgrid[y : y + size.height, x : x + size.width]
        there = (rows >= 0) & (rows < level.height) & (columns >= 0) & (columns < level.width)
        expected = np.where(there, rows * level.width + columns, -1)
        np.testing.assert_array_equal(rectangle, expected)
        assert inside(x, y, size, level) == there.all()


def test_tiles_come_in_the_order_in_which_they_are_needed():
    corners = [(x, y) for y in range(0, 40, 10) for x in range(0, 40, 10)]
    cuts = list(cut_by_tile(corners, Size(10, 10), Size(20, 20), Size(40, 40)))
    assert [(row, column) for row, column, _ in cuts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [cut.rectangle for cut in cuts[1][2]] == [2, 3, 6, 7]
