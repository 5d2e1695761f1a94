"""The direct reading of JPEG tiles against OpenSlide, pixel by pixel."""

import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

import wsiad
from support.builders import halve, stained, write_scn, write_tiff
from support.tiff_slides import (
    TILE,
    assert_same,
    both,
    empty_tiles,
    encode,
    encode_progressive,
    smooth,
    write_jpeg,
)
from wsiad.core.errors import DirectReadError, InputError, SlideReadError
from wsiad.core.geometry import Mpp, Size
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.tiff import FORMATS, JpegTiffBackend, open_jpeg_tiff
from wsiad.slides.tiff_tiles import ends_in_hole, read_layout, whole_jpeg
from wsiad.slides.tile_cache import TileCache
from wsiad.stain.profile import reference_profile
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.preparation import Preparation
from wsiad.tiling.stream import stream

SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.parametrize("big", [True, False], ids=["bigtiff", "classic"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared-tables", "own-tables"])
@pytest.mark.parametrize(
    ("space", "subsampling"),
    [("RGB", "444"), ("YCBCR", "444"), ("YCBCR", "422"), ("YCBCR", "420")],
)
def test_pixels_are_those_of_openslide(tmp_path, space, subsampling, shared, big):
    path = write_jpeg(
        tmp_path / "a.tif",
        smooth(260, 332),
        space=space,
        subsampling=subsampling,
        shared=shared,
        big=big,
    )
    assert_same(path, rectangles=[(0, 0, 64, 64), (64, 128, 128, 64), (13, 77, 101, 99)])


@pytest.mark.parametrize("space", ["RGB", "YCBCR"])
def test_aperio_slides_are_read_directly(tmp_path, space):
    path = write_jpeg(
        tmp_path / "a.svs", smooth(256, 320), space=space, shared=True, aperio=True, levels=1
    )
    with open_slide(path) as slide:
        assert (slide.format, slide.backend) == ("aperio", "jpeg-tiff")
    assert_same(path, rectangles=[(31, 1, 150, 200)])


def test_flat_tiles_are_no_damage(tmp_path):
    image = smooth(256, 320)
    image[100:, 90:] = 243
    assert_same(write_jpeg(tmp_path / "a.tif", image))


def test_a_scanned_aperio_slide():
    path = SHARED / "data" / "slides" / "cmu-1-small-region.svs"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    assert_same(path, rectangles=[(240, 480, 480, 240), (1000, 1001, 515, 333)])


def test_odd_edges_are_exact_at_level_0_and_shifted_by_less_than_half_a_pixel_below(tmp_path):
    image = smooth(263, 331)
    path = write_jpeg(tmp_path / "a.tif", image)
    direct, reference = both(path)
    with direct, reference:
        width, height = direct.size.width, direct.size.height
        np.testing.assert_array_equal(
            direct.read_level(0, 0, 0, direct.size).rgb,
            reference.read_level(0, 0, 0, direct.size).rgb,
        )
        size = direct.levels[1].size
        assert (size.width, size.height) == (width // 2, height // 2)
        own = direct.read_level(1, 0, 0, size).rgb
        # The stream's own decoding, tile by tile, is what a level holds.
        streams = encode(halve(image), space="YCBCR")
        across = -(-size.width // TILE)
        for index, stream in enumerate(streams):
            top, left = index // across * TILE, index % across * TILE
            part = own[top : top + TILE, left : left + TILE]
            decoded = imagecodecs.jpeg8_decode(stream)[: part.shape[0], : part.shape[1]]
            np.testing.assert_array_equal(part, decoded)
        # OpenSlide mixes neighbours: half a pixel of level 0 over the ratio is the bound.
        for x in range(0, size.width - 40, 7):
            ratio = reference._reported[1]
            shift = abs(round(x * ratio) / ratio - x)
            assert shift <= 0.5 / ratio
            seen = reference.read_level(1, x, 50, Size(33, 33)).rgb.astype(int)
            near = own[50:83, x : x + 33].astype(int)
            around = own[48:85, max(0, x - 2) : x + 35].astype(int)
            reach = np.abs(np.diff(around, axis=1)).max() + np.abs(np.diff(around, axis=0)).max()
            assert np.abs(seen - near)[1:-1, 1:-1].max() <= 0.5 * reach + 2


def test_missing_tiles_are_missing(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=2)
    empty_tiles(path, 0, [0, 7, 19])
    assert_same(path, rectangles=[(0, 0, 64, 64), (60, 60, 10, 10), (64, 0, 64, 64)])
    with open_slide(path) as slide:
        hole = slide.read_level(0, 10, 10, Size(20, 20))
        assert not hole.valid.any()
        assert slide.read_level(0, 64, 0, Size(64, 64)).valid is None


def test_aperio_with_missing_tiles_is_left_to_openslide(tmp_path):
    path = write_jpeg(tmp_path / "a.svs", smooth(256, 320), space="RGB", aperio=True, levels=1)
    empty_tiles(path, 0, [3])
    with open_slide(path) as slide:
        assert slide.read_by == "openslide: Aperio with missing tiles"


def write_grey(path):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            smooth(128, 128)[..., 0],
            tile=(64, 64),
            compression="jpeg",
            metadata=None,
            resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )
    return path


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda path: write_tiff(path, stained(200, 200), compression="lzw"),
            "compression LZW",
        ),
        (write_grey, "JPEG of photometric interpretation MINISBLACK"),
        (lambda path: write_jpeg(path, smooth(128, 128), progressive=True), "progressive JPEG"),
        (
            lambda path: write_scn(
                path, smooth(128, 128), mpp=0.5, offset_px=(9, 9), collection_px=(200, 200)
            ),
            "format leica",
        ),
    ],
    ids=["lossless", "grey", "progressive", "leica"],
)
def test_what_is_not_understood_falls_back_and_says_why(tmp_path, write, reason):
    path = write(tmp_path / "a.tif")
    with open_slide(path) as slide:
        assert slide.backend == "openslide"
        assert (slide.fallback, slide.read_by) == (reason, f"openslide: {reason}")
    with pytest.raises(InputError, match=f"cannot be decoded directly: {reason}"):
        open_slide(path, backend="jpeg-tiff")
    with open_slide(path, backend="openslide") as slide:
        assert slide.read_by == "openslide"


