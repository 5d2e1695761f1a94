"""A slide that was replaced under its name fails, and its old tiles stand for it nowhere."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from support.stores import PLAIN
from wsiad.cli import main
from wsiad.core.errors import InputError, RunError
from wsiad.core.ownership import owner
from wsiad.results.job_status import job_status
from wsiad.runs.extending import same_training
from wsiad.runs.healthy_tiles import NO_ROW, healthy_slides
from wsiad.runs.run import RunFolder
from wsiad.slides.slide_table import SlideTable, read_table
from wsiad.store import tile_store
from wsiad.store.tile_source import StoreTiles
from wsiad.store.tile_store import OVERVIEWS, TileStore
from wsiad.store.tile_task import unseen_slides
from wsiad.verbs.tile import TileRow

WHY = "made from another file of this name"
AGAIN = (
    "Run the command that wrote it again, unless it still runs: it keeps what is complete and "
    "writes the rows."
)
LABELS = {"s0": "normal", "s1": "normal", "s2": "normal", "t0": "tumor", "t1": "tumor"}


def write(slides, name, seed):
    write_tiff(slides / f"{name}.tif", stained(200, 260, seed=seed, glass=16), mpp=0.5, levels=2)


def tile(folder):
    return wsiad.tile(slides=folder / "slides.csv", out=folder / "store", **PLAIN)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Five slides, of which s1 and t1 were replaced after they had been tiled."""
    use_channel(monkeypatch)
    slides = tmp_path / "slides"
    slides.mkdir()
    for seed, name in enumerate(LABELS):
        write(slides, name, seed)
    lines = [f"slides/{name}.tif,{label}\n" for name, label in LABELS.items()]
    (tmp_path / "slides.csv").write_text("path,label\n" + "".join(lines))
    assert not tile(tmp_path).failed
    shutil.copytree(slides, tmp_path / "before")
    for name in ("s1", "t1"):
        write(slides, name, 9)
    assert [row.slide for row in tile(tmp_path).failed] == ["s1", "t1"]
    return tmp_path / "store"


def test_the_store_lists_what_is_of_the_slides_now(store, tmp_path):
    opened = TileStore(store)
    assert opened.names() == [slide.name for slide in opened] == ["s0", "s2", "t0"]
    assert len(opened) == 3
    assert opened.names(failed=True) == sorted(LABELS)
    assert len(opened.slide("s1")), "its group is kept until the user decides"
    found = unseen_slides(opened)
    assert list(found) == ["s1", "t1"]
    assert all(WHY in why for why in found.values())
    status = job_status(store)
    assert (status.done, sorted(status.failed), status.broken) == (3, ["s1", "t1"], ())
    # With the files of before, the same tiles are used again.
    for name in ("s1", "t1"):
        shutil.copy2(tmp_path / "before" / f"{name}.tif", tmp_path / "slides")
    assert not tile(tmp_path).failed
    assert opened.names() == sorted(LABELS)
    assert unseen_slides(opened) == {}


def test_a_slide_whose_file_is_away_is_not_said_to_be_another(store, tmp_path):
    """An unmounted disk or an archive's stub must not lead anyone to delete tiles."""
    slides, before = tmp_path / "slides", tmp_path / "before"
    for name in ("s1", "t1"):
        shutil.copy2(before / f"{name}.tif", slides)
    (slides / "s1.tif").unlink()
    (slides / "t1.tif").write_bytes(b"")
    failed = {row.slide: row.reason for row in tile(tmp_path).failed}
    assert f"there is no file {slides / 's1.tif'} now. Put it back, or mount its" in failed["s1"]
    assert f"{slides / 't1.tif'} is empty (0 bytes)" in failed["t1"]
    for reason in failed.values():
        assert f"{WHY.removesuffix('of this name')}than was last there, and " in reason
        assert "run the same command again; until then nothing uses its tiles" in reason
        assert "delete" not in reason
    assert {row.slide: row.reason for row in tile(tmp_path).failed} == failed
    assert TileStore(store).names() == ["s0", "s2", "t0"]
    for name in ("s1", "t1"):
        shutil.copy2(before / f"{name}.tif", slides)
    assert not tile(tmp_path).failed
    assert TileStore(store).names() == sorted(LABELS)


