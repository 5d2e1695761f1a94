"""Tiles that a file does not hold are neither glass nor beyond the slide."""

import numpy as np
import pytest
import tifffile

import wsiad
from support.builders import write_tiff
from support.runs import make_run, use_channel
from support.tiff_slides import TILE, empty_tiles, smooth, write_jpeg
from wsiad.core.geometry import Box, Size
from wsiad.slides.opening import open_slide
from wsiad.store.tile_store import TileStore
from wsiad.tissue.mask import find_tissue
from wsiad.tissue.tissue_options import TissueOptions

HEIGHT, WIDTH = 768, 832
COLUMNS, ROWS = WIDTH // TILE, HEIGHT // TILE


def packed(path, image, *, levels):
    """A slide that OpenSlide reads."""
    image = np.clip(image, 0, 255).round().astype(np.uint8)
    return write_tiff(path, image, levels=levels, compression="zlib", tile=TILE)


WRITERS = pytest.mark.parametrize("write", [write_jpeg, packed], ids=["direct", "openslide"])


def tile(path, out):
    options = {"mpp": 0.5, "tile": TILE, "stain": {"method": "none"}, "quiet": True}
    (row,) = wsiad.tile(slides=[path], out=out, **options).rows
    return row, TileStore(out).slide("a")


@WRITERS
def test_missing_tiles_at_the_slide_s_edge_are_counted(tmp_path, write):
    # OpenSlide calls the tiles that are there the bounds of a plain TIFF.
    path = write(tmp_path / "a.tif", smooth(HEIGHT, WIDTH), levels=3)
    whole, _ = tile(path, tmp_path / "whole")
    empty_tiles(path, 0, range(ROWS // 2 * COLUMNS))
    row, stored = tile(path, tmp_path / "store")
    assert (row.status, row.tiles, row.missing) == ("ok", whole.tiles // 2, whole.tiles // 2)
    assert f"{row.missing} tiles left out: the slide has no pixels there" in row.reason
    assert stored.bounds == Box(0, 0, WIDTH, HEIGHT)


@WRITERS
@pytest.mark.parametrize("lost", [range(12), range(4)], ids=["all", "some"])
def test_tissue_is_found_where_only_the_overview_is_missing(tmp_path, write, lost):
    path = write(tmp_path / "a.tif", smooth(HEIGHT, WIDTH), levels=3)
    whole, before = tile(path, tmp_path / "whole")
    empty_tiles(path, 2, lost)
    row, stored = tile(path, tmp_path / "store")
    assert (row.status, row.tiles, row.missing) == ("ok", whole.tiles, 0)
    np.testing.assert_array_equal(stored.group["position"][:], before.group["position"][:])
    np.testing.assert_array_equal(stored.group["tiles"][:], before.group["tiles"][:])


@WRITERS
def test_it_is_told_what_no_level_holds(tmp_path, write, monkeypatch):
    path = write(tmp_path / "a.tif", smooth(HEIGHT, WIDTH), levels=1)
    whole, stored = tile(path, tmp_path / "whole")
    assert (whole.reason, "missing_share" in stored.facts["tissue"]) == ("", False)
    empty_tiles(path, 0, range(ROWS // 2 * COLUMNS))
    row, _ = tile(path, tmp_path / "store")
    told = "50.0 % of the slide has no pixels in the file, and tissue was not searched for there"
    assert (row.status, row.tiles, row.reason) == ("ok", whole.tiles // 2, told)
    use_channel(monkeypatch)
    run = make_run(tmp_path / "run", size=TILE, tissue={})
    for source in (path, tmp_path / "store"):
        out = tmp_path / f"results of {source.name}"
        (scored,) = wsiad.heatmap(run=run, slides=source, out=out, quiet=True).rows
        assert (scored.status, scored.reason) == ("ok", told)


@WRITERS
def test_glass_beside_missing_tiles_is_not_all_of_the_slide(tmp_path, write):
    glass = np.random.default_rng(0).normal(243, 1, (HEIGHT, WIDTH, 3)).clip(0, 255)
    path = write(tmp_path / "a.tif", glass.astype(np.uint8), levels=1)
    assert tile(path, tmp_path / "whole")[0].status == "no-tissue"
    empty_tiles(path, 0, range(ROWS // 2 * COLUMNS))
    row, _ = tile(path, tmp_path / "store")
    assert (row.status, row.tiles) == ("unusable", 0)
    assert "50.0 % of its pixels are missing in the file" in row.reason


@WRITERS
def test_what_no_level_holds_is_not_looked_for(tmp_path, write, monkeypatch):
    path = write(tmp_path / "a.tif", smooth(HEIGHT, WIDTH), levels=3)
    for level in range(3):  # the top 256 px of level 0, in tiles of each level
        edge = TILE * 2**level
        empty_tiles(path, level, range(256 // edge * -(-WIDTH // edge)))
    with open_slide(path) as slide:
        read, found = type(slide).read_level, set()

        def counted(self, level, *place):
            found.add(level)
            return read(self, level, *place)

        monkeypatch.setattr(type(slide), "read_level", counted)
        tissue = find_tissue(slide, TissueOptions())
    assert found == {2}
    assert not tissue.mask[:16].any()
    assert tissue.mask[18:].all()


@pytest.mark.parametrize("missing", [[5], []])  # of it x and y are 64 to 128
def test_cells_are_listed_by_the_tiles_that_they_lie_in(tmp_path, missing):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 256), levels=1)
    empty_tiles(path, 0, missing)
    cells = np.arange(-20, 280, 10, dtype=float)
    with open_slide(path) as slide:
        listed = slide.listed(0, cells, cells)
        for row, y in enumerate(cells[:-1]):
            for column, x in enumerate(cells[:-1]):
                region = slide.read_level(0, int(x), int(y), Size(10, 10))
                assert listed[row, column] == (region.valid is None)


def test_what_is_not_listed_is_not_read(tmp_path, monkeypatch):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 256), levels=1)
    empty_tiles(path, 0, range(16))
    with open_slide(path) as slide:
        monkeypatch.setattr(type(slide), "read_level", None)
        assert find_tissue(slide, TissueOptions()).unseen.missing == 1


@WRITERS
def test_a_claim_of_more_tiles_than_are_listed_is_refused_before_it_is_read(tmp_path, write):
    path = write(tmp_path / "a.tif", smooth(256, 256), levels=1)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[tag].overwrite(1000, dtype="I")
    row = wsiad.tile(slides=[path], out=tmp_path / "store", mpp=0.5, tile=64, quiet=True).rows[0]
    assert row.status == "failed"
    assert row.reason == (
        "claims 1,000 × 1,000 px in 256 tiles, of which it lists 16. Copy the slide again from its "
        "source; it is damaged."
    )
