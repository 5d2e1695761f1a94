"""Images of encoders are resized as Pillow does it, and cut out where the entry says so."""

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_encoders import tiny
from wsiad.core.errors import WeightsError
from wsiad.networks.encoder import table
from wsiad.networks.encoder_images import check_fingerprint, fingerprint, picture, resized

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def tile(edge):
    """A ramp, stripes and noise, uint8 (edge, edge, 3)."""
    y, x = np.mgrid[:edge, :edge]
    noise = np.random.default_rng(0).integers(0, 256, (edge, edge))
    return np.stack([x * 255 // edge, (y // 3 % 2) * 255, noise], axis=-1).astype(np.uint8)


def seen(encoder, edge):
    images = torch.from_numpy(tile(edge)).permute(2, 0, 1)[None].float() / 255
    return (resized(images, encoder)[0].permute(1, 2, 0) * 255).numpy()


@pytest.mark.parametrize(("name", "edge"), [("uni", 256), ("uni", 512), ("virchow2", 256),
                                            ("conch", 512), ("ctranspath", 96)])  # fmt: skip
def test_resizing_is_that_of_pillow(name, edge):
    encoder = table().get(name)
    size = (encoder.px, encoder.px)
    expected = np.asarray(Image.fromarray(tile(edge)).resize(size, FILTERS[encoder.filter]), float)
    found = seen(encoder, edge)
    np.testing.assert_array_equal(found, found.round())
    assert np.abs(found - expected).max() <= 2.01  # it is rounded twice
    assert np.abs(found - expected).mean() < 0.1


def test_gigapath_is_cut_out_and_not_squeezed():
    found = seen(table().get("gigapath"), 256)
    np.testing.assert_array_equal(found, tile(256)[16:240, 16:240])
    larger = np.asarray(Image.fromarray(tile(512)).resize((256, 256), FILTERS["bicubic"]), float)
    assert np.abs(seen(table().get("gigapath"), 512) - larger[16:240, 16:240]).max() <= 2.01


def test_tiles_of_the_right_size_are_unchanged():
    np.testing.assert_array_equal(seen(table().get("h-optimus-0"), 224), tile(224))


@pytest.mark.parametrize(
    ("name", "mean"),
    [("uni", 0.485), ("h-optimus-0", 0.707223), ("kaiko-vits8", 0.5), ("lunit-vits8", 0.70322989),
     ("hibou-l", 0.7068), ("conch", 0.48145466), ("midnight", 0.5), ("phikon", 0.485)],
)  # fmt: skip
def test_every_encoder_has_its_own_normalisation(name, mean):
    assert table().get(name).mean[0] == mean


def test_the_picture_is_always_the_same_and_like_tissue():
    one = picture(64)
    assert one.shape == (1, 3, 64, 64)
    assert torch.equal(one, picture(64))
    red, green, blue = one[0].mean(dim=(1, 2))
    assert green < blue < red or green < red < blue
    assert one.std() > 0.1
    assert [round(float(v), 4) for v in one[0, :, 10, 10]] == [round(v / 255, 4) for v in PIXEL]


PIXEL = (25, 5, 79)


def test_fingerprints_allow_for_rounding_alone():
    values = torch.linspace(-1, 1, 1000)
    was = fingerprint(values)
    assert len(was) == 33
    assert was[-1] == pytest.approx(float(values.norm()), rel=1e-6)
    fp32, bf16 = ("fp32", "fp32"), ("bf16", "fp32")
    check_fingerprint(was, fingerprint(values * 1.0005), subject="a", precisions=fp32)
    with pytest.raises(WeightsError, match=r"a: its features .* \(0\.01 off, 0\.001 allowed\)"):
        check_fingerprint(was, fingerprint(values * 1.01), subject="a", precisions=fp32)
    check_fingerprint(was, fingerprint(values * 1.01), subject="a", precisions=bf16)
    for other in (fingerprint(values[:5]), [float("nan")] * 33):
        with pytest.raises(WeightsError, match="not those of the training"):
            check_fingerprint(was, other, subject="a", precisions=bf16)
    assert tiny().own_tile_px == 32
