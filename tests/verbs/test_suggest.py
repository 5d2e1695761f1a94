"""`wsiad suggest`: windows to label, from results and from stores, and their way back."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import wsiad
from support.builders import stained, write_tiff
from support.runs import Channel, make_run, use_channel
from support.scored_slides import score
from support.stores import content
from wsiad.cli import main
from wsiad.core.errors import ConfigError, DetectorError, InputError, StoreMismatchError
from wsiad.detectors import registry
from wsiad.runs.calibration import Calibration
from wsiad.runs.compatibility import check_prepared_alike, run_preparation
from wsiad.runs.run import RunFolder
from wsiad.slides.slide_table import SlideTable
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow

PX, ROWS, COLUMNS = 32, 10, 14
ODD = [(0, 1), (2, 12), (9, 0), (8, 9)]
LESION = [(4, 4), (4, 5), (5, 4), (5, 5), (6, 4), (6, 5), (7, 4), (7, 5)]


@pytest.fixture(autouse=True)
def _channel(monkeypatch):
    """Scores by red; features are the mean colour."""
    use_channel(monkeypatch)
    embed = lambda self, tiles: tiles.mean(axis=(1, 2)).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(Channel, "embed", embed, raising=False)


def image(seed, *, lesion=True):
    """Windows of red 100; odd ones of 250, each of another colour; a lesion of 230, all alike."""
    rng = np.random.default_rng(seed)
    red = rng.integers(95, 105, (ROWS, COLUMNS))
    green = rng.integers(60, 70, (ROWS, COLUMNS))
    for number, place in enumerate(ODD):
        red[place], green[place] = 250, 20 + 50 * number + 10 * seed
    for place in LESION if lesion else ():
        red[place], green[place] = 230 + rng.integers(0, 3), 64
    pixels = stained(PX * ROWS, PX * COLUMNS, seed=seed)
    for channel, values in ((0, red), (1, green)):
        pixels[..., channel] = np.kron(values, np.ones((PX, PX)))
    return pixels


@pytest.fixture
def run(tmp_path):
    """A run by whose healthy scores, 0 to 255, lesions are above the 90 % quantile."""
    run = make_run(tmp_path / "run", size=PX)
    healthy = np.linspace(0, 255, 1001, dtype=np.float32)
    RunFolder(run).write_calibration(Calibration.of(healthy, n_slides=3))
    return run


@pytest.fixture
def slides(tmp_path):
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate(("a", "b", "c", "d")):
        pixels = image(seed, lesion=name != "d")
        write_tiff(tmp_path / "slides" / f"{name}.tif", pixels, mpp=0.5, levels=1)
    return tmp_path / "slides"


@pytest.fixture
def results(run, slides, tmp_path):
    score(run, slides, tmp_path / "results", viewers=(), evidence_regions=0)
    return tmp_path / "results"


def suggest(source, out, **values):
    return wsiad.suggest(source=source, out=out, quiet=True, **values)


def table(out):
    with (out / "suggestions.csv").open() as file:
        return list(csv.DictReader(file))


def places(rows):
    """Row and column of each window."""
    return [(round(row.y / PX), round(row.x / PX)) for row in rows]


def test_what_many_windows_look_like_comes_before_what_is_odd(results, tmp_path):
    found = suggest(results, tmp_path / "out", count=6, candidates=40)
    assert len(found.rows) == 6
    assert not found.failed
    assert found.rows[0].slide in "abc"
    assert places(found.rows[:1])[0] in LESION
    highest = sorted((row for row in found.rows), key=lambda row: -row.score)
    assert places(highest[:1])[0] in ODD  # they are candidates, too
    assert "6 windows of" in found.summary
    assert f"--prepared-like {tmp_path / 'run'}" in found.summary


def test_images_table_and_geojson_are_of_the_same_windows(results, tmp_path):
    found = suggest(results, tmp_path / "out", count=8)
    rows = table(tmp_path / "out")
    assert [int(row["rank"]) for row in rows] == list(range(1, 9))
    assert {row["file"] for row in rows} == {
        p.name for p in (tmp_path / "out" / "unsure").iterdir()
    }
    for row, one in zip(rows, found.rows, strict=True):
        x, y = int(float(row["x"])), int(float(row["y"]))
        pixels = np.asarray(Image.open(tmp_path / "out" / "unsure" / row["file"]))
        expected = image("abcd".index(row["slide"]), lesion=row["slide"] != "d")
        np.testing.assert_array_equal(pixels, expected[y : y + PX, x : x + PX])
        assert float(row["score"]) == pytest.approx(pixels[..., 0].mean())
        assert (one.box, one.why, one.mpp) == ((x, y, PX, PX), "score", 0.5)
    shown = {}
    for path in (tmp_path / "out" / "qupath").iterdir():
        for feature in json.loads(path.read_text())["features"]:
            assert feature["properties"]["classification"]["name"] == "Unsure"
            assert feature["properties"]["isLocked"] is False
            ring = feature["geometry"]["coordinates"][0]
            corner = min(x for x, _ in ring), min(y for _, y in ring)
            assert max(x for x, _ in ring) - corner[0] == PX
            shown[feature["properties"]["measurements"]["wsiad: rank"]] = (path.stem, *corner)
    assert shown == {one.rank: (one.slide, one.x, one.y) for one in found.rows}
    record = json.loads((tmp_path / "out" / "suggestions.json").read_text())
    assert record["run"] == str(tmp_path / "run")
    assert record["candidates"] == {"score": 80}
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["count"] == 8
    assert not (tmp_path / "out" / ".candidates").exists()


def test_the_same_again_gives_the_same_bytes(results, tmp_path):
    for name in ("one", "two"):
        suggest(results, tmp_path / name, count=7)
        (tmp_path / name / "config.yaml").unlink()  # it states the folder
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_slide_has_its_share_and_healthy_ones_none(run, slides, tmp_path):
    manifest = tmp_path / "manifest.csv"
    labels = {"a": "normal", "b": "", "c": "tumor", "d": ""}
    lines = [f"{slides / name}.tif,{label}" for name, label in labels.items()]
    manifest.write_text("\n".join(["slide,label", *lines]) + "\n")
    score(run, manifest, tmp_path / "results", viewers=(), evidence_regions=0)
    found = suggest(tmp_path / "results", tmp_path / "out", count=9)
    counts = {name: sum(row.slide == name for row in found.rows) for name in "abcd"}
    assert counts == {"a": 0, "b": 3, "c": 3, "d": 3}
    few = suggest(tmp_path / "results", tmp_path / "few", count=9, per_slide=1)
    assert len(few.rows) == 3
    assert "3 of 9 windows of 3 slides" in few.summary
    record = json.loads((tmp_path / "out" / "suggestions.json").read_text())
    assert record["slides_without_candidates"] == {"labelled healthy": 1}


def test_overlapping_windows_are_not_suggested_twice(run, slides, tmp_path):
    score(run, slides, tmp_path / "results", viewers=(), evidence_regions=0, stride=8)
    found = suggest(tmp_path / "results", tmp_path / "out", count=20)
    assert len(found.rows) == 20
    for one in found.rows:
        for other in found.rows:
            if one.rank < other.rank and one.slide == other.slide:
                assert abs(one.x - other.x) >= PX or abs(one.y - other.y) >= PX


def test_known_windows_are_not_suggested_again(results, tmp_path):
    first = suggest(results, tmp_path / "first", count=5)
    second = suggest(results, tmp_path / "second", count=5, known=[tmp_path / "first"])
    third = suggest(
        results, tmp_path / "third", count=5, known=[tmp_path / "first", tmp_path / "second"]
    )
    seen = [(row.slide, row.x, row.y) for found in (first, second, third) for row in found.rows]
    assert len(set(seen)) == 15
    with pytest.raises(InputError, match=r"suggestions\.csv.*Pass a folder that wsiad suggest"):
        suggest(results, tmp_path / "fourth", known=[results])


def test_neighbourhoods_are_the_default_where_there_are_some(results, tmp_path):
    # A map that is high where no score is.
    wsiad_facts = json.loads((results / "run.json").read_text())
    for name in "abcd":
        scores = wsiad.Results(results).slide(name).scores()
        values = np.zeros_like(scores)
        values[0, -3:] = 5
        import tifffile

        tifffile.imwrite(results / name / "spatial.ome.tif", values)
    with pytest.raises(InputError, match=r"no map of neighbourhoods.*--scales-um 100 200,"):
        suggest(results, tmp_path / "none", by="neighbourhood")
    wsiad_facts["derived"]["scales_um"] = [100.0]
    (results / "run.json").write_text(json.dumps(wsiad_facts))
    found = suggest(results, tmp_path / "out", count=4, candidates=12, unsure=0)
    assert set(places(found.rows)) <= {(0, COLUMNS - n) for n in (1, 2, 3)}
    assert {(row.why, row.strength) for row in found.rows} == {("neighbourhood", 5.0)}
    other = suggest(results, tmp_path / "other", count=4, by="score")
    assert {row.why for row in other.rows} == {"score"}


def test_a_share_is_between_usual_and_strange(results, tmp_path):
    # The strangest four of each slide are the odd ones; the lesions have the 90 % quantile.
    found = suggest(results, tmp_path / "out", count=8, candidates=16, unsure=0.5, per_slide=4)
    assert [row.why for row in found.rows] == ["score"] * 4 + ["unsure"] * 4
    assert set(places(found.rows[:4])) <= set(ODD)
    assert set(places(found.rows[4:])) <= set(LESION)
    assert all(90 <= row.percentile < 99 for row in found.rows[4:])
    counts = [sum(row.slide == name for row in found.rows) for name in "abcd"]
    assert max(counts) <= 4
    record = json.loads((tmp_path / "out" / "suggestions.json").read_text())
    assert record["candidates"] == {"score": 16, "unsure": 12}


def test_sorted_images_come_back_as_labelled_tiles(results, run, tmp_path):
    found = suggest(results, tmp_path / "out", count=6)
    tumour = tmp_path / "out" / "tumor"
    tumour.mkdir()
    kept = [row for row in found.rows if places([row])[0] in LESION]
    for row in kept:
        (tmp_path / "out" / "unsure" / row.file).rename(tumour / row.file)
    wsiad.import_tiles(
        sources=tumour, out=tmp_path / "labelled", mpp=0.5, label="tumor", prepared_like=run,
        quiet=True,
    )  # fmt: skip
    store = TileStore(tmp_path / "labelled")
    check_prepared_alike(store, *run_preparation(run), keys=("mpp", "stain"))
    slide = store.slide("tumor")
    assert slide.source_names() == sorted(row.file for row in kept)
    np.testing.assert_array_equal(
        slide.tiles(0, 1)[0], np.asarray(Image.open(tumour / min(row.file for row in kept)))
    )


def test_a_folder_that_holds_something_is_left_alone(results, tmp_path):
    suggest(results, tmp_path / "out", count=2)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"may be sorted already.*--known"):
        suggest(results, tmp_path / "out", count=2)
    assert content(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="but a folder of wsiad suggest"):
        suggest(tmp_path / "out", tmp_path / "again")
    with pytest.raises(InputError, match="not an empty folder"):
        suggest(results, tmp_path / "mine", count=2)
    (tmp_path / "empty").mkdir()
    assert len(suggest(results, tmp_path / "empty", count=2).rows) == 2


def test_a_slide_that_cannot_be_read_again_is_reported(results, slides, tmp_path, capsys):
    (slides / "a.tif").unlink()
    shutil.copy(slides / "c.tif", slides / "b.tif")
    code = main(["suggest", str(results), "--out", str(tmp_path / "out"), "--quiet"])
    said = capsys.readouterr().err
    assert code == 1
    assert "is not available" in said
    assert "has changed since it was scored" in said
    assert {row["slide"] for row in table(tmp_path / "out")} == {"c", "d"}
    for name in "cd":
        (slides / f"{name}.tif").unlink()
    with pytest.raises(InputError, match="could be read again"):
        suggest(results, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_results_of_another_run_and_of_no_slide_are_refused(results, run, tmp_path):
    with pytest.raises(InputError, match="was not made by the run"):
        suggest(results, tmp_path / "out", run=make_run(tmp_path / "other", size=PX, channel=1))
    rows = (results / "slides.csv").read_text().replace(",ok,,", ",failed,is cut off,")
    (results / "slides.csv").write_text(rows)
    said = (
        r"no window to suggest \(4 status failed; a: failed: is cut off; b: failed: is cut off; "
        r"c: failed: is cut off …\)"
    )
    with pytest.raises(InputError, match=said):
        suggest(results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_of_results_is_named(results, tmp_path):
    path = results / "b" / "windows.npy"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"windows\.npy: is damaged"):
        suggest(results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_detector_without_features_is_refused(results, tmp_path, monkeypatch):
    bare = type("Bare", (Channel,), {"__annotations__": {}})
    monkeypatch.delattr(Channel, "embed")
    monkeypatch.setattr(registry, "load", lambda name: bare)
    with pytest.raises(DetectorError, match=r"no features.*knn"):
        suggest(results, tmp_path / "out")


def stored(slides, out, **values):
    wsiad.tile(**{
        "slides": slides, "out": out, "mpp": 0.5, "tile": PX, "stain": {"method": "none"},
        "tissue": {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False}, "quiet": True,
        **values})  # fmt: skip
    return out


def test_tiles_of_a_store(slides, run, tmp_path):
    store = stored(slides, tmp_path / "store")
    found = suggest(store, tmp_path / "out", run=run, count=6, candidates=40)
    assert places(found.rows[:1])[0] in LESION
    for row in found.rows:
        x, y = int(row.x), int(row.y)
        pixels = np.asarray(Image.open(tmp_path / "out" / "unsure" / row.file))
        expected = image("abcd".index(row.slide), lesion=row.slide != "d")
        np.testing.assert_array_equal(pixels, expected[y : y + PX, x : x + PX])
    more = suggest(store, tmp_path / "more", run=run, count=6, known=[tmp_path / "out"])
    boxes = [(row.slide, row.box) for row in (*found.rows, *more.rows)]
    assert len(set(boxes)) == 12


def test_imported_tiles_have_numbers_and_no_share_of_a_slide(run, tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    cut = image(0).reshape(ROWS, PX, COLUMNS, PX, 3).swapaxes(1, 2).reshape(-1, PX, PX, 3)
    for number, tile in enumerate(cut):
        Image.fromarray(tile).save(folder / f"{number:03d}.png")
    wsiad.import_tiles(sources=folder, out=tmp_path / "store", mpp=0.5, quiet=True)
    found = suggest(tmp_path / "store", tmp_path / "out", run=run, count=6)
    assert len(found.rows) == 6
    assert divmod(found.rows[0].number, COLUMNS) in LESION
    assert {row.box for row in found.rows} == {None}
    assert found.rows[0].file == f"001_loose_{found.rows[0].number}.png"
    assert not (tmp_path / "out" / "qupath").exists()
    more = suggest(tmp_path / "store", tmp_path / "more", run=run, count=6,
                   known=[tmp_path / "out"])  # fmt: skip
    assert len({row.number for row in (*found.rows, *more.rows)}) == 12


def test_a_store_needs_a_run_that_fits(slides, run, tmp_path):
    store = stored(slides, tmp_path / "store")
    with pytest.raises(ConfigError, match="Pass the run as --run"):
        suggest(store, tmp_path / "out")
    with pytest.raises(ConfigError, match="by their score"):
        suggest(store, tmp_path / "out", run=run, by="neighbourhood")
    with pytest.raises(StoreMismatchError, match="another mpp"):
        suggest(store, tmp_path / "out", run=make_run(tmp_path / "finer", size=PX, mpp=0.25))
    healthy = tmp_path / "healthy"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"slide,label\n{slides / 'a.tif'},normal\n")
    stored(manifest, healthy)
    with pytest.raises(InputError, match=r"no tile to suggest \(1 labelled healthy\)"):
        suggest(healthy, tmp_path / "out", run=run)
    table = SlideTable(healthy / "slides.csv", TileRow)
    table.put(TileRow("deep", "unusable", "16 bits"), TileRow("text", "failed", "is no slide"))
    said = (
        r"no tile to suggest \(1 labelled healthy, 1 status failed, 1 status unusable; "
        r"deep: unusable: 16 bits; text: failed: is no slide\)"
    )
    with pytest.raises(InputError, match=said):
        suggest(healthy, tmp_path / "out", run=run)
    assert not (tmp_path / "out").exists()
