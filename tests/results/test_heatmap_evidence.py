"""The evidence for regions: which window, read again, what is nearest to it, both sources."""

import json
import shutil

import numpy as np
import pytest
import shapely
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

import wsiad
from support.builders import ArraySlide, stained, write_tiff
from support.prepared_slides import prepared
from support.runs import make_run, use_channel
from support.scored_slides import score
from wsiad.core.errors import ExportError, RunError, SlideReadError
from wsiad.heatmaps.regions import Region, strongest_windows
from wsiad.heatmaps.score_map import WindowScores
from wsiad.heatmaps.window_batches import score_windows
from wsiad.heatmaps.windows import (
    from_plan,
    from_store,
    read_planned,
    read_stored,
    store_grid,
)
from wsiad.learning.detector import InputSpec
from wsiad.pictures.colour_scale import ColourScale
from wsiad.runs.examples import EXAMPLES
from wsiad.runs.run import RunFolder
from wsiad.store.tile_store import TileStore
from wsiad.tissue.tissue_options import QualityThresholds

TISSUE = {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False}
PREPARED = {"mpp": 0.5, "tissue": TISSUE, "stain": {"method": "none"}, "min_coverage": 0.5}
ODD = ((96, 160), (32, 32), (160, 64))  # row and column of windows of 32 px
KEYS = {"rank", "x", "y", "width", "height", "score", "percentile", "area_um2", "mpp", "tile",
        "nearest", "reconstruction", "difference"}  # fmt: skip
