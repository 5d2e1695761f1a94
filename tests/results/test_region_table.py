"""`regions.csv`, and measurements added to outlines that are already written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import shapely

from wsiad.core.errors import ExportError
from wsiad.core.geometry import Box, Microns, Mpp, PixelMap, Size, Spacing
from wsiad.exports.qupath import write_lesions
from wsiad.exports.qupath.objects import add_measurements
from wsiad.heatmaps.outline_simplification import simplify
from wsiad.heatmaps.regions import find_regions
from wsiad.heatmaps.score_map import Heatmap
from wsiad.results.outline_shapes import read_shapes
from wsiad.results.region_table import outlined, read_regions, region_row, write_regions

BOUNDS = Box(0.0, 0.0, 4000.0, 3000.0)
SPACING = Spacing(Mpp(0.5), Mpp(0.25))


@pytest.fixture
def regions():
    """An L of three pixels and a single one; pixels of 100 × 50, from (10, 20)."""
    scores = np.zeros((5, 6), np.float32)
    scores[1, 1] = scores[2, 1] = 0.7
    scores[2, 2] = 0.1 + 0.2
    scores[4, 5] = 0.9
    heatmap = Heatmap("s", scores, PixelMap(10, 20, 100, 50), Size(4000, 3000), BOUNDS,
                      Spacing(Mpp(0.5), Mpp(0.25)))  # fmt: skip
    return find_regions(heatmap, threshold=0.2).kept


def judged(regions, percentiles):
    return [replace(r, percentile=p) for r, p in zip(regions, percentiles, strict=True)]


def test_rows_say_where_regions_are(regions):
    single, ell = map(region_row, judged(regions, [100.0, 99.5]))
    assert (single.rank, ell.rank) == (1, 2)
    assert (single.x, single.y, single.width, single.height) == (510, 220, 100, 50)
    assert (single.centre_x, single.centre_y) == (560, 245)
    assert single.area_um2 == 100 * 0.5 * 50 * 0.25
    assert (ell.x, ell.y, ell.width, ell.height) == (110, 70, 200, 100)
    # Mean of the centres of its three pixels, as they are alike in size.
    assert ell.centre_x == pytest.approx((160 + 160 + 260) / 3, abs=0.01)
    assert ell.centre_y == pytest.approx((95 + 145 + 145) / 3, abs=0.01)
    assert ell.mean_score == pytest.approx((0.7 + 0.7 + 0.3) / 3)
    assert (ell.percentile, ell.p, ell.significant) == (99.5, None, None)


def test_the_table_reads_back_as_it_was(regions, tmp_path):
    found = judged(regions, [100.0, 1 / 3])
    rows = [region_row(region) for region in found]
    write_regions(tmp_path / "regions.csv", found)
    assert read_regions(tmp_path / "regions.csv") == rows
    assert rows[0].max_score == float(np.float32(0.9))
    write_regions(tmp_path / "regions.csv", [])
    assert read_regions(tmp_path / "regions.csv") == []


def test_a_region_read_back_is_the_one_that_was_written(regions, tmp_path):
    """Its rectangle is that of its pixels although its outline has fewer corners."""
    ell = replace(regions[1], percentile=99.5, p=0.25, significant=1)
    shorter = simplify(ell, tolerance=Microns(40), spacing=SPACING, bounds=BOUNDS)
    corner = shapely.Polygon([(110, 70), (110, 170), (310, 170)])
    cut = replace(shorter, polygon=corner, tolerance=Microns(40), pixel_box=ell.box,
                  pixel_centre=ell.centre)  # fmt: skip
    write_lesions([cut], tmp_path / "lesions.geojson", slide="s", bounds=BOUNDS)
    write_regions(tmp_path / "regions.csv", [cut])
    before = (tmp_path / "regions.csv").read_bytes()
    (row,) = read_regions(tmp_path / "regions.csv")
    (shape,) = read_shapes(tmp_path / "lesions.geojson", BOUNDS)
    read = outlined(row, shape)
    assert read.polygon.equals(corner)
    assert (read.x, read.y, read.width, read.height) == (110, 70, 200, 100)
    assert (read.rank, read.tolerance, read.percentile, read.p) == (2, 40, 99.5, 0.25)
    assert read.centre == pytest.approx(ell.centre, abs=0.01)
    assert (read.area_um2, read.max_score) == (ell.area_um2, ell.max_score)
    write_regions(tmp_path / "regions.csv", [read])
    assert (tmp_path / "regions.csv").read_bytes() == before


@pytest.mark.parametrize("text", ["rank\n1\n", "", "rank,x,y\n1,2,3\n"])
def test_other_tables_are_refused(tmp_path, text):
    path = tmp_path / "regions.csv"
    path.write_text(text)
    with pytest.raises(ExportError, match="not a table of regions"):
        read_regions(path)
    path.unlink()
    with pytest.raises(ExportError, match="not a table of regions"):
        read_regions(path)


def test_only_measurements_change(regions, tmp_path):
    path = tmp_path / "lesions.geojson"
    write_lesions(regions, path, slide="s", bounds=BOUNDS, percentiles=[100.0, 99.5])
    before = path.read_bytes()
    add_measurements(path, [{}, {}])
    assert path.read_bytes() == before
    add_measurements(path, [{"wsiad: p": 0.5}, {"wsiad: p": 0.25}])
    add_measurements(path, [{"wsiad: p": 0.1}, {"wsiad: p": 0.2}])  # replaces
    old, new = json.loads(before)["features"], json.loads(path.read_text())["features"]
    for was, is_now, p in zip(old, new, (0.1, 0.2), strict=True):
        assert is_now["properties"]["measurements"].pop("wsiad: p") == p
        assert is_now == was


@pytest.mark.parametrize(
    ("measurements", "problem"),
    [([{}], "holds 2 regions"), ([{}, {"a": float("nan")}], "not a finite number")],
)
def test_measurements_that_do_not_fit_change_nothing(regions, tmp_path, measurements, problem):
    path = tmp_path / "lesions.geojson"
    write_lesions(regions, path, slide="s", bounds=BOUNDS)
    before = path.read_bytes()
    with pytest.raises(ExportError, match=problem):
        add_measurements(path, measurements)
    assert path.read_bytes() == before
    path.write_text("{")
    with pytest.raises(ExportError, match="does not hold regions"):
        add_measurements(path, [{}, {}])
