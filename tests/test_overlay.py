"""The pictures for people."""

import cv2
import numpy as np
import pytest

from wsiad.export import overlay as module
from wsiad.export.overlay import overlay
from wsiad.geometry import Box, PixelMap, Size
from wsiad.heatmaps.colours import ColourScale
from wsiad.heatmaps.heatmap import Heatmap
from wsiad.units import Mpp, Spacing


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_each_pixel_shows_the_score_under_its_centre(rows, monkeypatch):
    monkeypatch.setattr(module, "_BAND_ROWS", rows)
    rng = np.random.default_rng(0)
    thumbnail = rng.integers(0, 256, (50, 40, 3), np.uint8)
    scores = rng.uniform(0, 10, (9, 6)).astype(np.float32)
    scores[2, 3] = np.nan
    heatmap = Heatmap(
        slide="a",
        scores=scores,
        placement=PixelMap(24.0, 40.0, 37.0, 41.0),
        slide_size=Size(320, 400),
        bounds=Box(0, 0, 320, 400),
        spacing=Spacing(Mpp(0.5), Mpp(0.5)),
    )
    scale = ColourScale.from_healthy([1.0, 4.0, 6.0, 8.0])
    picture = overlay(thumbnail, PixelMap(0.0, 0.0, 8.0, 8.0), heatmap, scale)
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)
    seen = 0
    for row in range(50):
        for column in range(40):
            expected = np.repeat(128 + grey[row, column] / 2, 3)
            y, x = int((8 * row + 4 - 40) // 41), int((8 * column + 4 - 24) // 37)
            if 0 <= y < 9 and 0 <= x < 6:
                *colour, alpha = scale.rgba(scores[y : y + 1, x : x + 1])[0, 0].astype(float)
                expected += (np.array(colour) - expected) * alpha / 255
                seen += 1
            np.testing.assert_allclose(picture[row, column], expected, atol=0.501)
    assert seen > 1000
