"""Reference and masks from files, and what of them is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsiad.core.errors import EvaluationError
from wsiad.evaluation import truth
from wsiad.evaluation.matching import mask_downsample, protocol_mpp
from wsiad.evaluation.truth import MASK_SUFFIXES, find_truth, read_mask, read_reference

# reference.csv


def reference(tmp_path, text):
    path = tmp_path / "reference.csv"
    path.write_bytes(text.encode())
    return read_reference(path)


def test_the_reference_of_the_data_set(tmp_path):
    text = "\ufeffimage,type,center\r\ntest_001.tif,Tumor,0\r\n\r\ntest_002.tif,normal,1\r\n"
    assert reference(tmp_path, text) == {"test_001": True, "test_002": False}


def test_other_names_of_columns_and_labels(tmp_path):
    text = "label, slide\ntumour,a.b\nNORMAL,c.ndpi\n"
    assert reference(tmp_path, text) == {"a.b": True, "c": False}


@pytest.mark.parametrize(
    ("word", "tumour"),
    [
        *((word, True) for word in ("1", "Positive", "1.0", "malignant", " TUMOUR ", "macro")),
        *((word, False) for word in ("0", "Negative", "benign", "healthy", "Non-tumor")),
    ],
)
def test_labels_are_understood_as_those_of_manifests(tmp_path, word, tumour):
    # The columns too: a semicolon is what Excel writes where a comma is the decimal point.
    assert reference(tmp_path, f"Slide ID;Class\na;{word}\n") == {"a": tumour}
    assert reference(tmp_path, f"file\tlabel\tTYPE\na.svs\t{word}\t\n") == {"a": tumour}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no slides"),
        ("image,type\n", "lists no slides"),
        ("a.tif,tumor\n", "no column 'image'"),
        ("image,histotype\na,IDC\n", "no column 'type'"),
        ("image,type\na,tumr\n", "row 2.*label of a is 'tumr'.*'tumor'.*Write normal"),
        ("image,type\na,unknown\n", "row 2.*label of a is 'unknown'.*Write normal"),
        ("image,type\na,-1\n", "row 2.*label of a is '-1'.*Write normal"),
        ("image,type,class\na,tumor,0\n", "row 2.*mean the same say 'tumor' and '0'"),
        ("image,type\na,\n", "row 2.*label of a is ''"),
        ("image,type\na\n", "row 2.*fewer fields"),
        ("image,type\na.tif,tumor\na.svs,normal\n", "row 3.*a is listed twice"),
        (
            "image,type\n/data/a.tif,tumor\n",
            "row 2.*'/data/a'.*: it is a whole path[.] Write.*with",
        ),
        ("image,type\nC:\\data\\a.tif,tumor\n", "row 2.*it is a whole path of Windows"),
        ("image,type\n\\\\nas\\a,tumor\n", "row 2.*it is a whole path of Windows"),
        ("image,type\n../a,tumor\n", "row 2.*cannot be used as a name"),
        ("image,type\n,tumor\n", "row 2.*cannot be used as a name"),
        ('image,type\n"a,tumor\n', "not CSV"),
        ("image,type\n\x00,tumor\n", "reference.csv"),
    ],
)
def test_bad_references_are_refused_with_row_and_slide(tmp_path, text, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        reference(tmp_path, text)
    assert "reference.csv" in str(caught.value)


def test_a_reference_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read: No such file"):
        read_reference(tmp_path / "none.csv")
    (tmp_path / "r.csv").write_bytes(b"image,type\n\xff\xfe,tumor\n")
    with pytest.raises(EvaluationError, match="is not CSV"):
        read_reference(tmp_path / "r.csv")


# Masks


@pytest.fixture
def spot():
    values = np.zeros((20, 30), dtype=np.uint8)
    values[5:9, 4:12] = 255
    return values


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1"])
def test_png_masks(tmp_path, spot, mode):
    Image.fromarray(spot).convert(mode).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", downsample=32)
    np.testing.assert_array_equal(found.pixels, spot == 255)
    assert found.mpp is None


def test_tiff_masks_of_both_kinds(tmp_path, spot):
    tifffile.imwrite(tmp_path / "a.tif", spot)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif", downsample=32).pixels, spot == 255)
    values = np.ones_like(spot)
    values[0], values[spot == 255] = 0, 2
    tifffile.imwrite(tmp_path / "b.tif", values)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.tif", downsample=32).pixels, spot == 255)


def test_an_empty_mask_holds_no_tumour(tmp_path, spot):
    Image.fromarray(np.zeros_like(spot)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png", downsample=32).pixels.any()


def write_pyramid(path, base, *, levels=6, mpp=0.226):
    options = {"tile": (64, 64), "resolutionunit": "CENTIMETER", "compression": "deflate"}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            resolution = 1e4 / (mpp * 2**level)
            writer.write(
                base[:: 2**level, :: 2**level],
                subifds=levels - 1 if level == 0 else None,
                subfiletype=int(level > 0),
                resolution=(resolution, resolution),
                **options,
            )


def test_a_pyramid_is_read_at_the_level_of_the_masks(tmp_path):
    base = np.zeros((1024, 2048), dtype=np.uint8)
    base[320:640, 640:1280] = 2
    base[0, 0] = 1
    write_pyramid(tmp_path / "m.tif", base)
    found = read_mask(tmp_path / "m.tif", downsample=32)
    assert found.pixels.shape == (32, 64)
    assert found.pixels.sum() == 10 * 20
    assert found.pixels[10:20, 20:40].all()
    assert found.mpp == pytest.approx(0.226)
    with pytest.raises(EvaluationError, match="no level of 64 level-0 pixels"):
        read_mask(tmp_path / "m.tif", downsample=64)


@pytest.mark.parametrize(
    ("values", "suffix", "message"),
    [
        ([0, 1], ".png", "0, 1, which do not say what is tumour.*tumour as 255"),
        ([0, 1], ".tif", "0, 1, which do not say"),
        ([1, 1], ".tif", "1, which do not say"),
        ([0, 2], ".png", "0, 2, which do not say"),
        ([0, 254], ".png", "0, 254, which do not say"),
        ([0, 128, 255], ".png", "0, 128, 255, which do not say"),
        ([1, 2, 255], ".tif", "1, 2, 255, which do not say"),
    ],
)
def test_masks_of_other_values_are_refused(tmp_path, values, suffix, message):
    path = tmp_path / f"test_001{suffix}"
    image = np.resize(np.array(values, dtype=np.uint8), (8, 9))
    Image.fromarray(image).save(path)
    with pytest.raises(EvaluationError, match=message) as caught:
        read_mask(path, downsample=32)
    assert "test_001" in str(caught.value)


def test_masks_of_other_kinds_are_refused(tmp_path, spot, monkeypatch):
    def refused(name, message):
        with pytest.raises(EvaluationError, match=message):
            read_mask(tmp_path / name, downsample=32)

    Image.fromarray(np.dstack([spot, spot * 0, spot])).save(tmp_path / "colour.png")
    refused("colour.png", "has colours")
    Image.fromarray(spot).convert("P").save(tmp_path / "palette.png")
    refused("palette.png", "has a palette")
    Image.fromarray(spot.astype(np.uint16)).save(tmp_path / "deep.png")
    refused("deep.png", "not an 8-bit mask")
    tifffile.imwrite(tmp_path / "float.tif", spot.astype(np.float32))
    refused("float.tif", "not an 8-bit mask")
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([spot] * 5), photometric="minisblack")
    refused("stack.tif", "not an 8-bit mask")
    (tmp_path / "text.png").write_text("no image")
    refused("text.png", "cannot be read as a mask")
    (tmp_path / "text.tif").write_text("no image")
    refused("text.tif", "cannot be read as a mask")
    Image.fromarray(spot).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    refused("cut.png", "cannot be read as a mask")
    monkeypatch.setattr(truth, "MAX_MASK_PX", 500)
    refused("whole.png", "too many for a mask")


def test_ground_truth_is_found_by_the_names_of_the_data_set(tmp_path):
    for name in ("a.png", "b_mask.tif", "tumor_001_evaluation_mask.png", "c.tiff", "c.xml"):
        (tmp_path / name).touch()
    assert find_truth(tmp_path, "a", suffixes=MASK_SUFFIXES).name == "a.png"
    assert find_truth(tmp_path, "b", suffixes=MASK_SUFFIXES).name == "b_mask.tif"
    found = find_truth(tmp_path, "tumor_001", suffixes=MASK_SUFFIXES)
    assert found.name == "tumor_001_evaluation_mask.png"
    assert find_truth(tmp_path, "c", suffixes=(".xml", ".json")).name == "c.xml"
    assert find_truth(tmp_path, "d", suffixes=MASK_SUFFIXES) is None
    (tmp_path / "a.tif").touch()
    with pytest.raises(EvaluationError, match=r"a: has several files.*a\.png, a\.tif"):
        find_truth(tmp_path, "a", suffixes=MASK_SUFFIXES)


# µm/px


@pytest.mark.parametrize(
    ("mpp", "expected"), [(None, 32), (0.243, 32), (0.226, 32), (0.25, 32), (0.5, 16), (0.972, 8)]
)
def test_masks_have_pixels_of_about_eight_micrometres(mpp, expected):
    assert mask_downsample(mpp) == expected


def test_the_2016_script_takes_one_scale_for_both_scanners():
    v1, v2 = "camelyon16-2016", "camelyon16-dataset"
    assert protocol_mpp(v1, given=None, known=0.226)[0] == 0.243
    assert protocol_mpp(v2, given=None, known=0.226)[0] == 0.226
    assert protocol_mpp(v1, given=None, known=0.5)[0] == 0.5
    for protocol in (v1, v2):
        with pytest.raises(EvaluationError, match=r"a: no µm/px is known.*--spacing-um"):
            protocol_mpp(protocol, given=None, known=None, slide="a")
        assert protocol_mpp(protocol, given=0.3, known=0.226) == (0.3, "given")
