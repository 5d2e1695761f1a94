"""`wsiad import-features`: TRIDENT's and CLAM's files train a detector and make heatmaps."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import DetectorError, InputError, StoreError, StoreMismatchError
from wsiad.networks.features import BackboneFeatures
from wsiad.runs.run import RunFolder
from wsiad.store.foreign_features import lay_out, mask_of
from wsiad.store.stored_features import feature_folders
from wsiad.store.tile_store import TileStore

PX = 48
ONE = {"backbone": "squeezenet1_1", "places": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A store of slides with features, and TRIDENT's files of them."""
    folder = tmp_path_factory.mktemp("import")
    rows = ["slide,label"]
    for number in range(5):
        write_tiff(folder / f"s{number}.tif", stained(240, 208, seed=number), mpp=0.25, levels=1)
        rows.append(f"s{number}.tif,normal")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    wsiad.tile(slides=folder / "m.csv", out=folder / "store", mpp=0.25, tile=PX,
               tissue={"min_area_um2": 0}, quiet=True, stain={"method": "none"})  # fmt: skip
    wsiad.embed(store=folder / "store", options=ONE, weights="random", dtype="float32",
                h5=folder / "h5", quiet=True)  # fmt: skip
    return folder


def imported(source, out, **values):
    return wsiad.import_features(**{"sources": [source], "out": out, "mpp": 0.25, "encoder": "net",
                                    "label": "normal", "dtype": "float32", "quiet": True,
                                    **values})  # fmt: skip


