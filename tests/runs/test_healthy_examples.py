"""The healthy examples of a run: what is chosen, kept, found again, refused."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.neighbors import NearestNeighbors

import wsiad
from support.builders import stained, write_tiff
from support.small_runs import TINY, train
from wsiad.core.errors import RunError
from wsiad.core.images import jpeg
from wsiad.runs.examples import EXAMPLES, HealthyExamples
from wsiad.runs.run import RunFolder
from wsiad.store.tile_store import TileStore

KNN = {"detector": "knn", "options": {"places": 2, "input_px": 32}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Slides of very different sizes."""
    folder = tmp_path_factory.mktemp("examples")
    for number, width in enumerate((96, 144, 480, 480, 480)):
        image = stained(192, width, seed=number)
        write_tiff(folder / f"s{number}.tif", image, mpp=0.5, levels=1)
    wsiad.tile(slides=folder, out=folder / "store", mpp=0.5, tile=48, min_coverage=0.01,
               tissue={"min_area_um2": 0}, stain={"method": "none"}, quiet=True)  # fmt: skip
    return folder / "store"


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    train(store, out, healthy_examples=18, **KNN)
    return out


def examples_of(run):
    return RunFolder.open(run).examples()


def made(count=5, *, names=("a", "b"), size=32, features=3):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return HealthyExamples(
        tuple(names[i % len(names)] for i in range(count)),
        rng.normal(size=(count, 2)) * 1000,
        tuple(jpeg(picture, quality=90) for picture in pictures),
        rng.normal(size=(count, features)).astype(np.float32),
        size,
        0.5,
    )


def test_examples_are_windows_of_the_fitted_slides_where_they_say(run, store):
    found = examples_of(run)
    assert len(found) == 18
    assert (found.size, found.mpp) == (32, 0.5)
    record = json.loads((run / "run.json").read_text())
    assert record["notes"]["healthy_examples"] == 18
    detector = RunFolder.open(run).load_detector(torch.device("cpu"))
    slides = {slide.name: slide for slide in TileStore(store)}
    for index, name in enumerate(found.slides):
        # Level-0 pixels are the store's here: brute force over its tiles.
        x, y = found.positions[index].astype(int)
        slide = slides[name]
        corners = slide.column("position").astype(int)
        inside = ((corners <= (x, y)) & ((x + 32, y + 32) <= corners + 48)).all(axis=1)
        assert inside.sum() == 1
        tile, (left, top) = int(inside.argmax()), (x, y) - corners[inside.argmax()]
        pixels = slide.tiles(tile, tile + 1)[:, top : top + 32, left : left + 32]
        np.testing.assert_allclose(detector.embed(pixels)[0], found.embedding[index], rtol=1e-4,
                                   atol=1e-5)  # fmt: skip
        shown = np.asarray(Image.open(io.BytesIO(found.picture(index))))
        assert np.abs(shown.astype(int) - pixels[0]).mean() < 15  # noise is hard on JPEG


