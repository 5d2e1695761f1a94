"""`wsiad import-tiles`: folders, tars and HDF5 into a store; resume, faults, bad input."""

import csv
import gzip
import io
import json
import os
import re
import shutil
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import wsiad
from support.builders import stained, write_tiff
from support.stores import content
from wsiad.core.errors import ConfigError, InputError, RunError, StoreMismatchError
from wsiad.core.images import decode
from wsiad.runs.compatibility import check_prepared_alike, run_preparation
from wsiad.slides.slide_table import read_table
from wsiad.stain.profile import reference_profile
from wsiad.store import foreign_tiles as imported
from wsiad.store import group
from wsiad.store.tile_store import GROUPS, TileStore
from wsiad.tiling.preparation import Preparation
from wsiad.verbs.tile import TileRow

PX = 32


def tiles(count, *, seed=0, size=PX):
    return [stained(size, size, seed=seed + number) for number in range(count)]


def encoded(pixels, kind="PNG", *, mode=None, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format=kind, **options)
    return out.getvalue()


def write_folder(path, images, *, suffix="png"):
    path.mkdir(parents=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(path / f"t{number:03d}.{suffix}")
    return path


def write_tar(path, members, *, mode="w"):
    """Members are (name, bytes) or ready TarInfos."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def write_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
    return path


def load(sources, out, **values):
    return wsiad.import_tiles(
        **{"sources": sources, "out": out, "mpp": 0.5, "quiet": True, **values}
    )


def stored(store, name):
    slide = TileStore(store).slide(name)
    return slide, slide.tiles(0, len(slide))


def reason(result):
    (row,) = result.failed
    return row.reason


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "hdf5"])
def test_tiles_come_as_they_are_from_every_kind_of_source(tmp_path, kind):
    images = tiles(7)
    named = [(f"a/t{n:03d}.png", encoded(pixels)) for n, pixels in enumerate(images)]
    match kind:
        case "folder":
            source = write_folder(tmp_path / "mine", images)
        case "tar":
            source = write_tar(tmp_path / "mine.tar", named)
        case "tar.gz":
            source = write_tar(tmp_path / "mine.tar.gz", named, mode="w:gz")
        case "hdf5":
            source = write_h5(tmp_path / "mine.h5", x=np.stack(images))
    result = load(source, tmp_path / "store", label="Normal", split=" Train")
    (row,) = result.rows
    assert (row.slide, row.status, row.tiles) == ("mine", "ok", 7)
    assert (row.label, row.split, row.width, row.mpp_x) == ("normal", "train", None, None)
    slide, pixels = stored(tmp_path / "store", "mine")
    np.testing.assert_array_equal(pixels, np.stack(images))
    assert not slide.has_geometry
    assert slide.tile == PX
    assert set(slide.group) >= {"tiles", "sharpness", "saturation", "pen", "black"}
    assert not set(slide.group) & {"position", "lattice", "coverage", "mask"}
    prefix = "" if kind == "folder" else "a/"
    expected = [] if kind == "hdf5" else [f"{prefix}t{n:03d}.png" for n in range(7)]
    assert slide.source_names() == expected


def test_every_image_format_and_mode(tmp_path):
    pixels = tiles(1)[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.tif")
    Image.fromarray(pixels).convert("RGBA").save(folder / "b.PNG")
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(folder / "c.png")
    Image.fromarray(pixels).save(folder / "d.jpeg", quality=95)
    (folder / ".DS_Store").write_bytes(b"no tile")
    load(folder, tmp_path / "store")
    _, found = stored(tmp_path / "store", "mine")
    np.testing.assert_array_equal(found[0], pixels)
    np.testing.assert_array_equal(found[1], pixels)
    np.testing.assert_array_equal(found[2], np.asarray(palette.convert("RGB")))
    assert abs(found[3].astype(int) - pixels).mean() < 20


def test_labels_of_pcam_make_two_groups(tmp_path):
    images = np.stack(tiles(9))
    labels = np.array([0, 1, 1, 0, 0, 0, 1, 0, 1], np.uint8).reshape(9, 1, 1, 1)
    source = write_h5(tmp_path / "v.h5", x=images)
    y = write_h5(tmp_path / "y.h5", y=labels)
    result = load(source, tmp_path / "store", labels=y)
    assert [(r.slide, r.label, r.tiles) for r in result.rows] == [
        ("v-normal", "normal", 5), ("v-tumor", "tumor", 4)]  # fmt: skip
    for name, value in (("v-normal", 0), ("v-tumor", 1)):
        np.testing.assert_array_equal(
            stored(tmp_path / "store", name)[1], images[labels.ravel() == value]
        )
    again = load(source, tmp_path / "store", labels=y)
    assert not again.failed
    other = write_h5(tmp_path / "y.h5", y=1 - labels)
    assert "another source" in load(source, tmp_path / "store", labels=other).failed[0].reason
    short = write_h5(tmp_path / "short.h5", y=labels[:5])
    failed = load(source, tmp_path / "new", labels=short, tile=PX).failed
    assert all("9 tiles, but 5 labels" in row.reason for row in failed)
    for bad, message in (
        (write_h5(tmp_path / "two.h5", y=labels + 1), "other than 0 and 1"),
        (write_h5(tmp_path / "no.h5", z=labels), "no dataset `y`"),
        (write_h5(tmp_path / "wide.h5", y=np.zeros((9, 2))), "not one per tile"),
    ):
        with pytest.raises(InputError, match=message):
            load(source, tmp_path / "new", labels=bad)


def test_resume_leaves_the_same_bytes(tmp_path, monkeypatch):
    first = write_folder(tmp_path / "a", tiles(5))
    second = write_tar(tmp_path / "b.tar", [("x.png", encoded(p)) for p in tiles(4, seed=9)])
    load([first, second], tmp_path / "whole")
    load(first, tmp_path / "parts")
    finish = group.TileArray.finish

    def dying(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(group.TileArray, "finish", dying)
    assert "disk is full" in reason(load([first, second], tmp_path / "parts"))
    assert TileStore(tmp_path / "parts").names() == ["a"]
    monkeypatch.setattr(group.TileArray, "finish", finish)
    load([first, second], tmp_path / "parts")
    assert content(tmp_path / "whole" / GROUPS) == content(tmp_path / "parts" / GROUPS)
    before = content(tmp_path / "whole" / GROUPS)
    load([first, second], tmp_path / "whole", workers=2)
    assert content(tmp_path / "whole" / GROUPS) == before
    (first / "t004.png").unlink()
    assert "made from another source" in reason(load(first, tmp_path / "whole"))
    with pytest.raises(StoreMismatchError, match=r"mpp is 0\.5 in the store"):
        load(second, tmp_path / "whole", mpp=0.25)


def test_many_tiles_are_streamed(tmp_path, monkeypatch):
    """Peak memory does not grow with the source: 180 tiles more would take 35 MB."""
    monkeypatch.setattr(group, "_CHUNKS_PER_SHARD", 2)
    monkeypatch.setattr(imported, "_BLOCK_BYTES", 2**20)
    data = encoded(stained(256, 256, seed=1), "JPEG", quality=50)
    peaks = []
    for count in (10, 100, 280):  # what libraries load at their first use counts for the first
        source = write_tar(tmp_path / f"m{count}.tar", ((f"{n}.jpg", data) for n in range(count)))
        tracemalloc.start()
        load(source, tmp_path / "store")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 5e6
    slide = TileStore(tmp_path / "store").slide("m280")
    assert len(slide) == 280
    expected = decode(data, subject="")
    for at in (0, 31, 32, 279):
        np.testing.assert_array_equal(slide.tiles(at, at + 1)[0], expected)


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


BAD_MEMBERS = {
    "text": (("notes.txt", b"hello"), r"notes\.txt: is not a tile"),
    "named as a tile": (("t.png", b"hello"), r"t\.png: cannot be read as a JPEG, PNG or TIFF"),
    "other size": (("t.png", encoded(tiles(1, size=48)[0])), r"t\.png: has 48 × 48 px"),
    "not square": (("t.png", encoded(np.zeros((32, 40, 3), np.uint8))), "has 40 × 32 px"),
    "truncated": (("t.jpg", encoded(tiles(1)[0], "JPEG")[:-200]), r"t\.jpg: cannot be read"),
    "truncated png": (("t.png", encoded(tiles(1)[0])[:-300]), r"t\.png: cannot be read"),
    "grey": (("t.png", encoded(tiles(1)[0][..., 0])), "not an RGB image.*--grey-values"),
    "cmyk": (("t.jpg", encoded(tiles(1)[0], "JPEG", mode="CMYK")), "to RGB"),
    "transparent": (("t.png", encoded(np.full((32, 32, 4), 90, np.uint8))), "transparent"),
    "gif": (("t.png", encoded(tiles(1)[0], "GIF")), "cannot be read"),
    "upwards": (("../t.png", encoded(tiles(1)[0])), "leads out of the archive"),
    "absolute": (("/tmp/t.png", encoded(tiles(1)[0])), "leads out of the archive"),
    "inner upwards": (("a/../../t.png", encoded(tiles(1)[0])), "leads out of the archive"),
    "backslash": (("a\\..\\t.png", encoded(tiles(1)[0])), "leads out of the archive"),
    "symlink": (link("t.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "hard link": (link("t.png", tarfile.LNKTYPE, "0.png"), "is a link"),
    "device": (link("t.png", tarfile.CHRTYPE, ""), "is a link or another special file"),
    "control": (("t\n.png", encoded(tiles(1)[0])), "not a printable text"),
    "long name": (("a/" * 600 + "t.png", encoded(tiles(1)[0])), "too long"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_members_of_a_tar_are_named_and_leave_nothing(tmp_path, case):
    member, message = BAD_MEMBERS[case]
    good = [(f"{n}.png", encoded(pixels)) for n, pixels in enumerate(tiles(3))]
    bad = write_tar(tmp_path / "bad.tar", [*good, member])
    fine = write_tar(tmp_path / "fine.tar", good)
    before = sorted(path.name for path in tmp_path.iterdir())
    result = load([bad, fine], tmp_path / "store")
    assert [row.status for row in result.rows] == ["failed", "ok"]
    assert re.search(message, reason(result))
    assert TileStore(tmp_path / "store").names() == ["fine"]
    assert sorted(p.name for p in (tmp_path / "store" / GROUPS).iterdir()) == ["fine", "zarr.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "store"])
    rows = {row.slide: row.status for row in read_table(tmp_path / "store/slides.csv", TileRow)}
    assert rows == {"bad": "failed", "fine": "ok"}


def with_exif(pixels, suffix, exif):
    data = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(data, suffix, exif=exif, **({"quality": 100} if suffix == "JPEG" else {}))
    return data.getvalue()


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_tiles_are_turned_as_their_exif_says(suffix, orientation, quarters):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255  # whole blocks of JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(with_exif(pixels, suffix, exif), subject="t")
    np.testing.assert_array_equal(found > 127, np.rot90(pixels, quarters) > 127)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0"]
)
def test_exif_that_cannot_be_read_says_nothing(suffix, exif):
    pixels = tiles(1)[0]
    found = decode(with_exif(pixels, suffix, exif), subject="t")
    expected = decode(with_exif(pixels, suffix, b""), subject="t")
    np.testing.assert_array_equal(found, expected)


def huge_png(edge):
    """A valid header that declares edge × edge pixels, in under a hundred bytes."""

    def chunk(kind, body):
        return (
            len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        )

    header = edge.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("edge", [5000, 12_000, 60_000])
def test_a_huge_declared_image_is_refused_before_it_is_decoded(tmp_path, edge):
    tracemalloc.start()
    with pytest.raises(InputError, match=r"px; a tile is|exceeds limit"):
        decode(huge_png(edge), subject="t.png")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    folder = write_folder(tmp_path / "f", tiles(2))
    (folder / "z.png").write_bytes(huge_png(edge))
    assert "z.png" in reason(load(folder, tmp_path / "store"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_breaks_off_is_not_taken_for_a_short_one(tmp_path, packed):
    members = [(f"{n}.png", encoded(pixels)) for n, pixels in enumerate(tiles(5))]
    data = write_tar(tmp_path / "t.tar", members).read_bytes()
    with tarfile.open(tmp_path / "t.tar") as archive:
        last = archive.getmembers()[-1]
    for cut in (last.offset, last.offset + 100, last.offset_data, last.offset_data + 700):
        part = data[:cut]
        path = tmp_path / ("c.tar.gz" if packed else "c.tar")
        path.write_bytes(gzip.compress(part) if packed else part)
        assert "cannot be read as a tar" in reason(load(path, tmp_path / f"s{cut}{packed}"))
    damaged = bytearray(data)
    damaged[last.offset : last.offset + 300] = os.urandom(300)
    (tmp_path / "d.tar").write_bytes(damaged)
    assert "cannot be read as a tar" in reason(load(tmp_path / "d.tar", tmp_path / "sd"))
    (tmp_path / "g.tar.gz").write_bytes(gzip.compress(data)[: len(data) // 2])
    assert "cannot be read as a tar" in reason(load(tmp_path / "g.tar.gz", tmp_path / "sg"))


def test_a_header_cannot_ask_for_all_memory(tmp_path):
    """A zipped archive whose extended header claims, and unpacks to, 300 MB."""
    info = tarfile.TarInfo("x.png")
    info.type, info.size = tarfile.XHDTYPE, 300_000_000
    with gzip.open(tmp_path / "b.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(300):
            file.write(bytes(1_000_000))
    tracemalloc.start()
    assert "states a size that is too large" in reason(
        load(tmp_path / "b.tar.gz", tmp_path / "s", tile=PX)
    )
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_nor_can_a_header_that_is_read_in_pieces(tmp_path):
    """Newer releases of Python read a long header so; here, headers follow each other."""
    info = tarfile.TarInfo("x.png")
    info.type, info.size = tarfile.XHDTYPE, 10_000_384
    with gzip.open(tmp_path / "b.tar.gz", "wb", compresslevel=1) as file:
        for _ in range(30):
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.write(bytes(info.size))
    assert "states a size that is too large" in reason(
        load(tmp_path / "b.tar.gz", tmp_path / "s", tile=PX)
    )


def test_a_member_with_thousands_of_headers_is_refused(tmp_path):
    info = tarfile.TarInfo("x.png")
    info.type, info.size = tarfile.XHDTYPE, 512
    (tmp_path / "c.tar").write_bytes((info.tobuf(tarfile.USTAR_FORMAT) + bytes(512)) * 3000)
    assert "a member has too many headers" in reason(
        load(tmp_path / "c.tar", tmp_path / "s", tile=PX)
    )


def test_bad_hdf5(tmp_path):
    secret = write_h5(tmp_path / "secret.h5", x=np.stack(tiles(3)))
    linked = tmp_path / "linked.h5"
    with h5py.File(linked, "w") as file:
        file["x"] = h5py.ExternalLink(str(secret), "x")
    virtual = tmp_path / "virtual.h5"
    layout = h5py.VirtualLayout((3, PX, PX, 3), np.uint8)
    layout[:] = h5py.VirtualSource(str(secret), "x", (3, PX, PX, 3))
    with h5py.File(virtual, "w") as file:
        file.create_virtual_dataset("x", layout)
    raw = tmp_path / "raw.h5"
    with h5py.File(raw, "w") as file:
        file.create_dataset(
            "x", (1, 8, 8, 3), np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )
    cut = tmp_path / "cut.h5"
    cut.write_bytes(secret.read_bytes()[:3000])
    chunks = tmp_path / "chunks.h5"
    with h5py.File(chunks, "w") as file:
        file.create_dataset(
            "x", (10**6, PX, PX, 3), np.uint8, chunks=(10**5, PX, PX, 3), compression="gzip"
        )
    for path, message in (
        (write_h5(tmp_path / "none.h5", images=np.zeros(3)), r"no dataset `x` \(it has: images"),
        (write_h5(tmp_path / "float.h5", x=np.zeros((2, PX, PX, 3))), "its `x` is float64"),
        (write_h5(tmp_path / "flat.h5", x=np.zeros((2, PX, PX), np.uint8)), "not uint8"),
        (write_h5(tmp_path / "big.h5", x=np.stack(tiles(1, size=48))), "its tiles have 48 px"),
        (linked, "no dataset `x`"),
        (virtual, "are in another file"),
        (raw, "are in another file"),
        (cut, "cannot be read as HDF5"),
        (chunks, r"`x` claims \(1000000, 32, 32, 3\) values"),
    ):
        with pytest.raises(InputError, match=message):
            load(path, tmp_path / path.stem, tile=PX)
            raise InputError(reason(load(path, tmp_path / path.stem, tile=PX)))


def tiled(tmp_path):
    """Write a store of three slides, one of them in a folder and one without tissue."""
    slides = tmp_path / "slides"
    for name in ("a", "p/b"):
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        write_tiff(slides / f"{name}.tif", stained(200, 264, seed=len(name)), mpp=0.5, levels=1)
    write_tiff(slides / "white.tif", np.full((200, 264, 3), 255, np.uint8), mpp=0.5, levels=1)
    rows = "slide,name,label\na.tif,a,normal\np/b.tif,p/b,tumor\nwhite.tif,white,normal\n"
    (slides / "manifest.csv").write_text(rows)
    wsiad.tile(
        slides=slides / "manifest.csv", out=tmp_path / "tiled", mpp=0.5, tile=PX,
        stain={"method": "none"}, tissue={"min_area_um2": 0}, quiet=True,
    )  # fmt: skip
    return tmp_path / "tiled"


def test_a_label_that_is_nearly_a_known_one_is_asked_about(tmp_path, caplog):
    source = write_folder(tmp_path / "a", tiles(2))
    [row] = load(source, tmp_path / "one", label="Normla").rows
    assert (row.status, row.label) == ("ok", "normla")
    assert "the label 'Normla' is none that wsiad knows" in caplog.text
    assert "If you mean 'normal'" in caplog.text
    caplog.clear()
    for label in ("stroma", "Healthy", ""):
        load(source, tmp_path / f"other {label}", label=label)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_what_was_exported_comes_back(tmp_path, caplog, kind):
    before = TileStore(tiled(tmp_path))
    wsiad.export_tiles(store=before.path, out=tmp_path / "out", format=kind, quiet=True)
    result = load(tmp_path / "out", tmp_path / "store")
    # A slide with tumour holds healthy tiles too: its label does not hold for each of them.
    found = {(row.slide, row.status, row.label) for row in result.rows}
    assert found == {("a", "ok", "normal"), ("p/b", "ok", "")}
    assert "slides without tiles are left out: white" in caplog.text
    with (tmp_path / "out" / "tiles.csv").open() as file:
        index = {row["file"]: int(row["index"]) for row in csv.DictReader(file)}
    for name in ("a", "p/b"):
        slide, pixels = stored(tmp_path / "store", name)
        order = [index[f"{name}/{one}"] for one in slide.source_names()]
        mine = before.slide(name)
        expected = mine.tiles(0, len(mine))[order]
        if kind == "png":
            np.testing.assert_array_equal(pixels, expected)
        else:
            assert np.abs(pixels.astype(int) - expected).mean() < 5  # of 255
    # Tiles of no slide keep their label, whatever it is.
    load(write_folder(tmp_path / "loose", tiles(2)), tmp_path / "first", label="tumor")
    wsiad.export_tiles(store=tmp_path / "first", out=tmp_path / "again", quiet=True)
    [row] = load(tmp_path / "again", tmp_path / "second").rows
    assert (row.slide, row.label, row.tiles) == ("loose", "tumor", 2)
    [row] = load(tmp_path / "again", tmp_path / "third", label="normal").rows
    assert "its label is 'tumor' in the export, and --label is 'normal'" in row.reason


def test_images_that_are_gone_from_an_export_are_told_and_written_again(tmp_path, caplog):
    store = tiled(tmp_path)
    wsiad.export_tiles(store=store, out=tmp_path / "out", quiet=True)
    first, *others = sorted((tmp_path / "out" / "a").iterdir())
    first.unlink()
    shutil.rmtree(tmp_path / "out" / "p" / "b")
    rows = {row.slide: row for row in load(tmp_path / "out", tmp_path / "less").rows}
    assert (rows["a"].tiles, rows["p/b"].status) == (len(others), "failed")
    assert f"1 of {len(others) + 1} images that tiles.csv lists are gone" in caplog.text
    assert "its folder is not in the export. Run the same" in rows["p/b"].reason
    wsiad.export_tiles(store=store, out=tmp_path / "out", quiet=True)
    caplog.clear()
    rows = {row.slide: row for row in load(tmp_path / "out", tmp_path / "all").rows}
    assert (rows["a"].tiles, rows["p/b"].status) == (len(others) + 1, "ok")
    assert "are gone" not in caplog.text


def test_the_scale_of_an_export_is_not_contradicted(tmp_path):
    store, out = tiled(tmp_path), tmp_path / "out"
    wsiad.export_tiles(store=store, out=out, quiet=True)
    record = json.loads((out / "export.json").read_text())
    assert record["mpp"] == 0.5
    words = r"export\.json: states 0\.5 µm/px of its tiles, and --mpp is 0\.25\. Correct --mpp"
    with pytest.raises(InputError, match=words):
        load(out, tmp_path / "store", mpp=0.25)
    assert not (tmp_path / "store").exists()
    resized = load(out, tmp_path / "resized", mpp=1.0, resize=PX // 2)
    assert TileStore(resized.store).preparation.mpp == 1.0
    (out / "export.json").write_text(json.dumps({**record, "mpp": "half"}))
    with pytest.raises(InputError, match=r"states 'half' µm/px"):
        load(out, tmp_path / "store")
    # An export of before does not state it, and is completed all the same.
    del record["mpp"]
    (out / "export.json").write_text(json.dumps(record))
    assert load(out, tmp_path / "other", mpp=0.25).failed == ()
    shutil.rmtree(out / "a")
    assert wsiad.export_tiles(store=store, out=out, quiet=True).slides == ("a", "p/b", "white")
    assert json.loads((out / "export.json").read_text())["mpp"] == 0.5


def test_exports_that_cannot_come_back_say_why(tmp_path):
    store = tiled(tmp_path)
    wsiad.export_tiles(store=store, out=tmp_path / "clam", format="clam", quiet=True)
    with pytest.raises(InputError, match=r"coordinates of tiles, and no pixels.*--coords"):
        load(tmp_path / "clam", tmp_path / "store")
    wsiad.export_tiles(store=store, out=tmp_path / "out", quiet=True)
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    # Images of another program, or a damaged record, are no coordinates.
    for other in ("jpg", None, ["png"]):
        (tmp_path / "out" / "export.json").write_text(json.dumps({**facts, "format": other}))
        words = (
            rf"export\.json: is not a record .* its format is {re.escape(repr(other))}, and not png"
        )
        with pytest.raises(InputError, match=words + r".*export-tiles again, into another folder"):
            load(tmp_path / "out", tmp_path / "store")
    # The same folder would be refused by export-tiles.
    (tmp_path / "out" / "export.json").write_text("{")
    with pytest.raises(
        InputError, match=r"cannot be read.*export-tiles again, into another folder"
    ):
        load(tmp_path / "out", tmp_path / "store")
    escaped = {**facts, "slides": {**facts["slides"], "../slides": "x"}}
    (tmp_path / "out" / "export.json").write_text(json.dumps(escaped))
    table = tmp_path / "out" / "tiles.csv"
    rows = table.read_text()
    table.write_text(f"{rows}../slides,../slides/1.png,0,,,,,\n")
    with pytest.raises(InputError, match=r"'\.\./slides' cannot be used as a name"):
        load(tmp_path / "out", tmp_path / "store")
    (tmp_path / "out" / "export.json").write_text(json.dumps(facts))
    # An export of more slides was killed before it wrote its table.
    table.write_text("".join(row for row in rows.splitlines(True) if not row.startswith("a,")))
    unlisted = r"not complete: its tiles\.csv lists no image of a\..*again"
    with pytest.raises(InputError, match=unlisted):
        load(tmp_path / "out", tmp_path / "store")
    table.write_text(rows)
    del facts["slides"]["a"]
    (tmp_path / "out" / "export.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"lists 'a', which export\.json does not"):
        load(tmp_path / "out", tmp_path / "store")
    (tmp_path / "out" / "tiles.csv").unlink()
    with pytest.raises(InputError, match=r"not complete: it has no tiles\.csv"):
        load(tmp_path / "out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_bad_sources(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "gone.tar", tmp_path / "s")
    (tmp_path / "t.csv").write_text("a,b\n" * 200)
    with pytest.raises(InputError, match="neither a folder"):
        load(tmp_path / "t.csv", tmp_path / "s")
    packed = tmp_path / "x.h5.gz"
    packed.write_bytes(gzip.compress(b"x" * 600))
    with pytest.raises(InputError, match="Unpack it first"):
        load(packed, tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no tiles"):
        load(tmp_path / "empty", tmp_path / "s")
    assert "holds no tiles" in reason(load(tmp_path / "empty", tmp_path / "s", tile=PX))
    write_folder(tmp_path / "nested" / "inner", tiles(1))
    assert "folder within a folder" in reason(load(tmp_path / "nested", tmp_path / "s", tile=PX))
    one, two = (write_folder(tmp_path / n / "same", tiles(1)) for n in "ab")
    failed = load([one, two], tmp_path / "s", tile=PX).failed
    assert all("another source is named 'same'" in row.reason for row in failed)
    with pytest.raises(InputError, match="only HDF5 sources accept"):
        load(one, tmp_path / "s", labels=two)
    with pytest.raises(wsiad.core.errors.ConfigError, match="1 `labels` for 2"):
        load([one, two], tmp_path / "s", labels=one)


def test_stains_of_a_source_are_fitted_as_a_slides(tmp_path):
    source = write_folder(tmp_path / "a", tiles(12))
    load(source, tmp_path / "plain")
    load(source, tmp_path / "fitted", stain={"method": "macenko"})
    slide, pixels = stored(tmp_path / "fitted", "a")
    assert slide.facts["stain"]["method"] == "macenko"
    assert slide.facts["stain"]["fallback"] is None
    assert (pixels != stored(tmp_path / "plain", "a")[1]).any()
    target = TileStore(tmp_path / "fitted").target
    from wsiad.stain.colours import ColourHistogram
    from wsiad.stain.fit import fit_stains

    histogram = ColourHistogram()
    histogram.add(pixels)
    strength = fit_stains(histogram, method="macenko").stains.strength
    np.testing.assert_allclose(strength, target["stains"]["strength"], rtol=0.15)
    sparse = load(source, tmp_path / "sparse", stain={"method": "macenko", "sample_px": 16_384})
    assert not sparse.failed


def test_train_works_and_heatmap_refuses(tmp_path):
    sources = [write_folder(tmp_path / f"s{n}", tiles(8, seed=10 * n)) for n in range(3)]
    load(sources, tmp_path / "store", label="normal")
    result = wsiad.train(store=tmp_path / "store", out=tmp_path / "run", detector="gaussian",
                         weights="random", quiet=True, options={"places": 2})  # fmt: skip
    assert result.ended_by == "fitted"
    with pytest.raises(InputError, match=r"only imported tiles.*score-tiles"):
        wsiad.heatmap(
            run=tmp_path / "run", slides=tmp_path / "store", out=tmp_path / "h", quiet=True
        )
    assert not (tmp_path / "h").exists()
    # A store with both: the slide is scored, the imported group says why it is not.
    write_tiff(tmp_path / "w.tif", stained(160, 160), mpp=0.5, levels=1)
    wsiad.tile(slides=tmp_path / "w.tif", out=tmp_path / "mixed", mpp=0.5, tile=PX,
               stain={"method": "none"}, min_coverage=0.5, quiet=True)  # fmt: skip
    load(sources[0], tmp_path / "mixed")
    result = wsiad.heatmap(
        run=tmp_path / "run", slides=tmp_path / "mixed", out=tmp_path / "h", quiet=True
    )
    assert "imported tiles without known positions on a slide" in reason(result)
    assert [row.slide for row in result.failed] == ["s0"]


def test_a_slide_does_not_take_the_place_of_an_imported_group(tmp_path):
    load(write_folder(tmp_path / "w", tiles(3)), tmp_path / "store")
    write_tiff(tmp_path / "w.tif", stained(160, 160), mpp=0.5, levels=1)
    result = wsiad.tile(slides=tmp_path / "w.tif", out=tmp_path / "store", mpp=0.5, tile=PX,
                        stain={"method": "none"}, quiet=True)  # fmt: skip
    assert "made from another file" in reason(result)
    assert len(TileStore(tmp_path / "store").slide("w")) == 3


def test_command_line(tmp_path, capsys):
    from wsiad.cli import main

    source = write_tar(tmp_path / "n.tar", [("a.png", encoded(tiles(1)[0])), ("b.txt", b"no")])
    arguments = ["import-tiles", str(source), "--out", str(tmp_path / "s"), "--mpp", "0.972"]
    assert main([*arguments, "--stain-method", "none", "--quiet"]) == 1
    assert "wsiad import-tiles: 1 failed:\n  n: " in capsys.readouterr().err
    assert main(["import-tiles", str(source), "--out", str(tmp_path / "s")]) == 2
    assert "mpp: is required" in capsys.readouterr().err


SHARED = Path(__file__).parents[3] / "shared" / "data" / "pcam" / "valid_normal.tar"


@pytest.mark.skipif(not SHARED.exists(), reason="the folder shared/ with PCam's tiles is absent")
def test_real_tiles(tmp_path):
    result = load(SHARED, tmp_path / "store", mpp=0.972, label="normal")
    assert [(row.slide, row.tiles) for row in result.rows] == [("valid_normal", 1500)]
    slide = TileStore(tmp_path / "store").slide("valid_normal")
    with tarfile.open(SHARED) as archive:
        names = archive.getnames()
        assert slide.source_names() == names
        data = archive.extractfile(names[1234]).read()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(slide.tiles(1234, 1235)[0], expected)


def test_slides_csv_is_whole(tmp_path):
    load(write_folder(tmp_path / "a", tiles(2)), tmp_path / "s", label="normal")
    load(write_folder(tmp_path / "b", tiles(2)), tmp_path / "s", label="tumor")
    with (tmp_path / "s" / "slides.csv").open() as file:
        assert [(r["slide"], r["label"]) for r in csv.DictReader(file)] == [
            ("a", "normal"), ("b", "tumor")]  # fmt: skip


def run_like(folder, *, mpp=0.5, method="vahadane"):
    """The part of a run that says how its tiles were prepared; its target is not the default."""
    stains = reference_profile(method).to_dict()
    if method == "vahadane":
        stains["stains"]["strength"] = [2.0, 1.0]
    stain = {"method": method, "target": "/nowhere/target.svs"}
    preparation = Preparation.model_validate({"mpp": mpp, "tile": 64, "stain": stain})
    folder.mkdir()
    facts = {"preparation": preparation.as_json(), "stain_target": stains}
    (folder / "preparation.json").write_text(json.dumps(facts))
    return folder


def test_tiles_with_the_stains_of_a_run_are_stored_unchanged(tmp_path):
    images, run = tiles(3), run_like(tmp_path / "run")
    source = write_folder(tmp_path / "mine", images)
    (row,) = load(source, tmp_path / "store", prepared_like=run).rows
    assert row.status == "ok"
    slide, pixels = stored(tmp_path / "store", "mine")
    np.testing.assert_array_equal(pixels, np.stack(images))
    # A training on tiles like the run's accepts them.
    store, (like, target) = TileStore(tmp_path / "store"), run_preparation(run)
    check_prepared_alike(store, like, target, keys=("mpp", "stain"))
    assert target["stains"]["strength"] == [2.0, 1.0]
    assert slide.facts["stain"]["stains"]["strength"] == [2.0, 1.0]
    # The same tiles without the option are of another store.
    with pytest.raises(StoreMismatchError, match="another configuration"):
        load(write_folder(tmp_path / "more", tiles(1)), tmp_path / "store")


def test_tiles_are_not_like_a_run_of_another_scale_nor_normalised_twice(tmp_path):
    source = write_folder(tmp_path / "mine", tiles(1))
    with pytest.raises(StoreMismatchError, match=r"have 0\.25 µm/px, and --mpp is 0\.5"):
        load(source, tmp_path / "store", prepared_like=run_like(tmp_path / "finer", mpp=0.25))
    with pytest.raises(ConfigError, match="no `stain"):
        like = run_like(tmp_path / "run")
        load(source, tmp_path / "store", prepared_like=like, stain={"method": "macenko"})
    with pytest.raises(RunError, match=r"preparation\.json"):
        load(source, tmp_path / "store", prepared_like=tmp_path / "nothing")
    assert not (tmp_path / "store").exists()


def test_pictures_of_another_shape_name_the_options_that_make_tiles(tmp_path):
    write_folder(tmp_path / "f", [np.zeros((40, 60, 3), np.uint8)])
    with pytest.raises(InputError, match="size of tiles cannot be found") as refused:
        load(tmp_path / "f", tmp_path / "store")
    assert "--resize and --crop" in str(refused.value)
    assert "--tile" not in str(refused.value)
