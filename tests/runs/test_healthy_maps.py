"""Maps of a run's healthy slides: what they show, and files that are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wsiad
from support.builders import stained, write_tiff
from support.small_runs import train
from wsiad.core.errors import RunError
from wsiad.core.geometry import SquareMicrons
from wsiad.runs.claim import HEALTHY_MAPS
from wsiad.runs.healthy_maps import HealthyMap, HealthyMaps
from wsiad.runs.run import RunFolder

KNN = {"detector": "knn", "options": {"places": 2, "input_px": 24}}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for number, width in enumerate((144, 192, 240, 288)):
        image = stained(192, width, seed=number, glass=30)
        write_tiff(folder / f"s{number}.tif", image, mpp=0.5, levels=1)
    return folder


@pytest.fixture(scope="module")
def run(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    wsiad.tile(slides=slides, out=out / "store", mpp=0.5, tile=48, min_coverage=0.01,
               tissue={"min_area_um2": 0}, stain={"method": "none"}, quiet=True)  # fmt: skip
    train(out / "store", out / "run", **KNN)
    return out / "run"


def test_a_map_has_the_scores_that_a_heatmap_of_the_slide_has(run, slides, tmp_path):
    maps = RunFolder.open(run).healthy_maps()
    calibration = RunFolder.open(run).calibration()
    names = sorted(RunFolder.open(run).record().slides["calibration"])
    assert sorted(one.slide for one in maps.maps) == names
    assert maps.window == pytest.approx((24 * 0.5) ** 2)
    assert sum(np.isfinite(one.scores).sum() for one in maps.maps) == calibration.n_windows
    for one in maps.maps:
        assert one.pixel_um == (12.0, 12.0)
        wsiad.heatmap(run=run, slides=[slides / f"{one.slide}.tif"], out=tmp_path, quiet=True)
        heatmap = wsiad.Results(tmp_path).slide(one.slide).heatmap()
        assert heatmap.pixel_um == pytest.approx(one.pixel_um)
        rows, columns = np.nonzero(np.isfinite(one.scores))
        height, width = one.scores.shape
        shares = []
        for top in range(heatmap.scores.shape[0] - height + 1):
            for left in range(heatmap.scores.shape[1] - width + 1):
                there = heatmap.scores[top : top + height, left : left + width][rows, columns]
                # A heatmap asks for tissue in every window, and not in tiles of 48 px.
                seen = np.isfinite(there)
                equal = np.isclose(there[seen], one.scores[rows, columns][seen], rtol=1e-4)
                if equal.all():
                    shares.append(seen.mean())
        assert max(shares) > 0.6


def test_a_run_split_by_tile_has_no_maps(slides, tmp_path):
    wsiad.tile(slides=[slides / "s3.tif"], out=tmp_path / "store", mpp=0.5, tile=48,
               min_coverage=0.01, tissue={"min_area_um2": 0}, stain={"method": "none"},
               quiet=True)  # fmt: skip
    train(tmp_path / "store", tmp_path / "run", **KNN)
    assert RunFolder.open(tmp_path / "run").healthy_maps() is None


def test_an_older_run_has_no_maps(run, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    (tmp_path / "old" / HEALTHY_MAPS).unlink()
    record = json.loads((tmp_path / "old" / "run.json").read_text())
    with pytest.raises(RunError, match="damaged"):
        RunFolder.open(tmp_path / "old").healthy_maps()
    del record["notes"]["healthy_maps"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    assert RunFolder.open(tmp_path / "old").healthy_maps() is None


def maps_of(*shapes):
    rng = np.random.default_rng(0)
    one = tuple(
        HealthyMap(f"s{number}", rng.random(shape).astype(np.float32), (50.0, 50.0))
        for number, shape in enumerate(shapes)
    )
    return HealthyMaps(one, SquareMicrons(2500.0))


def test_maps_are_read_back_as_they_were(tmp_path):
    maps = maps_of((3, 4), (1, 1))
    maps.maps[0].scores[0, 0] = np.nan
    for name in "ab":
        maps.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = HealthyMaps.read(tmp_path / "a")
    assert found.window == maps.window
    for one, other in zip(found.maps, maps.maps, strict=True):
        assert (one.slide, one.pixel_um) == (other.slide, other.pixel_um)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_maps_of_unequal_pixels_keep_the_size_of_each(tmp_path):
    one, other = maps_of((3, 4), (1, 1)).maps
    maps = HealthyMaps((one, replace(other, pixel_um=(50.5, 49.75))), SquareMicrons(2500.0))
    maps.write(tmp_path / "a")
    assert [m.pixel_um for m in HealthyMaps.read(tmp_path / "a").maps] == [
        (50.0, 50.0),
        (50.5, 49.75),
    ]
    tensors = load_file(tmp_path / "a")
    with (tmp_path / "a").open("rb") as file:
        about = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    about["wsiad"] = about["wsiad"].replace("[50.0,50.0],", "")
    save_file(tensors, tmp_path / "a", metadata=about)
    with pytest.raises(RunError, match="sizes of pixels of 1 of 2 maps"):
        HealthyMaps.read(tmp_path / "a")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("000001"),
        lambda tensors: tensors.update({"000001": np.full((2, 2), np.nan, np.float32)}),
        lambda tensors: tensors.update({"000001": np.full((2, 2), np.inf, np.float32)}),
        lambda tensors: tensors.update({"000001": np.zeros((2, 2), np.float64)}),
        lambda tensors: tensors.update({"000001": np.zeros(4, np.float32)}),
    ],
)
def test_damaged_maps_are_refused(spoil, tmp_path):
    path = tmp_path / HEALTHY_MAPS
    maps_of((2, 2), (2, 2)).write(path)
    tensors = load_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(length))["__metadata__"]
    spoil(tensors)
    save_file(tensors, path, metadata=about)
    with pytest.raises(RunError, match="damaged"):
        HealthyMaps.read(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / HEALTHY_MAPS
    maps_of((9, 9)).write(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="damaged"):
        HealthyMaps.read(path)


def test_maps_that_would_fill_the_memory_are_refused_unread(monkeypatch, tmp_path):
    path = tmp_path / HEALTHY_MAPS
    maps_of((9, 9), (5, 4)).write(path)
    monkeypatch.setattr("wsiad.runs.healthy_maps._MOST_PIXELS", 101)
    assert len(HealthyMaps.read(path)) == 2
    monkeypatch.setattr("wsiad.runs.healthy_maps._MOST_PIXELS", 100)
    with pytest.raises(RunError, match="101 pixels; at most 100 are read"):
        HealthyMaps.read(path)
