"""Which windows are tumour, against shapely on whole outlines."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from wsiad.annotations import ring_area
from wsiad.evaluation.slide_evidence import sort_windows

WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score")])


def grid(edge, step, size):
    x, y = (a.ravel() for a in np.meshgrid(np.arange(0, size, step), np.arange(0, size, step)))
    windows = np.zeros(len(x), dtype=WINDOW)
    windows["x"], windows["y"], windows["width"], windows["height"] = x, y, edge, edge
    windows["score"] = np.arange(len(x))
    return windows


def coast(corners, seed):
    """A lesion outline with many corners, and a hole."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = 3000 + 300 * np.sin(9 * angle) + rng.normal(0, 15, corners)
    ring = np.column_stack([4000 + radius * np.cos(angle), 4000 + radius * np.sin(angle)])
    return ring_area(ring).difference(shapely.Point(4000, 4000).buffer(1000))


@pytest.mark.parametrize("corners", [40, 5000])
def test_windows_are_sorted_as_by_the_whole_outline(corners):
    tumour = coast(corners, 1)
    windows = grid(400, 157, 8000)
    found = sort_windows(windows, tumour)
    x, y = windows["x"], windows["y"]
    boxes = shapely.box(x, y, x + 400, y + 400)
    share = shapely.area(shapely.intersection(boxes, tumour)) / 400**2
    central = shapely.contains_xy(tumour, x + 200, y + 200)
    np.testing.assert_array_equal(found.tumour, np.flatnonzero(central))
    np.testing.assert_array_equal(found.mostly_tumour, np.flatnonzero(share >= 0.5))
    np.testing.assert_array_equal(found.healthy, np.flatnonzero(share == 0))
    assert found.windows == len(windows)
    assert len(found.tumour) > 500
    assert len(found.healthy) > 500
    assert len(found.tumour) + len(found.healthy) < len(windows)


def test_on_a_normal_slide_all_windows_are_healthy():
    windows = grid(100, 100, 500)
    for nothing in (None, shapely.Polygon()):
        found = sort_windows(windows, nothing)
        assert len(found.healthy) == 25
        assert len(found.tumour) == len(found.mostly_tumour) == 0


def test_touching_tumour_is_not_overlapping_it_and_half_is_enough():
    tumour = shapely.box(0, 0, 100, 100)
    windows = np.array(
        [(100, 0, 50, 50, 1.0), (75, 0, 50, 50, 2.0), (76, 0, 50, 50, 3.0)], dtype=WINDOW
    )
    found = sort_windows(windows, tumour)
    assert found.healthy.tolist() == [1.0]
    assert found.mostly_tumour.tolist() == [2.0]


def test_no_windows():
    found = sort_windows(np.zeros(0, dtype=WINDOW), shapely.box(0, 0, 9, 9))
    assert (found.windows, len(found.tumour), len(found.healthy)) == (0, 0, 0)
