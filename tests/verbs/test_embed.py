"""`wsiad embed`: features are computed once, are those of the network, and are never mixed."""

import functools
import json
import logging
import shutil

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import wsiad
from support.builders import import_images, stained, write_tiff
from wsiad.core.errors import ConfigError, DetectorError, ExportError, InputError, StoreError
from wsiad.detectors._stored import StoredFeatureDetector
from wsiad.learning import feature_source
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.runs.embedding_task import plan_embedding
from wsiad.runs.run import RunFolder
from wsiad.store.stored_features import FEATURES, feature_folders
from wsiad.store.tile_store import TileStore

KNN = {"backbone": "squeezenet1_1", "places": 2}
PX = 48


def tiled(folder, names, label):
    rows = ["slide,label"]
    for number, name in enumerate(names):
        image = stained(160, 208, seed=number + 10 * (label == "tumor"))
        write_tiff(folder / f"{name}.tif", image, mpp=0.5, levels=1)
        rows.append(f"{name}.tif,{label}")
    (folder / f"{label}.csv").write_text("\n".join(rows) + "\n")
    wsiad.tile(slides=folder / f"{label}.csv", out=folder / label, mpp=0.5, tile=PX,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    return folder / label


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A store without features, and one of tumour."""
    folder = tmp_path_factory.mktemp("embed")
    names = ["s0", "s1", "s2", "s3", "s4"]
    return tiled(folder, names, "normal"), tiled(folder, ["t0", "t1"], "tumor")


@pytest.fixture
def stores(plain, tmp_path):
    return [shutil.copytree(store, tmp_path / store.name) for store in plain]


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the batches that the networks see."""
    seen = []
    whole = BackboneFeatures.forward

    def counted(self, images):
        seen.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(BackboneFeatures, "forward", counted)
    monkeypatch.setattr(feature_source, "_SAID", set())
    return seen


def embed(store, **values):
    return wsiad.embed(**{"store": store, "options": KNN, "weights": "random", "quiet": True,
                          "dtype": "float32", **values})  # fmt: skip


def train(store, out, **values):
    wsiad.train(**{"store": store, "out": out, "options": KNN, "weights": "random", "quiet": True,
                   "healthy_examples": 6, **values})  # fmt: skip
    return out


def weights(run):
    return load_file(run / "weights.safetensors")


@functools.cache
def network_rounding():
    """Return 0 where the network's results do not depend on the batch, else a small share.

    Stored features are computed in other batches than those of a training. oneDNN's convolutions
    differ with the batch by their last bits on some processors (AMD EPYC, Zen 4).
    """
    torch.manual_seed(0)
    network = torchvision_models().squeezenet1_1(weights=None).features.eval()
    windows = torch.randn(36, 3, PX, PX)
    with torch.no_grad():
        alone = network(windows[:1])
        same = all(torch.equal(network(windows[:batch])[:1], alone) for batch in (2, 12, 24, 36))
    return 0.0 if same else 1e-4


def assert_same_run(first, second, tolerance=0.0):
    tolerance = max(tolerance, network_rounding())
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name in one:
        scale = np.abs(other[name]).max() if other[name].size else 0
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance * scale)
    for file in ("calibration.json",):
        one, other = (json.loads((run / file).read_text()) for run in (first, second))
        atol = tolerance * np.abs(other["values"]).max()
        np.testing.assert_allclose(one["values"], other["values"], rtol=tolerance, atol=atol)


def test_no_method_computes_the_features_again(plain, stores, tmp_path, calls):
    embed(stores[0])
    assert sum(calls) == sum(map(len, TileStore(stores[0]))) + 1  # and one to know their shape
    for name in ("knn", "gaussian", "pca"):
        calls.clear()
        run = train(stores[0], tmp_path / name, detector=name)
        assert calls == []
        assert_same_run(run, train(plain[0], tmp_path / f"{name}-plain", detector=name))
        assert calls
        examples = [RunFolder.open(tmp_path / n).examples() for n in (name, f"{name}-plain")]
        np.testing.assert_array_equal(examples[0].embedding, examples[1].embedding)
        assert examples[0].slides == examples[1].slides


