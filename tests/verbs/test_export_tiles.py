"""`wsiad export-tiles`: image files, CLAM's and TRIDENT's coordinates; resume, bad input."""

import csv
import json

import h5py
import numpy as np
import openslide
import pytest
from PIL import Image

import wsiad
from support.builders import stained, write_scn, write_tiff
from support.stores import content
from wsiad.cli import main
from wsiad.core.errors import InputError, StoreError
from wsiad.exports import exported_tiles
from wsiad.store.tile_store import TileStore

PX = 32


def make_store(tmp_path, *, mpp=0.5, **values):
    for number in range(2):
        image = stained(200, 264, seed=number)
        write_tiff(tmp_path / f"s{number}.tif", image, mpp=0.5, levels=2)
    wsiad.tile(**{
        "slides": [tmp_path / "s0.tif", tmp_path / "s1.tif"], "out": tmp_path / "store",
        "mpp": mpp, "tile": PX, "stain": {"method": "none"}, "tissue": {"min_area_um2": 0},
        "quiet": True, **values})  # fmt: skip
    return tmp_path / "store"


def export(store, out, **values):
    return wsiad.export_tiles(**{"store": store, "out": out, "quiet": True, **values})


def imported(tmp_path, out):
    folder = tmp_path / "loose"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(stained(PX, PX, seed=number)).save(folder / f"{number}.png")
    wsiad.import_tiles(sources=folder, out=out, mpp=0.5, label="normal", quiet=True)


def test_png_files_are_the_tiles(tmp_path):
    store = make_store(tmp_path)
    result = export(store, tmp_path / "out")
    assert result.slides == ("s0", "s1")
    with (tmp_path / "out" / "tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in result.slides:
        slide = TileStore(store).slide(name)
        image = stained(200, 264, seed=int(name[1]))
        mine = [row for row in rows if row["slide"] == name]
        assert len(mine) == len(slide) == len(list((tmp_path / "out" / name).iterdir()))
        for row, (x, y) in zip(mine, slide.column("position").astype(int), strict=True):
            assert row["file"] == f"{name}/{x}_{y}.png"
            assert [float(row[key]) for key in ("x", "y", "width", "height")] == [x, y, PX, PX]
            pixels = np.asarray(Image.open(tmp_path / "out" / row["file"]))
            np.testing.assert_array_equal(pixels, image[y : y + PX, x : x + PX])


def test_jpeg_and_tiles_without_a_place(tmp_path):
    imported(tmp_path, tmp_path / "store")
    export(tmp_path / "store", tmp_path / "out", format="jpeg", quality=98)
    with (tmp_path / "out" / "tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"loose/{n:07d}.jpg" for n in range(3)]
    assert {(row["x"], row["width"], row["label"]) for row in rows} == {("", "", "normal")}
    for number, row in enumerate(rows):
        with Image.open(tmp_path / "out" / row["file"]) as image:
            assert image.format == "JPEG"
            difference = np.asarray(image).astype(int) - stained(PX, PX, seed=number)
        assert abs(difference).mean() < 3
    back = wsiad.import_tiles(
        sources=tmp_path / "out" / "loose", out=tmp_path / "back", mpp=0.5, quiet=True
    )
    assert back.rows[0].tiles == 3


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("png", "exported images of tiles"),
        ("jpeg", "exported images of tiles"),
        ("clam", "an export of tiles"),
    ],
)
def test_an_export_is_called_what_it_is(tmp_path, kind, words, capsys):
    store = make_store(tmp_path)
    export(store, tmp_path / "out", format=kind)
    assert main(["status", str(tmp_path / "out")]) == 1
    assert (
        f"out: is {words}, and neither a tile store, a run nor results" in capsys.readouterr().err
    )
    with pytest.raises(StoreError, match=f"is not a tile store, but {words}"):
        wsiad.train(store=tmp_path / "out", out=tmp_path / "run", quiet=True)


def test_resume(tmp_path):
    store = make_store(tmp_path)
    export(store, tmp_path / "whole")
    export(store, tmp_path / "cut")
    (tmp_path / "cut" / "tiles.csv").unlink()
    for path in (tmp_path / "cut" / "s1").iterdir():
        path.unlink()
    (tmp_path / "cut" / "s1").rmdir()
    kept = next((tmp_path / "cut" / "s0").iterdir())
    before = kept.stat().st_mtime_ns
    export(store, tmp_path / "cut")
    assert content(tmp_path / "whole") == content(tmp_path / "cut")
    assert kept.stat().st_mtime_ns == before


