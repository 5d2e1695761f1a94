"""Tiles of any picture: grey values, sizes, equalisation, and what is refused."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from wsiad.core.errors import InputError
from wsiad.core.picture_tiles import check_edge, tile_of_picture

RAMP = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    if kind == "TIFF":
        tifffile.imwrite(file, pixels)
    else:
        Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def made(pixels, kind="PNG", **options):
    return tile_of_picture(encoded(pixels, kind), subject="a", **options)


def test_grey_of_eight_bits_is_read_as_it_is():
    grey = (RAMP % 256).astype(np.uint8)
    found = made(grey, grey_values=(0, 255))
    assert found.dtype == np.uint8
    assert all(np.array_equal(found[..., channel], grey) for channel in range(3))
    assert np.array_equal(made(grey, grey_values=(255, 0))[..., 0], 255 - grey)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_sixteen_bits_is_scaled_by_the_stated_values(kind):
    found = made(RAMP, kind, grey_values=(0, 1023))[..., 0]
    assert np.array_equal(found, np.rint(RAMP * (255 / 1023)))
    assert found.max() == 255  # the upper eight of sixteen bits would be 3
    whole = made(RAMP, kind, grey_values=(0, 65535))[..., 0]
    assert whole.max() == round(1023 * 255 / 65535)


@pytest.mark.parametrize("values", [(0, 1000), (5, 1023)])
def test_values_beyond_the_stated_ones_are_refused(values):
    with pytest.raises(InputError, match="has values from 0 to 1023, beyond the stated"):
        made(RAMP, grey_values=values)


def test_grey_without_stated_values_is_refused():
    for pixels in (RAMP, (RAMP % 256).astype(np.uint8)):
        with pytest.raises(InputError, match=r"nobody stated .* --grey-values 0 255"):
            made(pixels, resize=16)


def test_a_tiff_whose_lowest_value_is_white_is_refused():
    file = io.BytesIO()
    tifffile.imwrite(file, RAMP, photometric="miniswhite")
    with pytest.raises(InputError, match="lowest value is white"):
        tile_of_picture(file.getvalue(), subject="a", grey_values=(0, 1023))


def test_colours_are_kept_and_resized_by_area():
    colour = data.astronaut()[:, :384]  # 512 × 384
    found = made(colour, crop=256)
    assert np.array_equal(found, colour[128:384, 64:320])
    small = made(colour, resize=96, crop=96)
    by_hand = colour.reshape(128, 4, 96, 4, 3).mean(axis=(1, 3))[16:112]
    assert np.abs(small.astype(float) - by_hand).max() <= 0.51
    flat = made(np.full((20, 30, 3), 77, np.uint8), resize=64, crop=64)
    assert (flat == 77).all()


def test_equalisation_widens_contrast_and_leaves_hues():
    moon = data.moon()
    found = made(moon, grey_values=(0, 255), clahe=2.0)[..., 0]
    assert found.std() > 1.2 * moon.std()
    grey = (RAMP % 256).astype(np.uint8)
    coloured = np.stack([grey, grey, grey], axis=2)
    spread = made(coloured, clahe=2.0)
    assert np.abs(spread.astype(int) - spread[..., :1]).max() <= 2


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((20, 30, 3), {"resize": 16}, "not square"),
        ((20, 30, 3), {"crop": 25}, "cannot be cut out of"),
        ((4, 40, 3), {"crop": 4}, "edges of 8 to"),
    ],
)
def test_shapes_that_make_no_tile_are_refused(shape, options, match):
    with pytest.raises(InputError, match=match):
        made(np.zeros(shape, np.uint8), **options)


def test_what_is_no_picture_is_refused():
    with pytest.raises(InputError, match="cannot be read"):
        tile_of_picture(b"nothing", subject="a", resize=16)
    whole = encoded(data.astronaut()[:64, :64])
    with pytest.raises(InputError, match="cannot be read"):
        tile_of_picture(whole[: len(whole) // 2], subject="a", resize=16)
    clear = np.zeros((16, 16, 4), np.uint8)
    with pytest.raises(InputError, match="transparent"):
        made(clear, resize=16)
    with pytest.raises(InputError, match="neither in colours of 8 bits"):
        made(np.zeros((16, 16), np.float32), "TIFF", grey_values=(0, 1))
    with pytest.raises(InputError, match="becomes 16 × 16 px"):
        check_edge(made(np.zeros((32, 32, 3), np.uint8), resize=16), 32, subject="a")


@pytest.mark.parametrize("grey", [False, True])
def test_a_damaged_jpeg_is_refused_though_decoders_fill_it(grey):
    pixels = data.camera()[:96, :96] if grey else data.astronaut()[:96, :96]
    values = {"grey_values": (0, 255)} if grey else {}
    whole = encoded(pixels, "JPEG")
    assert tile_of_picture(whole, subject="a", resize=48, **values).shape == (48, 48, 3)
    middle = len(whole) * 3 // 5
    damaged = whole[:middle] + b"\xff\xd9" + bytes(38) + whole[middle + 40 :]
    with pytest.raises(InputError, match="cannot be read as a JPEG"):
        tile_of_picture(damaged, subject="a", resize=48, **values)