def test_what_is_no_tiff_has_no_layout():
    with pytest.raises(DirectReadError, match="cannot be read"):
        read_layout(Path(__file__), [Size(1, 1)], name="a")


def test_a_wrong_colour_space_is_found_by_comparing_with_openslide(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(128, 128), levels=1)
    monkeypatch.setattr("wsiad.slides.tiff_tiles._COLOUR_SPACES", {2: "YCBCR", 6: "RGB"})
    with open_slide(path) as slide:
        assert slide.read_by == "openslide: OpenSlide decodes its tiles differently"
        assert slide.read_level(0, 0, 0, Size(9, 9)).rgb.shape == (9, 9, 3)


def starved(stream):
    """Leave out the last third of a stream's data; a comment makes up for the length."""
    at = 2
    while stream[at + 1] != 0xDA:
        at += 2 + int.from_bytes(stream[at + 2 : at + 4])
    lost = (len(stream) - at) // 3
    comment = b"\xff\xfe" + (lost - 2).to_bytes(2) + bytes(lost - 4)
    return stream[:2] + comment + stream[2 : -2 - lost] + b"\xff\xd9"


def damage(path, kind):
    """Damage the data of level 0's tile 6 (row 1, column 1 of 5)."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[6], page.databytecounts[6]
    data = bytearray(path.read_bytes())
    middle = offset + count // 2
    if kind == "zeros":
        data[offset : offset + count] = bytes(count)
    elif kind == "cut-stream":
        data[middle : middle + 2] = b"\xff\xd9"
    elif kind == "no-end":
        data[offset + count - 2 : offset + count] = bytes(2)
    elif kind == "too-short":
        # Fewer bits than pixels, but an end marker where it belongs.
        data[offset : offset + count] = starved(bytes(data[offset : offset + count]))
    elif kind == "other-marker":
        data[middle : middle + 60] = b"\xff\x23" * 30
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["zeros", "cut-stream", "other-marker", "too-short"])
def test_damaged_tiles_are_errors_by_either_path(tmp_path, kind):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=1)
    damage(path, kind)
    direct, reference = both(path)
    with direct, reference:
        for slide in (reference, direct):
            with pytest.raises(SlideReadError, match=r"\(64, 64\)") as caught:
                slide.read_level(0, 64, 64, Size(64, 64))
            assert caught.value.subject == "a"
            # The tiles around are not lost with it.
            assert slide.read_level(0, 128, 64, Size(64, 64)).valid is None


def test_a_stream_without_its_end_marker_is_what_openslide_makes_of_it(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=1)
    damage(path, "no-end")
    assert_same(path, rectangles=[(64, 64, 64, 64)])


def test_a_tile_beyond_the_end_of_the_file_is_an_error(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=2)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        offsets = list(tiff.pages[0].dataoffsets)
        offsets[-1] = path.stat().st_size - 10
        tiff.pages[0].tags["TileOffsets"].overwrite(offsets)
    with open_slide(path, backend="jpeg-tiff") as slide:
        assert slide.read_level(0, 0, 0, Size(64, 64)).valid is None
        with pytest.raises(SlideReadError):
            slide.read_level(0, 256, 192, Size(64, 64))


def test_a_tile_is_decoded_once_while_it_is_remembered(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=1)
    with open_slide(path, backend="openslide") as reference:
        slide = open_jpeg_tiff(reference)
        decoded = []
        decode = slide._decode
        monkeypatch.setattr(
            slide, "_decode", lambda *args: (decoded.append(args[1]), decode(*args))[1]
        )
        for x in range(0, 200, 10):
            slide.read_level(0, x, 30, Size(50, 50))
        assert sorted(decoded) == sorted(set(decoded))

        # With room for two tiles only, what is read stays right.
        small = JpegTiffBackend(reference, slide._layout, cache_bytes=2 * 3 * TILE**2)
        whole = slide.read_level(0, 0, 0, slide.size).rgb
        for x, y in ((0, 0), (30, 30), (150, 100), (0, 0), (200, 190)):
            part = small.read_level(0, x, y, Size(66, 66)).rgb
            np.testing.assert_array_equal(part, whole[y : y + 66, x : x + 66])
            assert small._cache._bytes <= 2 * 3 * TILE**2


def test_what_is_read_ahead_is_decoded_once_and_bounded(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=1)
    tile_bytes = 3 * TILE**2
    with open_slide(path, backend="openslide") as reference:
        layout = open_jpeg_tiff(reference)._layout
        slide = JpegTiffBackend(
            reference, layout, cache_bytes=2 * tile_bytes, ahead_bytes=3 * tile_bytes
        )
        decoded = []
        decode = slide._decode
        monkeypatch.setattr(
            slide, "_decode", lambda *args: (decoded.append(args[1]), decode(*args))[1]
        )
        corners = [(TILE * column, TILE * row) for row in range(4) for column in range(5)]
        with slide.reading_ahead():
            for x, y in corners[:3] * 2:
                slide.read_level(0, x, y, Size(9, 9))
        assert decoded == [0, 1, 2]
        # What is read in between does not displace them.
        whole = reference.read_level(0, 0, 0, slide.size).rgb
        for x, y in corners[5:] + corners[:5]:
            part = slide.read_level(0, x, y, Size(TILE, TILE)).rgb
            np.testing.assert_array_equal(part, whole[y : y + TILE, x : x + TILE])
            assert slide._cache._bytes <= 2 * tile_bytes
        assert sorted(decoded) == list(range(20))
        assert not slide._cache._ahead
        slide.forget()
        assert not slide._cache._tiles
        assert slide._cache._bytes == slide._cache._ahead_bytes == 0
        # Beyond the bound they are like any other.
        with slide.reading_ahead():
            for x, y in corners[5:15]:
                slide.read_level(0, x, y, Size(9, 9))
                assert slide._cache._ahead_bytes <= 3 * tile_bytes
                assert slide._cache._bytes <= 2 * tile_bytes


def test_all_tiles_that_are_kept_stay_below_one_bound():
    cache = TileCache(8 * 300, 12 * 300)
    tile, size = np.zeros((10, 10, 3), np.uint8), Size(10, 10)
    rng = np.random.default_rng(0)
    there = [0]
    for step in range(600):
        key, ahead = (0, int(rng.integers(60))), step % 200 < 60
        if cache.get(key, ahead=ahead) is None:
            cache.room(size, ahead=ahead)
            cache.put(key, tile.copy(), ahead=ahead)
        if step % 7 == 0:
            cache.finish(key)
            assert key not in cache._tiles
        kept = {**cache._tiles, **cache._ahead}
        assert len(kept) == len(cache._tiles) + len(cache._ahead)
        assert sum(one.nbytes for one in kept.values()) == cache._bytes + cache._ahead_bytes
        there.append(len(kept))
    assert max(there) == 12 + 8 // 4
    assert max(len(cache._tiles), 1) <= 8


def test_places_that_stains_are_estimated_from_are_decoded_once(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(1024, 1280), levels=2)
    decoded = []
    decode = JpegTiffBackend._decode
    with open_slide(path, backend="jpeg-tiff") as slide:
        monkeypatch.setattr(
            JpegTiffBackend,
            "_decode",
            lambda self, tiles, index, out=None: (
                decoded.append((tiles.size, index)),
                decode(self, tiles, index, out),
            )[1],
        )
        monkeypatch.setattr(slide._cache, "_max_bytes", 0)
        options = Preparation(mpp=float(slide.spacing.x), tile=TILE)
        plan = plan_slide(slide, options, target=reference_profile(options.stain.method))
        sampled = {key for key in decoded if key[0] == slide.size}
        tiles = sum(len(block) for block in stream(plan))
    assert sampled
    assert tiles == len(plan)
    finest = [key for key in decoded if key[0] == slide.size]
    assert len(finest) == len(set(finest))


@pytest.mark.parametrize("stride", [None, 24])
def test_tiles_that_rows_of_blocks_share_are_kept_and_others_not(tmp_path, monkeypatch, stride):
    """Blocks of 80 px at 1.1 times the scale end within tiles, which the next row needs."""
    path = write_jpeg(tmp_path / "a.tif", smooth(640, 1280), levels=1)
    monkeypatch.setattr("wsiad.tiling.stream._BLOCK_PX", 96)
    decoded = []
    decode = JpegTiffBackend._decode

    def noted(self, tiles, index, out=None):
        decoded.append(index)
        return decode(self, tiles, index, out)

    def streamed(cached):
        with open_slide(path, backend="jpeg-tiff") as slide:
            options = Preparation(mpp=0.55, tile=32, stride=stride, min_coverage=0)
            plan = plan_slide(slide, options, target=reference_profile(options.stain.method))
            slide.forget()
            slide._cache._max_bytes = cached * 3 * TILE**2
            decoded.clear()
            monkeypatch.setattr(JpegTiffBackend, "_decode", noted)
            pixels = np.concatenate([block.pixels for block in stream(plan)])
            monkeypatch.setattr(JpegTiffBackend, "_decode", decode)
            return pixels, Counter(decoded)

    pixels, once = streamed(cached=32)  # a row of the file has 20, a row of blocks needs 60
    monkeypatch.setattr(JpegTiffBackend, "reading_once", lambda self: nullcontext())
    again, more = streamed(cached=32)
    np.testing.assert_array_equal(pixels, again)
    assert len(once) == len(more) == 200
    if stride is None:
        assert sum(once.values()) < 215 < 260 < sum(more.values())
    else:  # pixels of tiles that overlap are read again
        assert once == more


def test_scales_between_levels_are_averaged_alike(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320))
    direct, reference = both(path)
    with direct, reference:
        for mpp in (0.5, 0.8, 1.0, 1.3, 4.0):
            own, seen = (ScaledSlide(slide, Mpp(mpp)) for slide in (direct, reference))
            np.testing.assert_array_equal(
                own.read(0, 0, own.size).rgb, seen.read(0, 0, seen.size).rgb
            )


@pytest.mark.parametrize("missing", [[], [0, 7]], ids=["whole", "with-holes"])
def test_reading_tiles_is_reading(tmp_path, missing):
    path = write_jpeg(tmp_path / "a.tif", smooth(250, 310), levels=2)
    empty_tiles(path, 0, missing)
    direct, reference = both(path)
    with direct, reference:
        own, seen = (ScaledSlide(slide, Mpp(0.5)) for slide in (direct, reference))
        assert own.reads_tiles
        assert not seen.reads_tiles
        assert not ScaledSlide(direct, Mpp(0.8)).reads_tiles
        for first_x, first_y, w, h in ((0, 0, 64, 64), (0, 0, 310, 250), (9, 30, 101, 77)):
            corners = np.mgrid[first_y : 251 - h : h, first_x : 311 - w : w].reshape(2, -1)
            rows, columns = corners.astype(np.int32)
            for scaled in (own, seen):
                memory = np.full((len(rows) + 2, h, w, 3), 7, np.uint8)
                whole = scaled.read_tiles(columns, rows, memory[1:-1])
                assert (memory[[0, -1]] == 7).all()
                for x, y, tile, there in zip(columns, rows, memory[1:-1], whole, strict=True):
                    expected = seen.read(int(x), int(y), Size(w, h))
                    assert there == (expected.valid is None)
                    if there:
                        np.testing.assert_array_equal(tile, expected.rgb)
        none = np.empty(0, np.int32)
        assert own.read_tiles(none, none, np.empty((0, 64, 64, 3), np.uint8)).tolist() == []
        for x, y in ((300, 0), (-1, 0), (0, 200)):
            places = np.array([[64, x], [64, y]], np.int32)
            with pytest.raises(ValueError, match="not within"):
                own.read_tiles(*places, np.empty((2, 64, 64, 3), np.uint8))


def test_rectangles_beyond_a_level_are_not_whole(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(250, 310), levels=2)
    direct, reference = both(path)
    corners = np.array([[-1, 0], [246, 186], [247, 186], [246, 187], [900, 0], [0, -64], [5, 6]])
    with direct, reference:
        for slide in (direct, reference):
            tiles = np.empty((len(corners), 64, 64, 3), np.uint8)
            whole = slide.read_tiles(0, corners, tiles)
            assert whole.tolist() == [False, True, False, False, False, False, True]
            for at in (1, 6):
                expected = reference.read_level(0, *corners[at].tolist(), Size(64, 64))
                np.testing.assert_array_equal(tiles[at], expected.rgb)


def test_tiles_that_were_used_up_give_their_memory_to_the_next(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=1)
    direct, reference = both(path)
    with direct, reference:
        decoded, decode, memory = [], direct._decode, set()
        monkeypatch.setattr(
            direct, "_decode", lambda *args: (decoded.append(args[1]), decode(*args))[1]
        )
        monkeypatch.setattr(
            direct._cache, "_put", lambda key, tile: memory.add(tile.ctypes.data) or put(key, tile)
        )
        put = TileCache._put.__get__(direct._cache)
        whole = reference.read_level(0, 0, 0, direct.size).rgb
        corners = np.array([(x, y) for y in range(0, 256, 32) for x in range(0, 320, 32)])
        out = np.empty((len(corners), 32, 32, 3), np.uint8)
        assert direct.read_tiles(0, corners, out).all()
        for (x, y), tile in zip(corners, out, strict=True):
            np.testing.assert_array_equal(tile, whole[y : y + 32, x : x + 32])
        assert decoded == list(range(20))
        assert len(memory) == 1
        assert not direct._cache._tiles
        # A part of a tile says nothing about the rest of it.
        decoded.clear()
        for first in (0, 1):
            direct.read_tiles(0, corners[first::2][:2], out[:2])
        assert decoded == [0, 1]
        assert len(direct._cache._tiles) == 2


@pytest.mark.parametrize("method", ["none", "vahadane"])
@pytest.mark.parametrize("tile", [32, 64, 96, 150])
def test_streams_of_both_paths_are_the_same(tmp_path, tile, method):
    """Grids that the file's tiles fit and that they do not, with holes, to the edge."""
    path = write_jpeg(tmp_path / "a.tif", smooth(700, 830, seed=3))
    empty_tiles(path, 0, [0, 30, 31, 100])
    values = {"mpp": 0.5, "tile": tile, "stain": {"method": method}, "min_coverage": 0}
    options = Preparation.model_validate(values)
    direct, reference = both(path)
    with direct, reference:
        plans = [
            plan_slide(slide, options, target=reference_profile(method))
            for slide in (direct, reference)
        ]
        assert [plan.scaled.reads_tiles for plan in plans] == [True, False]
        missing = 0
        for own, seen in zip(*map(stream, plans), strict=True):
            np.testing.assert_array_equal(own.pixels, seen.pixels)
            np.testing.assert_array_equal(own.rows, seen.rows)
            np.testing.assert_array_equal(own.columns, seen.columns)
            assert own.missing == seen.missing
            missing += own.missing
        assert 0 < missing < len(plans[0])


