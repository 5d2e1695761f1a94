"""Shards of one store or results folder: at once, overlapping, twice."""

import json
import subprocess
import sys
import threading

import pytest
import yaml

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import ConfigError, InputError, WsiadError
from wsiad.core.files import atomic_folder
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.slides.slide_table import SlideTable, read_table
from wsiad.verbs.tile import TileRow

OPTIONS = {"mpp": 0.5, "tile": 64, "stain": {"method": "none"}, "tissue": {"min_area_um2": 0.0}}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for number in range(5):
        write_tiff(folder / f"s{number}.tif", stained(256, 256, seed=number), levels=1)
    (folder / "bad.svs").write_text("no slide")
    return folder


@pytest.fixture(scope="module")
def plain(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "store"
    wsiad.tile(slides=slides, out=out, quiet=True, **OPTIONS)
    return out


def files_of(store):
    root = store / "slides.zarr"
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def statuses(out, row=TileRow):
    return {found.slide: found.status for found in read_table(out / "slides.csv", row)}


WHOLE = {"bad": "failed"} | {f"s{number}": "ok" for number in range(5)}


def tile(slides, out, shard):
    return wsiad.tile(slides=slides, out=out, shard=shard, quiet=True, **OPTIONS)


def test_shards_share_the_sorted_slides_and_keep_books_apart(slides, plain, tmp_path):
    out = tmp_path / "store"
    assert [row.slide for row in tile(slides, out, "2/4").rows] == ["s0", "s4"]
    assert statuses(out) == {"s0": "ok", "s4": "ok"}
    assert not (out / "run.json").exists()
    for shard in ("1/4", "3/4", "4/4", "2/4", "1/2"):  # one runs twice, one overlaps
        tile(slides, out, shard)
    assert statuses(out) == WHOLE
    assert files_of(out) == files_of(plain)
    record = json.loads((out / "runs" / "shard-1-of-2.json").read_text())
    assert (record["shard"], record["slides"], record["failed"]) == ("1/2", 3, 1)
    assert tile(slides, out, None).failed
    assert json.loads((out / "run.json").read_text())["slides"] == 6


def test_jobs_for_single_slides_make_the_same_store_and_each_tells_what_became_of_its_own(
    slides, plain, tmp_path
):
    out, record = tmp_path / "store", tmp_path / "jobs" / "one.json"

    def of(*names):
        wsiad.tile(slides=slides, out=out, only=names, record=record, quiet=True, **OPTIONS)
        return [(row["slide"], row["status"]) for row in json.loads(record.read_text())["rows"]]

    assert of("s3") == [("s3", "ok")]
    assert of("bad") == [("bad", "failed")]
    assert "is not a slide" in json.loads(record.read_text())["rows"][0]["reason"]
    assert of("s4", "s0", "s1") == [("s0", "ok"), ("s1", "ok"), ("s4", "ok")]
    assert not (out / "report.html").exists()
    assert not (out / "run.json").exists()
    assert of("s2") == [("s2", "ok")]
    assert (out / "report.html").exists()  # by the last, after which every slide has its row
    assert statuses(out) == WHOLE
    assert files_of(out) == files_of(plain)


OTHERS = {
    "a.csv": "slide,label\n",
    "text.json": "no JSON",
    "list.json": "[]",
    "outlines.json": '{"type": "FeatureCollection", "features": []}',
    "run.json": '{"versions": {}, "seconds": 1.0, "slides": 3}',
    "rows.json": '{"versions": {}, "seconds": 1.0, "rows": [{"slide": "a"}]}',
    "rows of another.json": '{"rows": [{"slide": "a", "status": "ok", "reason": ""}]}',
}


@pytest.mark.parametrize("name", OTHERS)
def test_only_a_record_is_replaced_by_a_record(name, slides, tmp_path):
    other, out = tmp_path / name, tmp_path / "store"
    other.write_text(OTHERS[name])
    for dry_run in (True, False):
        with pytest.raises((ConfigError, InputError), match=r"record"):
            wsiad.tile(slides=slides, out=out, only=["bad"], record=other, dry_run=dry_run,
                       quiet=True, **OPTIONS)  # fmt: skip
        assert other.read_text() == OTHERS[name]
        assert not out.exists()


def test_a_record_is_never_a_file_of_the_store_not_even_of_one_to_come(slides, tmp_path):
    out, link = tmp_path / "store", tmp_path / "link.json"
    link.symlink_to(out / "slides.zarr" / "zarr.json")
    (tmp_path / "file").touch()
    for path, why in (
        (out / "run.json", "whose files are wsiad's"),
        (tmp_path / "x" / ".." / "store" / "runs" / "a.json", "whose files are wsiad's"),
        (link, "whose files are wsiad's"),
        (tmp_path / "file" / "a.json", "is a file. Pass another path as --record"),
    ):
        with pytest.raises(InputError, match=why):
            wsiad.tile(slides=slides, out=out, only=["bad"], record=path, quiet=True, **OPTIONS)
        assert not out.exists()
        assert link.is_symlink()


def refused_early(slides, folder):
    """Calls that end before they work on a slide, by what is wrong."""
    (folder / "a file").touch()
    tiled = {"slides": slides, "out": folder / "store", "only": ["bad"]} | OPTIONS
    scored = {"run": folder / "run", "slides": slides, "out": folder / "results"}
    return {
        "name": (wsiad.tile, tiled | {"only": ["nobody"]}),
        "source": (wsiad.tile, tiled | {"slides": folder / "nowhere"}),
        "out": (wsiad.tile, tiled | {"out": folder / "a file"}),
        "target": (wsiad.tile, tiled | {"stain": {"target": folder / "nowhere.json"}}),
        "tile": (wsiad.tile, tiled | {"tile": 32}),
        "run": (wsiad.heatmap, scored),
        "device": (wsiad.heatmap, scored | {"device": "cuda:99"}),
    }


@pytest.mark.parametrize("wrong", ["name", "source", "out", "target", "tile", "run", "device"])
def test_a_call_that_is_refused_leaves_no_record_of_an_earlier_one(wrong, slides, tmp_path):
    verb, given = refused_early(slides, tmp_path)[wrong]
    record = tmp_path / "jobs" / "one.json"
    again = {"slides": slides, "out": tmp_path / "store", "only": ["bad"], "quiet": True}
    wsiad.tile(record=record, **again, **OPTIONS)
    written = record.read_text()
    wsiad.tile(record=record, dry_run=True, **again, **OPTIONS)
    assert record.read_text() == written  # a look changes nothing
    with pytest.raises(WsiadError):
        verb(record=record, quiet=True, **given)
    assert not record.exists()


def test_more_shards_than_slides_leave_some_with_none(slides, tmp_path):
    assert tile(slides, tmp_path / "store", "9/9").rows == ()


def test_processes_that_start_at_once_and_overlap_make_the_same_store(slides, plain, tmp_path):
    """Two whole runs and a shard, into a folder that none of them finds made."""
    out = tmp_path / "store"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(OPTIONS))
    command = [
        sys.executable, "-P", "-m", "wsiad", "tile", str(slides), "--out", str(out),
        "--config", str(tmp_path / "c.yaml"), "--quiet", "--shard",
    ]  # fmt: skip
    processes = [
        subprocess.Popen([*command, shard], stderr=subprocess.PIPE, text=True)
        for shard in ("1/1", "1/1", "2/2")
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 0], errors
    for error in errors[:2]:
        assert error.split("failed:")[1].strip().startswith("bad: is not a slide"), errors
    assert statuses(out) == WHOLE
    assert files_of(out) == files_of(plain)


