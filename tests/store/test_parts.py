"""A slide written in parts: byte-identical to one that was written at once."""

import errno
import itertools
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsiad
from support.builders import stained, write_tiff
from support.stores import content
from wsiad.compute.batch import BatchTask, Divided, Divisions, PartDone
from wsiad.core.errors import SlideReadError, StoreError
from wsiad.core.files import fingerprint
from wsiad.slides.opening import open_slide
from wsiad.slides.slide import Region
from wsiad.slides.slide_table import SlideRow
from wsiad.stain.profile import reference_profile
from wsiad.store import group
from wsiad.store.parts import Part, SlideParts, pieces_of_slide, split
from wsiad.store.tile_store import GROUPS, TileStore, clear_store, parts_folder
from wsiad.store.writer import write_slide
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.preparation import CompressionOptions, Preparation, StainOptions
from wsiad.tiling.stream import stream
from wsiad.tissue import mask
from wsiad.tissue.tissue_options import QualityOptions

OPTIONS = Preparation.model_validate(
    {
        "mpp": 0.5, "tile": 16, "min_coverage": 0.1, "tissue": {"min_area_um2": 1000},
        "stain": {"method": "none"},
    }
)  # fmt: skip
STAINED = OPTIONS.model_copy(update={"stain": StainOptions(method="macenko", sample_px=20_000)})

DROPPED, MARKED = (
    OPTIONS.model_copy(update={"quality": QualityOptions(min_sharpness=27_000, action=action)})
    for action in ("drop", "keep")
)
"""Of the slide's tiles a part is too blurred."""