@pytest.mark.parametrize("missing", [[], [0, 30, 31, 100]], ids=["whole", "with-holes"])
def test_stores_of_both_paths_hold_the_same_pixels(tmp_path, monkeypatch, missing):
    path = write_jpeg(tmp_path / "a.tif", smooth(768, 832, seed=2))
    empty_tiles(path, 0, missing)
    held = {}
    for backend in ("jpeg-tiff", "openslide"):
        formats = FORMATS if backend == "jpeg-tiff" else frozenset()
        monkeypatch.setattr("wsiad.slides.tiff.FORMATS", formats)
        wsiad.tile(slides=[path], out=tmp_path / backend, mpp=0.5, tile=128, quiet=True)
        held[backend] = zarr.open_group(tmp_path / backend / "slides.zarr", mode="r")["a"]
        assert held[backend].attrs["wsiad"]["read"]["backend"] == backend
    assert held["openslide"]["tiles"].shape[0] > 0
    for name, array in held["openslide"].arrays():
        np.testing.assert_array_equal(held["jpeg-tiff"][name][...], array[...], err_msg=name)


def test_what_ends_in_zeros_and_not_in_its_end_marker_is_a_hole():
    stream = imagecodecs.jpeg8_encode(smooth(64, 64), level=90)
    assert not ends_in_hole(stream)
    assert not ends_in_hole(stream + bytes(40))
    assert not ends_in_hole(stream[:-8])
    assert ends_in_hole(stream[:-16] + bytes(16))
    assert ends_in_hole(bytes(len(stream)))


