"""Levels whose last tiles are filled up: their downsample is what they show, not their size."""

import cv2
import numpy as np
import pytest
import tifffile

from wsiad.core.geometry import Size
from wsiad.slides.levels import find_levels
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide

WIDTH, HEIGHT = 1301, 1003
DOTS = [(180, 250), (900, 190), (460, 700), (1120, 830), (700, 480)]
DOT = 96


def picture(width=WIDTH, height=HEIGHT):
    """Dark squares around known places, on glass that is not quite even."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([240 - x * 6 // width, 240 - y * 6 // height, np.full_like(x, 238)], axis=-1)
    image = image.astype(np.uint8)
    for x, y in DOTS:
        image[y - DOT // 2 : y + DOT // 2, x - DOT // 2 : x + DOT // 2] = (120, 60, 130)
    return image


def scaled_down(image, step):
    size = (round(image.shape[1] / step), round(image.shape[0] / step))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def filled(image, edge, colour):
    """An image with its last tiles filled up."""
    height, width = (-(-length // edge) * edge for length in image.shape[:2])
    out = np.full((height, width, 3), colour, np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def write(path, pictures, *, tile):
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, image in enumerate(pictures):
            tiff.write(
                image,
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                subfiletype=int(number > 0),
                metadata=None,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
            )
    return path


@pytest.mark.parametrize("backend", ["jpeg-tiff", "openslide"])
@pytest.mark.parametrize(
    ("steps", "edge", "colour", "level0"),
    [
        ((2, 4, 16), 256, 243, False),
        ((2, 4, 16), 256, 255, True),
        ((3, 9), 240, 0, False),
        ((5, 20), 128, 243, False),
        ((2.5, 10), 256, 255, False),
    ],
)
def test_places_are_right_at_every_scale(tmp_path, steps, edge, colour, level0, backend):
    image = picture()
    pictures = [filled(image, edge, colour) if level0 else image]
    pictures += [filled(scaled_down(image, step), edge, colour) for step in steps]
    path = write(tmp_path / "a.tif", pictures, tile=edge)
    with open_slide(path, backend=backend) as slide:
        assert [level.downsample_x for level in slide.levels] == [1, *steps]
        assert [level.downsample_y for level in slide.levels] == [1, *steps]
        for mpp in {0.5, 1.0, 1.7, 4.0, *(step * 0.5 for step in steps)}:
            scaled = ScaledSlide(slide, mpp)
            got = scaled.read(0, 0, scaled.size).rgb[..., 1]
            assert scaled.pixels.box(scaled.size).right > 1250  # nothing is cut off
            for x, y in DOTS:
                column, row = scaled.pixels.from_level0(float(x), float(y))
                reach = 0.8 * DOT / scaled.pixels.scale_x
                x0, y0 = round(column - reach), round(row - reach)
                part = got[y0 : round(row + reach) + 1, x0 : round(column + reach) + 1]
                weight = (228.0 - part).clip(0)
                rows, columns = np.indices(part.shape) + 0.5
                assert x0 + np.average(columns, weights=weight) == pytest.approx(column, abs=0.5)
                assert y0 + np.average(rows, weights=weight) == pytest.approx(row, abs=0.5)


def levels_of(sizes, tile=256, shown=None):
    asked = []

    def look(number):
        asked.append(number)
        return None if shown is None else shown[number]

    sizes = [Size(*size) for size in sizes]
    ratios = [(sizes[0].width / s.width + sizes[0].height / s.height) / 2 for s in sizes]
    tiles = [tile and Size(tile, tile)] * len(sizes)
    found = find_levels(sizes, reported=ratios, tiles=tiles, picture=look)
    return [(level.downsample_x, level.downsample_y) for level in found], asked


def test_sizes_that_rounding_explains_are_not_looked_at():
    found, asked = levels_of([(2003, 1801), (1001, 900), (501, 451), (667, 600), (62, 56)])
    assert found == [(1, 1), (2, 2), (4, 4), (3, 3), (32, 32)]
    assert not asked


def test_tiles_tell_the_downsample_where_levels_are_too_large_to_be_looked_at():
    sizes = [(100_000, 70_001), (25_088, 17_664), (10_240, 7168), (6400, 4608)]
    assert levels_of(sizes)[0] == [(1, 1), (4, 4), (10, 10), (16, 16)]


def test_without_a_picture_a_power_of_two_is_preferred():
    assert levels_of([(2003, 1801), (512, 512), (256, 256)])[0] == [(1, 1), (4, 4), (8, 8)]
    # Ratios that differ and no tiles that explain it: left as they are.
    found, _ = levels_of([(2000, 1800), (500, 500)], tile=None)
    assert found == [(1, 1), (4, 3.6)]


def test_whole_tiles_that_hold_what_their_size_says_stay():
    image = picture(1024, 1024)[..., 0]
    small = scaled_down(image, 4)
    shown = {0: image, 1: small, 2: filled(scaled_down(image, 8)[..., None], 256, 255)[..., 0]}
    found, asked = levels_of([(1024, 1024), (256, 256), (256, 256)], shown=shown)
    assert found == [(1, 1), (4, 4), (8, 8)]
    assert set(asked) == {0, 1, 2}
    blank = {number: np.full_like(shown[number], 243) for number in shown}
    assert levels_of([(1024, 1024), (256, 256)], shown=blank)[0] == [(1, 1), (4, 4)]


def test_a_damaged_level_that_may_be_filled_up_does_not_stop_the_opening(tmp_path):
    image = picture()
    path = write(tmp_path / "a.tif", [image, filled(scaled_down(image, 4), 256, 243)], tile=256)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[1].dataoffsets[0], tiff.pages[1].databytecounts[0]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * count)
    with open_slide(path, backend="openslide") as slide:
        assert [level.downsample_x for level in slide.levels] == [1, 4]
        assert slide.read_level(0, 0, 0, Size(20, 20)).valid is None


def test_large_levels_of_a_regular_pyramid_are_not_read():
    """Most slides are such: to read their large levels would take longer than to tile them."""
    edges = [8192, 4096, 2048, 1024, 512]
    asked = []

    def show(number):
        asked.append(number)
        return cv2.resize(
            cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY), (edges[number], edges[number])
        )

    levels = find_levels(
        [Size(edge, edge) for edge in edges],
        reported=[8192 / edge for edge in edges],
        tiles=[Size(512, 512)] * len(edges),
        picture=show,
    )
    assert [(level.downsample_x, level.downsample_y) for level in levels] == [
        (8192 / edge, 8192 / edge) for edge in edges
    ]
    assert set(asked) == {2, 3, 4}