def test_tiles_stay_in_use_when_their_files_are_away(store, tmp_path):
    slides = tmp_path / "slides"
    used = {name: TileStore(store).slide(name).fingerprint for name in ("s0", "s2", "t0")}
    (slides / "s0.tif").unlink()
    (slides / "s2.tif").unlink()
    (slides / "s2.tif").symlink_to(tmp_path / "archive" / "s2.tif")
    (slides / "t0.tif").write_bytes(b"")
    there = "its tiles are those of the file that was there"
    for _ in range(2):
        made = tile(tmp_path)
        rows = {row.slide: row for row in made.rows if row.slide in used}
        assert {row.status for row in rows.values()} == {"ok"}
        assert rows["s0"].reason == f"there is no file {slides / 's0.tif'} now; {there}"
        assert rows["s2"].reason == f"there is no file {slides / 's2.tif'} now; {there}"
        assert rows["t0"].reason.endswith(f"a stub of an archive, or a failed copy; {there}")
        assert "though the files are away, of 3 slides (s0, s2, t0)" in made.summary
    again = wsiad.tile(slides=slides, out=store, **PLAIN)  # a folder with the link and the stub
    assert {row.slide for row in again.rows if there in row.reason} == {"s2", "t0"}
    tile(tmp_path)  # with the labels of the manifest again
    table, row = SlideTable(store / "slides.csv", TileRow), rows["s0"]
    assert not table.changed([replace(row, reason="", label="tumor")]), "nothing was done on it"
    assert table.changed([replace(row, seconds=row.seconds + 9)])
    seen = wsiad.tile(slides=tmp_path / "slides.csv", out=store, dry_run=True, **PLAIN)
    assert [row.slide for row in seen.preview.problems] == ["s1", "t1"]
    found, _ = healthy_slides(TileStore(store), None)
    assert {slide.name: slide.fingerprint for slide in found} == {n: used[n] for n in ("s0", "s2")}
    # A file of another name may be another slide, which has another label.
    (tmp_path / "slides.csv").write_text("path,name,label\nslides/x.tif,s0,tumor\n")
    (row,) = tile(tmp_path).failed
    assert "mount its disk; or state the name 's0.tif', by which it was tiled" in row.reason
    (tmp_path / "slides.csv").write_text("path,name,label\nanywhere/s0.tif,s0,normal\n")
    assert not tile(tmp_path).failed
    assert [slide.name for slide in healthy_slides(TileStore(store), None)[0]] == ["s0", "s2"]