@given(
    tiles=st.integers(0, 500_000),
    tile=st.sampled_from([16, 96, 256, 4096]),
    most=st.one_of(st.none(), st.integers(1, 600_000)),
    pieces=st.sampled_from([1, 2, 7, 64]),
)
@settings(max_examples=200, deadline=None)
def test_parts_are_whole_shards_of_equal_size_in_order(tiles, tile, most, pieces):
    parts = split(tiles, tile=tile, most=most, pieces=pieces)
    shard = group.shard_tiles(tile)
    assert (parts[0].first, parts[-1].stop) == (0, tiles)
    assert all(a.stop == b.first for a, b in itertools.pairwise(parts))
    assert all(part.first % shard == 0 for part in parts)
    if most is None or (tiles <= most and pieces == 1):
        assert len(parts) == 1
        return
    sizes = [-(-(part.stop - part.first) // shard) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * shard <= max(most, shard) or len(parts) == 1
    # As many as are wanted, unless they would be too small, or have to be more.
    assert len(parts) >= (min(pieces, sum(sizes) // 4) if sum(sizes) >= 16 else 1)
    if len(parts) > max(1, -(-sum(sizes) // max(1, most // shard))):
        assert len(parts) <= pieces
        assert min(sizes) >= 4


@pytest.mark.parametrize(
    ("slides", "workers", "pieces"),
    [(1, 1, 1), (1, 3, 12), (1, 8, 32), (3, 8, 11), (31, 8, 2), (32, 8, 1), (0, 4, 16)],
)
@pytest.mark.parametrize("cores", [None, 3, 16])
def test_few_slides_are_divided_for_many_workers(slides, workers, pieces, cores):
    assert pieces_of_slide(slides, workers, cores=cores) == pieces


@pytest.mark.parametrize("slides", [1, 2, 5])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_workers_of_two_cores_divide_nothing(slides, workers):
    assert pieces_of_slide(slides, workers, cores=2) == 1


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of 16 × 2 tiles, so that a small slide has many."""
    monkeypatch.setattr(group, "_CHUNK_BYTES", 2 * 16 * 16 * 3)
    monkeypatch.setattr("wsiad.tiling.stream._BLOCK_PX", 80)


@pytest.fixture
def slide(tmp_path):
    image = stained(250, 420, glass=20)
    with open_slide(write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=2)) as slide:
        yield slide


def holes(slide, monkeypatch, chance):
    """Let some pixels of the slide not exist."""
    whole = type(slide).read_level
    rng = np.random.default_rng(1)
    there = np.kron(rng.random((30, 30)) >= chance, np.ones((16, 16), bool))

    def read_level(self, level, x, y, size):
        region = whole(self, level, x, y, size)
        valid = there[y : y + size.height, x : x + size.width] if level == 0 else None
        return Region(region.rgb, None if valid is None or valid.all() else valid)

    monkeypatch.setattr(type(slide), "read_level", read_level)


def planned(slide, path, options=OPTIONS, codec="zstd"):
    target = reference_profile(options.stain.method)
    compression = CompressionOptions(codec=codec)
    store = TileStore.create(path, options, target.to_dict(), compression=compression)
    return store, plan_slide(slide, options, target=target)


def begun(slide, path, *, most=96, options=OPTIONS, codec="zstd", **changes):
    store, plan = planned(slide, path, options, codec)
    parts = split(len(plan), tile=16, most=most)
    return SlideParts(store, plan, parts, **{"fingerprint": fingerprint(slide.path), **changes})


def at_once(slide, path, options=OPTIONS, codec="zstd"):
    store, plan = planned(slide, path, options, codec)
    write_slide(store, plan, fingerprint=fingerprint(slide.path))
    return content(path)


@pytest.mark.parametrize(
    ("chance", "most", "options", "codec"),
    [
        (0, 1, OPTIONS, "zstd"), (0, 200, STAINED, "none"), (0.002, 96, STAINED, "zstd"),
        (0.02, 200, OPTIONS, "zstd"), (0.3, 96, OPTIONS, "zstd"), (1, 200, OPTIONS, "zstd"),
        (0.002, 96, DROPPED, "zstd"), (0, 96, MARKED, "zstd"),
        (0, 96, OPTIONS, "jpeg"), (0.002, 96, DROPPED, "jpeg"),
    ],
)  # fmt: skip
def test_joined_parts_are_the_bytes_of_one_task(
    slide, tmp_path, monkeypatch, chance, most, options, codec
):
    holes(slide, monkeypatch, chance)
    expected = at_once(slide, tmp_path / "one", options, codec)
    whole = begun(slide, tmp_path / "parts", most=most, options=options, codec=codec)
    assert len(whole.parts) >= 2
    for part in reversed(whole.parts):  # in any order
        assert part in whole.missing()
        whole.write(part)
    assert whole.missing() == ()
    assert whole.join() == len(TileStore(tmp_path / "parts").slide("s"))
    assert content(tmp_path / "parts") == expected
    assert not parts_folder(whole.store, "s").exists()
    if options.quality.given:
        assert 5 < whole.store.slide("s").facts["unusable"]["sharpness"] < 200


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_shards_are_linked_not_made_again(slide, tmp_path, monkeypatch, codec):
    expected = at_once(slide, tmp_path / "one", codec=codec)
    whole = begun(slide, tmp_path / "parts", codec=codec)
    for part in whole.parts:
        whole.write(part)
    monkeypatch.setattr(group.TileArray, "append", None)  # would fail if it were called
    whole.join()
    assert content(tmp_path / "parts") == expected  # with the error of the sample


@pytest.mark.parametrize(("options", "listed"), [(DROPPED, True), (OPTIONS, False)])
def test_where_tiles_may_be_left_out_parts_of_lossy_stores_keep_every_pixel(
    slide, tmp_path, monkeypatch, options, listed
):
    if not listed:
        monkeypatch.setattr(type(slide), "listed", lambda *_: None)
    whole = begun(slide, tmp_path / "parts", options=options, codec="jpeg")
    whole.write(whole.parts[0])
    (kept,) = parts_folder(whole.store, "s").glob("*-*")
    stored = json.loads((kept / "tiles" / "zarr.json").read_text())
    assert "jpeg" not in json.dumps(stored["codecs"])


def test_shards_are_copied_where_there_are_no_links(slide, tmp_path, monkeypatch):
    expected = at_once(slide, tmp_path / "one")
    whole = begun(slide, tmp_path / "parts")
    for part in whole.parts:
        whole.write(part)

    link = os.link

    def refused(source, target):
        """As BeeGFS: links within a folder only."""
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr("wsiad.store.shards.os.link", refused)
    whole.join()
    assert content(tmp_path / "parts") == expected


def test_a_part_of_the_stream_is_that_part(slide, tmp_path):
    _, plan = planned(slide, tmp_path / "none", OPTIONS.model_copy(update={"mpp": 0.7}))
    everything = np.concatenate([block.pixels for block in stream(plan)])
    for first, stop in ((0, 1), (7, 8), (3, 50), (len(plan) - 2, len(plan)), (5, 5)):
        some = [block.pixels for block in stream(plan, first=first, stop=stop)]
        got = np.concatenate([np.empty((0, 16, 16, 3), np.uint8), *some])
        np.testing.assert_array_equal(got, everything[first:stop])


def test_finished_parts_are_kept_and_others_thrown_away(slide, tmp_path):
    whole = begun(slide, tmp_path / "parts")
    whole.write(whole.parts[0])
    again = begun(slide, tmp_path / "parts")
    assert again.missing() == whole.parts[1:]
    # Of another file, or at other places: not of this slide's group.
    for changes in ({"fingerprint": "sha256:0"}, {"coordinates": "sha256:1"}):
        whole.write(whole.parts[0])
        assert begun(slide, tmp_path / "parts", **changes).missing() == whole.parts
    with pytest.raises(StoreError, match="tiles 0 to 96 of the slide are missing"):
        whole.join()
    assert "s" not in whole.store


@pytest.mark.parametrize(("before", "after"), [(96, 200), (200, 96), (96, None), (200, 32)])
@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_parts_of_another_division_are_used(slide, tmp_path, monkeypatch, before, after, codec):
    """As where the first run had another number of workers."""
    holes(slide, monkeypatch, 0.002)
    expected = at_once(slide, tmp_path / "one", codec=codec)
    first = begun(slide, tmp_path / "parts", most=before, codec=codec)
    kept = (first.parts[1], first.parts[-1])
    for part in kept:
        first.write(part)
    again = begun(slide, tmp_path / "parts", most=after, codec=codec).resumed()
    parts = again.parts
    assert (parts[0].first, parts[-1].stop) == (0, first.parts[-1].stop)
    assert all(a.stop == b.first for a, b in itertools.pairwise(parts))
    assert set(again.missing()) == set(parts) - set(kept)
    for part in again.missing():
        again.write(part)
    again.join()
    assert content(tmp_path / "parts") == expected


def test_of_two_divisions_at_the_same_time_each_is_whole(slide, tmp_path):
    """Parts that overlap are not joined; the slide is the same whoever is first."""
    expected = at_once(slide, tmp_path / "one")
    first, second = (begun(slide, tmp_path / "parts", most=most) for most in (96, 200))
    for part in (*first.parts, *second.parts[1:]):
        (first if part in first.parts else second).write(part)
    third = begun(slide, tmp_path / "parts", most=32).resumed()
    assert all(a.stop == b.first for a, b in itertools.pairwise(third.parts))
    for part in third.missing():
        third.write(part)
    third.join()
    assert content(tmp_path / "parts") == expected


def test_a_damaged_part_is_written_again(slide, tmp_path):
    whole = begun(slide, tmp_path / "parts")
    for part in whole.parts:
        whole.write(part)
    folder = parts_folder(whole.store, "s")
    (folder / "0-96" / "zarr.json").write_text("{")
    assert whole.missing() == (Part(0, 96),)


def test_parts_of_two_versions_are_not_joined(slide, tmp_path, monkeypatch):
    whole = begun(slide, tmp_path / "parts")
    whole.write(whole.parts[0])
    monkeypatch.setattr("wsiad.store.writer.__version__", "999")
    assert begun(slide, tmp_path / "parts").missing() == whole.parts


def test_a_slide_that_changes_before_the_join_is_not_stored(slide, tmp_path):
    whole = begun(slide, tmp_path / "parts")
    for part in whole.parts:
        whole.write(part)
    slide.path.write_bytes(slide.path.read_bytes() + b"more")
    with pytest.raises(SlideReadError, match="s: changed while it was read"):
        whole.join()
    assert whole.store.names() == []


def test_a_second_run_that_joins_the_same_parts(slide, tmp_path):
    """Two runs made the same parts together, and both join them."""
    expected = at_once(slide, tmp_path / "one")
    first, second = (begun(slide, tmp_path / "parts") for _ in range(2))
    for number, part in enumerate(first.parts):
        (first, second)[number % 2].write(part)
        (first, second)[1 - number % 2].write(part)  # is there already
    count = first.join()
    assert second.join() == count  # its parts are gone, the slide is there
    assert content(tmp_path / "parts") == expected


def test_parts_that_a_dead_run_left_beside_the_whole_are_cleared(slide, tmp_path):
    expected = at_once(slide, tmp_path / "one")
    whole = begun(slide, tmp_path / "one")
    whole.write(whole.parts[0])
    shutil.copytree(parts_folder(whole.store, "s"), tmp_path / "one" / GROUPS / ".other.parts")
    (tmp_path / "one" / GROUPS / ".none.parts").mkdir()
    clear_store(tmp_path / "one")
    kept = {name: data for name, data in content(tmp_path / "one").items() if "other" not in name}
    assert kept == expected
    names = sorted(p.name for p in (tmp_path / "one" / GROUPS).iterdir())
    assert names == [".other.parts", "s", "zarr.json"]  # parts of what is not whole are kept


def tiled(slides, out, **values):
    options = OPTIONS.model_dump(exclude={"quality"}) | {"quiet": True} | values
    return wsiad.tile(slides=slides, out=out, **options)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Slides of more than a shard as it is: workers do not know of small ones."""
    monkeypatch.undo()
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(2):
        image = stained(320 - 220 * number, 400, seed=number, glass=10)
        write_tiff(folder / f"s{number}.tif", image, mpp=0.5, levels=2)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_tile_divides_what_is_too_large(large, tmp_path, workers):
    # A shard of tiles of 16 px holds 16 384 of them; at a stride of 2 px there are more.
    values = {"tile": 16, "stride": 2, "min_coverage": 0}
    whole = tiled(large, tmp_path / "one", split_tiles=None, **values)
    assert whole.rows[0].tiles > 16_384 > whole.rows[1].tiles
    divided = tiled(large, tmp_path / "parts", split_tiles=16_384, workers=workers, **values)
    assert [(r.slide, r.status, r.tiles) for r in divided.rows] == [
        (r.slide, r.status, r.tiles) for r in whole.rows
    ]
    assert content(tmp_path / "parts" / GROUPS) == content(tmp_path / "one" / GROUPS)


def test_a_worker_plans_a_slide_once_for_all_its_parts(large, tmp_path, monkeypatch):
    found, values = [], {"tile": 16, "stride": 2, "min_coverage": 0}

    def find_tissue(slide, options):
        found.append(slide.name)
        return mask.find_tissue(slide, options)

    monkeypatch.setattr("wsiad.tiling.plan.find_tissue", find_tissue)
    tiled(large / "s0.tif", tmp_path / "parts", split_tiles=16_384, **values)
    assert found == ["s0"]
    # Another slide of that name is planned anew.
    write_tiff(large / "s0.tif", stained(320, 400, seed=9, glass=10), mpp=0.5, levels=2)
    tiled(large / "s0.tif", tmp_path / "again", split_tiles=16_384, **values)
    tiled(large / "s0.tif", tmp_path / "one", split_tiles=None, **values)
    assert found == ["s0"] * 3
    assert content(tmp_path / "again" / GROUPS) == content(tmp_path / "one" / GROUPS)


def test_a_slide_alone_is_divided_for_the_workers(large, tmp_path, monkeypatch):
    """By default, and to the bytes that one worker writes."""
    for name in ("_LEAST_SHARDS", "_WORTH_SHARDS"):  # this process divides the slide
        monkeypatch.setattr(f"wsiad.store.parts.{name}", 1)
    monkeypatch.setattr("wsiad.core.ahead.usable_cores", lambda: 2)
    values = {"tile": 16, "stride": 2, "min_coverage": 0}
    slide = large / "s0.tif"
    whole = tiled(slide, tmp_path / "one", **values)
    written = []
    monkeypatch.setattr(SlideParts, "missing", _noting(SlideParts.missing, written))
    tiled(slide, tmp_path / "threads", workers=2, **values)
    assert written == []  # one process with its threads is as quick as two workers
    monkeypatch.setattr("wsiad.core.ahead.usable_cores", lambda: 16)
    divided = tiled(slide, tmp_path / "parts", workers=2, **values)
    assert len(written) > 1
    assert [row.tiles for row in divided.rows] == [row.tiles for row in whole.rows]
    assert content(tmp_path / "parts" / GROUPS) == content(tmp_path / "one" / GROUPS)
    # A copy of the slide on a local disk is made for each part: there it is not divided.
    written.clear()
    staged = {"stage_dir": tmp_path / "local", "workers": 2}
    tiled(slide, tmp_path / "staged", **values, **staged)
    assert written == []
    assert content(tmp_path / "staged" / GROUPS) == content(tmp_path / "one" / GROUPS)


def _noting(missing, written):
    def noted(self):
        found = missing(self)
        written.extend(found)
        return found

    return noted


def test_a_part_that_fails_fails_the_slide_once_and_others_are_kept(slide, tmp_path, monkeypatch):
    wrong = []

    def write(self, part):
        if part.first in wrong:
            raise SlideReadError("cannot be read there", subject="s")
        whole(self, part)

    whole = SlideParts.write
    monkeypatch.setattr(SlideParts, "write", write)
    wrong += [96, 192]
    result = tiled(slide.path, tmp_path / "store", split_tiles=96)
    assert [(row.slide, row.status, row.reason) for row in result.rows] == [
        ("s", "failed", "cannot be read there")
    ]
    store = TileStore(tmp_path / "store")
    kept = {path.name for path in parts_folder(store, "s").iterdir()}
    assert "0-96" in kept
    assert not kept & {"96-192", "192-288"}
    # The next run makes what is missing, and no more.
    wrong.clear()

    def noted(self, part):
        wrong.append(part.first)
        whole(self, part)

    monkeypatch.setattr(SlideParts, "write", noted)
    assert not tiled(slide.path, tmp_path / "store", split_tiles=96).failed
    assert wrong == [96, 192]
    assert not tiled(slide.path, tmp_path / "one", split_tiles=None).failed
    assert content(tmp_path / "store" / GROUPS) == content(tmp_path / "one" / GROUPS)


def test_the_last_task_follows_when_all_parts_are_done():
    a, b = (BatchTask(slide=SimpleNamespace(name=name)) for name in "ab")
    divisions = Divisions()
    assert divisions.more(a, Divided(("p", "q"), a, 1.0)) == ("p", "q")
    assert divisions.more(b, Divided((), b, 0.5)) == [replace(b, spent=0.5)]
    assert divisions.more(b, SlideRow("b", "ok")) == []
    assert divisions.more(a, PartDone("a", 2.0)) == []
    assert divisions.more(a, PartDone("a", 4.0)) == [replace(a, spent=7.0)]
    assert divisions.more(a, SlideRow("a", "ok")) == []


def test_failures_of_parts_are_one_of_the_slide():
    task, failed = BatchTask(slide=SimpleNamespace(name="a")), SlideRow("a", "failed")
    divisions = Divisions()
    assert divisions.is_news(failed)
    assert divisions.is_news(failed)  # two slides of one name
    divisions.more(task, Divided(("p", "q", "r"), task, 1.0))
    for number, result in enumerate([failed, failed, PartDone("a", 1.0)]):
        assert divisions.more(task, result) == []
        if result is failed:
            assert divisions.is_news(result) == (number == 0)
