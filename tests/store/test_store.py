"""The tile store and `wsiad tile`: content, resume, faults, bad input."""

import errno
import json
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import wsiad
from support.broken_slides import corrupt_tiff, truncated
from support.builders import noise, stained, write_tiff
from support.stores import PLAIN, content
from wsiad.core.errors import InputError, StoreError, StoreMismatchError
from wsiad.core.files import MOST_FACTS
from wsiad.slides.slide_table import read_table
from wsiad.store.tile_source import ChunkedTiles, StoreTiles
from wsiad.store.tile_store import GROUPS, TileStore
from wsiad.verbs.tile import TileRow


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(2):
        image = stained(200 + 7 * number, 260, seed=number, glass=16)
        write_tiff(folder / f"s{number}.tif", image, mpp=0.5, levels=2)
    return folder


def tile(slides, out, **values):
    return wsiad.tile(slides=[slides], out=out, **{**PLAIN, **values})


def test_store_holds_the_slides_pixels(slides, tmp_path):
    result = tile(slides, tmp_path / "store")
    assert [(row.slide, row.status) for row in result.rows] == [("s0", "ok"), ("s1", "ok")]
    store = TileStore(tmp_path / "store")
    assert store.names() == ["s0", "s1"]
    for number, slide in enumerate(store):
        image = stained(200 + 7 * number, 260, seed=number, glass=16)
        pixels, position = slide.tiles(0, len(slide)), slide.column("position").astype(int)
        assert pixels.shape == (len(slide), 32, 32, 3)
        assert len(slide) > 20
        for (x, y), got in zip(position, pixels, strict=True):
            np.testing.assert_array_equal(got, image[y : y + 32, x : x + 32])
        lattice = slide.column("lattice")
        np.testing.assert_array_equal(position, lattice[:, ::-1] * 32)
        assert (slide.column("coverage") >= 0.5).all()
        assert slide.column("sharpness").shape == (len(slide),)
        assert slide.column("mask").dtype == bool
        assert slide.facts["stain"]["method"] == "none"


def test_store_is_plain_zarr_v3(slides, tmp_path):
    """Readable without this package: zarr v3, sharded, attributes as documented."""
    tile(slides, tmp_path / "store")
    root = zarr.open_group(tmp_path / "store" / GROUPS, mode="r")
    assert root.metadata.zarr_format == 3
    assert sorted(root.group_keys()) == ["s0", "s1"]
    facts = root.attrs["wsiad"]
    assert (facts["format"], facts["version"]) == ("wsiad-tile-store", 1)
    array = root["s0/tiles"]
    assert array.dtype == np.uint8
    assert array.shards is not None
    slide = root["s0"].attrs["wsiad"]
    assert slide["slide"]["size_px"] == [260, 200]
    assert slide["slide"]["fingerprint"].startswith("sha256:")
    assert slide["versions"]["wsiad"] == wsiad.__version__


def test_pixels_are_let_go_as_they_are_written(tmp_path, monkeypatch):
    """A store of any size is written in the memory of a few blocks."""
    from wsiad.store import writer

    whole, seen, alive = writer.stream, [], []

    def watched(*args, **kwargs):
        for block in whole(*args, **kwargs):
            seen.append(weakref.ref(block.pixels))
            yield block
            del block
            alive.append(sum(ref() is not None for ref in seen))

    monkeypatch.setattr(writer, "stream", watched)
    monkeypatch.setattr("wsiad.tiling.stream._BLOCK_PX", 64)
    path = write_tiff(tmp_path / "s.tif", stained(400, 400), mpp=0.5, levels=1)
    assert not tile(path, tmp_path / "store").failed
    assert len(seen) > 20
    assert max(alive) <= 2


def test_same_input_gives_the_same_bytes(slides, tmp_path):
    for name in ("a", "b"):
        tile(slides, tmp_path / name, stain={"method": "vahadane"})
    assert content(tmp_path / "a" / GROUPS) == content(tmp_path / "b" / GROUPS)


def test_two_workers_write_what_one_does(slides, tmp_path):
    tile(slides, tmp_path / "one")
    result = tile(slides, tmp_path / "two", workers=2)
    assert not result.failed
    assert content(tmp_path / "one" / GROUPS) == content(tmp_path / "two" / GROUPS)


