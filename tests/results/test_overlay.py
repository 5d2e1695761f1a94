"""The pictures for people."""

import itertools

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image, ImageDraw

from wsiad.core.geometry import Box, Mpp, PixelMap, Size, Spacing
from wsiad.heatmaps.score_map import Heatmap
from wsiad.pictures.colour_scale import HEALTHY_LEVELS, ColourScale
from wsiad.pictures.overview import Overview
from wsiad.results import overlay as module
from wsiad.results.overlay import (
    enlarged,
    outline_regions,
    overlay,
    write_legend,
    write_thumbnail,
)


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


def overview(mask, *, pen=None):
    height, width = mask.shape
    nothing = np.empty((0, 4))
    return Overview(
        "a",
        np.full((height, width, 3), 200, np.uint8),
        mask,
        pen,
        PixelMap(16.0, 8.0, 32.0, 32.0),
        Spacing(Mpp(0.25), Mpp(0.25)),
        Mpp(0.5),
        nothing,
        nothing,
        np.empty(0, np.uint8),
    )


def test_the_picture_of_a_small_slide_is_enlarged_and_lies_where_it_lay():
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:70] = True
    before = overview(mask, pen=mask)
    after = enlarged(before)
    assert after.thumbnail.shape == (8 * 60, 8 * 90, 3)
    for corner in ((0, 0), (30, 20), (90, 60)):
        at = before.placement.to_level0(*map(float, corner))
        assert after.placement.from_level0(*at) == pytest.approx(8 * np.array(corner))
    # Corners may be rounded off, edges stay.
    assert after.mask[8 * 20 : 8 * 40, 8 * 30 : 8 * 70].mean() > 0.99
    assert after.mask.sum() == pytest.approx(64 * mask.sum(), rel=0.01)
    assert (after.pen == after.mask).all()


@pytest.mark.parametrize(
    ("shape", "factor"), [((100, 501), 1), ((500, 100), 2), ((320, 100), 3), ((3, 2), 8)]
)
def test_pictures_are_enlarged_as_far_as_is_of_use(shape, factor):
    after = enlarged(overview(np.ones(shape, bool)))
    assert after.mask.shape == (shape[0] * factor, shape[1] * factor)
    assert after.mask.all()
    assert after.pen is None


def test_the_outline_of_a_region_on_a_small_slide_leaves_its_colour_to_be_seen():
    shown = enlarged(overview(np.ones((60, 90), bool)))
    x, y = shown.placement.to_level0(8 * 40.0, 8 * 30.0)
    picture = shown.thumbnail.copy()
    # A region of six by six pixels of the thumbnail.
    outline_regions(picture, [shapely.box(x, y, x + 192, y + 192)], shown.placement)
    within = picture[8 * 30 : 8 * 36, 8 * 40 : 8 * 46]
    assert (within == 200).all(axis=2).mean() > 0.6  # of the thumbnail itself, a ninth
    assert (picture == 0).all(axis=2).any()


def test_a_score_above_the_99_percent_can_be_read_back_from_its_colour_on_any_tissue():
    scale = ColourScale.from_healthy([1.0, 4.0, 6.0, 8.0])
    legend = np.linspace(1.0, 10.0, 500)
    colours = scale.over(legend, 200).astype(float)
    for grey in (0, 90, 160, 255):  # of the slide; the overlay shows it as 128 to 255
        for score in np.linspace(6.01, 10.0, 40):
            heatmap = Heatmap(
                slide="a",
                scores=np.full((1, 1), score, np.float32),
                placement=PixelMap(0.0, 0.0, 32.0, 32.0),
                slide_size=Size(32, 32),
                bounds=Box(0, 0, 32, 32),
                spacing=Spacing(Mpp(0.5), Mpp(0.5)),
            )
            thumbnail = np.full((1, 1, 3), grey, np.uint8)
            seen = overlay(thumbnail, PixelMap(0.0, 0.0, 32.0, 32.0), heatmap, scale)[0, 0]
            nearest = legend[np.abs(colours - seen).sum(axis=1).argmin()]
            # Knots are 2 apart above 6: a fifth of the step from 99 to 99.9 %.
            assert nearest == pytest.approx(score, abs=0.4)


def test_a_spot_smaller_than_a_pixel_is_framed_in_the_thumbnail(tmp_path):
    picture = np.full((900, 1200, 3), 200, np.uint8)
    write_thumbnail(tmp_path / "plain.jpg", picture)
    write_thumbnail(tmp_path / "spot.jpg", picture, spots=[(600, 300, 602, 302)])
    with Image.open(tmp_path / "plain.jpg") as plain, Image.open(tmp_path / "spot.jpg") as spot:
        assert plain.size == spot.size == (240, 180)
        dark = np.argwhere(np.asarray(spot.convert("L")) < 80)
        assert np.asarray(plain.convert("L")).min() > 190
    assert dark.min(axis=0) == pytest.approx([60.2 - 4.5, 120.2 - 4.5], abs=1.5)
    assert dark.max(axis=0) == pytest.approx([60.2 + 4.5, 120.2 + 4.5], abs=1.5)


@pytest.mark.parametrize(
    ("quantiles", "high", "scores"),
    [
        ([-1.98, -1.5, 0.25, 1.0], 3.5, ["−1.98", "−1.5", "0.25", "1", "3.5"]),
        ([-1.25e-5, -1e-5, 0.0, 1e-5], 2e-5, ["−1.25e−05", "−1e−05", "0", "1e−05", "2e−05"]),
    ],
)
def test_labels_of_a_legend_have_a_true_minus_and_do_not_touch(
    tmp_path, monkeypatch, quantiles, high, scores
):
    drawn = {}
    plain = ImageDraw.ImageDraw.text

    def noted(pen, at, text, *more, **values):
        left, _, right, _ = pen.textbbox(at, text, font=more[1], anchor=values["anchor"])
        drawn.setdefault(round(at[1]), []).append((left, right, text))
        plain(pen, at, text, *more, **values)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    scale = ColourScale((*quantiles, high), levels=HEALTHY_LEVELS)
    write_legend(tmp_path / "legend.png", scale)
    shares, found = [row for _, row in sorted(drawn.items())][1:]
    assert [text for *_, text in shares] == ["50 %", "90 %", "99 %", "99.9 %"]
    assert [text for *_, text in found] == scores
    with Image.open(tmp_path / "legend.png") as image:
        width = image.width
    for row in (shares, found):
        ends = [0, *(end for left, right, _ in row for end in (left, right)), width]
        assert ends == sorted(ends)
    # Of many knots as many labels are drawn as have room, the first and the last among them.
    drawn.clear()
    write_legend(tmp_path / "legend.png", ColourScale(tuple(n - 1000.5 for n in range(40))))
    [row] = [row for _, row in sorted(drawn.items())][1:]
    assert (row[0][2], row[-1][2]) == ("−1000", "−961.5")
    assert 8 < len(row) < 14
    assert all(one[1] + 4 <= two[0] + 1 for one, two in itertools.pairwise(row))
