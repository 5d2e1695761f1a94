"""Stitching against a brute force that paints every window in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from wsiad.core.errors import DetectorError, InputError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing
from wsiad.heatmaps.stitch import Stitcher, overlap_lengths, pixels_per_stride

GRID = PixelMap(x=130.25, y=-7.5, scale_x=3.9571, scale_y=4.0213)
SLIDE = Size(5000, 4000)


def stitched(stitcher):
    return stitcher.finish(
        "a", slide_size=SLIDE, bounds=Box(0, 0, 5000, 4000), spacing=Spacing(0.25, 0.25)
    )


def overlap(a0, a1, b0, b1):
    return max(Fraction(0), min(a1, b1) - max(a0, b0))


def brute_force(shape, cell, windows, stride, window):
    """Area-weighted mean in rational arithmetic, windows painted one by one."""
    total = [[Fraction(0)] * shape[1] for _ in range(shape[0])]
    area = [[Fraction(0)] * shape[1] for _ in range(shape[0])]
    for (row, column), scores in windows.items():
        part = Fraction(window, len(scores))
        for i, j in np.ndindex(scores.shape):
            y0, x0 = row * stride + i * part, column * stride + j * part
            for y in range(int(y0 // cell), min(shape[0], int((y0 + part) // cell) + 1)):
                for x in range(int(x0 // cell), min(shape[1], int((x0 + part) // cell) + 1)):
                    shared = overlap(y * cell, (y + 1) * cell, y0, y0 + part) * overlap(
                        x * cell, (x + 1) * cell, x0, x0 + part
                    )
                    total[y][x] += shared * Fraction(float(scores[i, j]))
                    area[y][x] += shared
    return np.array(
        [
            [float(t / a) if a else np.nan for t, a in zip(ts, as_, strict=True)]
            for ts, as_ in zip(total, area, strict=True)
        ]
    )


def random_windows(rows, columns, places, *, share=0.6, seed=0):
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(rows * columns)[: max(1, int(share * rows * columns))]
    return {
        divmod(int(i), columns): rng.random((places, places), np.float32) * 5 - 1 for i in chosen
    }


def add_all(stitcher, windows, batches=1):
    places = list(windows)
    for part in np.array_split(np.arange(len(places)), batches):
        rows = np.array([places[i][0] for i in part], np.int64)
        columns = np.array([places[i][1] for i in part], np.int64)
        maps = np.stack([windows[places[i]] for i in part]) if len(part) else None
        if maps is not None:
            stitcher.add(rows, columns, maps)


@pytest.mark.parametrize(
    ("stride", "window", "places"),
    [
        (8, 8, 1),  # side by side
        (4, 8, 1),  # divides
        (3, 8, 1),  # does not divide
        (5, 8, 1),
        (7, 9, 1),
        (12, 8, 1),  # gaps
        (13, 8, 1),  # more than one pixel a stride, gaps
        (8, 8, 4),
        (4, 8, 4),
        (6, 8, 3),  # parts and pixels do not meet
        (5, 7, 3),
        (1, 3, 2),
        (9, 7, 5),
    ],
)
def test_equals_exact_area_integration(stride, window, places):
    rows, columns = 5, 7
    windows = random_windows(rows, columns, places, seed=stride * window + places)
    stitcher = Stitcher(rows, columns, stride=stride, window=window, grid=GRID, places=places)
    add_all(stitcher, windows)
    heatmap = stitched(stitcher)
    per_stride = max(1, round(stride * places / window))
    expected = brute_force(
        heatmap.scores.shape, Fraction(stride, per_stride), windows, stride, window
    )
    np.testing.assert_allclose(heatmap.scores, expected, rtol=1e-6, atol=1e-7)
    assert heatmap.scores.dtype == np.float32
    assert np.isfinite(heatmap.scores).any()


def test_whole_lattice_is_on_the_map_and_nothing_more():
    for stride, window, places in [(5, 8, 1), (6, 8, 3), (12, 8, 1), (7, 7, 2)]:
        stitcher = Stitcher(4, 6, stride=stride, window=window, grid=GRID, places=places)
        cell = stride / pixels_per_stride(stride, window, places=places)
        for pixels, count in ((stitcher.size.width, 6), (stitcher.size.height, 4)):
            reach = (count - 1) * stride + window
            assert pixels * cell >= reach - 1e-9
            assert (pixels - 1) * cell < reach


def test_side_by_side_windows_are_their_own_pixels():
    maps = np.arange(12, dtype=np.float32).reshape(12, 1, 1)
    stitcher = Stitcher(3, 4, stride=96, window=96, grid=GRID)
    stitcher.add(np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3), maps)
    np.testing.assert_array_equal(stitched(stitcher).scores, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(("stride", "window", "places"), [(64, 96, 1), (56, 224, 28), (6, 8, 3)])
def test_pixels_lie_over_the_tissue_they_scored(stride, window, places):
    """One window alone: its scores are where the window is, to half a level-0 pixel."""
    rows, columns = 37, 61
    for row, column in [(0, 0), (36, 60), (17, 3)]:
        stitcher = Stitcher(rows, columns, stride=stride, window=window, grid=GRID, places=places)
        one = np.ones((1, places, places), np.float32)
        stitcher.add(np.array([row]), np.array([column]), one)
        heatmap = stitched(stitcher)
        ys, xs = np.nonzero(np.isfinite(heatmap.scores))
        left, top = heatmap.placement.to_level0(float(xs.min()), float(ys.min()))
        expected = GRID.to_level0(float(column * stride), float(row * stride))
        assert (left, top) == pytest.approx(expected, abs=0.5)
        right, bottom = heatmap.placement.to_level0(xs.max() + 1.0, ys.max() + 1.0)
        end = GRID.to_level0(float(column * stride + window), float(row * stride + window))
        # The last pixel is covered at least in part: it begins within the window.
        cell = heatmap.placement.scale_x
        assert end[0] - 0.5 <= right < end[0] + cell
        assert end[1] - 0.5 <= bottom < end[1] + heatmap.placement.scale_y


@pytest.mark.parametrize(("stride", "window", "places"), [(5, 8, 1), (6, 8, 3), (56, 224, 28)])
def test_order_and_batches_change_nothing(stride, window, places):
    windows = random_windows(12, 9, places, share=0.9)
    maps = []
    for seed in range(4):
        order = list(windows)
        np.random.default_rng(seed).shuffle(order)
        shuffled = {tuple(place): windows[tuple(place)] for place in order}
        stitcher = Stitcher(12, 9, stride=stride, window=window, grid=GRID, places=places)
        add_all(stitcher, shuffled, batches=1 + seed * 7)
        maps.append(stitched(stitcher).scores)
    for other in maps[1:]:
        np.testing.assert_array_equal(maps[0], other)


def test_order_changes_the_last_bit_at_most_when_scores_are_wild():
    rng = np.random.default_rng(3)
    wild = np.exp(rng.normal(0, 12, 400)).astype(np.float32).reshape(400, 1, 1)
    maps = []
    for order in (np.arange(400), np.arange(400)[::-1]):
        stitcher = Stitcher(20, 20, stride=3, window=8, grid=GRID)
        stitcher.add(order // 20, order % 20, wild[order])
        maps.append(stitched(stitcher).scores)
    np.testing.assert_array_max_ulp(*maps, maxulp=1)


def test_overlap_lengths_are_whole_and_complete():
    for stride, window, places in [(64, 96, 11), (5, 7, 3), (13, 8, 1), (1, 96, 1)]:
        lengths = overlap_lengths(stride, window, places=places)
        assert np.gcd.reduce(lengths, axis=None) == 1
        assert len(set(lengths.sum(axis=0).tolist())) == 1  # every part is covered alike


def test_empty_batches_and_slides():
    stitcher = Stitcher(2, 2, stride=4, window=8, grid=GRID)
    stitcher.add(np.array([], int), np.array([], int), np.empty((0, 1, 1), np.float32))
    assert np.isnan(stitched(stitcher).scores).all()


def test_scores_that_are_no_numbers_are_refused_and_leave_no_trace():
    stitcher = Stitcher(2, 2, stride=8, window=8, grid=GRID)
    for bad in (np.nan, np.inf):
        with pytest.raises(DetectorError, match="finite"):
            stitcher.add(np.array([0, 0]), np.array([0, 1]), np.float32([[[1]], [[bad]]]))
    assert np.isnan(stitched(stitcher).scores).all()
    stitcher.add(np.array([0]), np.array([0]), np.float32([[[1]]]))


def test_a_window_twice_is_refused():
    one = np.ones((1, 1, 1), np.float32)
    stitcher = Stitcher(3, 3, stride=8, window=8, grid=GRID)
    stitcher.add(np.array([1]), np.array([2]), one)
    with pytest.raises(InputError, match=r"\(1, 2\) was added twice"):
        stitcher.add(np.array([1]), np.array([2]), one)
    with pytest.raises(InputError, match=r"\(0, 1\) was added twice"):
        stitcher.add(np.array([0, 0]), np.array([1, 1]), np.ones((2, 1, 1), np.float32))


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (3, 0), (0, 3)])
def test_windows_off_the_lattice_are_refused(place):
    stitcher = Stitcher(3, 3, stride=8, window=8, grid=GRID)
    with pytest.raises(InputError, match="outside the lattice"):
        stitcher.add(np.array([place[0]]), np.array([place[1]]), np.ones((1, 1, 1), np.float32))


def test_shapes_that_do_not_fit_are_refused():
    stitcher = Stitcher(3, 3, stride=8, window=8, grid=GRID, places=2)
    with pytest.raises(InputError, match="do not fit"):
        stitcher.add(np.array([0]), np.array([0]), np.ones((1, 1, 1), np.float32))
    with pytest.raises(InputError, match="do not fit"):
        stitcher.add(np.array([0, 1]), np.array([0]), np.ones((2, 2, 2), np.float32))


def test_a_canvas_that_is_too_large_is_refused_with_the_remedy():
    with pytest.raises(InputError, match="larger --stride"):
        Stitcher(20_000, 20_000, stride=1, window=96, grid=GRID)
    with pytest.raises(InputError, match="is empty"):
        Stitcher(0, 4, stride=1, window=96, grid=GRID)