@pytest.mark.parametrize("kind", ["size", "components", "progressive", "empty", "text", "loop"])
def test_a_stream_that_is_not_its_tiles_is_not_decoded(tmp_path, kind):
    """No memory is taken for a frame that claims more than its tile."""
    path = write_jpeg(tmp_path / "a.tif", smooth(128, 128), levels=1)
    (tiles,) = read_layout(path, [Size(128, 128)], name="a")
    stream = next(encode(smooth(64, 64), space="YCBCR"))
    assert whole_jpeg(stream, tiles).endswith(stream[-40:])
    frame = stream.index(b"\xff\xc0") + 4
    other = {
        "size": stream[: frame + 1] + b"\xff\xdc\xff\xdc" + stream[frame + 5 :],
        "components": imagecodecs.jpeg8_encode(smooth(64, 64)[..., 0].copy()),
        "progressive": next(encode_progressive(smooth(64, 64))),
        "empty": b"",
        "text": b"<html>login required</html>",
        "loop": b"\xff\xd8" * 10,
    }[kind]
    with pytest.raises(DirectReadError):
        whole_jpeg(other, tiles)


def mutated(stream, rng, kind):
    """Damage the coded data of a stream, behind its headers."""
    data, start = bytearray(stream), stream.index(b"\xff\xda") + 14
    at = int(rng.integers(start, len(data) - 16))
    if kind == "bit":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "zeros":
        data[at : at + 12] = bytes(12)
    elif kind == "random":
        data[at : at + 12] = rng.bytes(12)
    elif kind == "tail":
        data[at:] = bytes(len(data) - at)
    elif kind == "stale":
        data[at : at + 12] = data[start : start + 12]
    return bytes(data)


