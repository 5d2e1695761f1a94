"""Damaged tiles are errors, by either path, wherever the decoder of OpenSlide or ours warns."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from support.builders import write_tiff
from support.jpeg2000_slides import write_jpeg2000
from support.spoilt_tiles import spoil, tile_bytes
from support.tiff_slides import TILE, assert_same, both, smooth, write_jpeg
from wsiad.core.errors import DamagedTileError
from wsiad.core.geometry import Size
from wsiad.slides.opening import open_slide

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from damage import attack, truth


@pytest.mark.parametrize(
    "options",
    [
        {"space": "RGB"},
        {"subsampling": "422", "shared": True},
        {"subsampling": "420", "restart": 2},
        {"subsampling": "420", "optimised": True},
    ],
    ids=["rgb", "422-shared", "420-restarts", "own-tables-each"],
)
def test_no_mutation_is_read_where_openslide_fails_or_to_other_pixels(tmp_path, options):
    path = write_jpeg(tmp_path / "a.tif", smooth(192, 256), levels=1, **options)
    outcomes = [
        outcome
        for _, outcome in attack(
            path, count=40, seed=11, folder=tmp_path, backends=("auto", "openslide")
        )
    ]
    assert len(outcomes) == 40
    assert not [outcome for outcome in outcomes if outcome[-2:].isupper()]
    assert sum("OpenSlide fails" in outcome for outcome in outcomes) >= 8


@pytest.mark.parametrize("options", [{"restart": 2}, {"optimised": True}, {"subsampling": "420"}])
def test_undamaged_tiles_are_read_directly_to_the_pixels_of_openslide(tmp_path, options):
    image = smooth(192, 256)
    image[:70, :200] = 243
    path = write_jpeg(tmp_path / "a.tif", image, levels=2, **options)
    with open_slide(path) as slide:
        assert slide.read_by == "jpeg-tiff"
    assert_same(path)


@pytest.mark.slow
def test_a_flipped_bit_that_the_decoder_warns_of_is_an_error(tmp_path):
    """Bits are flipped until OpenSlide refuses the tile: then neither path may read it."""
    path = write_jpeg(tmp_path / "a.tif", smooth(192, 256), levels=1, subsampling="420")
    offset, count = tile_bytes(path)
    clean, rng, refused = path.read_bytes(), random.Random(3), 0
    for _ in range(60):
        data = bytearray(clean)
        data[offset + rng.randrange(count // 2, count - 2)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        direct, reference = both(path)
        with direct, reference:
            seen = truth(path, 128, 64, Size(TILE, TILE))
            if seen is None:
                refused += 1
                for slide in (direct, reference):
                    with pytest.raises(DamagedTileError, match=r"\(128, 64\)"):
                        slide.read_level(0, 128, 64, Size(TILE, TILE))
            else:
                try:
                    own = direct.read_level(0, 128, 64, Size(TILE, TILE)).rgb
                except DamagedTileError:
                    continue
                np.testing.assert_array_equal(own, seen)
    assert refused >= 1


@pytest.mark.parametrize("kind", ["tail of zeros", "zeros up to the end marker", "all zeros"])
def test_a_hole_in_a_jpeg_tile_is_damage_by_either_path(tmp_path, kind):
    path = write_jpeg(tmp_path / "a.tif", smooth(192, 256), levels=1)
    spoil(path, kind)
    direct, reference = both(path)
    with direct, reference:
        for slide in (direct, reference):
            with pytest.raises(DamagedTileError, match="damaged"):
                slide.read_level(0, 128, 64, Size(TILE, TILE))
            assert slide.read_level(0, 0, 0, Size(TILE, TILE)).valid is None


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_a_hole_in_a_packed_tile_is_damage(tmp_path, compression):
    path = write_tiff(tmp_path / "a.tif", smooth(512, 768).round().astype(np.uint8),
                      compression=compression)  # fmt: skip
    spoil(path, "tail of zeros", index=1)
    with tifffile.TiffFile(path) as tiff:
        tile = tiff.pages[0].tilewidth
    with open_slide(path) as slide:
        assert slide.backend == "openslide"
        with pytest.raises(DamagedTileError, match="zero bytes"):
            slide.read_level(0, tile + 3, 5, Size(20, 20))
        assert slide.read_level(0, 0, 0, Size(20, 20)).valid is None


@pytest.mark.parametrize("shared", [False, True], ids=["own-tables", "shared-tables"])
@pytest.mark.parametrize("kind", ["start", "version of JFIF", "colour transform"])
def test_heads_that_the_direct_path_does_not_need_are_what_openslide_makes_of_them(
    tmp_path, kind, shared
):
    path = write_jpeg(tmp_path / "a.tif", smooth(192, 256), levels=1, shared=shared)
    offset, count = tile_bytes(path)
    data = bytearray(path.read_bytes())
    stream = bytes(data[offset : offset + count])
    if kind == "start":
        data[offset] = 0x55
    elif kind == "version of JFIF" and b"JFIF\0" in stream:
        data[offset + stream.index(b"JFIF\0") + 5] = 9
    elif kind == "colour transform":
        # In the place of the JFIF segment, or of a part of the quantisation tables.
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x07"
        data[offset + 2 : offset + 2 + len(adobe)] = adobe
    path.write_bytes(data)
    seen = truth(path, 128, 64, Size(TILE, TILE))
    for slide in both(path):
        with slide:
            if seen is None:
                with pytest.raises(DamagedTileError):
                    slide.read_level(0, 128, 64, Size(TILE, TILE))
            else:
                own = slide.read_level(0, 128, 64, Size(TILE, TILE)).rgb
                np.testing.assert_array_equal(own, seen)


def test_jpeg_2000_that_does_not_fill_its_tile_is_damage(tmp_path):
    """OpenSlide fills up what is left of the tile with what its memory held."""
    path = write_jpeg2000(tmp_path / "a.svs", smooth(128, 192), levels=1)
    offset, _ = tile_bytes(path, 2)
    data = bytearray(path.read_bytes())
    data[offset + 23] = 4  # the image's top edge
    path.write_bytes(data)
    for slide in both(path):
        with slide, pytest.raises(DamagedTileError, match="another size"):
            slide.read_level(0, 128, 0, Size(TILE, TILE))


@pytest.mark.parametrize(("component", "step"), [(0, 3), (1, 5), (2, 0), (0, 2)])
def test_jpeg_2000_whose_colours_are_at_another_scale_is_damage(tmp_path, component, step):
    """OpenSlide makes other pixels of them at every call."""
    path = write_jpeg2000(tmp_path / "a.svs", smooth(128, 192), levels=1)
    offset, _ = tile_bytes(path, 2)
    data = bytearray(path.read_bytes())
    assert data[offset + 40 : offset + 42] == b"\x00\x03"  # three components follow
    data[offset + 42 + 3 * component + 1] = step
    path.write_bytes(data)
    for slide in both(path):
        with slide, pytest.raises(DamagedTileError):
            slide.read_level(0, 128, 0, Size(TILE, TILE))
