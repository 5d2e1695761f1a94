"""`wsiad tune` over stores of several scales: what is tried, what is written, what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch
import yaml

import wsiad
from support.builders import import_images
from support.labelled import tiles
from wsiad.core.config import resolve
from wsiad.core.errors import ConfigError, RunError, StoreError, StoreMismatchError
from wsiad.detectors import registry
from wsiad.learning.checkpoint import CHECKPOINT
from wsiad.learning.detector import Detector, DetectorOptions, FitReport, State
from wsiad.learning.metrics import METRICS
from wsiad.runs.run import RunFolder
from wsiad.tuning.scale_slides import ScaleSlides, check_same_slides
from wsiad.tuning.trials import read_trials
from wsiad.verbs.tune import TuneConfig

HEALTHY = {"h0": 6, "h1": 6, "h2": 6, "both": 6}
ODD = {"both": "tumor", "t1": "tumor", "t2": "necrosis"}


def make(folder, *, mpp, healthy=HEALTHY, odd=ODD, each=1.0):
    """Import the same slides at a scale, with other tiles and another number of each."""
    for name, count in healthy.items():
        made = tiles(max(1, round(count * each)), seed=sum(map(ord, name)) + round(100 * mpp))
        import_images(folder / "in" / name, made, out=folder / "store", label="normal", mpp=mpp)
    for name, label in odd.items():
        seed = sum(map(ord, name)) + round(100 * mpp)
        made = tiles(max(1, round(4 * each)), seed=seed, anomalous=True)
        into = {"out": folder / "odd", "label": label, "mpp": mpp}
        source = folder / "odd-in" / name
        import_images(source, made, **into)
    return folder / "store", folder / "odd"


@pytest.fixture(scope="module")
def scales(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scales")
    return [make(folder / f"{mpp}", mpp=mpp, each=0.5 / mpp) for mpp in (0.5, 1.0)]


class GaugeOptions(DetectorOptions):
    """Options of the gauge."""

    focus: float = pydantic.Field(default=0.7, ge=0, le=1)
    """Scores are best at 0.7."""


class Gauge(Detector):
    """Scores by contrast, best at 1 µm/px."""

    Options = GaugeOptions
    uses_anomalies = True
    seen: list = []
    after = None

    def fit(self, tiles, context):
        sources = [tiles.fit, tiles.stop, *(kind.tiles for kind in context.anomalies.types)]
        taught = {t.tobytes() for one in sources for part in one.ordered(64) for t in part}
        Gauge.seen.append((float(self.spec.mpp), taught, set()))
        if Gauge.after:
            Gauge.after(len(Gauge.seen))
        return FitReport("fitted")

    def score_places(self, tiles):
        if Gauge.seen:
            Gauge.seen[-1][2].update(tile.tobytes() for tile in tiles)
        noise = np.array([np.random.default_rng(int(t.sum())).normal() for t in tiles])
        off = abs(self.options.focus - 0.7) + abs(float(self.spec.mpp) - 1)
        scores = tiles.std(axis=(1, 2, 3)) / 10 + 30 * off * noise
        return scores.astype(np.float32)[:, None, None]

    def state(self):
        return State({"none": torch.zeros(1)}, {})

    def load_state(self, state, device):
        pass


@pytest.fixture(autouse=True)
def gauge(monkeypatch):
    whole = registry.load
    monkeypatch.setattr(registry, "load", lambda name: Gauge if name == "gauge" else whole(name))
    monkeypatch.setattr(Gauge, "seen", [])
    monkeypatch.setattr(Gauge, "after", None)


def tune(scales, out, **values):
    (store, odd), *others = scales
    given = {"detector": "gauge", "scales": {str(one): odd for one, odd in others}, **values}
    return wsiad.tune(store=store, anomalies=odd, out=out, quiet=True, **given)


def rows(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_best_scale_is_found_and_its_store_is_trained(scales, tmp_path):
    out = tmp_path / "out"
    result = tune(scales, out, space={"focus": [0.2, 0.7]})
    assert result.best.params == {"mpp": 1.0, "focus": 0.7}
    tried = {(float(row["mpp"]), float(row["focus"])) for row in rows(out)}
    assert tried == {(0.5, 0.2), (0.5, 0.7), (1.0, 0.2), (1.0, 0.7)}
    assert "mpp 1.0, focus 0.7" in result.summary
    for trial in read_trials(out):
        training = yaml.safe_load((out / f"trials/{trial.number:04d}/train.yaml").read_text())
        store, odd = scales[trial.params["mpp"] == 1.0]
        assert (training["store"], training["anomalies"]) == (str(store), str(odd))
        assert training["options"] == {"focus": trial.params["focus"]}
    run = wsiad.train(**yaml.safe_load((out / "best.yaml").read_text())).run
    assert RunFolder(run).load_detector("cpu").spec.mpp == 1.0
    record = json.loads((out / "run.json").read_text())
    assert [one["mpp"] for one in record["scales"]] == [0.5, 1.0]
    assert [one["healthy"]["tiles"] for one in record["scales"]] == [24, 12]
    assert resolve(TuneConfig, file=out / "config.yaml", flags={}).space.keys() == {"focus"}


def test_a_fold_has_the_same_slides_at_all_scales(scales, tmp_path):
    tune(scales, tmp_path / "out")
    found = json.loads((tmp_path / "out/folds.json").read_text())
    (other,) = found["scales"]
    assert other["mpp"] == 1.0
    for here, there in zip(found["folds"], other["folds"], strict=True):
        for kind in ("healthy", "anomalies"):
            assert here[kind].keys() == there[kind].keys()
            assert {n: count / 2 for n, count in here[kind].items()} == there[kind]
    assert sorted(mpp for mpp, _, _ in Gauge.seen) == [0.5] * 3 + [1.0] * 3
    pixels = {}
    for mpp, paths in zip((0.5, 1.0), scales, strict=True):
        slides = [slide for path in paths for slide in wsiad.TileStore(path)]
        pixels[mpp] = {t.tobytes() for slide in slides for t in slide.tiles(0, 99)}
    for mpp, taught, tested in Gauge.seen:
        assert taught | tested <= pixels[mpp]
        assert not taught & tested


def test_a_killed_search_over_scales_goes_on_to_the_same_result(scales, tmp_path):
    class Killed(BaseException):
        pass

    given = {"space": {"focus": {"low": 0.0, "high": 1.0}}, "trials": 5, "random_trials": 3}
    tune(scales, tmp_path / "whole", **given)

    def kill(count):
        if count in kills:
            raise Killed

    kills, Gauge.seen, Gauge.after = (2, 8), [], kill
    for _ in kills:
        with pytest.raises(Killed):
            tune(scales, tmp_path / "out", **given)
    tune(scales, tmp_path / "out", **given)
    for name in ("trials.csv", "folds.json", "best.yaml"):
        whole, out = ((tmp_path / folder / name).read_text() for folder in ("whole", "out"))
        assert whole.replace("/whole/", "/out/") == out


def test_a_store_that_was_tiled_again_is_refused(scales, tmp_path):
    tune(scales, tmp_path / "out", trials=1, seed=1)
    path = tmp_path / "out/trials/0001/trial.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "params": {"mpp": 2.0}}))
    with pytest.raises(RunError, match="no store has tiles of 2 µm/px any more"):
        tune(scales, tmp_path / "out", trials=2, seed=1)


def test_a_search_over_other_tiles_is_refused_though_the_scales_are_the_same(scales, tmp_path):
    fine = make(tmp_path / "fine", mpp=0.5)
    mine = [fine, scales[1]]
    tune(mine, tmp_path / "out", trials=1, seed=1)
    folds = (tmp_path / "out/folds.json").read_bytes()
    tune(mine, tmp_path / "out", trials=2, seed=1)
    assert (tmp_path / "out/folds.json").read_bytes() == folds
    other, _ = make(tmp_path / "other", mpp=0.5, healthy={**HEALTHY, "h0": 3})
    fine[0].rename(tmp_path / "before")
    other.rename(fine[0])
    with pytest.raises(RunError, match="changed since the search began"):
        tune(mine, tmp_path / "out", trials=3, seed=1)
    assert (tmp_path / "out/folds.json").read_bytes() == folds
    assert len(read_trials(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"healthy": {**HEALTHY, "h9": 4}}, "has h9 besides"),
        ({"healthy": {"h0": 6, "h1": 6, "h2": 6}}, "lacks both"),
        ({"odd": {"both": "tumor", "t1": "tumor"}}, "lacks t2"),
        ({"odd": {**ODD, "t1": "necrosis"}}, "other labels than .*: t1"),
        ({"mpp": 0.5}, "has tiles of 0.5 µm/px, as .*store has"),
    ],
)
def test_stores_of_other_slides_are_refused(scales, tmp_path, changed, said):
    other = make(tmp_path / "other", **{"mpp": 2.0, **changed})
    with pytest.raises(StoreMismatchError, match=said):
        tune([scales[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tumour_tiles_of_each_scale_are_needed(scales, tmp_path):
    (fine, odd), (coarse, _) = scales
    with pytest.raises(StoreMismatchError, match=r"another mpp than the run's \(0.5 in the store"):
        tune([scales[0], (coarse, odd)], tmp_path / "out")
    with pytest.raises(StoreError, match="none"):
        tune([scales[0], (coarse, tmp_path / "none")], tmp_path / "out")
    assert fine.is_dir()


def test_bad_searches_over_scales_are_refused(scales, tmp_path):
    with pytest.raises(ConfigError, match=r"searched over stores of the same slides.*--scale"):
        tune(scales, tmp_path / "out", space={"mpp": [0.5, 1.0]})
    with pytest.raises(ConfigError, match="tiles of two scales do not correspond"):
        tune(scales, tmp_path / "out", anomaly_folds_by="tile")
    with pytest.raises(ConfigError, match="nothing to try: set `space` or `scales`"):
        tune(scales[:1], tmp_path / "out")


def test_other_slides_of_equal_names_are_noticed():
    first = ScaleSlides(
        Path("a"), Path("b"), {"h": "1", "i": ""}, {"t": "3"}, {"t": "tumor"}, "none"
    )
    check_same_slides(first, replace(first, healthy_store=Path("c"), healthy={"h": "1", "i": "9"}))
    with pytest.raises(StoreMismatchError, match="c: holds other slides than a under the same nam"):
        check_same_slides(
            first, replace(first, healthy_store=Path("c"), healthy={"h": "2", "i": ""})
        )
    with pytest.raises(StoreMismatchError, match="d: holds other slides than b"):
        check_same_slides(first, replace(first, anomalous_store=Path("d"), anomalous={"t": "4"}))
    with pytest.raises(StoreMismatchError, match="stain normalisation macenko"):
        check_same_slides(first, replace(first, stain="macenko"))


@pytest.mark.parametrize("depth", ["", "autoencoder", "member-1/autoencoder"])
def test_a_tested_fold_keeps_no_checkpoint_of_any_part_of_its_fit(
    scales, tmp_path, monkeypatch, depth
):
    def fit(self, tiles, context):
        folder = context.folder / depth
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, METRICS):
            (folder / name).write_text("")
        return FitReport("fitted")

    monkeypatch.setattr(Gauge, "fit", fit)
    tune(scales[:1], tmp_path / "out", space={"focus": [0.7]})
    kept = {path.parent for path in (tmp_path / "out").rglob(METRICS)}
    assert kept == {tmp_path / "out/trials/0001" / f"fold-{fold}" / depth for fold in (1, 2, 3)}
    assert not list((tmp_path / "out").rglob(CHECKPOINT))
