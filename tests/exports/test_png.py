from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.builders import make_heatmap
from wsiad.core.errors import ExportError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing
from wsiad.exports.ome import reduce_by
from wsiad.exports.png import write_png
from wsiad.pictures.colour_scale import ColourScale

SCALE = ColourScale((-1.0, 2.0))


def heatmap_of(shape, *, bounds=None):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=shape).astype(np.float32)
    scores[rng.random(shape) < 0.3] = np.nan
    placement = PixelMap(1000.25, 500.0, 127.5, 128.5)
    bounds = bounds or Box(900.0, 450.0, 80_000, 60_000)
    return make_heatmap(
        scores, placement, size=Size(90_000, 70_000), bounds=bounds, spacing=Spacing(0.25, 0.26)
    )


def read(path):
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)


def test_the_picture_is_the_scale_of_the_scores(tmp_path):
    heatmap = heatmap_of((23, 31))
    write_png(heatmap, tmp_path / "heatmap.png", scale=SCALE)
    pixels = read(tmp_path / "heatmap.png")
    np.testing.assert_array_equal(pixels, SCALE.rgba(heatmap.scores))
    np.testing.assert_array_equal(pixels[..., 3] == 0, np.isnan(heatmap.scores))


def test_the_sidecar_says_where_it_lies(tmp_path):
    write_png(heatmap_of((23, 31)), tmp_path / "heatmap.png", scale=SCALE)
    told = json.loads((tmp_path / "heatmap.json").read_text())
    assert told["image"] == "heatmap.png"
    assert told["image_size"] == {"width": 31, "height": 23}
    assert told["level0_rectangle"] == {
        "x": 1000.25,
        "y": 500.0,
        "width": 31 * 127.5,
        "height": 23 * 128.5,
    }
    assert told["qupath_rectangle"] == {
        "x": 100.25,
        "y": 50.0,
        "width": 31 * 127.5,
        "height": 23 * 128.5,
    }
    assert told["level0_um_per_px"] == {"x": 0.25, "y": 0.26}
    assert told["colour_scale"] == SCALE.legend()
    assert told["unscored"] == "opacity 0"


@pytest.mark.parametrize("shape", [(40, 101), (100, 37), (33, 33)])
def test_large_maps_shrink_and_their_rectangle_stays_exact(tmp_path, shape):
    heatmap = heatmap_of(shape)
    write_png(heatmap, tmp_path / "heatmap.png", scale=SCALE, max_edge=32)
    pixels = read(tmp_path / "heatmap.png")
    told = json.loads((tmp_path / "heatmap.json").read_text())
    factor = told["heatmap_pixels_per_image_pixel"]
    assert max(pixels.shape[:2]) <= 32
    assert factor == -(-max(shape) // 32)
    np.testing.assert_array_equal(pixels, SCALE.rgba(reduce_by(heatmap.scores, factor)))
    # A pixel of the picture is exactly `factor` heatmap pixels wide and high.
    rectangle = told["level0_rectangle"]
    assert rectangle["width"] / pixels.shape[1] == pytest.approx(factor * 127.5, rel=1e-12)
    assert rectangle["height"] / pixels.shape[0] == pytest.approx(factor * 128.5, rel=1e-12)
    assert (rectangle["x"], rectangle["y"]) == (1000.25, 500.0)
    assert rectangle["width"] >= heatmap.box.width


def test_a_map_of_just_the_longest_edge_is_not_shrunk(tmp_path):
    write_png(heatmap_of((32, 32)), tmp_path / "a.png", scale=SCALE, max_edge=32)
    assert read(tmp_path / "a.png").shape == (32, 32, 4)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ExportError, match="png"):
        write_png(heatmap_of((3, 3)), tmp_path / "heatmap.jpg", scale=SCALE)


def test_picture_and_sidecar_are_replaced_together(tmp_path, monkeypatch):
    write_png(heatmap_of((5, 5)), tmp_path / "heatmap.png", scale=SCALE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("wsiad.exports.png.describe", lambda *_, **__: {"x": float("nan")})
    with pytest.raises(ValueError):
        write_png(heatmap_of((6, 6)), tmp_path / "heatmap.png", scale=SCALE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