def test_second_run_skips_finished_slides(slides, tmp_path, monkeypatch):
    first = tile(slides, tmp_path / "store")
    before = content(tmp_path / "store" / GROUPS)
    monkeypatch.setattr("wsiad.tiling.plan.plan_slide", None)  # would fail if it were called
    second = tile(slides, tmp_path / "store")
    assert [r.tiles for r in second.rows] == [r.tiles for r in first.rows]
    assert not second.failed
    assert content(tmp_path / "store" / GROUPS) == before


def test_other_configuration_is_refused_by_name(slides, tmp_path):
    tile(slides, tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="tile is 32 in the store and 48 here"):
        tile(slides, tmp_path / "store", tile=48)
    with pytest.raises(StoreMismatchError, match=r"stain\.method is 'none'"):
        tile(slides, tmp_path / "store", stain={"method": "macenko"})


def test_slide_that_changed_is_refused_and_others_stay(slides, tmp_path):
    tile(slides, tmp_path / "store")
    write_tiff(slides / "s0.tif", stained(200, 260, seed=9, glass=16), mpp=0.5, levels=2)
    result = tile(slides, tmp_path / "store")
    assert [row.slide for row in result.failed] == ["s0"]
    assert "made from another file of this name" in result.failed[0].reason


def test_manifest_that_changed_its_scale_is_noticed(tmp_path):
    write_tiff(tmp_path / "s.tif", stained(200, 260), mpp=None, levels=1)
    manifest = tmp_path / "m.csv"
    for mpp, failed in ((0.5, 0), (0.5, 0), (0.25, 1)):
        manifest.write_text(f"slide,mpp\ns.tif,{mpp}\n")
        result = wsiad.tile(slides=manifest, out=tmp_path / "store", **PLAIN)
        assert len(result.failed) == failed
    assert "at 0.5 µm/px, but the manifest now states 0.25" in result.failed[0].reason


def test_bad_slides_are_reported_and_the_others_go_on(slides, tmp_path):
    (slides / "text.svs").write_text("not a slide")
    corrupt_tiff(slides, stained(400, 400))
    truncated(slides / "cut.tif", slides / "s0.tif", 0.5)
    write_tiff(slides / "bare.tif", noise(64, 64), mpp=None, levels=1)
    write_tiff(slides / "glass.tif", np.full((128, 128, 3), 243, np.uint8), mpp=0.5, levels=1)
    write_tiff(slides / "coarse.tif", stained(128, 128), mpp=2.0, levels=1)
    result = tile(slides, tmp_path / "store")
    rows = {row.slide: row for row in result.rows}
    assert {name: row.status for name, row in rows.items()} == {
        "s0": "ok", "s1": "ok", "glass": "no-tissue", "text": "failed", "corrupt": "failed",
        "cut": "failed", "bare": "failed", "coarse": "failed",
    }  # fmt: skip
    assert "not a slide in any format" in rows["text"].reason
    assert "cannot be decoded" in rows["corrupt"].reason
    assert "truncated" in rows["cut"].reason
    assert "--slide-mpp" in rows["bare"].reason
    assert "--allow-upsampling" in rows["coarse"].reason
    assert rows["glass"].tiles == 0
    table = {row.slide: row for row in read_table(tmp_path / "store/slides.csv", TileRow)}
    assert {n: r.status for n, r in table.items()} == {n: r.status for n, r in rows.items()}
    store = TileStore(str(tmp_path / "store"))
    assert store.names() == ["glass", "s0", "s1"]
    assert len(store) == 3
    assert repr(store).startswith(f"TileStore({str(tmp_path / 'store')!r}, tiles of ")
    with pytest.raises(StoreError, match="path of the store is empty"):
        TileStore("")
    leftovers = [p for p in (tmp_path / "store" / GROUPS).iterdir() if p.name.startswith(".")]
    assert leftovers == []


def test_slides_of_one_name(slides, tmp_path):
    (slides / "sub").mkdir()
    shutil.copy(slides / "s0.tif", slides / "sub" / "s0.svs")
    result = tile(slides, tmp_path / "store")
    assert not result.failed
    assert set(TileStore(tmp_path / "store").names()) == {"s0", "s1", "sub/s0"}