def test_an_export_forgets_slides_that_fail_later(tmp_path):
    """Its record lists none of them, so that it can be read back; their files are named."""
    store = make_store(tmp_path)
    first = export(store, tmp_path / "out")
    export(store, tmp_path / "h5", format="clam")
    assert "still holds" not in first.summary
    (tmp_path / "s1.tif").unlink()
    result = wsiad.tile(
        slides=[tmp_path / "s0.tif"], out=store, mpp=0.5, tile=PX, stain={"method": "none"},
        tissue={"min_area_um2": 0}, quiet=True,
    )  # fmt: skip
    assert not result.failed
    table = store / "slides.csv"
    table.write_text(table.read_text().replace("s1,ok,,", "s1,failed,broken,"))
    second = export(store, tmp_path / "out")
    assert (second.slides, [row.slide for row in second.failed]) == (("s0",), ["s1"])
    line = f"{tmp_path / 'out'}: still holds what an earlier call wrote of slides that are left "
    assert f"{line}out now: s1. Delete it" in second.summary
    assert (tmp_path / "out" / "s1").is_dir(), "nothing is deleted that the user may want"
    assert list(json.loads((tmp_path / "out" / "export.json").read_text())["slides"]) == ["s0"]
    assert "left out now: s1.h5. Delete it" in export(store, tmp_path / "h5", format="clam").summary
    back = wsiad.import_tiles(sources=tmp_path / "out", out=tmp_path / "back", mpp=0.5, quiet=True)
    assert TileStore(tmp_path / "back").names() == ["s0"]
    assert not back.failed
    for path in (tmp_path / "out" / "s1").iterdir():
        path.unlink()
    assert "still holds" not in export(store, tmp_path / "out").summary


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_coordinates_where_a_level_is_taken_as_it_is(tmp_path, layout):
    """One file for both tools: read as each of them reads, it gives the store's pixels."""
    store = make_store(tmp_path, mpp=1.0)
    result = export(store, tmp_path / "out", format=layout)
    assert not result.failed
    for name in ("s0", "s1"):
        slide = TileStore(store).slide(name)
        with h5py.File(tmp_path / "out" / f"{name}.h5") as file:
            coords, attrs = file["coords"][:], dict(file["coords"].attrs)
        assert coords.dtype.kind == "i"
        np.testing.assert_array_equal(coords, slide.column("position"))
        assert set(attrs) == {
            "patch_size", "patch_level", "downsample", "downsampled_level_dim", "level_dim",
            "name", "save_path", "patch_size_level0", "level0_magnification", "overlap",
            "target_magnification", "savetodir", "level0_width", "level0_height",
        }  # fmt: skip
        with openslide.OpenSlide(tmp_path / f"{name}.tif") as wsi:
            assert tuple(attrs["level_dim"]) == wsi.level_dimensions[attrs["patch_level"]]
            assert (attrs["level0_width"], attrs["level0_height"]) == wsi.dimensions
            size = (attrs["patch_size"],) * 2
            for index in (0, len(coords) - 1):
                patch = wsi.read_region(coords[index], attrs["patch_level"], size).convert("RGB")
                np.testing.assert_array_equal(np.asarray(patch), slide.tiles(index, index + 1)[0])
        ratio = attrs["level0_magnification"] / attrs["target_magnification"]
        assert (ratio, attrs["patch_size_level0"]) == (pytest.approx(2), 64)
        assert attrs["level0_magnification"] == pytest.approx(20)
        assert (attrs["name"], attrs["overlap"]) == (name, 0)


def test_coordinates_where_tiles_were_resampled(tmp_path):
    """The layouts' patch sizes differ; either covers the tile's own area."""
    store = make_store(tmp_path, mpp=0.8, stride=24)
    side = PX * 0.8 / 0.5
    for layout in ("clam", "trident"):
        export(store, tmp_path / layout, format=layout)
        with h5py.File(tmp_path / layout / "s0.h5") as file:
            attrs = dict(file["coords"].attrs)
            off = file["coords"][:] - TileStore(store).slide("s0").column("position")
        assert abs(off).max() <= 0.5
        assert attrs["patch_size_level0"] == round(side)
        ratio = attrs["level0_magnification"] / attrs["target_magnification"]
        assert attrs["patch_size"] * ratio == pytest.approx(side, abs=0.5)
        if layout == "clam":
            assert (attrs["patch_level"], attrs["patch_size"]) == (0, round(side))
            assert attrs["overlap"] == round(8 * 1.6)
        else:
            assert "patch_level" not in attrs
            assert (attrs["patch_size"], attrs["overlap"]) == (PX, 8)


