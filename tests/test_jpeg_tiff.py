"""The direct reading of JPEG tiles against OpenSlide, pixel by pixel."""

import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from builders import halve, stained, write_tiff
from scipy.ndimage import gaussian_filter

import wsiad
from wsiad.errors import InputError, SlideReadError
from wsiad.geometry import Size
from wsiad.slides.jpeg_tiff_backend import JpegTiffBackend, open_jpeg_tiff
from wsiad.slides.jpeg_tiff_layout import is_whole_stream, read_layout
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.units import Mpp

SHARED = Path(__file__).parents[2] / "shared"
TILE = 64


def smooth(height, width, seed=0):
    """Stained noise that JPEG keeps some of."""
    return gaussian_filter(stained(height, width, seed=seed), (1.0, 1.0, 0.0))


def encode(image, *, space, subsampling="444"):
    """JPEG streams of an image's tiles, row by row, edges padded as scanners do."""
    image = np.pad(
        image, ((0, -image.shape[0] % TILE), (0, -image.shape[1] % TILE), (0, 0)), "edge"
    )
    for top in range(0, image.shape[0], TILE):
        for left in range(0, image.shape[1], TILE):
            yield imagecodecs.jpeg8_encode(
                np.ascontiguousarray(image[top : top + TILE, left : left + TILE]),
                level=85,
                colorspace="RGB",
                outcolorspace=space,
                subsampling=subsampling,
            )


def split_tables(stream):
    """Tables of a stream as a stream of their own, and the stream without them."""
    tables, rest, at = b"", b"", 2
    while stream[at + 1] != 0xDA:
        length = 2 + int.from_bytes(stream[at + 2 : at + 4])
        segment = stream[at : at + length]
        if stream[at + 1] in (0xDB, 0xC4):
            tables += segment
        elif not 0xE0 <= stream[at + 1] <= 0xEF:
            rest += segment
        at += length
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


def write_jpeg(
    path, image, *, space="YCBCR", subsampling="444", shared=False, big=True, levels=3, aperio=False
):
    """Write a JPEG-tiled pyramid as OpenSlide's generic TIFF, or as Aperio SVS."""
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for number in range(levels):
            streams = list(encode(image, space=space, subsampling=subsampling))
            extra = []
            if shared:
                tables, _ = split_tables(streams[0])
                extra = [(347, 7, len(tables), tables, True)]
                streams = [split_tables(stream)[1] for stream in streams]
            ycbcr = space == "YCBCR"
            tiff.write(
                iter(streams),
                shape=image.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr" if ycbcr else "rgb",
                subsampling=(int(subsampling[1] != "4") + 1, int(subsampling[2] == "0") + 1)
                if ycbcr
                else None,
                compression="jpeg",
                subfiletype=int(number > 0 and not aperio),
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                description="Aperio Image Library v1\nx|AppMag = 20|MPP = 0.5" if aperio else None,
                metadata=None,
                extratags=extra,
            )
            image = halve(image)
    return path


def both(path):
    return open_slide(path, backend="jpeg-tiff"), open_slide(path, backend="openslide")


def assert_same(path, *, rectangles=()):
    """Compare whole levels, beyond their edges too, and rectangles of level 0."""
    direct, reference = both(path)
    with direct, reference:
        assert (direct.levels, direct.spacing) == (reference.levels, reference.spacing)
        assert (direct.bounds, direct.format) == (reference.bounds, reference.format)
        reads = [
            (number, -5, -7, Size(level.size.width + 20, level.size.height + 30))
            for number, level in enumerate(direct.levels)
        ]
        for read in [*reads, *((0, x, y, Size(w, h)) for x, y, w, h in rectangles)]:
            own, seen = direct.read_level(*read), reference.read_level(*read)
            np.testing.assert_array_equal(own.rgb, seen.rgb, err_msg=str(read))
            if seen.valid is None:
                assert own.valid is None
            else:
                np.testing.assert_array_equal(own.valid, seen.valid, err_msg=str(read))


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


