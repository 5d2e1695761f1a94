"""Names of slides near the longest that a file system takes, through every output."""

import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from support.stores import PLAIN
from wsiad.core.errors import InputError
from wsiad.core.files import NAME_BYTES, atomic_file, checked_name
from wsiad.core.ownership import clear_leftovers, owner
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.slides.inputs import find_slides
from wsiad.slides.slide_table import read_table
from wsiad.store.tile_store import TileStore
from wsiad.verbs.tile import TileRow
from wsiad.verbs.view import ViewConfig, open_server

LONGEST = ["a" * NAME_BYTES, "ä" * (NAME_BYTES // 2), "組" * 66 + "bb", "𝌆" * 50]
TOO_LONG = ["a" * (NAME_BYTES + 1), "組" * 67, "b" * 251]


@pytest.mark.parametrize("name", LONGEST, ids=["ascii", "2 bytes", "3 bytes", "4 bytes"])
def test_the_longest_names_are_tiled_scored_and_written_for_every_viewer(
    tmp_path, monkeypatch, name
):
    use_channel(monkeypatch)
    (tmp_path / "slides").mkdir()
    write_tiff(tmp_path / "slides" / f"{name}.tif", stained(150, 170, seed=1, glass=16), levels=1)
    store, results = tmp_path / "store", tmp_path / "results"
    assert not wsiad.tile(slides=tmp_path / "slides", out=store, **PLAIN).failed
    assert TileStore(store).names() == [name]
    assert TileStore(store).overview(name).exists()
    run = make_run(tmp_path / "run")
    done = wsiad.heatmap(run=run, slides=tmp_path / "slides", out=results, quiet=True)
    assert not done.failed
    (row,) = read_table(results / "slides.csv", HeatmapRow)
    assert (row.slide, row.status) == (name, "ok")
    assert (results / name / f"{name}_likelihood_map.tif").exists()
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    wsiad.export_tiles(store=store, out=tmp_path / "tiles", quiet=True)


@pytest.mark.parametrize("name", TOO_LONG)
def test_longer_names_are_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be used.* at most 200 bytes \(it has 2\d\d\)"):
        checked_name(name)
    path = tmp_path / f"{name}.tif"
    path.touch()  # not a slide: it would fail otherwise if it was opened
    (slide,) = find_slides([path])
    assert "at most 200 bytes" in slide.problem


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "組" * 83 + ".gz", "short.geojson.gz"])
def test_a_partial_file_keeps_its_suffix_within_the_file_systems_limit(tmp_path, name):
    with atomic_file(tmp_path / name) as partial:
        assert len(partial.name.encode()) <= 255
        assert partial.suffix == (tmp_path / name).suffix
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    dead = f"{owner()[:8]}-{2**22 + 1}-1-01234567"
    (tmp_path / f".{dead}.partial.{name[-60:]}").touch()
    assert clear_leftovers(tmp_path) == 1


def test_a_manifests_name_that_no_file_system_takes_is_a_row(tmp_path):
    write_tiff(tmp_path / "a.tif", stained(150, 170, seed=1, glass=16), levels=1)
    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"slide\na.tif\n{'x' * 300}.tif\n")
    store = tmp_path / "store"
    wsiad.tile(slides=[manifest], out=store, **PLAIN)
    rows = {row.slide[0]: row for row in read_table(store / "slides.csv", TileRow)}
    assert {name: row.status for name, row in rows.items()} == {"a": "ok", "x": "failed"}
    assert "at most 200 bytes (it has 300)" in rows["x"].reason


def test_the_viewer_shows_results_of_which_a_slide_failed_for_its_name(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    (tmp_path / "slides").mkdir()
    for name in ("a", "y" * 210):
        image = stained(150, 170, seed=1, glass=16)
        write_tiff(tmp_path / "slides" / f"{name}.tif", image, levels=1)
    run = make_run(tmp_path / "run")
    wsiad.heatmap(run=run, slides=tmp_path / "slides", out=tmp_path / "results", quiet=True)
    server = open_server(ViewConfig(results=tmp_path / "results", browser=False))
    server.server_close()


def test_results_of_which_a_slide_failed_for_its_name_are_evaluated(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate(["a", "b", "組" * 67]):
        path = tmp_path / "slides" / f"{name}.tif"
        write_tiff(path, stained(150, 170, seed=seed, glass=16), levels=1)
    results, reference = tmp_path / "results", tmp_path / "reference.csv"
    run = make_run(tmp_path / "run")
    done = wsiad.heatmap(run=run, slides=tmp_path / "slides", out=results, quiet=True)
    assert [row.status for row in done.rows] == ["ok", "ok", "failed"]
    reference.write_text(f"image,type\na,Normal\nb,Tumor\n{'組' * 67},Tumor\n", encoding="utf-8")
    (tmp_path / "outlines").mkdir()
    judged = wsiad.evaluate(
        results=results, reference=reference, annotations=tmp_path / "outlines",
        exclude_from_froc=["b"], out=tmp_path / "evaluation", quiet=True,
    )  # fmt: skip
    assert judged.figures.counts["slides"] == 2
    assert judged.figures.counts["slides_without_score"] == 1
