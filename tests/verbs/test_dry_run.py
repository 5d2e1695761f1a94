"""`wsiad tile --dry-run` and `wsiad heatmap --dry-run`: what they say, and that it comes true."""

import json

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from wsiad.cli import main
from wsiad.store import slide_preview
from wsiad.store.slide_preview import Preview, PreviewRow, Sample

TILING = {"mpp": 0.5, "tile": 64, "tissue": {"min_area_um2": 0}, "quiet": True}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides with tissue, one of glass, one without a scale, one that is no slide."""
    folder = tmp_path_factory.mktemp("slides")
    for name, edge in (("a", 600), ("b", 500)):
        write_tiff(folder / f"{name}.tif", stained(edge, edge), mpp=0.5, levels=2)
    write_tiff(folder / "glass.tif", np.full((400, 400, 3), 244, np.uint8), mpp=0.5, levels=1)
    write_tiff(folder / "no_scale.tif", stained(300, 300), mpp=None, levels=1)
    (folder / "text.svs").write_text("no slide")
    return folder


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def seen(slides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    found = wsiad.tile(slides=slides, out=folder / "store", dry_run=True, **TILING)
    assert contents(folder) == []  # nothing is written
    return found


@pytest.fixture(scope="module")
def store(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "store"
    return wsiad.tile(slides=slides, out=out, **TILING)


def test_tiles_of_the_dry_run_are_those_that_tile_makes(seen, store):
    said = {row.slide: row for row in seen.preview.rows}
    made = {row.slide: row for row in store.rows}
    assert {name: row.status for name, row in said.items()} == {
        name: row.status for name, row in made.items()
    }
    assert said["a"].tiles == made["a"].tiles > 0
    assert said["b"].tiles == made["b"].tiles > 0
    for name in ("a", "b"):
        one, other = said[name], made[name]
        assert (one.mpp_x, one.width, one.height) == (other.mpp_x, other.width, other.height)
        assert one.tissue_share == pytest.approx(other.tissue_share, abs=1e-4)
        assert one.backend == other.backend
        assert (one.format, one.mpp_source) == ("generic-tiff", "openslide.mpp-x")
    for name in ("no_scale", "text"):
        assert said[name].reason == made[name].reason
    assert seen.exit_code == 1


def test_bytes_are_near_those_that_tile_writes(seen, store):
    total = sum(row.bytes or 0 for row in seen.preview.rows)
    files = [p for p in (store.store / "slides.zarr").rglob("*") if "tiles" in p.parts]
    written = sum(path.stat().st_size for path in files if path.is_file())
    assert total == pytest.approx(written, rel=0.25)


def test_what_is_done_is_known(slides, store):
    again = wsiad.tile(slides=slides, out=store.store, dry_run=True, limit=3, **TILING).preview
    assert [(row.slide, row.status) for row in again.rows] == [
        ("a", "done"), ("b", "done"), ("glass", "done"),
    ]  # fmt: skip
    assert again.exit_code == 0


def test_another_configuration_is_refused_before_anything_is_read(slides, store):
    with pytest.raises(wsiad.core.errors.StoreMismatchError, match="another configuration"):
        wsiad.tile(slides=slides, out=store.store, dry_run=True, **{**TILING, "tile": 32})


def test_limit_takes_the_first_slides_by_name(slides, tmp_path):
    made = wsiad.tile(slides=slides, out=tmp_path / "store", limit=1, **TILING)
    assert [row.slide for row in made.rows] == ["a"]


@pytest.mark.parametrize("verb", ["tile", "heatmap"])
def test_names_and_a_number_of_slides_are_two_choices(slides, tmp_path, verb, capsys):
    """Slide b is there, beyond the first: no error may say that it is not."""
    words = [
        verb,
        *(["run"] if verb == "heatmap" else []),
        str(slides),
        "--out",
        str(tmp_path / "o"),
    ]
    words += ["--mpp", "0.5", "--tile", "64"] if verb == "tile" else []
    assert main([*words, "--only", "b", "--limit", "1"]) == 2
    said = capsys.readouterr().err
    assert "`only` names the slides to process, and `limit` takes the first by name" in said
    assert "no slide is named" not in said
    assert not (tmp_path / "o").exists()


def test_a_name_alone_is_found_wherever_it_stands(slides, tmp_path):
    made = wsiad.tile(slides=slides, out=tmp_path / "store", only=["b"], **TILING)
    assert [row.slide for row in made.rows] == ["b"]


def test_windows_of_the_dry_run_are_those_that_heatmap_scores(slides, store, tmp_path):
    run = wsiad.train(
        store=store.store, out=tmp_path / "run", detector="gaussian", weights="random",
        options={"places": 2}, quiet=True,
    ).run  # fmt: skip
    before = contents(tmp_path)
    given = {"run": run, "stride": 32, "quiet": True}
    said = wsiad.heatmap(slides=slides, out=tmp_path / "results", dry_run=True, **given)
    stored = wsiad.heatmap(slides=store.store, out=tmp_path / "more", dry_run=True, **given)
    assert contents(tmp_path) == before
    made = wsiad.heatmap(slides=slides, out=tmp_path / "results", **given)
    more = wsiad.heatmap(slides=store.store, out=tmp_path / "more", **given)
    for seen, done in ((said.preview, made), (stored.preview, more)):
        assert {row.slide: row.tiles for row in seen.rows if row.status == "ok"} == {
            row.slide: row.tiles for row in done.rows if row.status == "ok"
        }
    assert {row.slide for row in said.preview.problems} == {row.slide for row in made.failed}
    assert {row.slide: row.bytes for row in said.preview.rows if row.slide in "ab"} == {
        name: (slides / f"{name}.tif").stat().st_size for name in "ab"
    }


def test_the_table_fits_a_terminal_and_json_is_read_by_programs(slides, tmp_path, capsys):
    words = ["tile", str(slides), "--out", str(tmp_path / "o"), "--mpp", "0.5", "--tile", "64",
             "--tissue-min-area-um2", "0", "--dry-run", "--quiet"]  # fmt: skip
    assert main(words) == 1
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 80
    assert "2 of 5 slides to do, 1 without tissue, 2 will fail." in text
    assert "no_scale will fail: " in text
    assert "Nothing was written." in text
    assert "next:" not in text
    assert main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    rows = {row["slide"]: row for row in found["slides"]}
    assert found["total"]["tiles"] == rows["a"]["tiles"] + rows["b"]["tiles"]
    assert rows["text"]["status"] == "failed"
    assert not (tmp_path / "o").exists()
    assert main(["tile", str(slides), "--out", "o", "--mpp", "1", "--tile", "9", "--json"]) == 2
    assert "`json` is the form of `dry_run`" in capsys.readouterr().err


def preview(rows, **values):
    given = {"sample": Sample(), "noun": "tile", "workers": 1, "as_json": False}
    return Preview(rows=tuple(rows), out=values.pop("out"), **given | values)


def test_times_and_sizes_follow_from_the_sample(tmp_path):
    one = Sample(tiles=100, seconds=5.0, size=1_000, slides=1, plan_seconds=2.0)
    sample = one + Sample(tiles=100, seconds=15.0, size=3_000, slides=1, plan_seconds=4.0)
    row = sample.estimated(PreviewRow("a", "ok", tiles=1_000))
    assert (row.seconds, row.bytes) == (3 + 1_000 * 20 / 200, 1_000 * 4_000 // 200)
    done = sample.estimated(PreviewRow("b", "done", tiles=None))
    assert (done.seconds, done.bytes) == (0.0, None)
    assert preview([row, done], out=tmp_path, sample=sample, workers=2).seconds == 51.5
    assert preview([row], out=tmp_path).seconds is None  # nothing was measured


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_preview.shutil, "disk_usage", lambda _: type("", (), {"free": 9_999}))
    sample = Sample(tiles=10, seconds=1.0, size=100, slides=1, plan_seconds=1.0)
    for tiles, code in ((999, 0), (1_000, 1)):
        row = sample.estimated(PreviewRow("a", "ok", tiles=tiles))
        found = preview([row], out=tmp_path / "not" / "yet", sample=sample)
        assert found.exit_code == code
    assert "This will fail: the disk of" in found.summary
    assert "has 10 kB free" in found.summary


def test_names_cannot_write_on_the_terminal(tmp_path):
    row = PreviewRow("a\x1b[2J", "failed", "bad\nname")
    assert "\x1b" not in preview([row], out=tmp_path).summary