def empty_tiles(path, level, tiles):
    """Give tiles a length of zero, as sparse writers do."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[level]
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        for tile in tiles:
            counts[tile] = offsets[tile] = 0
        page.tags["TileByteCounts"].overwrite(counts)
        page.tags["TileOffsets"].overwrite(offsets)


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
        assert slide.backend == "openslide"


def test_what_is_not_understood_falls_back(tmp_path, caplog):
    lossless = write_tiff(tmp_path / "deflate.tif", stained(200, 200))
    grey = tmp_path / "grey.tif"
    with tifffile.TiffWriter(grey) as tiff:
        tiff.write(
            smooth(128, 128)[..., 0],
            tile=(64, 64),
            compression="jpeg",
            metadata=None,
            resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )
    for path in (lossless, grey):
        with caplog.at_level("DEBUG", "wsiad.slides"), open_slide(path) as slide:
            assert slide.backend == "openslide"
        assert "read by OpenSlide" in caplog.text
        caplog.clear()
        with pytest.raises(InputError, match="cannot be decoded directly"):
            open_slide(path, backend="jpeg-tiff")
    assert read_layout(Path(__file__), [Size(1, 1)]) is None


def test_a_wrong_colour_space_is_found_by_comparing_with_openslide(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(128, 128), levels=1)
    monkeypatch.setattr("wsiad.slides.jpeg_tiff_layout._COLOUR_SPACES", {2: "YCBCR", 6: "RGB"})
    with open_slide(path) as slide:
        assert slide.backend == "openslide"
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


def test_scales_between_levels_are_averaged_alike(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320))
    direct, reference = both(path)
    with direct, reference:
        for mpp in (0.5, 0.8, 1.0, 1.3, 4.0):
            own, seen = (ScaledSlide(slide, Mpp(mpp)) for slide in (direct, reference))
            np.testing.assert_array_equal(
                own.read(0, 0, own.size).rgb, seen.read(0, 0, seen.size).rgb
            )


def test_stores_of_both_paths_hold_the_same_pixels(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(768, 832, seed=2))
    held = {}
    for backend in ("jpeg-tiff", "openslide"):
        monkeypatch.setattr(
            "wsiad.slides.opening.open_jpeg_tiff",
            open_jpeg_tiff if backend == "jpeg-tiff" else lambda slide: None,
        )
        wsiad.tile(slides=[path], out=tmp_path / backend, mpp=0.5, tile=128, quiet=True)
        held[backend] = zarr.open_group(tmp_path / backend / "slides.zarr", mode="r")["a"]
        assert held[backend].attrs["wsiad"]["read"]["backend"] == backend
    assert held["openslide"]["tiles"].shape[0] > 0
    for name, array in held["openslide"].arrays():
        np.testing.assert_array_equal(held["jpeg-tiff"][name][...], array[...], err_msg=name)


def test_whole_streams_are_told_from_cut_ones():
    stream = imagecodecs.jpeg8_encode(smooth(64, 64), level=90)
    assert is_whole_stream(stream)
    assert is_whole_stream(split_tables(stream)[1])
    for cut in (1, 2, 3, 20, len(stream) // 2, len(stream) - 3):
        assert not is_whole_stream(stream[:-cut])
    assert not is_whole_stream(b"")
    assert not is_whole_stream(b"\xff\xd8" * 10)
    assert is_whole_stream(stream + bytes(3))
    assert not is_whole_stream(stream + stream)
    middle = len(stream) - 200
    assert not is_whole_stream(stream[:middle] + b"\xff\xd9" + stream[middle:])


def test_the_file_is_released(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(128, 128), levels=1)
    slide = open_slide(path)
    slide.close()
    assert slide._file.closed
    shutil.move(path, tmp_path / "b.tif")
