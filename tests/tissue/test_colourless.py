"""Parts beside the tissue that are dark and without colour may be tissue, and the row says so."""

import cv2
import h5py
import numpy as np
import pytest
from scipy import ndimage

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import StoreError
from wsiad.core.files import read_json, write_json
from wsiad.store.tile_store import TileStore
from wsiad.tiling.verdict import colourless_note
from wsiad.tissue import artefacts
from wsiad.tissue.mask import segment
from wsiad.tissue.tissue_options import TissueOptions
from wsiad.tissue.unseen import colourless_share, darker_than_glass

GREY = (178, 184, 176)  # saturation 0.043: less than any default threshold
MORE = {"saturation_min": 0.02, "glass_margin": 0.02}


def share(image, **options):
    whole = np.ones(image.shape[:2], bool)
    found = segment(image, whole, mpp=8.0, options=TissueOptions(**options))
    assert found.mask.any()
    return found.colourless_share


def field(*parts, colour=GREY):
    """Glass with 60 × 80 px of tissue in rows 30–90, columns 40–120, and other parts."""
    image = np.full((120, 240, 3), 243, float)
    image[30:90, 40:120] = stained(60, 80)
    for part in parts:
        image[part] = colour
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def test_the_share_is_that_of_what_is_joined_to_tissue():
    assert share(field()) == 0
    assert share(field(np.s_[30:90, 120:140])) == pytest.approx(20 / 100, abs=0.01)
    assert share(field(np.s_[30:90, 40:60])) == pytest.approx(20 / 80, abs=0.015)
    apart = np.s_[30:90, 150:220]
    assert share(field(apart)) == 0
    assert share(field(np.s_[30:90, 120:140], apart)) == pytest.approx(20 / 100, abs=0.01)


@pytest.mark.parametrize("light", [200, 150, 128, 110])
def test_a_dark_scan_is_compared_with_its_own_glass(light):
    def dimmed(*parts):
        return (field(*parts) * (light / 243)).round().astype(np.uint8)

    for white in (0, 80):  # columns that the scanner filled in
        filled = ((0, 0), (0, white), (0, 0))
        none, some = (np.pad(one, filled, constant_values=255) for one in (
            dimmed(), dimmed(np.s_[30:90, 120:140])))  # fmt: skip
        assert share(none) == 0
        assert share(some) == pytest.approx(20 / 100, abs=0.01)


def test_the_lightest_parts_of_dark_tissue_are_no_glass():
    """Tissue without colour over the whole slide, of which a sixth has colour."""
    rng = np.random.default_rng(3)
    grey = np.kron(rng.uniform(100, 124, (30, 60)), np.ones((4, 4))) + rng.normal(0, 4, (120, 240))
    image = grey.clip(0, 127)[..., None].repeat(3, axis=2)
    image[30:90, 40:120] = stained(60, 80) * 0.5
    assert share(image.astype(np.uint8)) == pytest.approx(5 / 6, abs=0.01)


def test_less_than_a_twentieth_is_not_stated():
    assert share(field(np.s_[30:90, 120:123])) == 0
    assert share(field(np.s_[30:90, 120:126])) == pytest.approx(6 / 86, abs=0.01)


def test_what_is_known_to_be_no_tissue_does_not_count():
    beside = np.s_[30:90, 120:140]
    assert share(field(beside, colour=(225, 230, 222))) == 0  # as light as glass nearly
    assert share(field(beside, colour=(5, 5, 5))) == 0  # the black of a border
    assert share(field(beside, colour=(20, 120, 60))) == 0  # ink
    image, valid = field(beside), np.ones((120, 240), bool)
    valid[beside] = False
    assert segment(image, valid, mpp=8.0, options=TissueOptions()).colourless_share == 0


def test_the_options_that_the_note_names_find_it():
    image = field(np.s_[30:90, 120:140])
    whole = np.ones(image.shape[:2], bool)
    found = segment(image, whole, mpp=8.0, options=TissueOptions(**MORE))
    assert found.colourless_share == 0
    assert found.mask.sum() == pytest.approx(60 * 100, rel=0.03)