def test_empty_folder(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no slides"):
        tile(tmp_path / "none", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_folder_of_something_else_is_not_taken_over(slides, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.docx").touch()
    with pytest.raises(StoreError, match="not a tile store"):
        tile(slides, tmp_path / "store")


def test_full_disk_leaves_nothing_behind(slides, tmp_path, monkeypatch):
    from wsiad.store import group

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(group.TileArray, "append", full)
    result = tile(slides, tmp_path / "store")
    assert len(result.failed) == 2
    assert "the disk is full" in result.failed[0].reason
    assert list(TileStore(tmp_path / "store").names()) == []
    monkeypatch.undo()
    assert not tile(slides, tmp_path / "store").failed


def test_killed_run_resumes_to_the_same_store(slides, tmp_path):
    """A process that dies with a slide half written leaves a store that the next run mends."""
    tile(slides, tmp_path / "whole")
    script = (
        "import os, wsiad\n"
        "from wsiad.store import group\n"
        "flush, count = group.TileArray.finish, []\n"
        "def dying(self):\n"
        "    flush(self); count.append(1)\n"
        "    if len(count) == 2: os.kill(os.getpid(), 9)\n"
        "group.TileArray.finish = dying\n"
        f"wsiad.tile(slides={str(slides)!r}, out={str(tmp_path / 'cut')!r}, **{PLAIN!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -9
    partial = [p for p in (tmp_path / "cut" / GROUPS).iterdir() if p.name.startswith(".s1")]
    assert len(partial) == 1
    assert TileStore(tmp_path / "cut").names() == ["s0"]
    assert not tile(slides, tmp_path / "cut").failed
    assert content(tmp_path / "cut" / GROUPS) == content(tmp_path / "whole" / GROUPS)


def test_lost_worker_fails_its_slide_only(slides, tmp_path, monkeypatch):
    """An exception that no one foresaw is a failed slide with its name, not a lost batch."""
    from wsiad.tiling import plan

    whole = plan.plan_slide

    def fragile(slide, *args, **kwargs):
        if slide.name == "s0":
            raise ZeroDivisionError("boom")
        return whole(slide, *args, **kwargs)

    monkeypatch.setattr("wsiad.tiling.plan.plan_slide", fragile)
    result = tile(slides, tmp_path / "store")
    assert [(r.slide, r.status) for r in result.rows] == [("s0", "failed"), ("s1", "ok")]
    assert "unexpected ZeroDivisionError: boom" in result.rows[0].reason


def test_unknown_format_version(slides, tmp_path):
    tile(slides, tmp_path / "store")
    path = tmp_path / "store" / GROUPS / "zarr.json"
    values = json.loads(path.read_text())
    values["attributes"]["wsiad"]["version"] = 99
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match="version 99"):
        TileStore(tmp_path / "store")
    path.write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        TileStore(tmp_path / "store")
    with pytest.raises(StoreError, match="is not a tile store"):
        TileStore(tmp_path)
    with pytest.raises(StoreError, match=r"stroe: there is no such folder. Make one with"):
        TileStore(tmp_path / "stroe")


@pytest.mark.parametrize("place", ["", "s0", "s0/tiles", "s0/coverage"])
def test_metadata_that_no_store_has_are_refused_unread(slides, tmp_path, place):
    """Megabytes of blanks before the text of metadata took seconds, and as much memory."""
    tile(slides, tmp_path / "store")
    path = tmp_path / "store" / GROUPS / place / "zarr.json"
    text = path.read_text()
    path.write_text(" " * 1000 + text)
    assert len(TileStore(tmp_path / "store").slide("s0").column("coverage"))
    path.write_text(" " * MOST_FACTS + text)
    with pytest.raises(StoreError, match="more than 1 MiB") as caught:
        TileStore(tmp_path / "store").slide("s0")
    assert place.partition("/")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_manifest_labels_reach_the_table(slides, tmp_path):
    (slides / "m.csv").write_text("slide,label,split\ns0.tif,Normal,train\ns1.tif,tumor,test\n")
    result = wsiad.tile(slides=slides / "m.csv", out=tmp_path / "store", **PLAIN)
    assert [(r.label, r.split) for r in result.rows] == [("normal", "train"), ("tumor", "test")]


def test_stain_target_from_an_image(slides, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "target.png"), stained(256, 256, seed=3)[..., ::-1])
    stain = {"method": "vahadane", "target": tmp_path / "target.png"}
    tile(slides, tmp_path / "store", stain=stain)
    default = tile(slides, tmp_path / "default", stain={"method": "vahadane"})
    assert not default.failed
    there = TileStore(tmp_path / "store")
    assert there.target != TileStore(tmp_path / "default").target
    a = there.slide("s0").tiles(0, 4).astype(int)
    b = TileStore(tmp_path / "default").slide("s0").tiles(0, 4)
    assert np.abs(a - b).mean() > 1


def test_stain_target_that_is_none(slides, tmp_path):
    target = tmp_path / "t.png"
    target.write_text("text")
    with pytest.raises(wsiad.core.errors.StainError, match="cannot be read as a slide or an image"):
        tile(slides, tmp_path / "store", stain={"method": "vahadane", "target": target})


@pytest.fixture
def small_chunks(monkeypatch):
    """Stores of chunks of 16 tiles of 32 px."""
    monkeypatch.setattr("wsiad.store.group._CHUNK_BYTES", 16 * 32 * 32 * 3)


@pytest.fixture
def stored(small_chunks, slides, tmp_path):
    tile(slides, tmp_path / "store", stride=8)
    return list(TileStore(tmp_path / "store"))


def rows_of(batches):
    return {tile.tobytes() for batch in batches for tile in batch}


def test_any_range_of_tiles(stored):
    slide = stored[0]
    everything = np.asarray(slide.group["tiles"][:])
    assert slide.chunk == 16
    for start, stop in ((0, 5), (3, 16), (16, 48), (7, 77), (0, len(slide)), (40, 10**6), (9, 9)):
        np.testing.assert_array_equal(slide.tiles(start, stop), everything[start:stop])
    unknown = replace(slide, reader=None)  # as of a layout that only zarr reads
    np.testing.assert_array_equal(unknown.tiles(7, 77), everything[7:77])
    assert unknown.chunk == 16


def test_dataset_gives_every_wanted_tile(stored):
    parts = [(stored[0], np.arange(0, len(stored[0]), 3)), (stored[1], np.arange(5))]
    expected = {stored[0].tiles(i, i + 1).tobytes() for i in parts[0][1]}
    expected |= {stored[1].tiles(i, i + 1).tobytes() for i in range(5)}
    for source in (StoreTiles(parts), ChunkedTiles(parts)):
        assert len(source) == len(parts[0][1]) + 5
        assert source.tile == 32
        assert rows_of(source.ordered(7)) == expected


def test_chunked_shuffle_is_a_pure_function_of_seed_and_epoch(stored):
    parts = [(slide, np.arange(len(slide))) for slide in stored]
    source = ChunkedTiles(parts, buffer_bytes=12 * 16 * 32 * 32 * 3)
    assert len(source) > 1000

    def order(**key):
        return [batch.tobytes() for batch in source.shuffled(10, **key)]

    first = order(seed=1, epoch=0)
    assert first == order(seed=1, epoch=0)
    assert first != order(seed=1, epoch=1)
    assert first != order(seed=2, epoch=0)
    assert len(first) == len(source) // 10
    assert len(rows_of(source.shuffled(10, seed=1, epoch=0))) > 0.95 * len(first) * 10
    for start in (1, 50, len(first) - 1, len(first)):
        assert order(seed=1, epoch=0, start=start) == first[start:]


def test_chunked_source_smaller_than_a_batch(stored):
    source = ChunkedTiles([(stored[0], np.arange(3))])
    (batch,) = source.shuffled(8, seed=0, epoch=0)
    assert batch.shape == (8, 32, 32, 3)
    assert len(rows_of([batch])) == 3
    assert list(source.shuffled(8, seed=0, epoch=0, start=1)) == []


def test_damaged_chunk_is_named(stored):
    slide = stored[0]
    path = slide.folder / "tiles/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    source = ChunkedTiles([(slide, np.arange(len(slide)))])
    remedy = rf"Delete {slide.folder} and tile the slide again\."
    for read in (
        lambda: slide.tiles(3, 5),
        lambda: list(source.shuffled(8, seed=0, epoch=0)),
        lambda: list(StoreTiles([(slide, np.arange(40))]).ordered(8)),
        lambda: replace(slide, reader=None).tiles(3, 5),
    ):
        with pytest.raises(StoreError, match=r"s0: tiles 0 to 15 are damaged .*" + remedy):
            read()
    assert slide.tiles(16, 20).shape == (4, 32, 32, 3)


def test_lossy_store_states_its_error(slides, tmp_path):
    whole = tile(slides, tmp_path / "whole")
    lossy = tile(slides, tmp_path / "lossy", compression={"codec": "jpeg", "quality": 80})
    assert not whole.failed + lossy.failed
    for before, after in zip(TileStore(whole.store), TileStore(lossy.store), strict=True):
        assert before.facts["compression"] == {"codec": "zstd", "level": -20}
        facts = after.facts["compression"]
        a, b = before.tiles(0, len(before)).astype(int), after.tiles(0, len(after))
        assert (facts["codec"], facts["quality"]) == ("jpeg", 80)
        assert facts["error"]["max_abs"] == np.abs(a - b).max() > 3
        assert facts["error"]["mean_abs"] == pytest.approx(np.abs(a - b).mean(), abs=1e-4)
    again = tile(slides, tmp_path / "again", compression={"codec": "jpeg", "quality": 80})
    assert content(lossy.store / GROUPS) == content(again.store / GROUPS)
    assert TileStore(whole.store).digest != TileStore(lossy.store).digest


def test_other_compression_is_refused_where_it_changes_pixels(slides, tmp_path, caplog):
    tile(slides / "s0.tif", tmp_path / "zstd")
    with pytest.raises(StoreMismatchError, match=r"compression\.codec is 'zstd' in the store"):
        tile(slides, tmp_path / "zstd", compression={"codec": "jpeg"})
    assert not caplog.records
    tile(slides, tmp_path / "zstd", compression={"codec": "none"})
    assert "keeps the compression that it was made with" in caplog.text
    kept = [slide.facts["compression"]["codec"] for slide in TileStore(tmp_path / "zstd")]
    assert kept == ["zstd", "zstd"]
    tile(slides, tmp_path / "jpeg", compression={"codec": "jpeg"})
    for values in ({"codec": "jpeg", "quality": 90}, {"codec": "jpeg-xl"}, {}):
        with pytest.raises(StoreMismatchError, match="compression"):
            tile(slides, tmp_path / "jpeg", compression=values)


def test_store_of_an_earlier_version_is_read(slides, tmp_path):
    """Without `compression` in its attributes, and of another level of zstd."""
    tile(slides, tmp_path / "store", compression={"level": 1})
    before = TileStore(tmp_path / "store").slide("s0").tiles(0, 9)
    for path in (tmp_path / "store" / GROUPS).glob("**/zarr.json"):
        values = json.loads(path.read_text())
        values.get("attributes", {}).get("wsiad", {}).pop("compression", None)
        path.write_text(json.dumps(values))
    np.testing.assert_array_equal(TileStore(tmp_path / "store").slide("s0").tiles(0, 9), before)
    assert not tile(slides, tmp_path / "store").failed


def test_shared_slide_if_present(tmp_path):
    path = Path(__file__).parents[3] / "shared/data/slides/cmu-1-small-region.svs"
    if not path.exists():
        pytest.skip("the folder shared/ with a real slide is absent")
    result = wsiad.tile(slides=path, out=tmp_path / "store", mpp=0.5, tile=256, quiet=True)
    assert [(row.status, row.reason) for row in result.rows] == [("ok", "")]
    assert 20 <= result.rows[0].tiles <= 40


def test_a_call_that_does_nothing_leaves_the_record_of_the_one_that_worked(slides, tmp_path):
    record = tmp_path / "store" / "run.json"
    tile(slides / "s0.tif", tmp_path / "store")
    made = json.loads(record.read_text()) | {"seconds": 3600.0}
    record.write_text(json.dumps(made))
    tile(slides / "s0.tif", tmp_path / "store")
    assert json.loads(record.read_text()) == made
    tile(slides, tmp_path / "store", record=tmp_path / "call.json")  # one of two is new
    call = json.loads((tmp_path / "call.json").read_text())
    assert json.loads(record.read_text()) == made
    both = {row.slide: row.tiles for row in read_table(tmp_path / "store" / "slides.csv", TileRow)}
    assert call["tiles"] == sum(both.values())
    # The speed is that of the slide on which the call worked.
    assert call["tiles_per_second"] == pytest.approx(both["s1"] / call["seconds"], rel=0.05)