@pytest.mark.parametrize(
    ("space", "subsampling"), [("RGB", "444"), ("YCBCR", "422"), ("YCBCR", "420")]
)
def test_damaged_data_is_refused_as_by_openslide_or_read_to_its_pixels(
    tmp_path, space, subsampling
):
    """No pixel is invented where OpenSlide refuses, whatever a decoder only warns of."""
    rng, outcomes = np.random.default_rng(5), Counter()
    clean = write_jpeg(
        tmp_path / "a.tif", smooth(128, 128), space=space, subsampling=subsampling, levels=1
    )
    raw = clean.read_bytes()
    with tifffile.TiffFile(clean) as tiff:
        offset, count = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    for number in range(150):
        kind = ("bit", "zeros", "random", "tail", "stale")[number % 5]
        data = mutated(raw[offset : offset + count], rng, kind)
        clean.write_bytes(raw[:offset] + data + raw[offset + count :])
        read = []
        for backend in ("openslide", "jpeg-tiff"):
            try:
                with open_slide(clean, backend=backend) as slide:
                    read.append(slide.read_level(0, 64, 64, Size(64, 64)).rgb)
            except SlideReadError:
                read.append(None)
        seen, own = read
        assert (own is None) or (seen is not None)
        if own is not None:
            np.testing.assert_array_equal(own, seen)
        elif seen is not None:
            assert kind == "tail"
        outcomes[kind, own is None] += 1
    assert outcomes["tail", False] == 0
    refused = sum(outcomes[kind, True] for kind in ("bit", "zeros", "random", "stale"))
    assert 0 < refused < 120


def test_the_file_is_released(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(128, 128), levels=1)
    slide = open_slide(path)
    slide.close()
    assert slide._file.closed
    shutil.move(path, tmp_path / "b.tif")