def test_edges_of_coverslips_bubbles_and_dust_are_not_tissue():
    rng = np.random.default_rng(1)
    shade = np.zeros((120, 240), np.float32)
    cv2.line(shade, (230, 0), (225, 119), 1.0, 6)
    cv2.circle(shade, (180, 60), 20, 1.0, 4)
    for x, y in rng.integers(0, (240, 25), (20, 2)):
        cv2.circle(shade, (int(x), int(y)), 2, 1.0, -1)
    image = (field() * (1 - 0.4 * shade[..., None])).astype(np.uint8)
    whole = np.ones((120, 240), bool)
    assert (darker_than_glass(image, whole) & (shade > 0)).sum() > 1000
    assert share(image) == 0


@pytest.mark.parametrize("band", [1 << 20, 500])
def test_pieces_are_those_of_scipy(band, monkeypatch):
    monkeypatch.setattr(artefacts, "_BAND_PX", band)
    rng = np.random.default_rng(2)
    for density in (0.4, 0.6, 0.8):
        dark, coloured = rng.random((97, 61)) < density, rng.random((97, 61)) < 0.4
        tissue = ndimage.binary_dilation(rng.random((97, 61)) < 0.01, iterations=2)
        labels, _ = ndimage.label(dark | tissue)
        joined = np.isin(labels, labels[tissue])
        beside = (joined & dark & ~tissue & ~coloured).sum()
        expected = beside / (beside + tissue.sum())
        found = colourless_share(dark, stained=coloured, tissue=tissue)
        assert found == (expected if expected >= 0.05 else 0)
    assert colourless_share(dark, stained=coloured, tissue=np.zeros_like(dark)) == 0


PLAIN = {"mpp": 1.0, "tile": 96, "stain": {"method": "none"}, "quiet": True}
TOLD = (
    "of what may be tissue is not in its mask: beside tissue it is darker than glass, without the "
    "colour of a stain. If the overview shows tissue there, tile with --tissue-saturation-min 0.02 "
    "--tissue-glass-margin 0.02"
)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    image = stained(768, 768, glass=96)
    write_tiff(folder / "usual.tif", image, mpp=1.0)
    image[96:-96, 480:-96] = GREY  # a third of it
    write_tiff(folder / "pale.tif", image, mpp=1.0)
    return folder


def test_the_row_says_so_from_the_slide_and_from_a_store(slides, tmp_path, monkeypatch):
    use_channel(monkeypatch)
    said = "slides {}; 1 that may have more tissue than was found"
    for _ in range(2):  # the second is resumed
        result = wsiad.tile(slides=slides, out=tmp_path / "store", **PLAIN)
        assert said.format("stored") in result.summary
        assert "more tissue than was found may be on 1 slide (pale); see" in result.summary
        found = {row.slide: (row.status, row.reason) for row in result.rows}
        assert found["usual"] == ("ok", "")
        status, reason = found["pale"]
        assert (status, reason.split(" % ")[1]) == ("ok", TOLD)
        assert float(reason.split(" % ")[0]) == pytest.approx(100 / 3, abs=1)
    store = TileStore(tmp_path / "store")
    assert "colourless_share" not in store.slide("usual").facts["tissue"]
    assert store.slide("pale").facts["tissue"]["colourless_share"] == pytest.approx(1 / 3, abs=0.01)
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={})
    for source in (slides, tmp_path / "store"):
        out = tmp_path / f"results of {source.name}"
        scored = wsiad.heatmap(run=run, slides=source, out=out, quiet=True)
        assert {row.slide: (row.status, row.reason) for row in scored.rows} == found
        assert said.format("scored") in scored.summary
        first = "1 slide may have tissue outside of the tissue mask, which was not assessed: pale."
        assert first in (out / "report.html").read_text()


def test_it_is_tissue_with_the_options_that_the_row_names(slides, tmp_path):
    (row,) = wsiad.tile(slides=slides / "pale.tif", out=tmp_path / "a", **PLAIN).rows
    (more,) = wsiad.tile(slides=slides / "pale.tif", out=tmp_path / "b", tissue=MORE, **PLAIN).rows
    assert (more.status, more.reason) == ("ok", "")
    assert more.tiles > 1.3 * row.tiles