def test_a_drawn_sample_is_the_same_from_features(plain, stores, tmp_path, calls):
    embed(stores[0])
    calls.clear()
    few = {"options": KNN | {"fit_tiles": 7, "fit_vectors": 11}, "seed": 0}
    run = train(stores[0], tmp_path / "run", detector="knn", **few)
    assert calls == []
    assert weights(run)["fitted.bank"].shape[0] == 11
    assert_same_run(run, train(plain[0], tmp_path / "plain", detector="knn", **few))


def test_scores_and_heatmaps_are_the_same_from_features(plain, stores, tmp_path, calls):
    run = train(plain[0], tmp_path / "run", detector="knn")
    embed(stores[0])
    embed(stores[1])
    calls.clear()
    found = {}
    for kind, (healthy, tumour) in (("stored", stores), ("plain", plain)):
        wsiad.score_tiles(run=run, store=tumour, out=tmp_path / f"scores-{kind}", quiet=True)
        wsiad.heatmap(
            run=run, slides=healthy, out=tmp_path / f"maps-{kind}", quiet=True, viewers=[]
        )
        if kind == "stored":
            assert calls == [1, 1]  # of loaded states that are checked
        found[kind] = [
            (tmp_path / f"scores-{kind}/scores.csv").read_text(),
            (tmp_path / f"maps-{kind}/s0/windows.npy").read_bytes(),
            (tmp_path / f"maps-{kind}/s0/evidence.json").read_text(),
            (tmp_path / f"maps-{kind}/s0/regions.csv").read_text(),
        ]
    assert sum(calls) > 10
    assert found["stored"] == found["plain"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_smaller_types_are_near(plain, stores, tmp_path, calls, dtype, tolerance):
    result = embed(stores[0], dtype=dtype)
    assert dtype in result.folders[0].name
    calls.clear()
    run = train(stores[0], tmp_path / "run", detector="knn")
    assert calls == []
    bare = train(plain[0], tmp_path / "plain", detector="knn")
    assert_same_run(run, bare, tolerance)
    assert not np.array_equal(weights(run)["fitted.bank"], weights(bare)["fitted.bank"])


def test_labelled_heads_read_their_statistics(plain, stores, tmp_path, calls):
    for augment, orientations in ((False, 1), (True, 8)):
        options = KNN | {"augment": augment}
        for store in stores:
            embed(store, detector="linear-probe", options=options, orientations=orientations)
        asked = {"detector": "linear-probe", "options": options}
        calls.clear()
        run = train(stores[0], tmp_path / f"run{augment}", anomalies=stores[1], **asked)
        assert calls == []
        assert_same_run(run, train(plain[0], tmp_path / f"p{augment}", anomalies=plain[1], **asked))
    (folder, *others) = feature_folders(stores[0])
    assert folder.shape == (2 * 640,)  # mean and deviation of both layers
    assert len(others) == 7


def test_one_folder_of_places_serves_means_and_deviations(plain, stores, tmp_path, calls):
    middle = KNN | {"layers": ["features.7", "features.10"], "magnify": 2}
    for store in stores:
        embed(store, options=middle)
    for statistics in ("mean", "mean-std"):
        calls.clear()
        asked = {"options": middle | {"augment": False, "statistics": statistics}}
        asked |= {"detector": "devnet", "max_steps": 3}
        run = train(stores[0], tmp_path / statistics, anomalies=stores[1], **asked)
        assert calls == []
        bare = train(plain[0], tmp_path / f"bare-{statistics}", anomalies=plain[1], **asked)
        assert_same_run(run, bare)


def test_an_ensemble_reads_the_features_of_its_members(plain, stores, tmp_path, calls):
    members = [
        {"detector": "knn", "options": KNN},
        {"detector": "gaussian", "options": KNN | {"orientations": 2}},
        {"detector": "knn", "options": KNN | {"layers": ["features.7"]}},
    ]
    asked = {"detector": "ensemble", "options": {"members": members}}
    result = embed(stores[0], **asked)
    assert len(result.folders) == 3  # the first two share one
    calls.clear()
    run = train(stores[0], tmp_path / "run", **asked)
    assert calls == []
    assert_same_run(run, train(plain[0], tmp_path / "plain", **asked))
    shutil.rmtree(result.folders[-1])
    calls.clear()
    again = train(stores[0], tmp_path / "again", **asked)
    assert calls  # of the third alone
    assert_same_run(again, run)


def test_tune_reads_features(plain, stores, tmp_path, calls):
    for store in stores:
        embed(store)
    calls.clear()
    aurocs = []
    for healthy, tumour in (stores, plain):
        result = wsiad.tune(
            store=healthy, anomalies=tumour, out=tmp_path / healthy.parent.name, detector="knn",
            options=KNN, weights="random", space={"neighbours": [1, 2]}, folds=2, trials=2,
            quiet=True,
        )  # fmt: skip
        aurocs.append((result.run if hasattr(result, "run") else result).summary)
        if healthy == stores[0]:
            assert calls == []
    assert calls


def test_other_options_are_computed_and_said_once(stores, tmp_path, calls, caplog):
    first = embed(stores[0])
    calls.clear()
    with caplog.at_level(logging.WARNING):
        train(stores[0], tmp_path / "a", detector="knn", options=KNN | {"contrast": 2})
        train(stores[0], tmp_path / "b", detector="knn", options=KNN | {"input_px": 32})
    assert calls
    whole = "the stored features are of complete tiles of 48 px, and windows of 32 px are wanted"
    said = [line for line in caplog.messages if line.startswith("features are computed")]
    assert said == [
        "features are computed by the network: the stored features are of other options (contrast)",
        f"features are computed by the network: {whole}",
    ]
    second = embed(stores[0], options=KNN | {"contrast": 2})
    third = embed(stores[0], seed=5)  # other random weights
    names = {result.folders[0] for result in (first, second, third)}
    assert len(names) == 3
    identities = [folder.identity for folder in feature_folders(stores[0])]
    assert len({one["weights_sha256"] for one in identities}) == 2


def test_an_interrupted_call_continues(stores, monkeypatch, calls):
    whole = StoredFeatureDetector.encode

    def dying(self, tiles, identity):
        if len(calls) > 3:
            raise KeyboardInterrupt
        return whole(self, tiles, identity)

    monkeypatch.setattr(StoredFeatureDetector, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        embed(stores[0])
    monkeypatch.undo()
    (folder,) = feature_folders(stores[0])
    store = TileStore(stores[0])
    done = [slide.name for slide in store if folder.holds(slide)]
    assert 0 < len(done) < 5
    stamps = {name: folder.group(name).stat().st_mtime_ns for name in done}
    result = embed(stores[0])
    assert all(folder.holds(slide) for slide in store)
    assert {name: folder.group(name).stat().st_mtime_ns for name in done} == stamps
    assert {row.status for row in result.rows} == {"ok"}
    assert not list(stores[0].rglob("*.partial"))


def test_shards_share_the_slides(stores, calls):
    first = embed(stores[0], shard="1/2")
    second = embed(stores[0], shard="2/2")
    names = [{row.slide for row in result.rows} for result in (first, second)]
    assert names == [{"s0", "s2", "s4"}, {"s1", "s3"}]


def test_features_of_tiles_that_changed_are_not_used(stores, tmp_path, calls, caplog):
    (folder,) = embed(stores[0]).folders
    group = TileStore(stores[0]).folder("s1") / "zarr.json"
    group.write_text(group.read_text().replace('"tiles_missing":', '"tiles_missing" :').replace(
        '"fingerprint": "', '"fingerprint": "other-', 1))  # fmt: skip
    calls.clear()
    train(stores[0], tmp_path / "run", detector="knn")
    assert calls
    assert caplog.text.count("have no features yet: run `wsiad embed` again") == 1
    calls.clear()
    embed(stores[0])
    assert sum(calls) == len(TileStore(stores[0]).slide("s1")) + 1
    shutil.rmtree(folder)


def test_damaged_features_are_an_error(stores, calls):
    (folder,) = embed(stores[0]).folders
    shard = folder / "features.zarr/s0/vectors/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 8
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"s0: its features cannot be read.*wsiad embed"):
        feature_folders(stores[0])[0].slide(TileStore(stores[0]).slide("s0")).take(np.arange(3))


def test_features_that_do_not_fit_are_refused(stores, monkeypatch, calls):
    for value, reason in (
        (1e5, "has a feature of 100000, and float16 ends at 65504. Set --dtype bfloat16"),
        (np.nan, "its features are not finite"),
    ):
        whole = StoredFeatureDetector.encode

        def large(self, tiles, identity, value=value, whole=whole):
            return whole(self, tiles, identity) * 0 + np.float32(value)

        with monkeypatch.context() as patch:
            patch.setattr(StoredFeatureDetector, "encode", large)
            result = embed(stores[0], dtype="float16")
        assert len(result.failed) == 5
        assert reason in result.failed[0].reason
    assert not embed(stores[0], dtype="float16").failed


def test_what_cannot_be_kept_is_refused(stores, calls):
    with pytest.raises(ConfigError, match=r"take \d+ bytes .* more than the 1e-06 GiB of max_gib"):
        embed(stores[0], max_gib=1e-6)
    assert not (stores[0] / FEATURES).exists()
    with pytest.raises(DetectorError, match="dpa: has no frozen features"):
        embed(stores[0], detector="dpa", options={}, weights="wsiad")
    with pytest.raises(DetectorError, match="complete tiles of 48 px, not of windows of 32 px"):
        embed(stores[0], options=KNN | {"input_px": 32})
    with pytest.raises(StoreError, match="there is no such folder"):
        embed(stores[0] / "none")


def test_a_folder_of_features_states_what_they_are(stores, calls):
    (path,) = embed(stores[0], dtype="bfloat16").folders
    (folder,) = feature_folders(stores[0])
    assert folder.path == path
    assert folder.identity["layers"] == ["features.4"]
    assert (folder.identity["input_px"], folder.identity["input_mpp"]) == (PX, 0.5)
    assert (folder.shape, folder.dtype, folder.tile_bytes) == ((2, 2, 128), "bfloat16", 1024)
    slide = TileStore(stores[0]).slide("s0")
    rows = folder.slide(slide).take(np.array([3, 0, 3]))
    np.testing.assert_array_equal(rows[0], rows[2])
    assert rows.shape == (3, 2, 2, 128)
    facts = path / "features.zarr" / "zarr.json"
    facts.write_text(facts.read_text().replace("bfloat16", "complex64"))
    with pytest.raises(StoreError, match="does not state its features"):
        feature_folders(stores[0])


def test_the_size_is_counted_over_all_orientations(stores, calls):
    from wsiad.runs.embedding_options import EmbeddingOptions

    options = EmbeddingOptions(options=KNN, weights="random", orientations=4)
    tiles = sum(map(len, TileStore(stores[0])))
    gib = tiles * 4 * 4 * 128 * 2 / 2**30
    with pytest.raises(ConfigError, match=f"take {tiles * 4 * 4 * 128 * 2} bytes"):
        plan_embedding(stores[0], options, device="cpu", max_gib=gib * 0.99)
    planned = plan_embedding(stores[0], options, device="cpu", max_gib=gib * 1.01)
    assert [one.folder.identity["orientation"] for one in planned] == [0, 1, 2, 3]


def test_features_are_exported_as_trident_and_clam_keep_them(stores, tmp_path, calls):
    one = KNN | {"places": 1}
    result = embed(stores[0], options=one, dtype="float16", h5=tmp_path / "h5")
    assert not result.failed
    assert sorted(path.name for path in (tmp_path / "h5").iterdir()) == [
        f"s{number}.h5" for number in range(5)
    ]
    slide = TileStore(stores[0]).slide("s1")
    with h5py.File(tmp_path / "h5/s1.h5") as file:
        features, coords = file["features"], file["coords"]
        assert (features.dtype, features.shape) == ("float32", (len(slide), 128))
        np.testing.assert_array_equal(coords, np.rint(slide.column("position")))
        assert dict(features.attrs) == {"name": "s1", "savetodir": "."}
        assert coords.attrs["patch_size_level0"] == PX
        assert coords.attrs["level0_magnification"] == 20
        (folder,) = feature_folders(stores[0])
        stored = folder.slide(slide).take(np.arange(len(slide))).reshape(len(slide), 128)
        np.testing.assert_array_equal(features, stored)


def test_several_vectors_a_tile_are_not_exported(stores, tmp_path, calls):
    with pytest.raises(ExportError, match=r"2 × 2 vectors of 128 values.* Set --option places=1\."):
        embed(stores[0], h5=tmp_path / "h5")
    assert calls == [1]
    assert not (tmp_path / "h5").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"is a file\. Pass another path as --h5"):
        embed(stores[0], options=KNN | {"places": 1}, h5=tmp_path / "file")


