"""`--damaged-tiles skip`: what is damaged is left out, counted and shown; by default it fails."""

import csv
import json

import numpy as np
import pytest
import tifffile
import zarr

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from support.spoilt_tiles import spoil
from support.tiff_slides import TILE, smooth, write_jpeg
from wsiad.slides.opening import open_slide
from wsiad.store.tile_store import TileStore
from wsiad.tissue.mask import find_tissue
from wsiad.tissue.quality import Reason
from wsiad.tissue.tissue_options import TissueOptions

COLUMNS = 13  # tiles of the file across: 832 px of 64


def rows(folder):
    with (folder / "slides.csv").open(newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def tile(path, out, **values):
    options = {"mpp": 0.5, "tile": TILE, "stain": {"method": "none"}, "quiet": True} | values
    wsiad.tile(slides=[path], out=out, **options)
    return rows(out)


def packed(path, image):
    """A slide that OpenSlide reads: deflate tiles of 256 px."""
    return write_tiff(path, np.clip(image, 0, 255).round().astype(np.uint8), compression="zlib")


def test_by_default_a_damaged_tile_fails_the_slide(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(768, 832), levels=2)
    spoil(path, "tail of zeros", index=COLUMNS + 3)
    row = tile(path, tmp_path / "store")["a"]
    assert row["status"] == "failed"
    assert "--damaged-tiles skip" in row["reason"]
    assert "a" not in TileStore(tmp_path / "store")


@pytest.mark.parametrize("grid", [TILE, 48], ids=["aligned", "across"])
def test_what_is_damaged_is_left_out_and_the_rest_is_as_it_was(tmp_path, grid):
    path = write_jpeg(tmp_path / "a.tif", smooth(768, 832), levels=2)
    tile(path, tmp_path / "whole", tile=grid)
    spoil(path, "tail of zeros", index=COLUMNS + 3)
    row = tile(path, tmp_path / "store", tile=grid, damaged_tiles="skip")["a"]
    whole = zarr.open_group(tmp_path / "whole" / "slides.zarr", mode="r")["a"]
    store = zarr.open_group(tmp_path / "store" / "slides.zarr", mode="r")["a"]
    # The file's damaged tile: x 192 to 256, y 64 to 128.
    x, y = whole["position"][:].T
    hit = (x < 256) & (x + grid > 192) & (y < 128) & (y + grid > 64)
    assert hit.any()
    assert (row["status"], int(row["damaged"])) == ("ok", hit.sum())
    assert f"not assessed, as the file is damaged there: {hit.sum()} tiles" in row["reason"]
    np.testing.assert_array_equal(store["tiles"][:], whole["tiles"][:][~hit])
    np.testing.assert_array_equal(store["position"][:], whole["position"][:][~hit])
    assert (store["left_out_reason"][:] == Reason.DAMAGED).all()
    np.testing.assert_array_equal(store["left_out_lattice"][:], whole["lattice"][:][hit])
    assert store.attrs["wsiad"]["damaged"] == {"tiles": int(hit.sum()), "share": 0.0}
    assert json.loads((tmp_path / "store" / "run.json").read_text())["damaged"] == hit.sum()


def test_a_whole_slide_is_stored_to_the_same_bytes_whatever_is_done_with_damage(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(384, 448), levels=2)
    for kind in ("fail", "skip"):
        assert tile(path, tmp_path / kind, damaged_tiles=kind)["a"]["damaged"] == "0"
    files = [p for p in (tmp_path / "fail" / "slides.zarr").rglob("*") if p.is_file()]
    assert len(files) > 5
    for one in files:
        assert (
            one.read_bytes()
            == (tmp_path / "skip" / one.relative_to(tmp_path / "fail")).read_bytes()
        )


def test_openslide_reads_around_what_is_damaged(tmp_path):
    path = packed(tmp_path / "a.tif", smooth(768, 832))
    whole = tile(path, tmp_path / "whole")["a"]
    spoil(path, "tail of zeros", index=1)
    row = tile(path, tmp_path / "store", damaged_tiles="skip")["a"]
    assert row["backend"].startswith("openslide")
    with tifffile.TiffFile(path) as tiff:
        edge = tiff.pages[0].tilewidth
    lost = (edge // TILE) ** 2
    assert (int(row["damaged"]), int(row["tiles"])) == (lost, int(whole["tiles"]) - lost)


def test_a_store_of_damaged_slides_is_not_taken_for_whole(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(384, 448), levels=2)
    spoil(path, "all zeros", index=8)
    assert tile(path, tmp_path / "store", damaged_tiles="skip")["a"]["status"] == "ok"
    assert tile(path, tmp_path / "store", damaged_tiles="skip")["a"]["status"] == "ok"
    row = tile(path, tmp_path / "store")["a"]
    assert row["status"] == "failed"
    assert "which --damaged-tiles skip left out" in row["reason"]


def test_a_slide_of_which_nothing_is_left_is_unusable(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 256), levels=2)
    for index in range(16):
        spoil(path, "all zeros", index=index)
    row = tile(path, tmp_path / "store", damaged_tiles="skip")["a"]
    assert (row["status"], row["tiles"]) == ("unusable", "0")
    assert "lie in damaged parts of the file" in row["reason"]


def half_tissue(edge=1024):
    """Tissue on the left, glass on the right."""
    image = np.full((edge, edge, 3), 243, np.uint8)
    image[:, : edge // 2] = smooth(edge, edge // 2)
    return image


@pytest.mark.parametrize("levels", [3, 1], ids=["pyramid", "one level"])
def test_a_damaged_level_invents_no_mask(tmp_path, levels):
    """The mask's level: 2 µm/px, 256 px, 4 × 4 tiles. Below it there are finer ones."""
    path = write_jpeg(tmp_path / "a.tif", half_tissue(), levels=levels)
    options = TissueOptions()
    with open_slide(path) as slide:
        whole = find_tissue(slide, options)
    across = 1024 // TILE // 2 ** (levels - 1)
    index = across * (across // 2) + across // 4  # within the tissue
    spoil(path, "tail of zeros", index=index, level=levels - 1)
    with open_slide(path, skip_damaged=True) as slide:
        found = find_tissue(slide, options)
    if levels == 3:
        assert found.damaged is None
        both = np.count_nonzero(found.mask & whole.mask)
        assert 2 * both / (found.mask.sum() + whole.mask.sum()) > 0.99
        assert np.abs(found.thumbnail.astype(int) - whole.thumbnail).mean() < 1
    else:
        tile_um2, all_um2 = (TILE * 0.5) ** 2, (1024 * 0.5) ** 2
        assert found.damaged_share == pytest.approx(tile_um2 / all_um2, rel=0.3)
        assert not (found.mask & found.damaged).any()


def test_heatmaps_leave_out_what_is_damaged_and_list_it(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    image = np.clip(stained(768, 832, seed=2), 0, 255)
    path = write_jpeg(tmp_path / "a.tif", image, levels=2, subsampling="420")
    spoil(path, "tail of zeros", index=COLUMNS * 5 + 6)
    run = make_run(tmp_path / "run", mpp=0.5)
    failed = wsiad.heatmap(run=run, slides=[path], out=tmp_path / "failed", quiet=True)
    assert [row.status for row in failed.rows] == ["failed"]
    out = tmp_path / "results"
    result = wsiad.heatmap(run=run, slides=[path], out=out, damaged_tiles="skip", quiet=True)
    (row,) = result.rows
    assert row.status == "ok"
    assert row.damaged > 0
    assert f"damaged there: {row.damaged} windows" in row.reason
    left_out = np.load(out / "a" / "left_out.npy")
    assert (left_out["reason"] == "damaged").sum() == row.damaged
    listed = json.loads((out / "a" / "not_assessed.geojson").read_text())
    assert "damaged" in json.dumps(listed)
    again = wsiad.heatmap(run=run, slides=[path], out=out, quiet=True)
    assert [row.status for row in again.rows] == ["failed"]


def test_results_without_damaged_glass_are_not_taken_for_whole_either(tmp_path, monkeypatch):
    """No window lies there, but tissue may."""
    use_channel(monkeypatch)
    path = write_jpeg(tmp_path / "a.tif", half_tissue(), levels=1)
    across = 1024 // TILE
    spoil(path, "tail of zeros", index=across * (across // 2) + across - 1)  # in the glass
    run, out = make_run(tmp_path / "run", mpp=0.5), tmp_path / "results"
    result = wsiad.heatmap(run=run, slides=[path], out=out, damaged_tiles="skip", quiet=True)
    (row,) = result.rows
    assert (row.status, row.damaged) == ("ok", 0)
    assert "of the slide, in which tissue was not searched for" in row.reason
    assert result.summary.startswith("1 of 1 slide scored; 1 with damaged parts left out;")
    page = (out / "report.html").read_text()
    assert "1 slide was not assessed where the file is damaged: a." in page
    again = wsiad.heatmap(run=run, slides=[path], out=out, quiet=True)
    assert [row.status for row in again.rows] == ["failed"]
    assert "which --damaged-tiles skip left out" in again.rows[0].reason
    tiled = wsiad.tile(slides=[path], out=tmp_path / "store", mpp=0.5, tile=64,
                       damaged_tiles="skip", quiet=True)  # fmt: skip
    assert tiled.summary.splitlines()[1] == "damaged parts were left out of 1 slide (a)"
    assert "1 with damaged parts left out" in (tmp_path / "store" / "report.html").read_text()
