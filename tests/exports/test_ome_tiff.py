from __future__ import annotations

import json

import defusedxml.ElementTree
import numpy as np
import pytest
import tifffile

from support.builders import make_heatmap
from wsiad.core.errors import ExportError
from wsiad.core.geometry import PixelMap, Size, Spacing
from wsiad.exports.ome import pyramid_sizes, reduce_by, write_ome_tiff

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def heatmap_of(shape, *, seed=0, unscored=0.3, slide="a <b> & µ"):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=shape).astype(np.float32)
    scores[rng.random(shape) < unscored] = np.nan
    size, placement = Size(shape[1] * 128, shape[0] * 128), PixelMap(12.5, -3.25, 127.9, 128.2)
    return make_heatmap(scores, placement, slide=slide, size=size, spacing=Spacing(0.25, 0.5))


def slow_reduce(scores, factor):
    height, width = scores.shape
    out = np.full((-(-height // factor), -(-width // factor)), np.nan)
    for y, x in np.ndindex(out.shape):
        block = scores[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        if np.isfinite(block).any():
            out[y, x] = np.nanmean(block.astype(np.float64))
    return out


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (8, 8), (1, 13), (12, 5)])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_reduce_averages_what_is_scored(shape, factor):
    scores = heatmap_of(shape, unscored=0.5).scores
    reduced = reduce_by(scores, factor)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(reduced, slow_reduce(scores, factor), rtol=1e-6, atol=1e-7)


def test_the_full_resolution_comes_back_bit_by_bit(tmp_path):
    heatmap = heatmap_of((300, 517))
    write_ome_tiff(heatmap, tmp_path / "heatmap.ome.tif")
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as tiff:
        assert tiff.is_ome
        (series,) = tiff.series
        page = tiff.pages[0]
        assert page.is_tiled
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.predictor == tifffile.PREDICTOR.NONE
        assert series.dtype == np.float32
        np.testing.assert_array_equal(series.asarray(), heatmap.scores)


def test_the_pyramid_is_in_sub_ifds_and_holds_means(tmp_path):
    heatmap = heatmap_of((131, 521), unscored=0.8)
    write_ome_tiff(heatmap, tmp_path / "heatmap.ome.tif")
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as tiff:
        levels = tiff.series[0].levels
        shapes = [level.shape for level in levels]
        assert shapes == [(131, 521), (66, 261), (33, 131)]
        assert shapes == pyramid_sizes((131, 521))
        assert len(tiff.pages[0].subifds) == 2
        expected = heatmap.scores
        for level in levels[1:]:
            expected = slow_reduce(expected, 2)
            np.testing.assert_allclose(level.asarray(), expected, rtol=1e-5, atol=1e-6)


def test_every_level_states_the_lowest_and_the_highest_score(tmp_path):
    heatmap = heatmap_of((131, 521), unscored=0.4)
    heatmap.scores[7, 9], heatmap.scores[130, 520] = -12.75, 31.1
    write_ome_tiff(heatmap, tmp_path / "heatmap.ome.tif")
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as tiff:
        levels = [level.keyframe for level in tiff.series[0].levels]
        assert len(levels) == 3
        for page in levels:
            low, high = page.tags["SMinSampleValue"], page.tags["SMaxSampleValue"]
            assert (low.code, high.code) == (340, 341)
            assert low.dtype == high.dtype == tifffile.DATATYPE.FLOAT  # that of the pixels
            assert (low.value, high.value) == (-12.75, float(np.float32(31.1)))


def test_a_heatmap_without_a_score_states_no_range(tmp_path):
    write_ome_tiff(heatmap_of((5, 4), unscored=1.0), tmp_path / "heatmap.ome.tif")
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as tiff:
        tags = tiff.pages[0].tags
        assert "SMinSampleValue" not in tags
        assert "SMaxSampleValue" not in tags


def test_physical_size_and_placement_are_told(tmp_path):
    heatmap = heatmap_of((30, 40))
    write_ome_tiff(heatmap, tmp_path / "heatmap.ome.tif")
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as tiff:
        root = defusedxml.ElementTree.fromstring(tiff.ome_metadata)
        per_cm = tiff.pages[0].get_resolution(unit="CENTIMETER")
    pixels = root.find(f"{OME}Image/{OME}Pixels")
    assert pixels.get("Type") == "float"
    assert float(pixels.get("PhysicalSizeX")) == pytest.approx(127.9 * 0.25)
    assert float(pixels.get("PhysicalSizeY")) == pytest.approx(128.2 * 0.5)
    assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
    assert 1e4 / per_cm[0] == pytest.approx(127.9 * 0.25, rel=1e-4)
    assert 1e4 / per_cm[1] == pytest.approx(128.2 * 0.5, rel=1e-4)
    told = json.loads(root.find(f"{OME}Image/{OME}Description").text)
    assert told["slide"] == heatmap.slide
    assert (told["level0_x"], told["level0_y"]) == (12.5, -3.25)
    assert (told["level0_px_per_pixel_x"], told["level0_px_per_pixel_y"]) == (127.9, 128.2)


def test_the_metadata_is_valid_where_it_can_be_checked(tmp_path):
    """tifffile's own structural check, without fetching the schema."""
    write_ome_tiff(heatmap_of((3, 3)), tmp_path / "a.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        root = defusedxml.ElementTree.fromstring(tiff.ome_metadata)
    assert [child.tag for child in root] == [f"{OME}Image"]
    assert [child.tag for child in root[0]] == [f"{OME}Description", f"{OME}Pixels"]


def test_equal_heatmaps_give_equal_files(tmp_path):
    for name in ("a.ome.tif", "b.ome.tif"):
        write_ome_tiff(heatmap_of((300, 300)), tmp_path / name)
    write_ome_tiff(heatmap_of((300, 300), seed=1), tmp_path / "c.ome.tif")
    a, b, c = ((tmp_path / f"{name}.ome.tif").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ExportError, match="ome"):
        write_ome_tiff(heatmap_of((3, 3)), tmp_path / "heatmap.tif")
    assert not list(tmp_path.iterdir())


def test_a_fault_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "heatmap.ome.tif"
    write_ome_tiff(heatmap_of((600, 600)), path)
    before = path.read_bytes()
    monkeypatch.setattr("wsiad.exports.ome.reduce_by", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_ome_tiff(heatmap_of((600, 600), seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
