"""Where the µm/px of a slide comes from."""

import numpy as np
import pytest

import wsiad
from support.builders import noise, stained, write_tiff
from wsiad.core.errors import ConfigError, ScaleError
from wsiad.core.geometry import Size
from wsiad.slides.opening import open_slide
from wsiad.slides.scale import find_scale
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.slide_table import read_table
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow


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


def test_the_user_is_believed_over_the_slide_where_that_is_asked():
    properties = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}

    def found(**given):
        scale = find_scale(properties, slide="s", **given)
        return scale.spacing.mean, scale.source, scale.overridden

    assert found(manifest_mpp=0.25, override=True) == (0.25, "manifest", True)
    assert found(fallback_mpp=0.25, override=True) == (0.25, "--slide-mpp", True)
    assert found(manifest_mpp=0.3, fallback_mpp=0.25, override=True) == (0.3, "manifest", True)
    assert found(override=True) == (0.5, "openslide.mpp-x", False)
    assert found(manifest_mpp=0.501, override=True) == (0.5, "openslide.mpp-x", False)
    note = find_scale(properties, slide="s", manifest_mpp=0.25).note
    assert "openslide.mpp-x says 0.5 µm/px, the manifest 0.25; the slide is believed" in note
    assert not find_scale(properties, slide="s", manifest_mpp=0.5).note


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0005, "millimetres: that would be 0.5"), (500, "nanometres: that would be 0.5"),
     (5e-5, "centimetres: that would be 0.5"), (40, "At 40× it is about 0.25"),
     (20_000, "pixels per centimetre: that would be 0.5")],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["tile", "heatmap"])
def test_a_flag_that_states_no_scale_of_slides_is_refused(tmp_path, verb, value, told):
    given = {"tile": {"mpp": 0.5, "tile": 64}, "heatmap": {"run": tmp_path}}[verb]
    with pytest.raises(ConfigError, match=f"is not a slide's µm/px.*{told}"):
        getattr(wsiad, verb)(slides=tmp_path, out=tmp_path / "o", slide_mpp=value, **given)


def tiled(folder, stated, **given):
    (folder / "m.csv").write_text(f"slide,mpp\na.tif,{stated}\n")
    wsiad.tile(slides=folder / "m.csv", out=folder / "store", mpp=0.5, tile=64, quiet=True,
               tissue={"min_area_um2": 0}, **given)  # fmt: skip
    return read_table(folder / "store" / "slides.csv", TileRow)[0]


def test_a_contradiction_is_in_the_table_and_stays_there(tmp_path):
    write_tiff(tmp_path / "a.tif", stained(256, 256), mpp=0.5, levels=1)
    for _ in range(2):
        row = tiled(tmp_path, 0.25)
        assert (row.status, row.mpp_x) == ("ok", 0.5)
        assert "says 0.5 µm/px, the manifest 0.25; the slide is believed" in row.reason
    row = tiled(tmp_path, 0.25, override_mpp=True)
    assert row.status == "failed"
    assert "in the store at 0.5 µm/px, but 0.25 should now replace" in row.reason


def test_a_manifest_overrides_a_wrong_header_by_a_flag(tmp_path):
    write_tiff(tmp_path / "a.tif", stained(512, 512), mpp=10, levels=1)
    row = tiled(tmp_path, 0.25)
    assert row.status == "failed"
    assert "coarser than the 0.5 µm/px requested (" in row.reason
    assert "the manifest 0.25; the slide is believed (--override-mpp would take 0.25)" in row.reason
    for _ in range(2):
        row = tiled(tmp_path, 0.25, override_mpp=True)
        assert (row.status, row.mpp_x, row.tiles) == ("ok", 0.25, 16)
        assert "the manifest 0.25; 0.25 is taken (--override-mpp)" in row.reason
    facts = TileStore(tmp_path / "store").slide("a").facts["slide"]
    assert (facts["spacing_source"], facts["spacing_overridden"]) == ("manifest", True)
    assert "replaced the slide's own" in tiled(tmp_path, 0.25).reason
    assert "the manifest now states 0.3" in tiled(tmp_path, 0.3, override_mpp=True).reason


@pytest.mark.parametrize(("mpp", "untouched"), [(0.252, True), (0.2549, True), (0.2552, False)])
def test_a_slide_that_is_a_little_coarser_is_read_at_its_own_scale(tmp_path, mpp, untouched):
    image = noise(256, 256)
    path = write_tiff(tmp_path / "a.tif", image, mpp=mpp, levels=1)
    with open_slide(path) as slide:
        if not untouched:
            with pytest.raises(ScaleError, match=r"coarser than the 0\.25 µm/px"):
                ScaledSlide(slide, 0.25)
            return
        scaled = ScaledSlide(slide, 0.25)
        assert (scaled.resampled, scaled.size, scaled.pixels.scale_x) == (False, Size(256, 256), 1)
        np.testing.assert_array_equal(scaled.read(8, 16, Size(64, 32)).rgb, image[16:48, 8:72])
        # Detail is only invented where that is allowed, as before.
        assert ScaledSlide(slide, 0.25, allow_upsampling=True).resampled


def test_screen_resolution_is_no_scale():
    properties = {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}
    with pytest.raises(ScaleError, match=r"352\.778.*--slide-mpp"):
        find_scale(properties, slide="s")


def test_missing_scale_names_the_ways_to_supply_it(tmp_path):
    path = write_tiff(tmp_path / "bare.tif", noise(64, 64), mpp=None, levels=1)
    with pytest.raises(ScaleError, match=r"bare: its µm/px is not stated.*manifest.*--slide-mpp"):
        open_slide(path)
    assert open_slide(path, fallback_mpp=0.5).spacing.x == 0.5
