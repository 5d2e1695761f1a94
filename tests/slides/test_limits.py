"""What a file claims of its size is not believed beyond limits, and costs no memory."""

import tracemalloc

import cv2
import numpy as np
import pytest
import tifffile

import wsiad
from support.builders import stained
from support.stores import PLAIN
from wsiad.core.errors import SlideOpenError, UnusableSlideError
from wsiad.slides.opening import open_slide
from wsiad.slides.slide_table import read_table
from wsiad.tissue import mask
from wsiad.tissue.mask import find_tissue
from wsiad.tissue.tissue_options import TissueOptions
from wsiad.verbs.tile import TileRow


def write_sparse(path, width, height, *, mpp, tile=(4096, 4096), below=None):
    """Write a slide whose level 0 has no pixels; below it one whole level, if given."""
    across, down = -(-width // tile[1]), -(-height // tile[0])
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(
            iter([b""] * (across * down)), shape=(height, width, 3), dtype=np.uint8,
            tile=tile, photometric="rgb", compression="deflate", metadata=None,
            resolution=(1e4 / mpp,) * 2, resolutionunit="CENTIMETER",
        )  # fmt: skip
        if below is not None:
            tiff.write(
                below, tile=(256, 256), photometric="rgb", compression="deflate",
                subfiletype=1, metadata=None,
            )  # fmt: skip
    return path


def test_an_edge_that_no_slide_has_is_refused_when_it_is_opened(tmp_path):
    path = write_sparse(tmp_path / "s.tif", 2**31 - 16, 16, mpp=0.5, tile=(16, 65536))
    with pytest.raises(SlideOpenError, match=r"claims 2,147,483,632 × 16 px, but no slide has"):
        open_slide(path)


def test_a_claim_of_half_a_million_pixels_square_is_refused_before_memory_is_taken(tmp_path):
    path = write_sparse(tmp_path / "s.tif", 500_000, 500_000, mpp=0.5)
    with open_slide(path) as slide:
        tracemalloc.start()
        with pytest.raises(UnusableSlideError) as error:
            find_tissue(slide, TissueOptions())
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < 2**20
    assert "500,000 × 500,000 px, which is 250 × 250 mm" in str(error.value)
    assert "976,562,500 pixels" in str(error.value)
    assert "--tissue-mpp 25 " in str(error.value)


def test_the_mask_scale_that_is_named_is_coarse_enough_and_no_coarser(tmp_path, monkeypatch):
    monkeypatch.setattr(mask, "LARGEST_MASK_PX", 10_000)
    path = write_sparse(tmp_path / "s.tif", 3000, 2000, mpp=2.0, tile=(512, 512))
    for mpp, fits in [(20, False), (48, False), (49, True)]:
        with open_slide(path) as slide:
            if fits:
                assert find_tissue(slide, TissueOptions(mpp=mpp)).mask.size <= 10_000
                continue
            with pytest.raises(UnusableSlideError, match="--tissue-mpp 49 "):
                find_tissue(slide, TissueOptions(mpp=mpp))


def test_claims_are_rows_and_the_batch_goes_on(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_sparse(folder / "long.tif", 2**31 - 16, 16, mpp=0.5, tile=(16, 65536))
    write_sparse(folder / "square.tif", 500_000, 500_000, mpp=0.5)
    # A real slide of 20 gigapixels, as far as its size and its mask go.
    small = np.full((3125, 6250, 3), 243, np.uint8)
    small[500:1100, 600:1300] = cv2.resize(stained(300, 350, seed=1), (700, 600))
    write_sparse(folder / "true.tif", 200_000, 100_000, mpp=0.25, below=small)
    wsiad.tile(slides=folder, out=tmp_path / "out", **{**PLAIN, "mpp": 8.0, "tile": 64})
    rows = {row.slide: row for row in read_table(tmp_path / "out" / "slides.csv", TileRow)}
    assert {name: row.status for name, row in rows.items()} == {
        "long": "failed", "square": "unusable", "true": "ok",
    }  # fmt: skip
    assert all("\n" not in row.reason for row in rows.values())
    assert (rows["true"].width, rows["true"].height) == (200_000, 100_000)
    assert rows["true"].tiles >= 50
