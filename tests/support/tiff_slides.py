"""Slides with JPEG tiles, written by the tests, and their comparison with OpenSlide."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from support.builders import halve, stained
from wsiad.core.geometry import Size
from wsiad.slides.opening import open_slide

TILE = 64


def smooth(height, width, seed=0):
    """Stained noise that JPEG keeps some of."""
    return gaussian_filter(stained(height, width, seed=seed), (1.0, 1.0, 0.0))


def cut(image):
    """An image's tiles, row by row, edges padded as scanners do."""
    image = np.pad(
        image, ((0, -image.shape[0] % TILE), (0, -image.shape[1] % TILE), (0, 0)), "edge"
    )
    for top in range(0, image.shape[0], TILE):
        for left in range(0, image.shape[1], TILE):
            yield np.ascontiguousarray(image[top : top + TILE, left : left + TILE])


def encode(image, *, space, subsampling="444", restart=0, optimised=False):
    """JPEG streams of an image's tiles, with restarts after so many blocks if any."""
    for tile in cut(image):
        if restart or optimised:
            stream = io.BytesIO()
            Image.fromarray(tile).save(
                stream,
                "jpeg",
                quality=85,
                subsampling={"444": 0, "422": 1, "420": 2}[subsampling],
                restart_marker_blocks=restart,
                optimize=optimised,
                keep_rgb=space == "RGB",
            )
            yield stream.getvalue()
            continue
        yield imagecodecs.jpeg8_encode(
            tile, level=85, colorspace="RGB", outcolorspace=space, subsampling=subsampling
        )


def encode_progressive(image):
    """Progressive JPEG streams of an image's tiles, YCbCr 4:4:4."""
    for tile in cut(image):
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, "jpeg", progressive=True, subsampling=0)
        yield stream.getvalue()


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
    path,
    image,
    *,
    space="YCBCR",
    subsampling="444",
    shared=False,
    big=True,
    levels=3,
    aperio=False,
    progressive=False,
    restart=0,
    optimised=False,
):
    """Write a JPEG-tiled pyramid as OpenSlide's generic TIFF, or as Aperio SVS."""
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for number in range(levels):
            streams = list(
                encode_progressive(image)
                if progressive
                else encode(
                    image,
                    space=space,
                    subsampling=subsampling,
                    restart=restart,
                    optimised=optimised,
                )
            )
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


def empty_tiles(path, level, tiles):
    """Give tiles a length of zero, as sparse writers do."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[level]
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        for tile in tiles:
            counts[tile] = offsets[tile] = 0
        page.tags["TileByteCounts"].overwrite(counts)
        page.tags["TileOffsets"].overwrite(offsets)
