"""`wsiad heatmap` end to end: geometry, both sources, resume, bad input."""

import csv
import errno
import gzip
import json

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from skimage import measure

import wsiad
from support.broken_slides import corrupt_tiff
from support.builders import stained, write_scn, write_tiff
from support.runs import Channel, make_run, use_channel
from support.scored_slides import read_heatmap, score
from wsiad.annotations import read_annotations
from wsiad.cli import main
from wsiad.core.errors import (
    ConfigError,
    InputError,
    RunError,
    StoreMismatchError,
    WeightsError,
)
from wsiad.heatmaps.windows import from_store, store_grid
from wsiad.results import scoring, scoring_inputs
from wsiad.runs.run import RunFolder
from wsiad.store.tile_store import TileStore
from wsiad.tissue.tissue_options import QualityThresholds


@pytest.fixture(autouse=True)
def _channel(monkeypatch):
    use_channel(monkeypatch)


def gradient(height, width, *, step=4.0):
    """Red says x, green says y; blue keeps it saturated, so that all of it is tissue."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = np.stack([BASE + x / step, BASE + y / step, np.full_like(x, 0)], axis=-1)
    return np.clip(image, 0, 255).round().astype(np.uint8)


BASE = 30  # darker would be taken for the black around a scan


def told(score, step=4.0):
    """Level-0 position of the centre of what has this mean colour."""
    return (score - BASE) * step + 0.5


def centre_of_windows(cells, size, stride):
    """Where the mean position of the windows over each cell lies, in target pixels.

    Brute force: paint every window into a target-pixel canvas and average.
    """
    starts = np.arange((cells - size) // stride + 1) * stride
    total, count = np.zeros(cells), np.zeros(cells)
    for start in starts:
        total[start : start + size] += start + size / 2
        count[start : start + size] += 1
    pixels = int(np.ceil((starts[-1] + size) / stride))
    out = []
    for cell in range(pixels):
        part = slice(cell * stride, min((cell + 1) * stride, cells))
        covered = count[part] > 0
        out.append(total[part][covered].sum() / count[part][covered].sum())
    return np.array(out)


@pytest.mark.parametrize(
    ("size", "stride", "mpp"), [(32, 32, 0.5), (32, 16, 0.5), (40, 24, 0.5), (32, 20, 0.61)]
)
def test_a_pixel_lies_over_the_tissue_that_it_scored(tmp_path, size, stride, mpp):
    """Odd sizes, strides that do not divide, resampling: within half a level-0 pixel."""
    path = write_tiff(tmp_path / "g.tif", gradient(613, 857), mpp=0.5, levels=2)
    found = {}
    for channel in (0, 1):
        run = make_run(tmp_path / f"run{channel}", size=size, mpp=mpp, channel=channel)
        out = tmp_path / f"out{channel}"
        assert not score(run, path, out, stride=stride).failed
        found[channel], place = read_heatmap(out / "g")
    factor = 1.0 if mpp == 0.5 else mpp / 0.5
    assert place.scale_x == pytest.approx(stride * factor)
    for channel, length in ((0, 857), (1, 613)):
        target = int(length / factor + 1e-6)
        expected = centre_of_windows(target, size, stride) * factor  # level-0 pixels
        scores = found[channel] if channel == 0 else found[channel].T
        assert scores.shape[1] == len(expected)
        seen = told(np.nanmean(scores, axis=0))
        np.testing.assert_allclose(seen, expected, atol=0.5)


def test_a_slide_with_bounds(tmp_path):
    """The heatmap lies in level-0 pixels, QuPath's objects in pixels from the bounds' corner."""
    path = write_scn(
        tmp_path / "b.scn",
        gradient(517, 701),
        mpp=0.5,
        offset_px=(333, 211),
        collection_px=(2000, 3000),
    )
    for channel, corner, axis in ((0, 333, 0), (1, 211, 1)):
        run = make_run(tmp_path / f"run{channel}", channel=channel)
        score(run, path, tmp_path / f"out{channel}")
        scores, place = read_heatmap(tmp_path / f"out{channel}" / "b")
        assert (place.x, place.y) == (333, 211)
        seen = told(np.nanmean(scores, axis=axis))
        expected = np.arange(len(seen)) * 32 + 16  # from the corner of the scanned area
        assert np.abs(seen[1:] - expected[1:]).max() <= 4  # JPEG, not geometry
        assert np.abs(seen[1:] - expected[1:]).mean() <= 1
        windows = np.load(tmp_path / f"out{channel}" / "b" / "windows.npy")
        start = windows["xy"[axis]] if channel == 0 else windows["y"]
        assert np.abs(told(windows["score"]) - (start + 16 - corner)).mean() < 1
    facts = json.loads((tmp_path / "out0" / "b" / "heatmap.json").read_text())
    assert facts["qupath_rectangle"]["x"] == 0
    with gzip.open(tmp_path / "out0" / "b" / "tiles.geojson.gz") as file:
        features = json.load(file)["features"]
    ring = np.array([f["geometry"]["coordinates"][0][0] for f in features])
    assert ring.min() == 0
    assert ring[:, 0].max() < 701


def test_places_make_a_finer_heatmap(tmp_path):
    path = write_tiff(tmp_path / "g.tif", gradient(320, 480), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run", places=4)
    score(run, path, tmp_path / "out", detail="place")
    scores, place = read_heatmap(tmp_path / "out" / "g")
    assert (place.scale_x, scores.shape) == (8, (40, 60))
    expected = np.arange(60) * 8 + 4
    np.testing.assert_allclose(told(np.nanmean(scores, axis=0)), expected, atol=0.5)


@pytest.mark.parametrize("suppression", ["regions-max", "regions-mean"])
def test_detections_may_be_the_centres_of_regions(tmp_path, suppression):
    image = stained(400, 520, glass=40)
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=2)
    run = make_run(tmp_path / "run")
    result = score(
        run, path, tmp_path / "out", suppression=suppression, detection_quantile=0.9, stride=16
    )
    scores, place = read_heatmap(tmp_path / "out/s")
    above = scores > RunFolder.open(run).calibration().quantile(0.9)
    regions = measure.label(above, connectivity=2)
    with (tmp_path / "out/s/detections.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == result.rows[0].detections == regions.max() >= 1
    hit = {
        regions[tuple(int(i) for i in place.from_level0(float(d["x"]), float(d["y"])))[::-1]]
        for d in found
    }
    assert hit == set(range(1, regions.max() + 1))


def test_everything_is_written_and_fits_together(tmp_path):
    image = stained(400, 520, glass=40)
    image[160:224, 256:320] = (252, 120, 200)  # the strangest place, by its red
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=2)
    run = make_run(tmp_path / "run")
    result = score(run, path, tmp_path / "out", suppression_radius_um=20.0)
    (row,) = result.rows
    folder = tmp_path / "out" / "s"
    assert {p.name for p in folder.iterdir()} == {
        "annotations.xml", "detections.csv", "evidence", "evidence.json", "heatmap.json",
        "heatmap.ome.tif", "heatmap.ome.zarr", "heatmap.png", "left_out.npy", "lesions.geojson",
        "not_assessed.geojson", "overlay.png", "overlay_plain.png", "overview.jpg", "regions",
        "regions.csv",
        "regions.json", "s_likelihood_map.tif", "slide.json", "thumbnail.jpg",
        "tiles.geojson.gz", "tissue.png", "windows.npy",
    }  # fmt: skip
    scores, place = read_heatmap(folder)
    assert row.score_max == pytest.approx(np.nanmax(scores))
    top = np.sort(scores[np.isfinite(scores)])[-10:].mean()
    assert row.score_top_k_mean == pytest.approx(top)
    with (folder / "detections.csv").open() as file:
        first = next(csv.DictReader(file))
    assert 256 <= float(first["x"]) <= 320
    assert 160 <= float(first["y"]) <= 224
    assert row.tiles == len(np.load(folder / "windows.npy"))
    lesions = json.loads((folder / "lesions.geojson").read_text())["features"]
    assert len(lesions) == row.regions > 0
    with (tmp_path / "out" / "slides.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table[0]["status"] == "ok"
    assert float(table[0]["score_max"]) == pytest.approx(row.score_max)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert place.x == 0


def test_a_store_gives_what_its_slide_gives(tmp_path):
    """Without overlap, and where tiles hold several windows, as the lattices agree."""
    path = write_tiff(tmp_path / "s.tif", stained(400, 600), mpp=0.5, levels=1)
    tissue, none = {"min_area_um2": 0, "smooth_um": 0}, {"method": "none"}
    run = make_run(tmp_path / "run", min_coverage=0.5, tissue=tissue)
    wsiad.tile(slides=path, out=tmp_path / "store", mpp=0.5, tile=96, tissue=tissue, stain=none,
               quiet=True)  # fmt: skip
    score(run, path, tmp_path / "direct")
    result = score(run, tmp_path / "store", tmp_path / "stored")
    assert not result.failed
    direct, place = read_heatmap(tmp_path / "direct" / "s")
    stored, there = read_heatmap(tmp_path / "stored" / "s")
    assert there == place
    height, width = stored.shape
    both = np.isfinite(stored)
    assert both.sum() > 100
    np.testing.assert_allclose(stored[both], direct[:height, :width][both], atol=1e-4)


@pytest.mark.parametrize(("tile", "step", "size", "stride"), [(96, 96, 64, 32), (64, 32, 32, 16)])
def test_windows_of_a_store_are_its_pixels_each_once(tmp_path, tile, step, size, stride):
    image = stained(300, 420)
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=1)
    tissue = {"min_area_um2": 0, "smooth_um": 0}
    wsiad.tile(slides=path, out=tmp_path / "store", mpp=0.5, tile=tile, stride=step,
               tissue=tissue, stain={"method": "none"}, quiet=True)  # fmt: skip
    slide = TileStore(tmp_path / "store").slide("s")
    spec = make_spec(size)
    grid = store_grid(slide, spec, stride)
    seen = set()
    for batch in from_store(slide, grid, thresholds=QualityThresholds()):
        boxes = grid.boxes(batch.rows, batch.columns).astype(int)
        for (x, y, w, h), pixels in zip(boxes, batch.pixels, strict=True):
            np.testing.assert_array_equal(pixels, image[y : y + h, x : x + w])
            assert (x, y) not in seen
            seen.add((x, y))
    expected = {
        (x0 + dx, y0 + dy)
        for x0, y0 in slide.column("position").astype(int).tolist()
        for dx in range(0, tile - size + 1, stride)
        for dy in range(0, tile - size + 1, stride)
    }
    assert seen == expected
    with pytest.raises(StoreMismatchError, match="does not divide"):
        store_grid(slide, spec, 7)
    with pytest.raises(StoreMismatchError, match="are smaller than"):
        store_grid(slide, make_spec(128), None)


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_a_stride_that_no_slide_can_be_scored_with_is_refused_at_once(tmp_path, extra, capsys):
    """Nothing is written, so that the corrected command finds the folder free."""
    path = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run, store, out = make_run(tmp_path / "run"), tmp_path / "store", tmp_path / "out"
    wsiad.tile(slides=path, out=store, mpp=0.5, tile=96, stain={"method": "none"}, quiet=True,
               tissue={"min_area_um2": 0, "smooth_um": 0, "remove_pen": False})  # fmt: skip
    before = sorted(tmp_path.rglob("*"))

    def said(slides, stride):
        code = main(["heatmap", str(run), str(slides), "--out", str(out), "--stride", str(stride),
                     *extra])  # fmt: skip
        return code, capsys.readouterr().err

    for slides, stride in ((path, 33), (path, 500), (store, 48)):
        code, text = said(slides, stride)
        assert code == 1
        assert text == (
            f"wsiad heatmap: stride: {stride} px is more than the 32 px of a window: tissue "
            "between windows would not be looked at. Set --stride to 32 or less.\n"
        )
    code, text = said(store, 20)
    assert code == 1
    assert text == (
        f"wsiad heatmap: stride: 20 px does not divide the 96 px from tile to tile of {store}. "
        "Set --stride to 16 or another divisor, or pass the slides themselves.\n"
    )
    assert sorted(tmp_path.rglob("*")) == before
    assert said(store, 16)[0] == 0
    assert said(path, 16)[0] == 0


def make_spec(size):
    from wsiad.learning.detector import InputSpec

    return InputSpec(size, 0.5)


def test_store_of_another_scale_is_refused(tmp_path):
    path = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    wsiad.tile(slides=path, out=tmp_path / "store", mpp=1.0, tile=32, stain={"method": "none"},
               quiet=True)  # fmt: skip
    run = make_run(tmp_path / "run", tissue={})
    with pytest.raises(
        StoreMismatchError, match=r"another mpp.*1\.0 in the store, 0\.5 in the run"
    ):
        score(run, tmp_path / "store", tmp_path / "out")


def test_bad_slides_are_reported_and_the_others_go_on(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_tiff(folder / "good.tif", stained(200, 200), mpp=0.5, levels=1)
    write_tiff(folder / "glass.tif", np.full((200, 200, 3), 243, np.uint8), mpp=0.5, levels=1)
    write_tiff(folder / "coarse.tif", stained(200, 200), mpp=2.0, levels=1)
    write_tiff(folder / "tiny.tif", stained(20, 20), mpp=0.5, levels=1)
    corrupt_tiff(folder, stained(400, 400))
    (folder / "text.svs").write_text("no")
    result = score(make_run(tmp_path / "run"), folder, tmp_path / "out")
    assert {row.slide: row.status for row in result.rows} == {
        "good": "ok", "glass": "no-tissue", "tiny": "unusable", "coarse": "failed",
        "corrupt": "failed", "text": "failed",
    }  # fmt: skip
    assert {row.slide for row in result.failed} == {"coarse", "corrupt", "text"}
    assert [row.slide for row in result.unusable] == ["tiny"]
    assert not (tmp_path / "out" / "corrupt").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "cannot be decoded" in page


def test_where_nothing_was_scored_nothing_is_named_that_could_be_looked_at(tmp_path, capsys):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    write_tiff(folder / "glass.tif", np.full((200, 200, 3), 243, np.uint8), mpp=0.5, levels=1)
    command = ["heatmap", str(make_run(tmp_path / "run")), str(folder), "--out", str(out)]
    assert main(command) == 0
    said = f"0 of 1 slide scored; 1 without tissue; see {out / 'report.html'}"
    assert capsys.readouterr().out.splitlines() == [said]
    (folder / "text.svs").write_text("no")
    assert main(command) == 1
    assert "1 without tissue; 1 failed; see" in (lines := capsys.readouterr().out)
    assert "QuPath" not in lines
    # With a slide that was scored there is something to look at, also where others failed.
    write_tiff(folder / "good.tif", stained(200, 200), mpp=0.5, levels=1)
    assert main(command) == 1
    project = out / "qupath" / "project.qpproj"
    assert f"; open {project} in QuPath" in capsys.readouterr().out
    (folder / "text.svs").unlink()
    assert main([*command[:2], str(folder / "good.tif"), *command[3:]]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: wsiad view {out}"


def test_a_slide_with_the_name_of_what_all_results_have_is_a_row(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("good", "slides.csv", "run.json", "report.html", "truth.json", "reviews"):
        write_tiff(folder / f"{name}.tif", stained(200, 200), mpp=0.5, levels=1)
    result = score(make_run(tmp_path / "run"), folder, tmp_path / "out")
    assert [row.slide for row in result.rows if row.status == "ok"] == ["good"]
    assert len(result.failed) == 5
    assert all("that all results have. Rename it" in row.reason for row in result.failed)
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "out" / "reviews").exists()


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("wsiad.exports.qupath.objects.write_tiles", full)
    result = score(run, path, tmp_path / "out")
    assert "the disk is full" in result.failed[0].reason
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == ["qupath"]
    monkeypatch.undo()
    use_channel(monkeypatch)
    assert not score(run, path, tmp_path / "out").failed


def test_results_are_resumed_and_not_mixed(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    first = score(run, path, tmp_path / "out")
    monkeypatch.setattr("wsiad.results.scoring.score_slide", None)
    again = score(run, path, tmp_path / "out")
    assert again.rows == first.rows
    with pytest.raises(InputError, match="another run or of other options"):
        score(run, path, tmp_path / "out", stride=16)
    with pytest.raises(InputError, match="another run or of other options"):
        score(make_run(tmp_path / "other", channel=1), path, tmp_path / "out")
    whole = path.read_bytes()
    path.write_bytes(b"")
    stub = score(run, path, tmp_path / "out").failed[0].reason
    assert stub.startswith(f"has results, but {path} is empty (0 bytes)")
    assert "takes its results as they are" in stub
    assert [row.status for row in wsiad.export(results=tmp_path / "out", quiet=True).rows] == ["ok"]
    assert "delete" not in stub
    (tmp_path / "m.csv").write_text("slide\ns.tif\n")
    path.unlink()
    away = score(run, tmp_path / "m.csv", tmp_path / "out").failed[0].reason
    assert away.startswith(f"has results, but there is no file {path} now. Put it back")
    assert away.endswith("which takes its results as they are; so does wsiad export, without it.")
    (kept,) = wsiad.export(results=tmp_path / "out", quiet=True).rows
    assert (kept.status, kept.score_max) == ("ok", first.rows[0].score_max)
    assert not wsiad.Results(tmp_path / "out").slides[0].reason
    path.write_bytes(whole)
    assert score(run, path, tmp_path / "out").rows == first.rows
    write_tiff(path, stained(200, 200, seed=5), mpp=0.5, levels=1)
    changed = score(run, path, tmp_path / "out")
    assert "another file of this name" in changed.failed[0].reason


def test_a_call_that_does_nothing_leaves_the_time_of_those_that_worked(tmp_path):
    (tmp_path / "slides").mkdir()
    for name in "ab":
        write_tiff(tmp_path / "slides" / f"{name}.tif", stained(128, 160), mpp=0.5, levels=1)
    run, out = make_run(tmp_path / "run"), tmp_path / "results"

    def stated(seconds=None):
        record = json.loads((out / "timings.json").read_text())
        if seconds is not None:
            record["seconds"]["heatmap"] = seconds
            (out / "timings.json").write_text(json.dumps(record))
        return record["seconds"]["heatmap"]

    score(run, tmp_path / "slides" / "a.tif", out)
    stated(3600.0)
    score(run, tmp_path / "slides" / "a.tif", out)
    assert stated() == 3600.0
    score(run, tmp_path / "slides", out)  # one of two is new
    assert stated() > 3600.0


DAMAGE = {
    "no digest": lambda facts: json.dumps({**facts, "digest": None}),
    "no detector": lambda facts: json.dumps({**facts, "detector": None}),
    "cut off": lambda facts: json.dumps(facts)[:200],
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_of_results_is_written_anew_from_what_the_slides_say(
    tmp_path, monkeypatch, caplog, damage
):
    run = make_run(tmp_path / "run")
    slide = write_tiff(tmp_path / "a.tif", stained(128, 160), mpp=0.5, levels=1)
    score(run, slide, tmp_path / "results")
    record = tmp_path / "results" / "run.json"
    whole = json.loads(record.read_text())

    def spoil():
        if DAMAGE[damage] is None:
            record.unlink()
        else:
            record.write_text(DAMAGE[damage](whole))

    spoil()
    with pytest.raises(InputError, match=r"run\.json.*wsiad heatmap|does not hold results"):
        _ = wsiad.Results(tmp_path / "results").facts
    monkeypatch.setattr(scoring, "score_slide", None)  # scores are there already
    assert score(run, slide, tmp_path / "results").rows[0].status == "ok"
    assert json.loads(record.read_text())["digest"] == whole["digest"]
    assert wsiad.Results(tmp_path / "results").facts["run"] == whole["run"]
    assert damage == "gone" or "it is written anew" in caplog.text
    # The scores of another run are not taken for those of this one, and stay.
    spoil()
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    other = make_run(tmp_path / "other", channel=1)
    with pytest.raises(InputError, match=r"Set another --out") as error:
        score(other, slide, tmp_path / "results")
    assert "wsiad heatmap again" not in str(error.value)
    assert all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.slow
def test_two_workers_give_what_one_does(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(2):
        write_tiff(folder / f"s{number}.tif", stained(144, 144, seed=number), mpp=0.5, levels=1)
    # Workers are new processes, which know of real detectors only.
    tissue = {"min_area_um2": 0, "smooth_um": 0}
    wsiad.tile(slides=folder, out=tmp_path / "store", mpp=0.5, tile=48, tissue=tissue, quiet=True)
    wsiad.train(store=tmp_path / "store", out=tmp_path / "run", detector="gaussian",
                weights="random", quiet=True)  # fmt: skip
    for name, workers in (("one", 1), ("two", 2)):
        assert not score(tmp_path / "run", folder, tmp_path / name, workers=workers).failed
    for slide in ("s0", "s1"):
        for file in ("windows.npy", "heatmap.ome.tif", "tiles.geojson.gz", "detections.csv"):
            one, two = (tmp_path / name / slide / file for name in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_incomplete_run(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="not complete"):
        score(tmp_path / "run", tmp_path, tmp_path / "out")


def spotted(height, width, *spots):
    """Calm to a run that looks at red, but for spots (left, top, right, bottom)."""
    image = np.full((height, width, 3), (60, 20, 140), np.uint8)
    for left, top, right, bottom in spots:
        image[top:bottom, left:right] = (250, 90, 200)
    return image


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_detector_cannot_be_loaded_is_refused_once(
    tmp_path, capsys, caplog, monkeypatch, workers
):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "ab":
        write_tiff(folder / f"{name}.tif", stained(200, 200), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    score(run, folder, tmp_path / "done")
    assert "regions come from single windows" in caplog.text
    caplog.clear()

    def gone(self, *_args, **_values):
        raise WeightsError("the run does not hold the weights of uni", remedy="Put them there.")

    monkeypatch.setattr(Channel, "load_state", gone)
    scoring.load_once.cache_clear()
    given = ["heatmap", str(run), str(folder), "--workers", str(workers), "--quiet", "--out"]
    assert main([*given, str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("does not hold the weights of uni. Put them there.") == 1
    assert "single windows" not in error + caplog.text  # of results that there will not be
    assert not (tmp_path / "out").exists()
    again = score(run, folder, tmp_path / "done")  # there is nothing left to score
    assert [row.status for row in again.rows] == ["ok", "ok"]


def test_weights_that_vanish_meanwhile_fail_slide_by_slide(tmp_path, monkeypatch):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "ab":
        write_tiff(folder / f"{name}.tif", stained(200, 200), mpp=0.5, levels=1)
    run, check = make_run(tmp_path / "run"), scoring_inputs.check_loads

    def then_gone(tasks, *, apart):
        check(tasks, apart=True)
        (run / "weights.safetensors").unlink()

    monkeypatch.setattr(scoring_inputs, "check_loads", then_gone)
    result = score(run, folder, tmp_path / "out")
    assert [row.status for row in result.rows] == ["failed", "failed"]
    assert all("weights.safetensors: cannot be read" in row.reason for row in result.rows)


def test_what_viewers_are_given_fits_the_heatmap(tmp_path):
    """One slide, cut off oddly and resampled, in the files of all three viewers."""
    image = spotted(413, 527, (200, 160, 320, 300), (40, 60, 110, 130))
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=2)
    run = make_run(tmp_path / "run", mpp=0.61)
    score(run, path, tmp_path / "out")
    folder = tmp_path / "out" / "s"
    scores, place = read_heatmap(folder)
    ours = zarr.open_group(folder / "heatmap.ome.zarr", mode="r")["0"][:]
    np.testing.assert_array_equal(ours, scores)
    likely = tifffile.imread(folder / "s_likelihood_map.tif")
    step = 527 // likely.shape[1]
    assert step == 413 // likely.shape[0]
    assert likely[230 // step, 260 // step] == likely.max() == 1
    assert likely[10 // step, 500 // step] < 0.3
    lesions = json.loads((folder / "lesions.geojson").read_text())["features"]
    back = read_annotations(folder / "annotations.xml")
    area = sum(shapely.geometry.shape(feature["geometry"]).area for feature in lesions)
    assert back.tumour().area == pytest.approx(area, rel=1e-3)
    measured = [feature["properties"]["measurements"] for feature in lesions]
    assert [m["wsiad: rank"] for m in measured] == [1, 2]
    tolerance = 0.75 * place.scale_x * 0.5
    assert all(0 <= m["wsiad: outline tolerance µm"] <= tolerance + 1e-9 for m in measured)


def test_regions_beyond_the_limit_are_counted(tmp_path, caplog):
    image = spotted(200, 260, *((x, 32, x + 32, 64) for x in (32, 96, 160)))
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    few, all_of_them = (
        score(run, path, tmp_path / name, region_limit=limit).rows[0]
        for name, limit in (("few", 1), ("all", 300))
    )
    assert all_of_them.regions == few.regions == 3
    assert (few.regions_left_out, all_of_them.regions_left_out) == (few.regions - 1, 0)
    assert f"weaker ones, only counted: {few.regions - 1}" in caplog.text
    assert f"{few.regions - 1} weaker regions are not outlined" in few.reason


def test_options_of_viewers(tmp_path):
    path = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    score(run, path, tmp_path / "out", viewers=("napari", "asap", "asap"))
    score(run, path, tmp_path / "out", viewers=("asap", "napari"))  # the same
    score(run, path, tmp_path / "out", viewers=())  # those that are there stay
    assert (tmp_path / "out" / "s" / "heatmap.ome.zarr").exists()
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["formats"] == ["asap", "napari"]
    with pytest.raises(ConfigError, match=r"'asp' is not a format .did you mean 'asap'"):
        score(run, path, tmp_path / "out", viewers=("asp",))
    score(run, path, tmp_path / "none", viewers=())
    assert not [p for p in (tmp_path / "none" / "s").iterdir() if "zarr" in p.name]