PLACES = ", or give the places of tiles with --coords"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"saturation_min": 0.01}, "--tissue-saturation-min 0.01 --tissue-glass-margin 0.02"),
        ({"glass_margin": 0.01}, "--tissue-saturation-min 0.02 --tissue-glass-margin 0.01"),
        (
            MORE,
            "less than --tissue-saturation-min 0.02 --tissue-glass-margin 0.02" + PLACES,
        ),
        (
            {"saturation_min": 0.01, "glass_margin": 0.015},
            "less than --tissue-saturation-min 0.01 --tissue-glass-margin 0.015" + PLACES,
        ),
    ],
)
def test_the_remedy_is_never_what_was_given(given, remedy):
    note = colourless_note(0.25, TissueOptions(**given))
    assert note.endswith(f"If the overview shows tissue there, tile with {remedy}")
    assert colourless_note(0, TissueOptions(**given)) == ""


def test_grey_that_the_options_do_not_find_has_another_remedy(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    image = stained(768, 768, glass=96)
    image[96:-96, 480:-96] = 150  # as silver: no colour at all
    write_tiff(tmp_path / "silver.tif", image, mpp=1.0)
    store = tmp_path / "store"
    (row,) = wsiad.tile(slides=tmp_path / "silver.tif", out=store, tissue=MORE, **PLAIN).rows
    assert "tile with less than --tissue-saturation-min 0.02 --tissue-glass-margin" in row.reason
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue=MORE)
    for source in (store, tmp_path / "silver.tif"):
        out = tmp_path / f"results of {source.name}"
        (scored,) = wsiad.heatmap(run=run, slides=source, out=out, quiet=True).rows
        assert scored.reason == row.reason


def test_a_slide_whose_mask_is_too_small_for_a_tile_says_what_it_lacks(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    image = np.full((768, 768, 3), 243, np.uint8)
    image[172:212, 100:600] = stained(40, 500)
    image[212:600, 100:600] = GREY
    write_tiff(tmp_path / "grey.tif", image, mpp=1.0)
    result = wsiad.tile(slides=tmp_path / "grey.tif", out=tmp_path / "store", **PLAIN)
    (row,) = result.rows
    assert (row.status, row.tiles) == ("unusable", 0)
    assert "no tile holds enough" in row.reason
    assert row.reason.endswith(TOLD)
    run = make_run(tmp_path / "run", size=96, mpp=1.0, tissue={}, min_coverage=0.5)
    for source in (tmp_path / "grey.tif", tmp_path / "store"):
        out = tmp_path / f"results of {source.name}"
        (scored,) = wsiad.heatmap(run=run, slides=source, out=out, quiet=True).rows
        assert scored.status == "unusable"
        assert scored.reason.endswith(TOLD)


def test_places_that_were_given_lack_nothing_by_the_mask(slides, tmp_path):
    (tmp_path / "coords").mkdir()
    with h5py.File(tmp_path / "coords/pale.h5", "w") as file:
        coords = file.create_dataset("coords", data=np.array([[100, 100], [550, 300]]))
        coords.attrs["patch_size_level0"] = 96
    places = {"slides": slides / "pale.tif", "coords": tmp_path / "coords", **PLAIN}
    (row,) = wsiad.tile(out=tmp_path / "store", **places).rows
    assert (row.status, row.reason, row.tiles) == ("ok", "", 2)


def test_a_damaged_share_is_refused(slides, tmp_path):
    wsiad.tile(slides=slides / "pale.tif", out=tmp_path / "store", **PLAIN)
    path = TileStore(tmp_path / "store").folder("pale") / "zarr.json"
    values = read_json(path, ValueError, remedy="")
    values["attributes"]["wsiad"]["tissue"]["colourless_share"] = "a third"
    write_json(path, values)
    with pytest.raises(StoreError, match="colourless_share"):
        TileStore(tmp_path / "store").slide("pale")
