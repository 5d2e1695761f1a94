"""Slides of many files: which files they are, and that all of them identify the slide."""

import re

import pytest

import wsiad
from support.builders import stained, write_tiff
from support.dicom_slides import write_annotations, write_level
from wsiad.core.files import fingerprint
from wsiad.slides.opening import open_slide
from wsiad.slides.slide_files import slide_files, slide_fingerprint
from wsiad.slides.slide_table import read_table
from wsiad.slides.staging import Staging, staged
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow

IMAGE = stained(256, 384)


@pytest.fixture
def series(tmp_path):
    """Two slides and annotations in one folder, as an archive exports them."""
    folder = tmp_path / "flat"
    for number in (1, 2):
        write_level(folder / f"{number}_l0.dcm", IMAGE[:, ::number], series=number)
        low = IMAGE[::4, :: 4 * number].copy()
        write_level(folder / f"{number}_l1", low, series=number, number=2, mpp=2.0)
    write_annotations(folder / "0.dcm", series=1)
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 64)
    (folder / "notes.txt").touch()
    return folder


def test_a_dicom_slide_is_the_files_of_its_series(series):
    first, low = series / "1_l0.dcm", series / "1_l1"
    assert slide_files(first) == [first, low]
    assert slide_files(low) == [low, first]
    assert slide_fingerprint(first) == slide_fingerprint(low)
    assert slide_fingerprint(first) != slide_fingerprint(series / "2_l0.dcm")


def test_a_slide_of_one_file_is_identified_as_before(tmp_path):
    tiff = write_tiff(tmp_path / "a.tif", IMAGE)
    alone = write_level(tmp_path / "b" / "l0.dcm", IMAGE, series=3)
    for path in (tiff, alone):
        assert slide_fingerprint(path) == fingerprint(path)


def files_of(name, folder):
    """A slide's file, and another one that it consists of."""
    if name == "dicom":
        write_level(folder / "s" / "b_low.dcm", IMAGE[::4, ::4].copy(), series=9, number=2, mpp=2)
        return write_level(folder / "s" / "a_full.dcm", IMAGE, series=9), "s/b_low.dcm"
    path = folder / f"a.{name}"
    other = {"mrxs": "a/Data0001.dat", "vms": "a.jpg", "vmu": "a.ngr"}[name]
    path.write_text(f"[Section]\nImageFile={other}\n")
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_bytes(bytes(1000))
    return path, other


@pytest.mark.parametrize("name", ["dicom", "mrxs", "vms", "vmu"])
@pytest.mark.parametrize("change", ["replaced", "gone", "another"])
def test_every_file_of_a_slide_identifies_it(tmp_path, name, change):
    path, other = files_of(name, tmp_path)
    before = slide_fingerprint(path)
    assert slide_fingerprint(path) == before
    if change == "replaced":
        data = bytearray((tmp_path / other).read_bytes())
        data[-10] ^= 0xFF
        (tmp_path / other).write_bytes(data)
    elif change == "gone":
        (tmp_path / other).unlink()
    elif name == "dicom":
        write_level(path.parent / "c.dcm", IMAGE[::8, ::8].copy(), series=9, number=3, mpp=4)
    elif name == "mrxs":
        (tmp_path / "a" / "Data0002.dat").touch()
    else:
        path.write_text(path.read_text() + "MapFile=map.jpg\n")
        (tmp_path / "map.jpg").touch()
    assert slide_fingerprint(path) != before


def test_a_file_that_is_replaced_after_tiling_is_seen(tmp_path, series):
    def tile():
        wsiad.tile(slides=series / "1_l0.dcm", out=tmp_path / "store", mpp=0.5, tile=64,
                   tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
        return read_table(tmp_path / "store" / "slides.csv", TileRow)[0]

    assert tile().status == "ok"
    assert tile().status == "ok"
    other = 255 - IMAGE[::4, ::4]
    write_level(series / "1_l1", other, series=1, number=2, mpp=2.0)
    row = tile()
    assert row.status == "failed"
    assert "a file of it was changed" in row.reason
    assert "delete" in row.reason


def test_a_store_of_0_1_that_knew_the_first_file_only_is_told_of(tmp_path, series, monkeypatch):
    path = series / "1_l0.dcm"
    given = {"slides": path, "out": tmp_path / "store", "mpp": 0.5, "tile": 64, "quiet": True,
             "tissue": {"min_area_um2": 0}}  # fmt: skip
    with monkeypatch.context() as patch:
        for module in ("wsiad.store.tile_task", "wsiad.store.writer"):
            patch.setattr(f"{module}.slide_fingerprint", fingerprint)
        wsiad.tile(**given)
    assert TileStore(tmp_path / "store").slide("1_l0").fingerprint == fingerprint(path)
    wsiad.tile(**given)
    (row,) = read_table(tmp_path / "store" / "slides.csv", TileRow)
    assert row.status == "failed"
    assert "by wsiad 0.1, which identified a slide of many files by the first one" in row.reason


def test_a_level_that_changes_while_the_slide_is_read_is_seen(series):
    with open_slide(series / "1_l0.dcm") as slide:
        slide.check_unchanged()
        write_level(series / "1_l1", 255 - IMAGE[::4, ::4], series=1, number=2, mpp=2.0)
        with pytest.raises(wsiad.core.errors.SlideReadError, match="changed while it was read"):
            slide.check_unchanged()


def test_a_slide_is_copied_with_all_its_files_and_no_others(tmp_path, series):
    with staged(series / "2_l0.dcm", Staging(tmp_path / "fast"), name="two") as path:
        assert sorted(p.name for p in path.parent.iterdir()) == ["2_l0.dcm", "2_l1"]
        with open_slide(path) as slide:
            assert len(slide.levels) == 2
        assert slide_fingerprint(path) == slide_fingerprint(series / "2_l0.dcm")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty .0 bytes.: a stub"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s5--ab.svs\n", "git annex get"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html></html>", "is a web page"),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "it is text, which begins with .<.xml",
        ),
        (bytes(100_000), "begins with zeros"),
        (b"II*\0" + bytes(96), "not a slide in any format"),
    ],
)
@pytest.mark.parametrize("name", ["a.svs", "a.tif", "a.dcm", "a.mrxs"])
def test_what_stands_in_the_place_of_a_slide_is_told(tmp_path, data, told, name):
    (tmp_path / name).write_bytes(data)
    wsiad.tile(slides=tmp_path, out=tmp_path / "store", mpp=0.5, tile=64, quiet=True)
    (row,) = read_table(tmp_path / "store" / "slides.csv", TileRow)
    assert row.status == "failed"
    if name != "a.mrxs" or "text" not in told:
        assert re.search(told, row.reason), row.reason