def write(path, features, coords, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["coords"].attrs.update(attributes)
    return path


def some(count=20, channels=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)


def square(side=5, step=512):
    return np.stack(np.divmod(np.arange(side * side), side)[::-1], axis=1) * step


def test_heatmaps_of_imported_features_are_those_of_the_store(
    exported, tmp_path, monkeypatch, caplog
):
    result = imported(exported / "h5", tmp_path / "features")
    assert not result.failed
    assert {row.reason for row in result.rows} == {""}
    common = {"detector": "knn", "quiet": True, "healthy_examples": 0}
    wsiad.train(store=exported / "store", out=tmp_path / "own", options=ONE, weights="random",
                **common)  # fmt: skip

    def never(self, images):
        raise AssertionError("a network was called")

    monkeypatch.setattr(BackboneFeatures, "forward", never)
    wsiad.train(store=tmp_path / "features", out=tmp_path / "run", **common)
    monkeypatch.undo()
    one, other = (RunFolder.open(tmp_path / name) for name in ("own", "run"))
    np.testing.assert_array_equal(one.calibration().values, other.calibration().values)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["notes"]["backbone"] == "features/net"
    assert record["notes"]["channels"] == 128
    maps = {}
    for run, store in (("own", exported / "store"), ("run", tmp_path / "features")):
        out = tmp_path / f"maps-{run}"
        found = wsiad.heatmap(run=tmp_path / run, slides=store, out=out, quiet=True)
        assert not found.failed
        maps[run] = [np.load(out / name / "windows.npy") for name in ("s0", "s3")]
    assert caplog.text.count("holds features without tiles: regions have no evidence") == 1
    assert not (tmp_path / "maps-run/s0/evidence.json").exists()
    for mine, theirs in zip(maps["own"], maps["run"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    wsiad.export(results=tmp_path / "maps-run", region_quantile=0.5, quiet=True)


def test_other_methods_and_few_labels_read_imported_features(tmp_path):
    for name in "abcd":
        write(tmp_path / f"in/{name}.h5", some(25, seed=ord(name)), square(), patch_size=256,
              patch_size_level0=512)  # fmt: skip
    for name in "tu":
        write(tmp_path / f"odd/{name}.h5", some(25, seed=ord(name)) + 2, square(),
              patch_size=256, patch_size_level0=512)  # fmt: skip
    imported(tmp_path / "in", tmp_path / "store", mpp=0.5)
    imported(tmp_path / "odd", tmp_path / "odd_store", mpp=0.5, label="tumor")
    store = {"store": tmp_path / "store", "quiet": True}
    wsiad.train(**store, out=tmp_path / "gaussian", detector="gaussian")
    wsiad.train(**store, out=tmp_path / "probe", detector="linear-probe",
                anomalies=tmp_path / "odd_store")  # fmt: skip
    wsiad.train(**store, out=tmp_path / "ensemble", detector="ensemble", options={"members": [
        {"detector": name, "options": {"backbone": "features/net"}} for name in ("knn", "gaussian")
    ]})  # fmt: skip
    for run in ("gaussian", "probe", "ensemble"):
        found = wsiad.score_tiles(
            run=tmp_path / run,
            store=tmp_path / "odd_store",
            out=tmp_path / f"scores-{run}",
            tumour=["tumor"],
            quiet=True,
        )
        healthy = wsiad.score_tiles(run=tmp_path / run, store=tmp_path / "store",
                                    out=tmp_path / f"healthy-{run}", quiet=True)  # fmt: skip
        assert np.median(found.groups[0].scores) > np.median(healthy.groups[0].scores)


def test_what_needs_pixels_is_refused_in_one_line(exported, tmp_path):
    store = tmp_path / "features"
    imported(exported / "h5", store)
    with pytest.raises(StoreError, match="holds features without tiles: no pixels can be read"):
        wsiad.train(store=store, out=tmp_path / "dpa", detector="dpa", weights="random",
                    options={"input_px": 32}, quiet=True)  # fmt: skip
    with pytest.raises(StoreError, match=r"their quality is not known\. Leave out the thresholds"):
        wsiad.train(store=store, out=tmp_path / "q", detector="knn", quality={"max_pen": 0.1},
                    quiet=True)  # fmt: skip
    with pytest.raises(DetectorError, match="places is not for imported features"):
        wsiad.train(store=store, out=tmp_path / "p", detector="knn", options={"places": 4},
                    quiet=True)  # fmt: skip
    wsiad.train(store=store, out=tmp_path / "run", detector="knn", quiet=True)
    detector = RunFolder.open(tmp_path / "run").load_detector("cpu")
    with pytest.raises(DetectorError, match="features/net: reads imported features, and 2 tiles"):
        detector.score(np.zeros((2, PX, PX, 3), np.uint8))
    with pytest.raises(StoreError, match="holds features of net without tiles: there is nothing"):
        wsiad.embed(store=store, options=ONE, weights="random", quiet=True)
    images = wsiad.export_tiles(store=store, out=tmp_path / "png", quiet=True)
    assert len(images.failed) == 5
    assert "no pixels can be read" in images.failed[0].reason
    with pytest.raises(StoreMismatchError, match="holds features of net without tiles, not tiles"):
        wsiad.tile(slides=[exported / "s0.tif"], out=store, mpp=0.25, tile=PX, quiet=True,
                   stain={"method": "none"})  # fmt: skip


def test_files_of_clam_state_nothing(tmp_path):
    features = some(25)
    write(tmp_path / "h5_files/a.h5", features[None], square(step=512).astype(np.int32))
    with pytest.raises(InputError, match=r"does not state the size of its tiles\. Correct"):
        imported(tmp_path, tmp_path / "store", mpp=0.5)
    (row,) = imported(tmp_path, tmp_path / "store", mpp=0.5, tile=256).rows
    assert row.status == "failed"
    assert "does not state the size of its tiles on level 0" in row.reason
    (row,) = imported(tmp_path, tmp_path / "store", mpp=0.5, tile=256, slide_mpp=0.25).rows
    assert (row.status, row.tiles, row.mpp_x) == ("ok", 25, 0.25)
    slide = TileStore(tmp_path / "store").slide("a")
    np.testing.assert_array_equal(slide.column("position"), square()[np.lexsort(square().T)])
    assert (slide.size.width, slide.size.height) == (2560, 2560)


def test_tiles_off_the_lattice_are_moved_and_doubled_ones_left_out(tmp_path):
    corners = np.array([[100, 50], [612, 50], [612 + 130, 562], [612, 50], [100, 562]])
    features = some(5)
    write(tmp_path / "a.h5", features, corners, patch_size=256, patch_size_level0=512)
    (row,) = imported(tmp_path / "a.h5", tmp_path / "store", mpp=0.5).rows
    assert row.reason == (
        "tiles are on no lattice, and were moved by up to 2 level-0 px; "
        "1 tile left out: others have their places"
    )
    slide = TileStore(tmp_path / "store").slide("a")
    assert slide.grid.stride == 64
    np.testing.assert_array_equal(
        slide.column("position"), [[100, 50], [612, 50], [100, 562], [740, 562]]
    )
    (folder,) = feature_folders(tmp_path / "store")
    stored = folder.slide(slide).take(np.arange(4))[:, 0, 0]
    np.testing.assert_array_equal(stored, features[[0, 1, 4, 2]])


def test_a_lattice_is_found_where_there_is_one():
    for corners in (square(4, 300), square(3, 300) + 17):
        layout = lay_out(corners.astype(float), tile=96, edge=300.0)
        assert (layout.grid.stride, layout.moved_px, layout.doubled) == (96, 0.0, 0)
        assert len(layout.indices) == len(corners)
    half = lay_out(square(5, 150).astype(float), tile=96, edge=300.0)  # tiles that overlap by half
    assert (half.grid.stride, round(half.moved_px, 6), half.doubled) == (24, 0.0, 0)
    mask, placement = mask_of(lay_out(square(3, 300).astype(float), tile=96, edge=300.0), mpp=1)
    assert mask.all()
    assert mask.shape == (36, 36)  # 12 pixels of 8 µm a tile of 96 µm
    assert placement.scale_x == 25


BAD = {
    "nan": (np.full((25, 6), np.nan, np.float32), square(), "features of tile 0 are not finite"),
    "words": (np.zeros((25, 6), "S3"), square(), r"not floats \(N, D\)"),
    "cube": (np.zeros((2, 25, 6), np.float32), square(), r"not floats \(N, D\)"),
    "fewer": (some(24), square(), "has 24 features and 25 coordinates"),
    "corners": (some(25), np.zeros((25, 3), int), r"not numbers \(N, 2\)"),
    "far": (some(25), square() * 10**9, "no level-0 pixels"),
    "spread": (some(25), square() * 10**5, "are spread over"),
    "wide": (some(25, 7), square(), "has 7 values for a tile, and the store 6"),
    "empty": (some(0), np.zeros((0, 2), int), "are of 0 tiles"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_row_and_leaves_nothing(tmp_path, name):
    features, coords, reason = BAD[name]
    attributes = {"patch_size": 256, "patch_size_level0": 512}
    write(tmp_path / "in/a.h5", some(25), square(), **attributes)
    write(tmp_path / "in/b.h5", features, coords, **attributes)
    result = imported(tmp_path / "in", tmp_path / "store", mpp=0.5)
    assert [row.status for row in result.rows] == ["ok", "failed"]
    assert re.search(reason, result.failed[0].reason)
    store = TileStore(tmp_path / "store")
    assert store.names() == ["a"]
    (folder,) = feature_folders(tmp_path / "store")
    assert not folder.group("b").exists()


def test_files_that_are_not_theirs_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="holds no HDF5 files of features"):
        imported(tmp_path / "in", tmp_path / "store")
    (tmp_path / "in/a.h5").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match=r"none of 1 file can be used: .*cannot be read as HDF5"):
        imported(tmp_path / "in", tmp_path / "store")
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file["features"] = h5py.ExternalLink("/etc/passwd", "x")
        file["coords"] = square()
    with pytest.raises(InputError, match="has no dataset `features`"):
        imported(tmp_path / "in", tmp_path / "store")
    with pytest.raises(InputError, match="there is no such file or folder"):
        imported(tmp_path / "none", tmp_path / "store")
    with pytest.raises(Exception, match="encoder"):
        imported(tmp_path / "in", tmp_path / "store", encoder="../uni")
    assert not (tmp_path / "store").exists()


def test_another_call_adds_slides_and_changes_none(tmp_path):
    stated = {"patch_size": 256, "patch_size_level0": 512}
    path = write(tmp_path / "in/a.h5", some(25), square(), **stated)
    imported(tmp_path / "in", tmp_path / "store", mpp=0.5)
    write(tmp_path / "in/b.h5", some(25, seed=1), square(), **stated)
    shutil.copy(path, tmp_path / "in/.hidden.h5")
    before = (tmp_path / "store/slides.zarr/a/zarr.json").stat().st_mtime_ns
    result = imported(tmp_path / "in", tmp_path / "store", mpp=0.5)
    assert [row.slide for row in result.rows] == ["a", "b"]
    assert (tmp_path / "store/slides.zarr/a/zarr.json").stat().st_mtime_ns == before
    write(path, some(25, seed=2), square(), **stated)
    result = imported(tmp_path / "in", tmp_path / "store", mpp=0.5)
    assert "made from another file of this name" in result.failed[0].reason
    with pytest.raises(StoreMismatchError, match="holds features of net without tiles, not"):
        imported(tmp_path / "in", tmp_path / "store", mpp=0.5, encoder="other")
    with pytest.raises(StoreMismatchError, match=r"mpp is 0\.5 in the store and 1\.0 here"):
        imported(tmp_path / "in", tmp_path / "store", mpp=1.0)
    with pytest.raises(StoreMismatchError, match="holds features as float32, not float16"):
        imported(tmp_path / "in", tmp_path / "store", mpp=0.5, dtype="float16")