def test_tiles_without_a_slide_are_embedded_and_not_exported(tmp_path, calls):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    import_images(tmp_path / "in/a", images, out=tmp_path / "store", label="normal")
    result = embed(tmp_path / "store", options=KNN | {"places": 1}, h5=tmp_path / "h5")
    assert [row.status for row in result.rows] == ["ok"]
    assert [row.reason for row in result.failed] == [
        "was imported without a slide: its tiles have no coordinates. Embed a store of slides."
    ]


@pytest.mark.slow
def test_workers_write_the_same_features(plain, stores, tmp_path):
    one = embed(stores[0])
    other = embed(shutil.copytree(plain[0], tmp_path / "other"), workers=2)
    assert not other.failed
    for folder in (one, other):
        assert [row.slide for row in folder.rows] == ["s0", "s1", "s2", "s3", "s4"]
    first, second = (
        {
            path.relative_to(result.folders[0] / "features.zarr"): path.read_bytes()
            for path in (result.folders[0] / "features.zarr").rglob("*")
            if path.is_file()
        }
        for result in (one, other)
    )
    assert first == second


def test_one_slide_is_open_at_a_time(stores, calls, monkeypatch):
    from wsiad.store.stored_features import FeatureFolder
    from wsiad.store.tile_source import StoreTiles

    embed(stores[0])
    slides = list(TileStore(stores[0]))
    (folder,) = feature_folders(stores[0])
    opened = []
    whole = FeatureFolder.slide
    monkeypatch.setattr(
        FeatureFolder, "slide", lambda self, s: opened.append(s.name) or whole(self, s)
    )
    source = StoreTiles([(slide, np.arange(2, 5)) for slide in slides])
    features = source.features(folder.identity)
    assert opened == []
    found = features.take(np.arange(len(source)))
    assert opened == ["s0", "s1", "s2", "s3", "s4"]
    for number, slide in enumerate(slides):
        mine = whole(folder, slide).take(np.arange(2, 5))
        np.testing.assert_array_equal(found[3 * number : 3 * number + 3], mine)
    np.testing.assert_array_equal(features.take(np.array([14, 0, 7])), found[[14, 0, 7]])
    assert features.take(np.empty(0, np.int64)).shape == (0, 2, 2, 128)


