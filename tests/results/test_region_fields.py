"""Fields of view around regions: where they lie, what they show, and their outline."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image

from support.builders import ArraySlide, noise
from wsiad.core.geometry import Box, Mpp, PixelMap, Size, Spacing
from wsiad.heatmaps.regions import find_regions
from wsiad.heatmaps.score_map import Heatmap
from wsiad.results.evidence_files import read_fields
from wsiad.results.overlay import outline_polygon, outline_regions
from wsiad.results.region_fields import _bar_um, field_around, read_field, write_fields


def heatmap(scores, *, pixel=100.0, mpp=0.5, mpp_y=None, size=None):
    height, width = scores.shape
    size = size or Size(round(width * pixel), round(height * pixel))
    return Heatmap(
        "s",
        scores.astype(np.float32),
        PixelMap(0, 0, pixel, pixel),
        size,
        Box(0, 0, size.width, size.height),
        Spacing(Mpp(mpp), Mpp(mpp_y or mpp)),
    )


def one_region(scores, **more):
    map_ = heatmap(scores, **more)
    return find_regions(map_, threshold=0.5).kept[0], map_


def test_a_small_region_lies_in_the_middle_of_300_um():
    scores = np.zeros((40, 40))
    scores[20, 10] = 1
    region, map_ = one_region(scores)
    assert field_around(region, map_) == Box(1050 - 300, 2050 - 300, 600, 600)  # 0.5 µm/px


def test_pixels_that_are_not_square_give_a_square_of_micrometres():
    scores = np.zeros((40, 40))
    scores[20, 10] = 1
    box = field_around(*one_region(scores, mpp=0.5, mpp_y=1.0))
    assert (box.width * 0.5, box.height * 1.0) == (300, 300)


def test_at_an_edge_the_field_moves_and_in_a_small_slide_it_is_cut():
    scores = np.zeros((40, 40))
    scores[0, 39] = 1
    assert field_around(*one_region(scores)) == Box(3400, 0, 600, 600)
    assert field_around(*one_region(np.ones((2, 3)))) == Box(0, 0, 300, 200)


def test_of_a_region_too_large_to_show_its_strongest_place_is_shown():
    scores = np.zeros((100, 100))
    scores[10, 5:95] = 1
    scores[10, 80] = 2
    scores[12, 20] = 2  # as strong, in the same box, but another region
    scores[8:13, 5] = 1
    region, map_ = one_region(scores)
    assert region.area > 80 * 2500
    box = field_around(region, map_)
    assert box.width == 3000  # 1.5 mm
    assert (box.x + 1500, box.y) == (8050, 0)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_field_shows_the_slide_where_its_map_says(levels):
    x, y = np.meshgrid(np.arange(2000), np.arange(1600))
    image = np.stack([x // 8, y // 8, np.zeros_like(x)], axis=-1).astype(np.uint8)
    slide = ArraySlide(image, levels=levels)
    picture, placement = read_field(slide, Box(300.4, 200.6, 1280, 1280))
    assert max(picture.shape) <= 320
    if levels == 3:
        assert {level for level, *_ in slide.reads} == {2}
    rows, columns = np.mgrid[5:310:40, 5:310:40] + 0.5
    level0_x, level0_y = placement.to_level0(columns.ravel(), rows.ravel())
    seen = picture[np.floor(rows).astype(int).ravel(), np.floor(columns).astype(int).ravel()]
    assert np.abs(seen[:, 0] - level0_x / 8).max() < 1.5
    assert np.abs(seen[:, 1] - level0_y / 8).max() < 1.5


def test_where_the_slide_has_no_pixels_it_is_as_paper():
    valid = np.ones((400, 400), bool)
    valid[:, 200:] = False
    slide = ArraySlide(np.full((400, 400, 3), 90, np.uint8), valid=valid)
    picture, _ = read_field(slide, Box(0, 0, 300, 300))
    assert picture.shape == (300, 300, 3)  # no finer than the slide
    assert (picture[:, :195] == 90).all()
    assert (picture[:, 205:] == 244).all()


def test_five_fields_are_written_and_told(tmp_path):
    scores = np.zeros((40, 40))
    scores[2::5, 2] = np.linspace(1, 2, 8)
    slide = ArraySlide(noise(4000, 4000), mpp=0.5)
    map_ = heatmap(scores)
    regions = find_regions(map_, threshold=0.5).kept
    assert len(regions) == 8
    write_fields(tmp_path, slide, regions, heatmap=map_, percentiles=range(99, 91, -1))
    fields = read_fields(tmp_path)
    stated = json.loads((tmp_path / "regions.json").read_text())["regions"]
    assert [f.rank for f in fields] == [1, 2, 3, 4, 5]
    assert [one["percentile"] for one in stated] == [99, 98, 97, 96, 95]
    assert sorted(p.name for p in (tmp_path / "regions").iterdir()) == [
        f"00{i}.jpg" for i in range(1, 6)
    ]
    for field, region in zip(fields, regions, strict=False):
        told = stated[field.rank - 1]
        assert (told["max_score"], told["area_um2"]) == (region.max_score, region.area)
        assert (field.across_um, field.bar_um) == (300, 50)
        shown = shapely.box(field.x, field.y, field.x + field.width, field.y + field.height)
        assert shown.covers(region.polygon)
        assert Image.open(field.image).size == (320, 320)
    first = (tmp_path / "regions.json").read_bytes()
    write_fields(tmp_path, slide, regions, heatmap=map_, percentiles=range(99, 91, -1))
    assert (tmp_path / "regions.json").read_bytes() == first


def test_without_regions_there_is_an_empty_list(tmp_path):
    write_fields(
        tmp_path, ArraySlide(noise(9, 9)), [], heatmap=heatmap(np.zeros((1, 1))), percentiles=[]
    )
    assert json.loads((tmp_path / "regions.json").read_text()) == {"format": 1, "regions": []}


@pytest.mark.parametrize(
    ("field", "bar"), [(300, 50), (400, 100), (1500, 200), (2000, 500), (3.9, 0.5), (4, 1)]
)
def test_the_bar_is_a_round_length(field, bar):
    assert _bar_um(field) == pytest.approx(bar)


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_an_outline_is_seen_on_any_ground_without_colour(ground):
    picture = np.full((60, 60, 3), ground, np.uint8)
    outline_polygon(picture, shapely.box(100, 200, 300, 400), PixelMap(0, 0, 10, 10))
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    line = grey[25:35, 6:15].astype(int)  # across the left edge, at column 10
    assert line.min(axis=1).max() < 90
    assert line.max(axis=1).min() > 195
    assert (grey[28:32, 15:25] == ground).all()
    assert abs(np.argmin(line.mean(axis=0)[2:6]) + 8 - 9.5) <= 1  # pixel edges at 100 / 10


def test_regions_are_outlined_and_five_numbered():
    picture = np.full((400, 400, 3), 128, np.uint8)
    boxes = [shapely.box(40 + 50 * i, 100, 60 + 50 * i, 120) for i in range(7)]
    outline_regions(picture, boxes, PixelMap(0, 0, 1, 1))
    for i in range(7):
        assert picture[110, 38 + 50 * i : 43 + 50 * i].min() < 90
        above = picture[88:96, 28 + 50 * i : 37 + 50 * i]
        assert (above != 128).any() == (i < 5)
    corner = np.full((50, 50, 3), 128, np.uint8)
    outline_regions(corner, [shapely.box(0, 0, 10, 10)], PixelMap(0, 0, 1, 1))  # stays within


def test_the_number_of_a_region_stands_at_its_outline():
    picture = np.full((200, 400, 3), 128, np.uint8)
    corners = [(300, 50), (380, 50), (380, 150), (60, 150), (60, 130), (300, 130)]
    outline_regions(picture, [shapely.Polygon(corners)], PixelMap(0, 0, 1, 1))
    assert (picture[30:62, 20:80] == 128).all()  # the corner of the box around it
    assert (picture[112:131, 40:58] != 128).any()
