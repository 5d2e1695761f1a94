"""The direct reading of Aperio's JPEG 2000 against OpenSlide, pixel by pixel."""

import imagecodecs
import numpy as np
import pytest
import tifffile

from support.jpeg2000_slides import YCBCR, write_jpeg2000
from support.tiff_slides import TILE, assert_same, both, empty_tiles, smooth
from wsiad.core.errors import DirectReadError, SlideReadError
from wsiad.core.geometry import Size
from wsiad.slides.opening import open_slide
from wsiad.slides.tiff_tiles import TiledLevel, decode_tile


@pytest.mark.parametrize("mct", [0, 1], ids=["plain", "component-transform"])
@pytest.mark.parametrize("quality", [0, 30, 45], ids=["lossless", "30-dB", "45-dB"])
def test_pixels_are_those_of_openslide(tmp_path, quality, mct):
    path = write_jpeg2000(tmp_path / "a.svs", smooth(256, 320), quality=quality, mct=mct)
    with open_slide(path) as slide:
        assert (slide.format, slide.read_by) == ("aperio", "jpeg-tiff")
    assert_same(path, rectangles=[(0, 0, 64, 64), (64, 128, 128, 64), (13, 77, 101, 99)])


def test_edge_tiles_are_cut(tmp_path):
    path = write_jpeg2000(tmp_path / "a.svs", smooth(201, 300), levels=1)
    assert_same(path)


def test_ycbcr_is_left_to_openslide(tmp_path):
    path = write_jpeg2000(tmp_path / "a.svs", smooth(256, 320), compression=YCBCR)
    with open_slide(path) as slide:
        assert slide.read_by == "openslide: compression APERIO_JP2000_YCBC"


def test_streams_of_another_kind_are_refused():
    stream = imagecodecs.jpeg2k_encode(smooth(TILE, TILE), level=40, codecformat="j2k")
    tile = Size(TILE, TILE)
    none = np.zeros(1, np.int64)
    level = TiledLevel(tile, tile, 1, 1, none, none, None, "RGB", "jpeg2000")
    np.testing.assert_array_equal(decode_tile(stream, level), imagecodecs.jpeg2k_decode(stream))
    for place, value, reason in (
        (3, 0x52, "not a JPEG 2000 stream"),
        (11, TILE + 8, "another size than its tile"),
        (19, 8, "another size than its tile"),
        (41, 4, "subsampled colours or other"),
        (42, 11, "other than 3 × 8 bits"),
        (46, 2, "subsampled colours"),
    ):
        broken = bytearray(stream)
        assert broken[place] != value
        broken[place] = value
        with pytest.raises(DirectReadError, match=reason):
            decode_tile(bytes(broken), level)
    boxed = imagecodecs.jpeg2k_encode(smooth(TILE, TILE), level=40, codecformat="jp2")
    for other in (boxed, stream[:45], b""):
        with pytest.raises(DirectReadError, match="not a JPEG 2000 stream"):
            decode_tile(other, level)


def assert_same_or_error(direct, reference, x, y):
    try:
        seen = reference.read_level(0, x, y, Size(TILE, TILE)).rgb
    except SlideReadError:
        with pytest.raises(SlideReadError):
            direct.read_level(0, x, y, Size(TILE, TILE))
    else:
        np.testing.assert_array_equal(direct.read_level(0, x, y, Size(TILE, TILE)).rgb, seen)


@pytest.mark.parametrize("kind", ["zeros", "cut", "noise"])
def test_damage_is_what_openslide_makes_of_it(tmp_path, kind):
    path = write_jpeg2000(tmp_path / "a.svs", smooth(256, 320), levels=1)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[6], tiff.pages[0].databytecounts[6]
    data = bytearray(path.read_bytes())
    middle = offset + count // 2
    if kind == "zeros":
        data[offset : offset + count] = bytes(count)
    elif kind == "cut":
        data[middle : offset + count] = bytes(offset + count - middle)
    else:
        noise = np.random.default_rng(0).integers(0, 256, 200, np.uint8)
        data[middle : middle + 200] = noise.tobytes()
    path.write_bytes(data)
    direct, reference = both(path)
    with direct, reference:
        assert_same_or_error(direct, reference, 64, 64)
        np.testing.assert_array_equal(
            direct.read_level(0, 128, 64, Size(64, 64)).rgb,
            reference.read_level(0, 128, 64, Size(64, 64)).rgb,
        )


def test_missing_tiles_are_left_to_openslide(tmp_path):
    path = write_jpeg2000(tmp_path / "a.svs", smooth(256, 320), levels=1)
    empty_tiles(path, 0, [3])
    with open_slide(path) as slide:
        assert slide.read_by == "openslide: Aperio with missing tiles"
