"""Where the µm/px of a slide comes from."""

import pytest
from builders import noise, write_tiff

from wsiad.errors import ScaleError
from wsiad.slides.opening import open_slide
from wsiad.slides.scale import find_scale


@pytest.mark.parametrize(
    ("properties", "x", "y", "source"),
    [
        (
            {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26", "aperio.MPP": "0.5"},
            0.25,
            0.26,
            "openslide.mpp-x",
        ),
        ({"aperio.MPP": "0.499"}, 0.499, 0.499, "aperio.MPP"),
        ({"aperio.MPP": "0,499"}, 0.499, 0.499, "aperio.MPP"),
        (
            {
                "tiff.XResolution": "20000",
                "tiff.YResolution": "10000",
                "tiff.ResolutionUnit": "centimeter",
            },
            0.5,
            1.0,
            "tiff.XResolution",
        ),
        (
            {
                "tiff.XResolution": "50800",
                "tiff.YResolution": "50800",
                "tiff.ResolutionUnit": "inch",
            },
            0.5,
            0.5,
            "tiff.XResolution",
        ),
        (
            {"openslide.mpp-x": "nonsense", "openslide.mpp-y": "0.2", "ventana.ScanRes": "0.465"},
            0.465,
            0.465,
            "ventana.ScanRes",
        ),
    ],
)
def test_stated_scale(properties, x, y, source):
    found = find_scale(properties, slide="s", manifest_mpp=None, fallback_mpp=0.1)
    assert (found.spacing.x, found.spacing.y) == pytest.approx((x, y))
    assert found.source == source


def test_manifest_then_flag():
    assert find_scale({}, slide="s", manifest_mpp=0.3, fallback_mpp=0.4).spacing.x == 0.3
    found = find_scale({}, slide="s", fallback_mpp=0.4)
    assert (found.spacing.x, found.source) == (0.4, "--slide-mpp")


def test_the_slide_is_believed_over_the_manifest_with_a_warning(caplog):
    properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
    assert find_scale(properties, slide="s", manifest_mpp=0.5).spacing.x == 0.25
    assert "0.5" in caplog.text


def test_screen_resolution_is_no_scale():
    properties = {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}
    with pytest.raises(ScaleError, match=r"352\.778.*--slide-mpp"):
        find_scale(properties, slide="s")


def test_missing_scale_names_the_ways_to_supply_it(tmp_path):
    path = write_tiff(tmp_path / "bare.tif", noise(64, 64), mpp=None, levels=1)
    with pytest.raises(ScaleError, match=r"bare: its µm/px is not stated.*manifest.*--slide-mpp"):
        open_slide(path)
    assert open_slide(path, fallback_mpp=0.5).spacing.x == 0.5