def test_coordinates_count_from_the_corner_of_level_0(tmp_path):
    image = stained(192, 256, seed=3)
    write_scn(tmp_path / "b.scn", image, mpp=0.5, offset_px=(100, 60), collection_px=(500, 400))
    wsiad.tile(slides=tmp_path / "b.scn", out=tmp_path / "store", mpp=0.5, tile=64,
               stain={"method": "none"}, tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    export(tmp_path / "store", tmp_path / "out", format="clam")
    slide = TileStore(tmp_path / "store").slide("b")
    with (
        h5py.File(tmp_path / "out" / "b.h5") as file,
        openslide.OpenSlide(tmp_path / "b.scn") as wsi,
    ):
        assert file["coords"][:].min() >= 60
        patch = wsi.read_region(file["coords"][0], 0, (64, 64)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(patch), slide.tiles(0, 1)[0])


def test_bad_input(tmp_path):
    with pytest.raises(StoreError, match="not a tile store"):
        export(tmp_path, tmp_path / "out")
    imported(tmp_path, tmp_path / "store")
    result = export(tmp_path / "store", tmp_path / "h5", format="clam")
    assert [row.slide for row in result.failed] == ["loose"]
    assert "have no coordinates" in result.failed[0].reason
    assert not list((tmp_path / "h5").glob("*.h5"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").touch()
    with pytest.raises(InputError, match="not an export"):
        export(tmp_path / "store", tmp_path / "mine")
    export(tmp_path / "store", tmp_path / "out")
    with pytest.raises(InputError, match="other options"):
        export(tmp_path / "store", tmp_path / "out", format="jpeg")
    (tmp_path / "out" / "export.json").write_text("[]")
    with pytest.raises(InputError, match=r"cannot be read: .*\. Set another --out"):
        export(tmp_path / "store", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        export(tmp_path / "store", tmp_path / "file")


@pytest.mark.parametrize("fmt", ["png", "clam"])
def test_a_store_without_any_tile_has_nothing_to_export(tmp_path, fmt):
    blank = write_tiff(tmp_path / "blank.tif", np.full((200, 264, 3), 245, np.uint8), mpp=0.5)
    wsiad.tile(slides=blank, out=tmp_path / "empty", mpp=0.5, tile=PX, quiet=True)
    assert len(TileStore(tmp_path / "empty").slide("blank")) == 0
    with pytest.raises(InputError, match=r"holds no tiles \(blank: no tissue\)"):
        export(tmp_path / "empty", tmp_path / "out", format=fmt)
    assert not (tmp_path / "out").exists()
    store = make_store(tmp_path)
    wsiad.tile(slides=blank, out=store, mpp=0.5, tile=PX, stain={"method": "none"},
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    result = export(store, tmp_path / "out", format=fmt)
    assert (result.slides, result.failed) == (("blank", "s0", "s1"), ())


@pytest.mark.parametrize(("other", "refused"), [("jpeg", True), ("png", False)])
def test_of_two_exports_that_begin_at_once_the_second_is_taken_only_if_it_is_equal(
    tmp_path, monkeypatch, other, refused
):
    store, out = make_store(tmp_path), tmp_path / "out"
    look = exported_tiles.refuse_foreign

    def meanwhile(*args, **words):  # after the folder was looked at, before it is claimed
        look(*args, **words)
        monkeypatch.setattr(exported_tiles, "refuse_foreign", look)
        export(store, out, format=other)

    monkeypatch.setattr(exported_tiles, "refuse_foreign", meanwhile)
    if refused:
        with pytest.raises(InputError, match=r"other options: format jpeg \(now png\)"):
            export(store, out, format="png")
    else:
        assert export(store, out, format="png").slides == ("s0", "s1")
    assert json.loads((out / "export.json").read_text())["format"] == other
    kinds = {path.suffix for path in (out / "s0").iterdir()}
    assert kinds == {".jpg" if other == "jpeg" else ".png"}


def test_a_slide_with_the_name_of_a_file_of_the_export_fails_alone(tmp_path):
    write_tiff(tmp_path / "tiles.csv.tif", stained(200, 264), mpp=0.5, levels=2)
    slides = [tmp_path / "s0.tif", tmp_path / "tiles.csv.tif"]
    store = make_store(tmp_path, slides=slides)
    result = export(store, tmp_path / "out")
    assert result.slides == ("s0",)
    assert [(row.slide, "Rename the slide" in row.reason) for row in result.failed] == [
        ("tiles.csv", True)
    ]
    with (tmp_path / "out" / "tiles.csv").open() as file:
        assert {row["slide"] for row in csv.DictReader(file)} == {"s0"}


def test_command_line(tmp_path, capsys):
    imported(tmp_path, tmp_path / "store")
    command = ["export-tiles", str(tmp_path / "store"), "--out"]
    assert main([*command, str(tmp_path / "a"), "--quiet"]) == 0
    assert "3 tiles of 1 slide as png" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "b"), "--format", "clam", "--quiet"]) == 1
    assert "wsiad export-tiles: 1 failed:\n  loose: " in capsys.readouterr().err
    assert main([*command, str(tmp_path / "c"), "--format", "bmp"]) == 2
