"""The direct reading of Philips TIFF against OpenSlide, pixel by pixel."""

import numpy as np
import pytest
import tifffile

from support.builders import halve
from support.tiff_slides import TILE, assert_same, both, empty_tiles, encode, smooth
from wsiad.core.geometry import Mpp, Size
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide

MPP = 0.25


def spacing(mpp):
    """A DICOM pixel spacing, mm, row before column, quoted as Philips writes it."""
    return f"&quot;{mpp / 1000:.9f}&quot; &quot;{mpp / 1000:.9f}&quot;"


def description(mpps):
    """The XML of a Philips TIFF's first directory, as far as OpenSlide reads it."""
    levels = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        f'<Attribute Name="DICOM_PIXEL_SPACING">{spacing(mpp)}</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER">{number}</Attribute>'
        "</DataObject>"
        for number, mpp in enumerate(mpps)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_MANUFACTURER">3D Histech</Attribute>'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        f'<Attribute Name="DICOM_PIXEL_SPACING">{spacing(mpps[0])}</Attribute>'
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>'
        f"{levels}</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )


def write_philips(path, image, *, levels=4, subsampling="420", extra=0):
    """Write a pyramid whose lower levels' sizes are rounded up to whole tiles.

    Beyond the rounding, `extra` columns and rows of tiles are added to them.
    """
    mpps = [MPP * 2**number for number in range(levels)]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number in range(levels):
            height, width = image.shape[:2]
            held = image
            if number:
                down, right = (-length % TILE + extra * TILE for length in (height, width))
                held = np.pad(image, ((0, down), (0, right), (0, 0)), "edge")
            tiff.write(
                encode(held, space="YCBCR", subsampling=subsampling),
                shape=held.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2) if subsampling == "420" else (1, 1),
                compression="jpeg",
                subfiletype=int(number > 0),
                software="Philips DP v1.0",
                description=f"level={number} mag=10" if number else description(mpps),
                metadata=None,
            )
            image = halve(image)
        label = np.full((40, 50, 3), 200, np.uint8)
        tiff.write(label, photometric="rgb", description="Label", metadata=None)
    return path


@pytest.mark.parametrize("subsampling", ["420", "444"])
def test_pixels_are_those_of_openslide(tmp_path, subsampling):
    # 450 and 350 are no multiples of a tile, and halve twice to odd edges.
    path = write_philips(tmp_path / "a.tif", smooth(700, 900), subsampling=subsampling)
    with open_slide(path) as slide:
        assert (slide.format, slide.read_by) == ("philips", "jpeg-tiff")
        assert (slide.spacing.x, slide.spacing.y) == (MPP, MPP)
        assert [level.size for level in slide.levels] == [
            Size(900, 700),
            Size(450, 350),
            Size(225, 175),
            Size(112, 87),
        ]
        assert [level.downsample_x for level in slide.levels] == [1, 2, 4, 8]
    assert_same(path, rectangles=[(0, 0, 64, 64), (64, 128, 128, 64), (13, 77, 101, 99)])


def test_padding_is_not_the_slide(tmp_path):
    path = write_philips(tmp_path / "a.tif", smooth(400, 430), extra=1)
    assert_same(path)
    with open_slide(path, backend="jpeg-tiff") as slide:
        size = slide.levels[1].size
        assert size == Size(215, 200)
        beyond = slide.read_level(1, size.width, 0, Size(30, 30))
        assert not beyond.valid.any()
        across = slide.read_level(1, size.width - 10, size.height - 20, Size(30, 30))
        assert across.valid.sum() == 10 * 20


def test_tiles_that_were_not_scanned_are_missing(tmp_path):
    path = write_philips(tmp_path / "a.tif", smooth(700, 900))
    empty_tiles(path, 0, [0, 1, 16, 17, 50])
    empty_tiles(path, 1, [0, 9])
    assert_same(path, rectangles=[(0, 0, 64, 64), (60, 60, 10, 10), (128, 0, 64, 64)])
    with open_slide(path) as slide:
        assert slide.read_by == "jpeg-tiff"
        assert not slide.read_level(0, 10, 10, Size(20, 20)).valid.any()
        assert slide.read_level(0, 128, 0, Size(64, 64)).valid is None


def test_a_level_without_any_tile_is_missing(tmp_path):
    path = write_philips(tmp_path / "a.tif", smooth(256, 256), levels=2)
    empty_tiles(path, 1, range(4))
    assert_same(path)


def test_only_the_padding_has_data(tmp_path):
    """The tile that opening compares must be one of the slide's."""
    path = write_philips(tmp_path / "a.tif", smooth(256, 256), levels=2, extra=1)
    empty_tiles(path, 1, [0, 1, 3, 4])
    assert_same(path)


def test_scales_between_levels_are_averaged_alike(tmp_path):
    path = write_philips(tmp_path / "a.tif", smooth(700, 900))
    direct, reference = both(path)
    with direct, reference:
        for mpp in (MPP, 0.4, 0.5, 1.1, 2.0, 4.0):
            own, seen = (ScaledSlide(slide, Mpp(mpp)) for slide in (direct, reference))
            assert own.pixels == seen.pixels
            np.testing.assert_array_equal(
                own.read(0, 0, own.size).rgb, seen.read(0, 0, seen.size).rgb
            )


def test_small_levels_keep_the_downsample_that_the_file_states(tmp_path):
    # 900 / 256 is 3.5 px, cut to 3: their ratio says 300, the file 256.
    path = write_philips(tmp_path / "a.tif", smooth(700, 900), levels=9)
    with open_slide(path) as slide:
        assert slide.levels[8].size == Size(3, 2)
        assert slide.levels[8].downsample_x == slide.levels[8].downsample_y == 256