def test_training_leaves_them_out_and_says_why(store, tmp_path):
    result = wsiad.train(
        store=store,
        detector="linear-probe",
        options={"places": 1, "magnify": 1},
        anomalies=store,
        weights="random",
        out=tmp_path / "run",
        quiet=True,
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    text = json.dumps(record)
    assert set(record["slides"]["fit"]) | set(record["slides"]["calibration"]) == {"s0", "s2"}
    assert WHY in record["notes"]["slides_not_used"]["s1"]
    assert WHY in record["notes"]["anomalies"]["slides_not_used"]["t1"]
    assert list(record["notes"]["anomalies"]["slides"]) == ["t0"], text
    lines = [line for line in result.summary.splitlines() if WHY in line]
    assert [line.split(":")[0].strip() for line in lines] == ["s1", "t1"]


def test_a_run_is_not_taken_further_on_another_slide_of_the_name(store, tmp_path):
    train = {"detector": "knn", "options": {"places": 1, "magnify": 1}, "weights": "random"}
    wsiad.train(store=store, out=tmp_path / "run", quiet=True, **train)
    run = RunFolder.open(tmp_path / "run")

    def again():
        return same_training(run, out=tmp_path / "next", store=None, device="cpu", quiet=True)

    assert [slide.name for slide in again()[1].slides] == ["s0", "s2"]
    write(tmp_path / "slides", "s2", 8)
    tile(tmp_path)
    with pytest.raises(RunError, match=rf"as it was: s2 is not used now \(failed: .*{WHY}"):
        again()
    shutil.rmtree(store / "slides.zarr" / "s2")
    tile(tmp_path)
    with pytest.raises(RunError, match=r"as it was: s2 is of another file now\. .* train again"):
        again()


def test_tiles_say_of_which_slides_they_are(store, tmp_path):
    def tiles(names, step=1):
        slides = map(TileStore(store).slide, names)
        return StoreTiles([(slide, np.arange(0, len(slide), step)) for slide in slides])

    mark = tiles(["s0", "s2"]).fingerprint
    assert mark == tiles(["s0", "s2"]).fingerprint
    others = [tiles(["s0"]), tiles(["s0", "t0"]), tiles(["s0", "s2"], 2)]
    shutil.rmtree(store / "slides.zarr" / "s2")
    write(tmp_path / "slides", "s2", 8)
    tile(tmp_path)
    replaced = tiles(["s0", "s2"])
    assert len({mark, replaced.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_scores_and_heatmaps_have_none_of_them(store, tmp_path):
    run = make_run(tmp_path / "run", tissue=PLAIN["tissue"])
    scored = wsiad.score_tiles(run=run, store=store, out=tmp_path / "scores", quiet=True)
    assert [group.name for group in scored.groups] == ["s0", "s2", "t0"]
    said = json.loads(scored.evaluation.read_text())["not_scored"]
    assert list(said) == ["s1", "t1"]
    assert WHY in scored.summary
    table = store / "slides.csv"
    whole = table.read_text()
    table.write_text(whole.replace(",ok,,", ",failed,broken,"))
    with pytest.raises(InputError, match=r"holds no tiles \(s0: failed: broken; s1: failed: "):
        wsiad.score_tiles(run=run, store=store, out=tmp_path / "none", quiet=True)
    table.write_text(whole)
    heatmaps = wsiad.heatmap(run=run, slides=[store], out=tmp_path / "results", quiet=True)
    rows = {row.slide: row for row in heatmaps.rows}
    assert {name: row.status for name, row in rows.items()} == {
        "s0": "ok", "s1": "failed", "s2": "ok", "t0": "ok", "t1": "failed"
    }  # fmt: skip
    assert WHY in rows["s1"].reason
    assert not (tmp_path / "results" / "s1").exists()


def test_exports_say_that_they_have_none_of_them(store, tmp_path):
    result = wsiad.export_tiles(store=store, out=tmp_path / "tiles", quiet=True)
    assert result.slides == ("s0", "s2", "t0")
    assert [row.slide for row in result.failed] == ["s1", "t1"]
    assert all(row.reason.startswith("was not tiled: ") for row in result.failed)
    assert not (tmp_path / "tiles" / "s1").exists()


def test_pytorch_draws_none_of_them(store, caplog):
    data = wsiad.TileDataset(store, batch=4, drop_last=False, balance="tiles")
    drawn = sum(len(batch) for batch in data.loader())
    assert drawn == sum(len(slide) for slide in TileStore(store))
    assert "of slides that failed when they were tiled last: 2 (s1: failed: is in the store" in (
        caplog.text
    )
    caplog.clear()
    wsiad.TileDataset(store, slides=["s0"], batch=4)
    assert not caplog.text
    with pytest.raises(InputError, match="slide 's1' is not used: failed: is in the store"):
        wsiad.TileDataset(store, slides=["s0", "s1"], batch=4)


def test_the_report_shows_no_picture_of_the_file_before(store):
    assert (store / OVERVIEWS / "s1.jpg").exists()
    page = (store / "report.html").read_text()
    assert "s0.jpg" in page
    assert "s1.jpg" not in page


def test_a_damaged_group_is_broken_and_not_done(store):
    facts = store / "slides.zarr" / "s2" / "zarr.json"
    facts.write_text(facts.read_text()[:100])
    status = job_status(store)
    assert status.done == 2
    assert [line for line in status.broken if "s2" in line and "damaged" in line]
    assert not [line for line in status.broken if "lacks it" in line]
    assert status.exit_code == 1
    np.testing.assert_equal(
        [row.status for row in read_table(store / "slides.csv", TileRow)],
        ["ok", "failed", "ok", "ok", "failed"],
    )


def test_without_its_table_a_store_has_no_healthy_slides(store, caplog):
    """A table that is gone must not make tumour, nor what failed, healthy."""
    table = store / "slides.csv"
    whole = table.read_text()
    table.write_text("garbage\n")
    with pytest.raises(InputError, match="run the command that wrote it") as caught:
        healthy_slides(TileStore(store), None)
    assert "keeps what is complete" in str(caught.value)
    table.unlink()
    with pytest.raises(InputError, match=r"does not say which slides are healthy: .*s0, s1, s2"):
        healthy_slides(TileStore(store), None)
    lines = whole.splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith(("s2,", "t0,"))))
    used, skipped = healthy_slides(TileStore(store), None)
    assert [slide.name for slide in used] == ["s0"]
    assert skipped["s2"] == skipped["t0"] == NO_ROW
    assert "slides without a row are not trained on: 2 (s2, t0)" in caplog.text
    assert "slides.csv lacks rows: labels and failures of 2 slides (s2, t0) are" in caplog.text
    caplog.clear()
    table.write_text("".join(line for line in lines if not line.startswith("t0,")))
    assert "t0" in TileStore(store).names()
    assert caplog.records[0].message == (
        f"{table} lacks rows: labels and failures of 1 slide (t0) are not known. {AGAIN}"
    )
    status = job_status(store)
    assert (status.done, status.left, status.broken) == (2, ("t0",), ())
    assert status.text().startswith(f"{store}: a tile store, 2 of 5 slides done, 2 failed, 1 left")


def test_whoever_reads_a_store_without_its_table_is_told_once_what_is_lost(store, tmp_path, caplog):
    run = make_run(tmp_path / "run", tissue=PLAIN["tissue"])
    table = store / "slides.csv"
    table.unlink()
    said = (
        f"{table} is missing: labels and failures of 5 slides (s0, s1, s2 …) are not known. {AGAIN}"
    )
    status = job_status(store)
    assert status.broken == (said.removeprefix(f"{store}/"),)
    assert (status.done, status.left, status.exit_code) == (0, tuple(LABELS), 1)
    assert status.text().startswith(f"{store}: a tile store, 0 of 5 slides done, 5 left\nbroken:\n")
    working = store / f".working.{owner()}"
    working.write_text("s0")  # as of a process that fills the table anew
    status = job_status(store)
    assert (status.done, len(status.left), status.broken, status.notes) == (0, 5, (), ())
    working.unlink()
    readers = [
        lambda: wsiad.score_tiles(run=run, store=store, out=tmp_path / "scores", quiet=True),
        lambda: wsiad.heatmap(run=run, slides=[store], out=tmp_path / "results", quiet=True),
        lambda: wsiad.export_tiles(store=store, out=tmp_path / "tiles", quiet=True),
        lambda: wsiad.embed(
            store=store, detector="knn", options={"places": 1}, weights="random", quiet=True
        ),
        lambda: wsiad.TileDataset(store, batch=4),
    ]
    for read in readers:
        caplog.clear()
        tile_store._warn_of_lost_rows.cache_clear()  # as in a process of its own
        read()
        assert [record.message for record in caplog.records].count(said) == 1
    tile(tmp_path)
    caplog.clear()
    assert TileStore(store).names() == ["s0", "s2", "t0"]
    status = job_status(store)
    assert (status.done, status.left, status.broken, status.notes) == (3, (), (), ())
    assert not caplog.text


def test_no_features_of_a_store_where_all_failed_is_an_error(store, tmp_path, capsys):
    table = store / "slides.csv"
    table.write_text(table.read_text().replace(",ok,,", ",failed,broken,"))
    said = (
        r"holds no tiles \(s0: failed: broken; s1: failed: .*; s2: failed: broken …\). "
        r"Tile slides with tissue; its slides.csv says why these have no tiles"
    )
    run = make_run(tmp_path / "run", tissue=PLAIN["tissue"])
    with pytest.raises(InputError, match=said):
        wsiad.embed(store=store, weights="random", quiet=True)
    with pytest.raises(InputError, match=said):
        wsiad.score_tiles(run=run, store=store, out=tmp_path / "none", quiet=True)
    with pytest.raises(InputError, match=said):
        wsiad.export_tiles(store=store, out=tmp_path / "none", quiet=True)
    with pytest.raises(InputError, match=r"\(5 status failed; s0: failed: broken; s1: "):
        wsiad.suggest(source=store, run=run, out=tmp_path / "none", quiet=True)
    with pytest.raises(InputError, match=r"no tiles to draw from \(s0: failed: broken; s1: "):
        wsiad.TileDataset(store)
    assert main(["embed", str(store), "--weights", "random"]) == 1
    assert not (store / "features").exists()