def test_rows_that_others_put_are_kept(tmp_path):
    first, second = (SlideTable(tmp_path / "slides.csv", TileRow) for _ in range(2))
    first.put(TileRow("a", "failed", "lost"))
    second.put(TileRow("b", "ok"))
    first.put(TileRow("c", "ok"))
    assert statuses(tmp_path) == {"a": "failed", "b": "ok", "c": "ok"}
    second.put(TileRow("a", "ok"))  # tried again by the other: the last word is its
    first.put(TileRow("d", "ok"))
    assert statuses(tmp_path) == {"a": "ok", "b": "ok", "c": "ok", "d": "ok"}
    (tmp_path / "slides.csv").write_text(
        "".join(
            line
            for line in (tmp_path / "slides.csv").read_text().splitlines(keepends=True)
            if not line.startswith("c,")
        )
    )
    first.put(TileRow("e", "ok"))  # one of its own that was dropped comes back
    assert set(statuses(tmp_path)) == set("abcde")


def test_many_tables_at_once_lose_no_row(tmp_path):
    def work(part):
        table = SlideTable(tmp_path / "slides.csv", TileRow)
        for number in range(8):
            table.put(TileRow(f"{part}-{number}", "ok"))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(statuses(tmp_path)) == 32


def test_folders_put_at_once_under_one_name_all_end_well(tmp_path):
    errors = []

    def work(number):
        try:
            for _ in range(30):
                with atomic_folder(tmp_path / "slide") as folder:
                    (folder / "a").write_text(str(number))
                    (folder / "b").write_text(str(number))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["slide"]
    assert (tmp_path / "slide/a").read_text() == (tmp_path / "slide/b").read_text()


def test_the_last_shard_of_a_heatmap_writes_the_report(slides, plain, tmp_path):
    options = {"weights": "random", "options": {"backbone": "squeezenet1_1"}}
    wsiad.train(store=plain, out=tmp_path / "run", detector="gaussian", quiet=True, **options)

    def heatmap(shard):
        return wsiad.heatmap(
            run=tmp_path / "run", slides=slides, out=tmp_path / "out", shard=shard, quiet=True
        )

    first = heatmap("1/2")
    assert "the report waits for 3 slides of other" in first.summary
    assert not (tmp_path / "out/report.html").exists()
    second = heatmap("2/2")
    assert "the last; see" in second.summary
    assert statuses(tmp_path / "out", HeatmapRow) == WHOLE
    report = (tmp_path / "out/report.html").read_text()
    assert all(name in report for name in WHOLE)
    # All are done: the command without --shard makes the report of what is there.
    (tmp_path / "out/report.html").unlink()
    assert len(heatmap(None).rows) == 6
    assert (tmp_path / "out/report.html").exists()