EASY = {"region_quantile": 0.9, "quiet": True}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    for number in range(4):
        write_tiff(folder / f"h{number}.tif", stained(160, 192, seed=number), levels=1)
    wsiad.tile(slides=folder, out=folder / "store", tile=32, quiet=True, **PREPARED)
    return folder / "store"


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide with three windows of stripes of different contrast."""
    image = stained(224, 288, seed=9)
    for (row, column), contrast in zip(ODD, (1, 0.9, 0.8), strict=True):
        image[row : row + 32, column : column + 32] = 200
        stripes = 200 - contrast * np.array([80, 170, 60])
        image[row : row + 32 : 4, column : column + 32] = stripes
    return write_tiff(tmp_path_factory.mktemp("slide") / "odd.tif", image, levels=1)


def fitted(healthy, out, name, **options):
    wsiad.train(store=healthy, out=out, detector=name, weights="random", options=options,
                quiet=True, healthy_examples=40)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def knn(healthy, tmp_path_factory):
    return fitted(healthy, tmp_path_factory.mktemp("knn") / "run", "knn", places=2)


@pytest.fixture(scope="module")
def dpa(healthy, tmp_path_factory):
    options = {"input_px": 32, "layers": {"relu1_2": 1.0}, "batch": 4, "max_steps": 4}
    return fitted(healthy, tmp_path_factory.mktemp("dpa") / "run", "dpa", **options)


def read(out, name="odd"):
    return json.loads((out / name / "evidence.json").read_text())


def test_evidence_is_of_the_regions_and_of_real_pixels(knn, slide, tmp_path):
    assert not wsiad.heatmap(run=knn, slides=slide, out=tmp_path, **EASY).failed
    found = read(tmp_path)
    assert found.keys() == {"format", "regions"}
    assert found["format"] == 1
    windows = np.load(tmp_path / "odd" / "windows.npy")
    lesions = json.loads((tmp_path / "odd" / "lesions.geojson").read_text())["features"]
    assert 1 < len(found["regions"]) <= 10
    assert len(found["regions"]) == min(10, len(lesions))
    image = np.asarray(Image.open(slide))
    for number, (region, lesion) in enumerate(zip(found["regions"], lesions, strict=False), 1):
        assert region.keys() == KEYS
        assert region["rank"] == number
        assert lesion["properties"]["name"] == f"wsiad {number}"
        measured = lesion["properties"]["measurements"]
        assert region["score"] == pytest.approx(measured["wsiad: max score"])
        assert region["percentile"] == pytest.approx(measured["wsiad: percentile"])
        assert region["area_um2"] == pytest.approx(measured["wsiad: area µm^2"])
        assert (region["width"], region["height"], region["mpp"]) == (32, 32, 0.5)
        same = (windows["x"] == region["x"]) & (windows["y"] == region["y"])
        assert windows["score"][same].tolist() == [region["score"]]
        x, y = int(region["x"]), int(region["y"])
        shown = np.asarray(Image.open(tmp_path / "odd" / region["tile"])).astype(int)
        assert np.abs(shown - image[y : y + 32, x : x + 32]).mean() < 5
        assert (region["reconstruction"], region["difference"]) == (None, None)
    assert {(region["y"], region["x"]) for region in found["regions"][:3]} == set(ODD)
    names = {r["tile"] for r in found["regions"]} | {
        n["tile"] for r in found["regions"] for n in r["nearest"]
    }
    there = {f"evidence/{p.name}" for p in (tmp_path / "odd" / "evidence").iterdir()}
    assert names == there
    assert "evidence/001_healthy_3.jpg" in names


def test_nearest_are_those_of_another_library(knn, slide, tmp_path):
    wsiad.heatmap(run=knn, slides=slide, out=tmp_path, evidence_neighbours=5, **EASY)
    run = RunFolder.open(knn)
    detector, examples = run.load_detector(torch.device("cpu")), run.examples()
    image = np.asarray(Image.open(slide))
    other = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(examples.embedding)
    for region in read(tmp_path)["regions"]:
        x, y = int(region["x"]), int(region["y"])
        vector = detector.embed(image[None, y : y + 32, x : x + 32])
        distances, indices = other.kneighbors(vector)
        nearest = region["nearest"]
        assert [n["slide"] for n in nearest] == [examples.slides[i] for i in indices[0]]
        np.testing.assert_allclose([n["distance"] for n in nearest], distances[0], rtol=1e-4)
        for entry, index in zip(nearest, indices[0], strict=True):
            assert [entry["x"], entry["y"]] == examples.positions[index].tolist()
            data = (tmp_path / "odd" / entry["tile"]).read_bytes()
            assert data == examples.pictures[index]


def test_reconstruction_and_difference_are_the_detectors_on_the_runs_scale(dpa, slide, tmp_path):
    wsiad.heatmap(run=dpa, slides=slide, out=tmp_path, evidence_regions=2, **EASY)
    run = RunFolder.open(dpa)
    detector, examples = run.load_detector(torch.device("cpu")), run.examples()
    scale = ColourScale.from_healthy(examples.difference)
    image = np.asarray(Image.open(slide))
    regions = read(tmp_path)["regions"]
    assert len(regions) == 2
    for region in regions:
        x, y = int(region["x"]), int(region["y"])
        pixels = image[None, y : y + 32, x : x + 32]
        assert detector.score(pixels)[0] == pytest.approx(region["score"], rel=1e-4)
        folder = tmp_path / "odd"
        made = np.asarray(Image.open(folder / region["reconstruction"])).astype(int)
        assert np.abs(made - detector.reconstruct(pixels)[0]).mean() < 5
        drawn = np.asarray(Image.open(folder / region["difference"]))
        difference = detector.difference(pixels)[0]
        places = 32 // len(difference)
        expected = np.kron(scale.rgba(difference)[..., :3], np.ones((places, places, 1), np.uint8))
        assert drawn.shape == (32, 32, 3)
        # Rounding may take a colour to the next of the map's 256.
        assert np.abs(drawn.astype(int) - expected).max() <= 8
        assert region["difference"] == f"evidence/{region['rank']:03d}_difference.png"


@pytest.mark.parametrize("name", ["knn", "dpa"])
def test_a_store_and_its_slide_give_the_same_evidence(name, slide, tmp_path, request):
    run = request.getfixturevalue(name)
    wsiad.tile(slides=slide, out=tmp_path / "store", tile=32, quiet=True, **PREPARED)
    for source, out in ((slide, "direct"), (tmp_path / "store", "stored"), (slide, "again")):
        result = wsiad.heatmap(run=run, slides=source, out=tmp_path / out, **EASY)
        assert not result.failed
    first = tmp_path / "direct" / "odd"
    for other in ("stored", "again"):
        there = tmp_path / other / "odd"
        assert (there / "evidence.json").read_bytes() == (first / "evidence.json").read_bytes()
        for path in sorted((first / "evidence").iterdir()):
            assert (there / "evidence" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("mpp", "stride"), [(0.5, 32), (0.5, 12), (0.61, 32), (0.77, 20)])
@pytest.mark.parametrize("method", ["none", "macenko"])
def test_planned_windows_are_read_again_to_the_same_pixels(mpp, stride, method):
    # More than one block, and windows at all borders.
    plan = prepared(ArraySlide(stained(600, 1700), levels=2), mpp=mpp, stride=stride,
                    min_coverage=0.5, stain={"method": method})  # fmt: skip
    parts = list(from_plan(plan))
    rows, columns, pixels = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("rows", "columns", "pixels")
    )
    corners = [
        np.flatnonzero((rows == r) & (columns == c))[0]
        for r in (rows.min(), rows.max())
        for c in (columns.min(), columns.max())
    ]
    asked = np.concatenate([corners, np.random.default_rng(0).permutation(len(rows))[:30]])
    again = np.stack(list(read_planned(plan, rows[asked], columns[asked])))
    np.testing.assert_array_equal(again, pixels[asked])
    assert len(parts) > 1


def test_a_window_that_is_gone_is_an_error():
    image = ArraySlide(stained(96, 96), valid=np.ones((96, 96), bool))
    plan = prepared(image)
    image.valid[:] = False
    with pytest.raises(SlideReadError, match="lost pixels"):
        list(read_planned(plan, plan.rows[:1], plan.columns[:1]))


@pytest.mark.parametrize(
    ("tile", "step", "size", "stride"), [(96, 96, 64, 32), (64, 32, 32, 16), (32, 32, 32, None)]
)
@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_stored_windows_are_read_again_to_the_same_pixels(
    tmp_path, tile, step, size, stride, codec
):
    path = write_tiff(tmp_path / "s.tif", stained(300, 420), levels=1)
    wsiad.tile(slides=path, out=tmp_path / "store", tile=tile, stride=step, quiet=True,
               compression={"codec": codec}, **PREPARED)  # fmt: skip
    slide = TileStore(tmp_path / "store").slide("s")
    grid = store_grid(slide, InputSpec(size, 0.5), stride)
    parts = list(from_store(slide, grid, thresholds=QualityThresholds()))
    rows, columns, pixels = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("rows", "columns", "pixels")
    )
    asked = np.random.default_rng(0).permutation(len(rows))[:25]
    again = read_stored(slide, grid, rows[asked], columns[asked], thresholds=QualityThresholds())
    np.testing.assert_array_equal(np.stack(list(again)), pixels[asked])


def test_scores_of_windows_that_are_read_again_are_the_stored_ones(knn):
    detector = RunFolder.open(knn).load_detector(torch.device("cpu"))
    plan = prepared(ArraySlide(stained(200, 300)), mpp=0.61, stride=16)
    parts = list(score_windows(detector, from_plan(plan), batch=256))
    rows, columns, scores = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("rows", "columns", "scores")
    )
    asked = np.arange(0, len(rows), 17)
    again = [detector.score(p[None])[0] for p in read_planned(plan, rows[asked], columns[asked])]
    np.testing.assert_allclose(again, scores[asked], rtol=1e-4)


def boxed(x, y, width, height, *, score=1.0):
    polygon = shapely.box(x, y, x + width, y + height)
    return Region(polygon, polygon.area, score, score)


def test_the_strangest_window_within_a_region():
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(np.arange(0, 200, 8), np.arange(0, 160, 8)), -1).reshape(-1, 2)
    corners = rng.permutation(corners).astype(float)
    boxes = np.concatenate([corners, np.full_like(corners, 16)], axis=1)
    scores = rng.integers(0, 9, len(boxes)).astype(np.float32)  # many are equal
    windows = WindowScores(boxes, scores, scores)
    regions = [boxed(0, 0, 30, 50), boxed(41, 17, 90, 77), boxed(150, 100, 66, 76)]
    for region, index in zip(regions, strongest_windows(regions, windows), strict=True):
        centres = boxes[:, :2] + 8
        inside = [region.polygon.contains(shapely.Point(*centre)) for centre in centres]
        best = min((-scores[i], boxes[i, 1], boxes[i, 0], i) for i in np.flatnonzero(inside))
        assert index == best[-1]


def test_a_region_that_holds_no_centre_takes_a_window_that_shares_area_with_it():
    boxes = np.array([[0, 0, 32, 32], [32, 0, 32, 32], [64, 0, 32, 32]], float)
    scores = np.array([1, 5, 9], np.float32)
    windows = WindowScores(boxes, scores, scores)
    # It touches the third window along an edge, which is not to share area.
    assert strongest_windows([boxed(24, 2, 40, 8)], windows).tolist() == [1]
    assert strongest_windows([], windows).tolist() == []
    with pytest.raises(ExportError, match="no window lies in region 1"):
        strongest_windows([boxed(96, 40, 5, 5)], windows)


def test_a_region_at_the_border_of_the_slide(knn, tmp_path):
    image = stained(170, 209, seed=3)  # the last 10 and 17 px belong to no window
    image[-42:-10, -49:-17] = 200
    image[-42:-10:4, -49:-17] = (120, 30, 140)
    path = write_tiff(tmp_path / "edge.tif", image, levels=1)
    wsiad.heatmap(run=knn, slides=path, out=tmp_path / "out", **EASY)
    first = read(tmp_path / "out", "edge")["regions"][0]
    assert (first["x"], first["y"]) == (160, 128)
    shown = np.asarray(Image.open(tmp_path / "out" / "edge" / first["tile"])).astype(int)
    assert np.abs(shown - image[128:160, 160:192]).mean() < 5


def test_windows_that_overlap_and_places(dpa, slide, tmp_path):
    values = {"stride": 8, "detail": "place", "evidence_regions": 4, **EASY}
    assert not wsiad.heatmap(run=dpa, slides=slide, out=tmp_path, **values).failed
    windows = np.load(tmp_path / "odd" / "windows.npy")
    image = np.asarray(Image.open(slide))
    for region in read(tmp_path)["regions"]:
        same = (windows["x"] == region["x"]) & (windows["y"] == region["y"])
        assert windows["score"][same].tolist() == [region["score"]]
        x, y = int(region["x"]), int(region["y"])
        shown = np.asarray(Image.open(tmp_path / "odd" / region["tile"])).astype(int)
        assert np.abs(shown - image[y : y + 32, x : x + 32]).mean() < 5


def test_what_is_not_wanted_is_not_made(knn, slide, tmp_path):
    wsiad.heatmap(run=knn, slides=slide, out=tmp_path / "none", evidence_regions=0, **EASY)
    assert not (tmp_path / "none" / "odd" / "evidence.json").exists()
    assert not (tmp_path / "none" / "odd" / "evidence").exists()
    wsiad.heatmap(run=knn, slides=slide, out=tmp_path / "alone", evidence_neighbours=0, **EASY)
    assert all(not region["nearest"] for region in read(tmp_path / "alone")["regions"])
    assert "evidence" not in json.loads((tmp_path / "alone" / "run.json").read_text())
    wsiad.heatmap(run=knn, slides=slide, out=tmp_path / "calm", quiet=True,
                  region_min_um2=1e9)  # fmt: skip
    assert read(tmp_path / "calm") == {"format": 1, "regions": []}


def test_a_run_without_examples_shows_its_regions_alone_and_says_so(knn, slide, tmp_path):
    old = tmp_path / "run"
    shutil.copytree(knn, old)
    (old / EXAMPLES).unlink()
    record = json.loads((old / "run.json").read_text())
    del record["notes"]["healthy_examples"]
    (old / "run.json").write_text(json.dumps(record))
    assert not wsiad.heatmap(run=old, slides=slide, out=tmp_path / "out", **EASY).failed
    regions = read(tmp_path / "out")["regions"]
    assert regions
    assert all(region["nearest"] == [] for region in regions)
    assert (tmp_path / "out" / "odd" / regions[0]["tile"]).exists()
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "keeps no healthy examples" in facts["evidence"]


def test_a_detector_that_does_not_embed_shows_its_regions_alone(slide, tmp_path, monkeypatch):
    use_channel(monkeypatch)
    assert not score(make_run(tmp_path / "run"), slide, tmp_path / "out").failed
    regions = read(tmp_path / "out")["regions"]
    assert regions
    assert all(region["nearest"] == [] for region in regions)
    assert all(region["difference"] is None for region in regions)


def test_evidence_of_other_examples_or_options_is_made_anew(knn, slide, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(knn, run)
    wsiad.heatmap(run=run, slides=slide, out=tmp_path / "out", **EASY)
    wsiad.heatmap(run=run, slides=slide, out=tmp_path / "out", evidence_regions=1, **EASY)
    assert len(read(tmp_path / "out")["regions"]) == 1
    assert len(list((tmp_path / "out" / "odd" / "evidence").glob("*_healthy_1.jpg"))) == 1
    before = (tmp_path / "out" / "run.json").read_text()
    data = bytearray((run / EXAMPLES).read_bytes())
    data[-1] ^= 1
    (run / EXAMPLES).write_bytes(bytes(data))
    assert not wsiad.heatmap(run=run, slides=slide, out=tmp_path / "out", **EASY).failed
    assert len(read(tmp_path / "out")["regions"]) > 1
    assert (tmp_path / "out" / "run.json").read_text() != before


def test_evidence_that_cannot_be_made_fails_the_slide(knn, slide, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise SlideReadError("cannot be decoded", subject="odd")

    monkeypatch.setattr("wsiad.heatmaps.windows.read_again", broken)
    (failed,) = wsiad.heatmap(run=knn, slides=slide, out=tmp_path / "out", **EASY).failed
    assert "cannot be decoded" in failed.reason
    assert not (tmp_path / "out" / "odd").exists()


def test_damaged_examples_of_a_run_are_one_error_before_any_slide(knn, slide, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(knn, run)
    (run / EXAMPLES).write_bytes(b"{}")
    with pytest.raises(RunError, match="cannot be read"):
        wsiad.heatmap(run=run, slides=slide, out=tmp_path / "out", **EASY)
    assert not (tmp_path / "out").exists()


def test_names_of_healthy_slides_reach_no_path(knn, slide, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(knn, run)
    found = RunFolder.open(run).examples()
    hostile = ("../../../escaped", '<img src=x onerror="alert(1)">')
    names = tuple(hostile[i % 2] for i in range(len(found)))
    type(found)(names, found.positions, found.pictures, found.embedding, 32, 0.5).write(
        run / EXAMPLES
    )
    wsiad.heatmap(run=run, slides=slide, out=tmp_path / "deep" / "out", **EASY)
    regions = read(tmp_path / "deep" / "out")["regions"]
    assert {n["slide"] for r in regions for n in r["nearest"]} <= set(hostile)
    for region in regions:
        for entry in region["nearest"]:
            assert entry["tile"].startswith("evidence/0")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "deep"}
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"out"}