def test_examples_are_balanced_by_slide_and_drawn_by_the_seed(store, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(store, tmp_path / name, seed=seed, healthy_examples=18, **KNN)
    a, b, c = ((tmp_path / name / EXAMPLES).read_bytes() for name in "abc")
    assert a == b != c
    for name in "ac":
        found = examples_of(tmp_path / name)
        counts = {slide: found.slides.count(slide) for slide in set(found.slides)}
        there = {slide.name: len(slide) for slide in TileStore(store)}
        most = max(counts.values())
        assert len(counts) == 3  # of five slides one stops, one calibrates
        assert all(n >= min(most - 1, there[slide]) for slide, n in counts.items())
        assert len({(s, *p) for s, p in zip(found.slides, found.positions.tolist(), strict=True)}
                   ) == len(found)  # fmt: skip


def test_tiles_are_taken_in_any_order(store):
    slide = max(TileStore(store), key=len)
    order = np.random.default_rng(0).permutation(len(slide))[:20]
    order = np.concatenate([order, order[:3]])
    every = slide.tiles(0, len(slide))
    np.testing.assert_array_equal(slide.take(order), every[order])
    assert slide.take(order[:0]).shape == (0, 48, 48, 3)


def test_more_are_asked_for_than_there_are(store, tmp_path):
    train(store, tmp_path / "run", healthy_examples=10_000, **KNN)
    found = examples_of(tmp_path / "run")
    there = {slide.name: len(slide) for slide in TileStore(store)}
    assert len(found) == sum(there[name] for name in set(found.slides))


def test_none_are_asked_for(store, tmp_path):
    train(store, tmp_path / "run", healthy_examples=0, **KNN)
    assert not (tmp_path / "run" / EXAMPLES).exists()
    assert examples_of(tmp_path / "run") is None
    assert (
        "healthy_examples" not in json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    )


def test_what_an_interrupted_run_left_is_made_again(run, store, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "run.json").unlink()
    (path / EXAMPLES).write_bytes(b"half")
    train(store, path, healthy_examples=18, **KNN)
    assert (path / EXAMPLES).read_bytes() == (run / EXAMPLES).read_bytes()


def test_a_run_of_before_there_were_examples_still_loads(run, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for file in run.iterdir():
        if file.name != EXAMPLES:
            (path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RunError, match="cannot be read"):
        examples_of(path)  # the run says that it keeps some
    record = json.loads((path / "run.json").read_text())
    del record["notes"]["healthy_examples"]
    (path / "run.json").write_text(json.dumps(record))
    assert examples_of(path) is None


def test_nearest_are_those_of_another_library():
    found = made(200, features=40)
    asked = np.random.default_rng(1).normal(size=(20, 40)).astype(np.float32)
    other = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(found.embedding)
    distances, indices = other.kneighbors(asked)
    for row, vector in enumerate(asked):
        got, away = found.nearest(vector, 7)
        np.testing.assert_array_equal(got, indices[row])
        np.testing.assert_allclose(away, distances[row], rtol=1e-5)
    assert found.nearest(found.embedding[3], 1)[1].tolist() == [0.0]
    assert len(found.nearest(asked[0], 500)[0]) == 200
    with pytest.raises(RunError, match="40 features"):
        found.nearest(asked[0, :39], 1)


def test_of_equal_distances_the_earlier_comes_first():
    found = made(4)
    found.embedding[:] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert found.nearest(np.zeros(3, np.float32), 3)[0].tolist() == [0, 1, 2]


def test_the_scale_of_differences_is_that_of_places_of_held_out_tiles(store, tmp_path):
    options = {**TINY, "max_steps": 2}
    train(store, tmp_path / "run", healthy_examples=4, options=options)
    found = examples_of(tmp_path / "run")
    detector = RunFolder.open(tmp_path / "run").load_detector(torch.device("cpu"))
    fitted = set(found.slides)
    by_slide = {
        slide.name: detector.difference(slide.tiles(0, len(slide))[:, 8:40, 8:40]).ravel()
        for slide in TileStore(store)
        if slide.name not in fitted
    }
    levels = (0.5, 0.9, 0.99, 0.999)
    quantiles = {name: np.quantile(d.astype(float), levels) for name, d in by_slide.items()}
    assert any(np.allclose(found.difference, q, rtol=1e-4) for q in quantiles.values())


NAMES = ("../../etc/passwd", '<script>alert("x")</script>\n', "ü 雪", "\u202e", "")


def test_round_trip_with_any_names(tmp_path):
    found = made(7, names=NAMES)
    found.write(tmp_path / EXAMPLES)
    again = HealthyExamples.read(tmp_path / EXAMPLES)
    assert again.slides == found.slides
    assert again.pictures == found.pictures
    np.testing.assert_array_equal(again.positions, found.positions)
    np.testing.assert_array_equal(again.embedding, found.embedding)
    again.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / EXAMPLES).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {EXAMPLES, "again"}


def changed(path, *, about=None, **tensors):
    """Write examples of which something was changed."""
    made().write(path)
    values = {"format": 1, "mpp": 0.5, "size_px": 32, "slides": ["a", "b"]}
    save_file({**load_file(path), **tensors}, path,
              metadata={"wsiad": json.dumps({**values, **(about or {})})})  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"about": {"format": 2}},
        {"about": {"mpp": float("nan")}},
        {"about": {"slides": ["a"]}},
        {"about": {"difference": [1.0, 2.0, 3.0]}},
        {"about": {"difference": [4.0, 3.0, 2.0, 1.0]}},
        {"slide": np.array([0, 1, 0, 1, -1], np.int32)},
        {"slide": np.zeros(0, np.int32)},
        {"embedding": np.full((5, 3), np.inf, np.float32)},
        {"embedding": np.zeros((5, 3))},
        {"embedding": np.zeros((4, 3), np.float32)},
        {"position": np.zeros((5, 3))},
        {"picture_end": np.array([1, 2, 3, 4, 5])},
        {"picture_end": np.array([5, 4, 3, 2, 1])},
    ],
)
def test_damaged_examples_are_refused(tmp_path, change):
    changed(tmp_path / EXAMPLES, **change)
    with pytest.raises(RunError, match="cannot be read"):
        HealthyExamples.read(tmp_path / EXAMPLES)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04\x95pickle", None])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / EXAMPLES).write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        HealthyExamples.read(tmp_path / EXAMPLES)


def test_a_picture_that_is_none_is_not_shown(tmp_path):
    found = made()
    ends = np.cumsum([len(p) for p in found.pictures])
    data = np.frombuffer(b"".join(found.pictures), np.uint8).copy()
    data[: ends[0]] = np.frombuffer(b"<svg onload=alert(1)>".ljust(int(ends[0])), np.uint8)
    changed(tmp_path / EXAMPLES, picture=data)
    again = HealthyExamples.read(tmp_path / EXAMPLES)
    with pytest.raises(RunError, match="damaged"):
        again.picture(0)
    assert again.picture(1) == found.pictures[1]


def test_imported_tiles_have_no_places(tmp_path):
    rng = np.random.default_rng(0)
    for group in range(4):
        folder = tmp_path / "in" / f"g{group}"
        folder.mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(80, 220, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        wsiad.import_tiles(sources=folder, out=tmp_path / "store", mpp=0.5, quiet=True)
    train(tmp_path / "store", tmp_path / "run", **KNN)
    found = examples_of(tmp_path / "run")
    assert np.isnan(found.positions).all()
    assert len(found) == 10
