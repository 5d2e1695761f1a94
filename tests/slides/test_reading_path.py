"""What slides.csv and run.json say of the path that a slide's pixels took."""

import csv
import json

import pytest

import wsiad
from support.builders import write_tiff
from support.runs import make_run, use_channel
from support.tiff_slides import smooth, write_jpeg
from wsiad.core.errors import InputError
from wsiad.slides.slide_table import read_table
from wsiad.verbs.tile import TileRow

SAID = {"direct": "jpeg-tiff", "lossless": "openslide: compression LZW"}
TISSUE = {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False}


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_jpeg(folder / "direct.tif", smooth(256, 320))
    write_tiff(folder / "lossless.tif", smooth(256, 320), compression="lzw")
    (folder / "text.tif").write_text("no slide")
    return folder


def check(folder, said):
    with (folder / "slides.csv").open() as file:
        table = {row["slide"]: row["backend"] for row in csv.DictReader(file)}
    assert table == {**said, "text": ""}
    assert json.loads((folder / "run.json").read_text())["backends"] == said


def test_tiling_says_it_again_when_nothing_is_left_to_do(slides, tmp_path):
    for _ in range(2):
        result = wsiad.tile(
            slides=slides, out=tmp_path / "store", mpp=0.5, tile=64, tissue=TISSUE, quiet=True
        )
        assert {row.slide: row.backend for row in result.rows} == {**SAID, "text": ""}
        check(tmp_path / "store", SAID)


def test_heatmaps_of_slides_and_of_a_store(slides, tmp_path, monkeypatch):
    use_channel(monkeypatch)
    run = make_run(tmp_path / "run")
    for _ in range(2):
        wsiad.heatmap(run=run, slides=slides, out=tmp_path / "out", device="cpu", quiet=True)
        check(tmp_path / "out", SAID)
    # A call for one slide does not forget the others.
    wsiad.heatmap(
        run=run, slides=slides / "direct.tif", out=tmp_path / "out", device="cpu", quiet=True
    )
    check(tmp_path / "out", SAID)
    wsiad.tile(
        slides=slides,
        out=tmp_path / "store",
        mpp=0.5,
        tile=64,
        tissue=TISSUE,
        min_coverage=0.01,
        stain={"method": "none"},
        quiet=True,
    )
    wsiad.heatmap(
        run=run, slides=tmp_path / "store", out=tmp_path / "stored", device="cpu", quiet=True
    )
    check(tmp_path / "stored", dict.fromkeys(SAID, "store"))


def test_a_table_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "slides.csv"
    head = "slide,status,reason,seconds,mpp_x,mpp_y,width,height,label,split,file,tiles"
    path.write_text(f"{head},tissue_share\na,ok,,1.5,0.5,0.5,9,8,,,a.tif,3,0.25\n")
    (row,) = read_table(path, TileRow)
    assert (row.slide, row.tiles, row.tissue_share, row.backend) == ("a", 3, 0.25, "")
    path.write_text("status,reason\nok,\n")
    with pytest.raises(InputError, match="not a table"):
        read_table(path, TileRow)