def test_calls_begin_at_different_slides(stores, calls):
    from wsiad.runs.embedding_options import EmbeddingOptions

    (planned,) = plan_embedding(
        stores[0], EmbeddingOptions(options=KNN, weights="random"), device="cpu", max_gib=1
    )
    asked = {"device": "cpu", "shard": None}
    orders = {
        tuple(task.slide.name for task in planned.tasks(EmbeddingOptions(), **asked))
        for _ in range(200)
    }
    assert len(orders) == 5  # one for each slide; missed once in 10¹⁹ runs
    assert {tuple(sorted(order)) for order in orders} == {("s0", "s1", "s2", "s3", "s4")}
    asked["shard"] = "2/2"
    names = {task.slide.name for task in planned.tasks(EmbeddingOptions(), **asked)}
    assert names == {"s1", "s3"}


def test_the_most_exact_complete_features_are_read(stores, tmp_path, calls):
    from wsiad.store.tile_source import StoreTiles

    embed(stores[0], dtype="bfloat16")
    embed(stores[0], dtype="float16")
    embed(stores[0], dtype="float32", shard="1/5")  # of s0 alone
    slides = list(TileStore(stores[0]))
    identity = feature_folders(stores[0])[0].identity
    exact, half = (
        StoreTiles([(slide, np.arange(4)) for slide in some]).features(identity).take(np.arange(4))
        for some in (slides[:1], slides)
    )
    assert not np.array_equal(exact, half)
    np.testing.assert_array_equal(exact.astype(np.float16), half)


def test_what_is_stored_needs_no_room_again(stores, calls, monkeypatch):
    import shutil as disk

    embed(stores[0], shard="1/5")
    usage = disk.disk_usage(stores[0])
    full = usage._replace(free=0)
    monkeypatch.setattr("wsiad.runs.embedding_task.shutil.disk_usage", lambda path: full)
    with pytest.raises(ConfigError, match="and the disk has 0 bytes left"):
        embed(stores[0])
    monkeypatch.undo()
    embed(stores[0])
    monkeypatch.setattr("wsiad.runs.embedding_task.shutil.disk_usage", lambda path: full)
    assert not embed(stores[0]).failed
