"""Labels of slides: bags, what is learnt from them, and that no tile counts as labelled."""

import logging
from dataclasses import replace

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.labelled import PX, anomalies, healthy, tiles
from support.small_runs import train
from support.tiny_detectors import context
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import AnomalousTiles, AnomalyType, HealthyTiles, InputSpec
from wsiad.learning.slide_labels import anomalous_bags, healthy_bags
from wsiad.runs.run import RunFolder
from wsiad.runs.second_look import check_learns
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import check_detector

SMALL = {"layers": ["features.4"], "places": 4, "magnify": 1}
POOLS = {
    "max": {"pool": "max"},
    "top": {"pool": "max", "top": 2, "statistics": "mean"},
    "minmax": {"pool": "minmax", "extremes": 2, "hidden": [6, 4]},
    "attention": {"pool": "attention", "hidden": [8], "attention": 4},
}


def unfitted(**options):
    cls = registry.load("mil")
    return cls(build(cls.Options, {**SMALL, **options}), InputSpec(TilePx(PX), Mpp(1)))


def slides(count=6, size=12, strange=3, *, seed=7):
    """Slides of which a quarter of the tiles, at no stated place, is anomalous."""
    made, names = [], []
    for number in range(count):
        some = tiles(size, seed=seed + number)
        places = np.random.default_rng([seed, number]).permutation(size)[:strange]
        some[places] = tiles(strange, seed=seed + number, anomalous=True)
        made.append(some)
        names += [f"t{number}"] * size
    return np.concatenate(made), tuple(names)


def labelled(pixels, names):
    return AnomalousTiles((AnomalyType("stripes", ArrayTiles(pixels), names),))


def fit(folder, found, *, own=None, steps=120, **options):
    detector = unfitted(**options)
    folder.mkdir(exist_ok=True)
    own = own or healthy(72)
    detector.fit(own, replace(context(folder, steps=steps), anomalies=found))
    return detector


@pytest.mark.parametrize("name", POOLS)
def test_it_behaves_as_every_detector(name):
    check_detector(registry.load("mil"), {**SMALL, **POOLS[name]}, input_px=PX)


@pytest.mark.parametrize("name", POOLS)
def test_tiles_are_told_apart_by_labels_of_slides_alone(name, tmp_path):
    detector = fit(tmp_path / "run", labelled(*slides()), **POOLS[name])
    usual, strange = (detector.score(tiles(40, seed=90, anomalous=kind)) for kind in (False, True))
    assert (strange[:, None] > usual).mean() > 0.9


@pytest.mark.parametrize("name", ["max", "attention"])
def test_neither_the_order_of_slides_nor_of_tiles_matters(name, tmp_path):
    pixels, names = slides()
    order = np.random.default_rng(0).permutation(len(pixels))
    turned = labelled(pixels[order], tuple(np.asarray(names)[order].tolist()))
    asked = tiles(6, seed=90, anomalous=True)
    first = fit(tmp_path / "a", labelled(pixels, names), steps=20, **POOLS[name]).score(asked)
    second = fit(tmp_path / "b", turned, steps=20, **POOLS[name]).score(asked)
    np.testing.assert_allclose(first, second, rtol=2e-3, atol=2e-3)


