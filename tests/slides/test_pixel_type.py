"""Pixels that are not colours of 8 bits are refused with the true reason: slides, and tiles."""

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import wsiad
from support.tiff_slides import smooth
from wsiad.core.errors import InputError
from wsiad.core.images import decode

RGB = smooth(256, 256)
WIDE = RGB.astype(np.uint16) * 257


def write_slide(path, pixels, **options):
    tifffile.imwrite(
        path, pixels, tile=(128, 128), resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
        metadata=None, **options,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("pixels", "photometric", "reason"),
    [
        (WIDE, "rgb", "16-bit pixels"),
        (RGB.astype(np.uint16) * 16, "rgb", "16-bit pixels"),
        ((RGB / 255).astype(np.float32), "rgb", "floating-point 32-bit pixels"),
        (RGB[..., 0].copy(), "minisblack", "grey 8-bit pixels"),
        (WIDE[..., 0].copy(), "minisblack", "grey 16-bit pixels"),
        (RGB[..., 0] > 128, "minisblack", "grey 1-bit pixels"),
        (np.dstack([RGB, RGB[..., :2]]), "rgb", "8-bit pixels of 5 channels"),
    ],
    ids=["16 bits", "12 of 16 bits", "float", "grey", "grey of 16 bits", "1 bit", "5 channels"],
)
def test_slides_of_other_pixels_are_unusable_and_say_which(tmp_path, pixels, photometric, reason):
    path = write_slide(tmp_path / "a.tif", pixels, photometric=photometric)
    (row,) = wsiad.tile(slides=[path], out=tmp_path / "store", mpp=0.5, tile=64, quiet=True).rows
    assert (row.status, row.tiles) == ("unusable", 0)
    assert f"pixel type cannot be used: {reason}" in row.reason


def test_slides_with_an_opaque_alpha_are_read(tmp_path):
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    path = write_slide(
        tmp_path / "a.tif", np.dstack([RGB, alpha]), photometric="rgb", extrasamples=["unassalpha"]
    )
    (row,) = wsiad.tile(slides=[path], out=tmp_path / "store", mpp=0.5, tile=64, quiet=True).rows
    assert row.status == "ok"


def test_a_coding_that_openslide_does_not_know_is_no_damage(tmp_path):
    path = write_slide(tmp_path / "a.tif", RGB, photometric="rgb", compression="webp")
    (row,) = wsiad.tile(slides=[path], out=tmp_path / "store", mpp=0.5, tile=64, quiet=True).rows
    assert row.status == "failed"
    assert row.reason == (
        "its tiles are coded in a way that OpenSlide cannot decode: WEBP. Convert it to a "
        "pyramidal TIFF with JPEG tiles."
    )


def in_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb", **options)
    return file.getvalue()


TILE = RGB[:64, :64].copy()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (imagecodecs.png_encode(TILE.astype(np.uint16) * 257), "samples of 16 bits"),
        (imagecodecs.png_encode(TILE.astype(np.uint16) * 16), "samples of 16 bits"),
        (in_tiff(TILE.astype(np.uint16) * 257), "samples of 16 bits"),
        (in_tiff((TILE / 255).astype(np.float32)), "samples of type float32"),
        (imagecodecs.webp_encode(TILE), "it is a WebP"),
        (b"", "it is empty"),
        (b"<html>", "it is none of them"),
    ],
    ids=["png", "png of 12 bits", "tiff", "tiff of floats", "webp", "empty", "text"],
)
def test_tiles_of_other_pixels_say_what_they_are(data, reason):
    with pytest.raises(InputError, match=reason):
        decode(data, subject="a.png")


@pytest.mark.parametrize("subsampling", ["444", "420"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_tile_that_the_decoder_warns_of_is_refused(subsampling, options):
    file = io.BytesIO()
    Image.fromarray(TILE).save(
        file, "jpeg", quality=90, subsampling={"444": 0, "420": 2}[subsampling], **options
    )
    data = file.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data, subject="a.jpg"), np.asarray(image))
    rng, refused = np.random.default_rng(4), 0
    for _ in range(40):
        broken = bytearray(data)
        broken[int(rng.integers(len(data) // 2, len(data) - 2))] ^= 1 << int(rng.integers(8))
        try:
            decode(bytes(broken), subject="a.jpg")
        except InputError:
            refused += 1
    assert refused > 0