def test_bags_are_slides_and_hold_a_stated_number_of_tiles():
    pixels, names = slides(count=2, size=12)
    bags = anomalous_bags(labelled(pixels, names), most=5, seed=1)
    assert [(bag.name, len(bag)) for bag in bags] == [("t0", 5), ("t1", 5)]
    assert all(bag.positions.tolist() == sorted(set(bag.positions.tolist())) for bag in bags)
    assert bags[1].positions.min() >= 12
    again = anomalous_bags(labelled(pixels, names), most=5, seed=1)
    assert np.array_equal(again[0].positions, bags[0].positions)
    dealt = healthy_bags(ArrayTiles(pixels), most=8, usual=6, seed=1)
    assert [len(bag) for bag in dealt] == [6, 6, 6, 6]
    assert np.concatenate([bag.positions for bag in dealt]).tolist() == list(range(24))


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="no anomalous slides"):
        unfitted().fit(healthy(), context(tmp_path))
    with pytest.raises(ConfigError, match="linear"):
        unfitted(pool="max", hidden=[3])
    with pytest.raises(ConfigError, match="one width"):
        unfitted(pool="attention", hidden=[3, 4])
    cls = registry.load("ensemble")
    members = {"members": [{"detector": "mil"}, {"detector": "linear-probe"}]}
    with pytest.raises(DetectorError, match="labels of slides"):
        cls.learns_from_anomalies(build(cls.Options, members))
    with pytest.raises(DetectorError, match="cannot learn from the windows of a first look"):
        check_learns(registry.load("mil"), name="mil")
    same = HealthyTiles(*[ArrayTiles(np.full((8, PX, PX, 3), 99, np.uint8))] * 2)
    with pytest.raises(DetectorError, match="all healthy tiles are alike"):
        fit(tmp_path / "same", anomalies(), own=same)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of whole slides: healthy ones, and ones with an anomaly somewhere."""
    folder = tmp_path_factory.mktemp("mil")
    for kind in ("normal", "tumor"):
        rows = ["slide,label"]
        for number in range(4):
            image = stained(160, 208, seed=number + 10 * (kind == "tumor"))
            if kind == "tumor":
                image[60:110, 60:140:4] = (60, 160, 60)
            write_tiff(folder / f"{kind}{number}.tif", image, mpp=0.5, levels=1)
            rows.append(f"{kind}{number}.tif,{kind}")
        (folder / f"{kind}.csv").write_text("\n".join(rows) + "\n")
        wsiad.tile(slides=folder / f"{kind}.csv", out=folder / f"{kind}_store", mpp=0.5, tile=32,
                   tissue={"min_area_um2": 0}, stain={"method": "none"}, quiet=True)  # fmt: skip
    return folder


def test_from_slides_to_a_heatmap(stores, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = train(
            stores / "normal_store", tmp_path / "run", detector="mil",
            anomalies=stores / "tumor_store", options={**SMALL, "steps": 60}, weights="wsiad",
        )  # fmt: skip
    assert "counts as anomalous" not in caplog.text
    assert "trained on the labels of 4 anomalous slides with" in result.summary
    record = RunFolder.open(tmp_path / "run").record()
    note = record.notes["anomalies"]
    assert note["labels_of"] == "slides"
    assert record.notes["anomalous_slides"] == 4
    assert record.notes["healthy_slides"] == len(record.slides["fit"])
    wsiad.heatmap(slides=stores / "tumor0.tif", run=tmp_path / "run", out=tmp_path / "out",
                  stride=32, quiet=True)  # fmt: skip
    scores = wsiad.Results(tmp_path / "out")
    assert len(scores)
    with pytest.raises(DetectorError, match="labels of slides"):
        wsiad.tune(store=stores / "normal_store", anomalies=stores / "tumor_store", quiet=True,
                   out=tmp_path / "tuned", detector="mil", space={"top": [1, 2]})  # fmt: skip


def test_stores_give_the_same_bags_from_stored_features(stores, tmp_path):
    options = {"detector": "mil", "anomalies": stores / "tumor_store", "weights": "wsiad",
               "options": {**SMALL, "steps": 5}}  # fmt: skip
    train(stores / "normal_store", tmp_path / "read", **options)
    for kind in ("normal", "tumor"):
        wsiad.embed(store=stores / f"{kind}_store", detector="mil", options=SMALL,
                    weights="wsiad", quiet=True)  # fmt: skip
    train(stores / "normal_store", tmp_path / "kept", **options)
    asked = np.asarray(tiles(3, seed=1))
    first, second = (
        RunFolder.open(tmp_path / name).load_detector("cpu").score(asked)
        for name in ("read", "kept")
    )
    np.testing.assert_allclose(first, second, rtol=2e-2, atol=2e-2)  # features are kept in float16
