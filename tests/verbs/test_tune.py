"""`wsiad tune`: what is tried, resumed, given up, refused and found; no leak between folds."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydantic
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

import wsiad
from support.builders import import_images
from support.labelled import tiles
from wsiad.cli import main
from wsiad.core.config import resolve
from wsiad.core.errors import ConfigError, DetectorError, InputError, RunError, SearchError
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, DetectorOptions, FitReport, State
from wsiad.tuning import course as tune_search
from wsiad.tuning.space import check_space, options_of, values_of
from wsiad.tuning.trials import read_trials
from wsiad.verbs.tune import TuneConfig

CONFIGS = Path(__file__).parents[2] / "configs"
KNN = {"layers": ["features.3"], "places": 2, "fit_tiles": 40, "fit_vectors": 60}


def add(folder, name, count, *, anomalous=False, **values):
    made = tiles(count, seed=sum(map(ord, name)), anomalous=anomalous)
    import_images(folder / "in" / name, made, **values)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name in ("h0", "h1", "h2", "h3", "h4", "both"):
        add(folder / "healthy", name, 8, out=folder / "store", label="normal")
    for name, label in (("both", "tumor"), ("t1", "tumor"), ("t2", "tumor"), ("n1", "necrosis")):
        add(folder / "odd", name, 5, anomalous=True, out=folder / "odd-store", label=label)
    return folder / "store", folder / "odd-store"


class ToyOptions(DetectorOptions):
    """Options of the toy."""

    focus: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Scores are best at 0.7."""
    mode: str = "good"
    """`bad` turns scores round, `broken` fails, `late` fails to score."""
    widths: dict[int, int] = {}
    """Of no effect."""


class Toy(Detector):
    """Scores by contrast, with the more noise the further `focus` is from 0.7."""

    Options = ToyOptions
    uses_anomalies = False
    seen: list = []
    after = None

    def fit(self, tiles, context):
        if self.options.mode == "broken":
            raise DetectorError("the toy is broken", remedy="Mend it.")
        whole = [whole_of(source) for source in (tiles.fit, tiles.stop)]
        kinds = context.anomalies.types if context.anomalies else ()
        Toy.seen.append((*whole, set().union(*(whole_of(k.tiles) for k in kinds)), set()))
        if Toy.after:
            Toy.after(len(Toy.seen))
        return FitReport("fitted", notes={"best_stop_loss": 1 - self.options.focus})

    def score_places(self, tiles):
        if Toy.seen:
            Toy.seen[-1][3].update(tile.tobytes() for tile in tiles)
        if self.options.mode == "late":
            raise ValueError("a bug")
        contrast = tiles.std(axis=(1, 2, 3)) / 10
        noise = np.array([np.random.default_rng(int(t.sum())).normal() for t in tiles])
        scores = contrast + 30 * abs(self.options.focus - 0.7) * noise
        scores = -scores if self.options.mode == "bad" else scores
        return scores.astype(np.float32)[:, None, None]

    def state(self):
        return State({"none": torch.zeros(1)}, {})

    def load_state(self, state, device):
        pass


class Learner(Toy):
    uses_anomalies = True


def whole_of(source):
    return {tile.tobytes() for part in source.ordered(64) for tile in part}


@pytest.fixture
def toy(monkeypatch):
    whole = registry.load
    known = {"toy": Toy, "learner": Learner}
    monkeypatch.setattr(registry, "load", lambda name: known.get(name) or whole(name))
    monkeypatch.setattr(Toy, "seen", [])
    monkeypatch.setattr(Toy, "after", None)


def tune(stores, out, **values):
    given = {"detector": "toy", "space": {"focus": [0.1, 0.4, 0.7, 1.0]}, **values}
    return wsiad.tune(store=stores[0], anomalies=stores[1], out=out, quiet=True, **given)


def rows(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def contents(out):
    """Everything that a search leaves and that does not tell the time."""
    names = ("trials.csv", "best.yaml", "folds.json", "trials.png")
    return {name: (out / name).read_text(errors="replace") for name in names}


def test_the_known_best_setting_is_found_and_ready_to_train(stores, tmp_path, toy):
    out = tmp_path / "out"
    result = tune(stores, out, options={"widths": {3: 4}}, trials=50)
    assert result.best.params == {"focus": 0.7}
    # All settings of the space, each once, although more were allowed.
    assert sorted(float(row["focus"]) for row in rows(out)) == [0.1, 0.4, 0.7, 1.0]
    assert {row["state"] for row in rows(out)} == {"complete"}
    for row in rows(out):
        folds = [float(row[f"fold_{i}"]) for i in (1, 2, 3)]
        assert float(row["auroc"]) == pytest.approx(np.mean(folds), rel=1e-5)
        assert float(row["auroc_spread"]) == pytest.approx(np.std(folds, ddof=1), rel=1e-4)
        assert float(row["healthy_loss"]) == pytest.approx(1 - float(row["focus"]))
    record = json.loads((out / "run.json").read_text())
    assert record["best"]["params"] == {"focus": 0.7}
    assert record["best_by_healthy_loss"]["params"] == {"focus": 1.0}
    assert record["trials"] == {"complete": 4, "pruned": 0, "failed": 0, "not_ended": 0}
    assert record["versions"]["optuna"]
    run = wsiad.train(**yaml.safe_load((out / "best.yaml").read_text()))
    assert yaml.safe_load((run.run / "config.yaml").read_text())["options"] == {
        "widths": {"3": 4}, "focus": 0.7,
    }  # fmt: skip
    assert main(["train", "--config", str(out / "best.yaml")]) == 0


def test_auroc_of_a_fold_is_that_of_its_slides(stores, tmp_path, toy):
    """Against scikit-learn, from the stores and the membership that was written out."""
    out = tmp_path / "out"
    tune(stores, out, space={"focus": [0.4]})
    folds = json.loads((out / "folds.json").read_text())["folds"]
    detector = Toy(ToyOptions(focus=0.4), None)
    for fold, score in zip(folds, read_trials(out)[0].folds, strict=True):
        parts = [
            np.concatenate([wsiad.TileStore(path).slide(n).tiles(0, 99) for n in fold[kind]])
            for path, kind in zip(stores, ("healthy", "anomalies"), strict=True)
        ]
        truth = np.repeat([0, 1], [len(part) for part in parts])
        scores = np.concatenate([detector.score(part) for part in parts])
        assert score.auroc == pytest.approx(roc_auc_score(truth, scores))
        assert (score.healthy_tiles, score.anomalous_tiles) == tuple(map(len, parts))


@pytest.mark.parametrize("detector", ["toy", "learner"])
def test_nothing_is_tested_that_was_fitted_on(stores, tmp_path, toy, detector):
    tune(stores, tmp_path / "out", detector=detector, space={"focus": [0.7]})
    folds = json.loads((tmp_path / "out/folds.json").read_text())["folds"]
    pixels = [
        {name: {t.tobytes() for t in store.slide(name).tiles(0, 99)} for name in store.names()}
        for store in map(wsiad.TileStore, stores)
    ]
    assert len(Toy.seen) == 3
    for number, (fit, stop, anomalies, scored) in enumerate(Toy.seen):
        others = [fold for i, fold in enumerate(folds) if i != number]
        mine = [*folds[number]["healthy"]], [*folds[number]["anomalies"]]
        of_mine = [set().union(*(pixels[k][name] for name in mine[k])) for k in (0, 1)]
        of_others = [
            set().union(*(pixels[k][name] for fold in others for name in fold[kind]))
            for k, kind in enumerate(("healthy", "anomalies"))
        ]
        assert scored == of_mine[0] | of_mine[1]
        assert fit | stop == of_others[0]
        assert not fit & stop
        assert anomalies == (of_others[1] if detector == "learner" else set())
        # One slide has tiles in both stores: no part of it is known when the other is tested.
        for name in set(mine[0]) | set(mine[1]):
            for k in (0, 1):
                assert not pixels[k].get(name, set()) & (fit | stop | anomalies)


class Killed(BaseException):
    """What SIGKILL leaves behind, without the signal."""


def test_a_killed_search_goes_on_to_the_same_result(stores, tmp_path, toy):
    space = {"focus": {"low": 0.0, "high": 1.0}, "mode": ["good", "bad", "broken"]}
    given = {"space": space, "trials": 7, "random_trials": 3, "seed": 2}
    assert tune(stores, tmp_path / "whole", **given).failed
    total, kills = len(Toy.seen), (1, 2, 5, 9)
    Toy.seen = []

    def kill(count):
        if count in kills:
            raise Killed

    Toy.after = kill
    for _ in kills:
        with pytest.raises(Killed):
            tune(stores, tmp_path / "out", **given)
        ended = [t for t in read_trials(tmp_path / "out") if t.state != "running"]
        assert not ended or len(rows(tmp_path / "out")) in (len(ended), len(ended) + 1)
    tune(stores, tmp_path / "out", **given)
    found = [contents(tmp_path / name) for name in ("whole", "out")]
    found[0]["best.yaml"] = found[0]["best.yaml"].replace("/whole/", "/out/")
    assert found[0] == found[1]
    assert len(Toy.seen) == total + len(kills)  # only the fits that were killed are made twice


def test_more_trials_go_on_and_change_nothing_of_the_first(stores, tmp_path, toy):
    space = {"focus": {"low": 0.0, "high": 1.0}}
    tune(stores, tmp_path / "a", space=space, trials=7, random_trials=4)
    about = {"system": "Toy", "paper": "A, 2020", "published": "all", "adapted": [], "gpu": False}
    tune(stores, tmp_path / "b", space=space, trials=3, random_trials=4, about=about)
    assert len(rows(tmp_path / "b")) == 3  # words about the system may change, too
    tune(stores, tmp_path / "b", space=space, trials=7, random_trials=4)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_another_seed_draws_others(stores, tmp_path, toy):
    space = {"focus": {"low": 0.0, "high": 1.0}}
    found = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(found)}"
        tune(stores, out, space=space, trials=2, folds=2, seed=seed)
        found.append([row["focus"] for row in rows(out)])
    assert found[0] == found[1] != found[2]


def test_failed_trials_are_reported_and_do_not_stop_the_others(stores, tmp_path, toy, capsys):
    out = tmp_path / "out"
    space = {"mode": ["good", "broken", "late"], "focus": [0.7]}
    result = tune(stores, out, space=space)
    assert result.best.params["mode"] == "good"
    reasons = {row["mode"]: row["reason"] for row in rows(out)}
    assert reasons["broken"] == "fold 1: the toy is broken. Mend it."
    assert reasons["late"] == "fold 1: unexpected ValueError: a bug"
    assert len(result.failed) == 2
    arguments = ["tune", str(stores[0]), "--anomalies", str(stores[1]), "--out", str(out)]
    arguments += ["--detector", "toy", "--space", "mode=[good, broken, late]"]
    arguments += ["--space", "focus=[0.7]", "--quiet"]
    assert main(arguments) == 1
    assert "fold 1: the toy is broken" in capsys.readouterr().err
    assert not [path for path in (out / "trials").rglob("fold-*") if path.is_dir()]
    fits = len(Toy.seen)
    tune(stores, out, space=space, retry_failed=True)
    assert len(Toy.seen) == fits + 1  # "late" fits before it fails


def test_no_trial_succeeds(stores, tmp_path, toy):
    result = tune(stores, tmp_path / "out", space={"mode": ["broken"]})
    assert result.best is None
    assert result.exit_code == 1
    assert "there is no best trial" in result.summary
    assert not (tmp_path / "out/best.yaml").exists()


def test_trials_below_the_median_are_given_up(stores, tmp_path, toy):
    space = {"mode": ["good", "bad"], "focus": {"low": 0.6, "high": 0.8}}
    result = tune(stores, tmp_path / "a", space=space, trials=11, random_trials=11, seed=4)
    states = {row["trial"]: row for row in rows(tmp_path / "a")}
    pruned = [row for row in states.values() if row["state"] == "pruned"]
    assert pruned
    complete = [float(row["fold_1"]) for row in states.values() if row["state"] == "complete"]
    for row in pruned:
        assert float(row["fold_1"]) < np.median(complete)
        assert row["fold_3"] == ""
        assert "below the median" in row["reason"]
    assert result.best.state == "complete"
    whole = tune(
        stores, tmp_path / "b", space=space, trials=11, random_trials=11, seed=4, prune=False
    )
    assert {trial.state for trial in whole.trials} == {"complete"}
    assert whole.best.params == result.best.params


def test_no_fit_is_begun_when_time_is_over(stores, tmp_path, toy, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(tune_search, "time", clock)
    Toy.after = lambda count: vars(clock).update(now=clock.now + 61)
    result = tune(stores, tmp_path / "out", max_minutes=1)
    assert len(Toy.seen) == 1
    assert [trial.state for trial in result.trials] == ["running"]
    assert "1 not finished: run the same command" in result.summary
    assert result.exit_code == 1
    assert len(tune(stores, tmp_path / "out").trials) == 4


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("tune-*.yaml")), ids=lambda path: path.stem)
def test_shipped_searches_fit_their_detectors(path):
    config = resolve(TuneConfig, file=path, flags={"store": "s", "anomalies": "a", "out": "o"})
    cls = registry.load(config.detector)
    check_space(config.space, config.options, cls.Options)
    for values in product(*(values_of(parameter) for parameter in config.space.values())):
        params = dict(zip(config.space, values, strict=True))
        options = cls.Options(**config.options, **options_of(config.space, params))
        if config.detector == "dpa":
            options.shape(64)


def test_a_single_value_is_a_list_of_one():
    given = {"store": "healthy", "anomalies": "anomalous", "out": "out", "detector": "toy"}
    one, several = (
        TuneConfig(**given, space={"focus": focus, "mode": mode})
        for focus, mode in ((0.3, "soft"), ([0.3], ["soft"]))
    )
    assert one == several
    assert {name: values_of(parameter) for name, parameter in one.space.items()} == {
        "focus": [0.3],
        "mode": ["soft"],
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"fokus": [0.1]}, "no option 'fokus' .did you mean 'focus'"),
        ({"focus": [0.1, 2.0]}, "focus cannot be 2.0"),
        ({"focus": {"low": 0.5, "high": 3.0}}, "focus cannot be 3.0"),
        ({"input_px": {"low": 16.0, "high": 20.0}}, "input_px cannot be 17.5"),
        ({"pair": {"tied": [{"focus": 0.1}, {"mode": "bad"}]}}, "the same options"),
        ({"pair": {"tied": [{"focus": 0.1, "x": 1}]}}, "no option 'x'"),
        ({"focus": [0.1], "pair": {"tied": [{"focus": 0.2}]}}, "set by space.focus already"),
        ({"widths": [{3: 1}]}, "set by options already"),
        ({"focus": {"lo": 0.1}}, "space.focus: write a list, or .*got ..lo"),
        ({"focus": {"low": 1, "high": 0}}, "below `high`"),
        ({"focus": [0.1, 0.1]}, "listed twice"),
        ({"focus": []}, "at least 1"),
        ({}, "nothing to try"),
    ],
)
def test_a_space_is_checked_before_anything_runs(stores, tmp_path, toy, space, message):
    with pytest.raises(ConfigError, match=message):
        tune(stores, tmp_path / "out", space=space, options={"widths": {}})
    assert not Toy.seen
    assert not (tmp_path / "out").exists()


def test_what_else_is_refused_before_anything_runs(stores, tmp_path, toy, monkeypatch):
    for values, error, message in (
        ({"detector": "tay"}, DetectorError, "no detector 'tay'"),
        ({"options": {"fokus": 1}}, ConfigError, "unknown key"),
        ({"folds": 5}, InputError, "4 anomalous slides cannot fill 5 folds"),
        ({"anomaly_folds_by": "label"}, InputError, "2 types of anomalous slides"),
        ({"space": {"input_px": [16, 64]}}, DetectorError, "needs 64 px, but the tiles have 32"),
        ({"space": {"input_px": {"low": 16, "high": 48}}}, DetectorError, "needs 48 px"),
        ({"scheduler": "tcp://h:1"}, ConfigError, "Set --at-once"),
        ({"scheduler": "tcp://h:1", "workers": 2}, ConfigError, "processes on this machine"),
        ({"trails": 3}, ConfigError, "did you mean 'trials'"),
    ):
        with pytest.raises(error, match=message):
            tune(stores, tmp_path / "out", **values)
        assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SearchError, match=r"pip install 'wsiad\[tune\]'"):
        tune(stores, tmp_path / "out")


def test_the_folder_of_another_search_is_refused(stores, tmp_path, toy):
    tune(stores, tmp_path / "out", trials=1)
    for other in ({"seed": 3}, {"space": {"focus": [0.1]}}, {"folds": 2}):
        with pytest.raises(RunError, match=f"configuration: {next(iter(other))}"):
            tune(stores, tmp_path / "out", trials=1, **other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    with pytest.raises(RunError, match="not a search"):
        tune(stores, tmp_path / "mine")
    (tmp_path / "out/trials/0001/fold-1.json").write_text("{")
    with pytest.raises(RunError, match=r"fold-1\.json"):
        tune(stores, tmp_path / "out", trials=2)


def test_tied_options_change_together(stores, tmp_path, toy):
    pairs = [{"focus": 0.7, "mode": "bad"}, {"focus": 0.6, "mode": "good"}]
    result = tune(stores, tmp_path / "out", space={"pair": {"tied": pairs}})
    assert result.best.params == {"pair": pairs[1]}
    assert yaml.safe_load((tmp_path / "out/best.yaml").read_text())["options"] == pairs[1]
    assert {(row["focus"], row["mode"]) for row in rows(tmp_path / "out")} == {
        ("0.7", "bad"), ("0.6", "good"),
    }  # fmt: skip


def test_folds_by_tile_are_said_to_be_too_good(stores, tmp_path, toy):
    given = {"healthy_folds_by": "tile", "anomaly_folds_by": "tile", "folds": 5}
    result = tune(stores, tmp_path / "a", space={"focus": [0.7]}, **given)
    assert "figures are too good" in result.warnings[0]
    assert "spread over folds is too small" in result.warnings[1]
    assert result.summary.count("WARNING") == 2
    assert json.loads((tmp_path / "a/run.json").read_text())["warnings"] == [*result.warnings]
    learner = tune(stores, tmp_path / "b", detector="learner", space={"focus": [0.7]}, **given)
    assert "are tested on slides that they were trained on" in learner.warnings[1]
    members = json.loads((tmp_path / "a/folds.json").read_text())
    assert members["tiles_are"] == "indices"
    for kind, path in zip(("healthy", "anomalies"), stores, strict=True):
        for name in wsiad.TileStore(path).names():
            found = [i for fold in members["folds"] for i in fold[kind].get(name, [])]
            assert sorted(found) == list(range(len(wsiad.TileStore(path).slide(name))))


def test_types_that_are_tested_were_not_learnt_from(stores, tmp_path, toy):
    tune(
        stores, tmp_path / "out", detector="learner", space={"focus": [0.7]}, folds=2,
        anomaly_folds_by="label",
    )  # fmt: skip
    members = json.loads((tmp_path / "out/folds.json").read_text())
    kinds = [{members["types"][name] for name in fold["anomalies"]} for fold in members["folds"]]
    assert sorted(map(sorted, kinds)) == [["necrosis"], ["tumor"]]


def test_fewer_tiles_are_used_where_asked(stores, tmp_path, toy):
    tune(
        stores, tmp_path / "out", space={"focus": [0.7]}, healthy_tiles=12, anomaly_tiles=6,
        anomaly_types="tumor",
    )  # fmt: skip
    folds = json.loads((tmp_path / "out/folds.json").read_text())["folds"]
    assert sum(sum(fold["healthy"].values()) for fold in folds) == 12
    assert sum(sum(fold["anomalies"].values()) for fold in folds) == 6
    assert {n for fold in folds for n in fold["anomalies"]} == {"both", "t1", "t2"}


@pytest.fixture
def scheduler():
    """A dask scheduler whose two workers are threads of this process: they know the toy."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def test_a_scheduler_gives_the_same_trials(stores, tmp_path, toy, scheduler):
    space = {"mode": ["good", "bad", "broken"], "focus": {"low": 0.0, "high": 1.0}}
    given = {"space": space, "trials": 8, "random_trials": 8, "prune": False}
    tune(stores, tmp_path / "one", **given)
    result = tune(stores, tmp_path / "two", **given, scheduler=scheduler, at_once=3)
    assert contents(tmp_path / "one")["trials.csv"] == contents(tmp_path / "two")["trials.csv"]
    assert result.failed


def test_trials_in_work_at_once_do_not_try_the_same(stores, tmp_path, toy, scheduler):
    result = tune(stores, tmp_path / "out", trials=9, scheduler=scheduler, at_once=4)
    assert sorted(trial.params["focus"] for trial in result.trials) == [0.1, 0.4, 0.7, 1.0]
    assert result.best.params == {"focus": 0.7}


@pytest.mark.slow
def test_workers_give_the_same_trials(stores, tmp_path):
    """With real features: the toy is known to this process only."""
    given = {
        "detector": "knn", "weights": "random", "options": KNN, "folds": 2,
        "space": {"neighbours": [1, 2]}, "prune": False,
    }  # fmt: skip
    tune(stores, tmp_path / "one", **given)
    tune(stores, tmp_path / "two", **given, workers=2)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert len(rows(tmp_path / "one")) == 2


@pytest.mark.slow
def test_of_two_searches_in_one_folder_the_second_is_refused(stores, tmp_path):
    """Each is a process; the first goes on as if nothing had been."""
    given = {
        "detector": "knn", "weights": "random", "options": KNN, "folds": 2,
        "space": {"neighbours": [1]},
    }  # fmt: skip
    tune(stores, tmp_path / "alone", **given)
    config = {"store": str(stores[0]), "anomalies": str(stores[1]), **given, "quiet": True}
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump({**config, "out": str(tmp_path / "out")}))
    path = str(Path(wsiad.__file__).parents[1])
    command = [sys.executable, "-P", "-m", "wsiad", "tune", "--config", str(file)]
    environment = {**os.environ, "PYTHONPATH": path}
    first = subprocess.Popen(command, env=environment)
    claim = tmp_path / "out" / ".claim"
    end = time.monotonic() + 60
    while not claim.exists() and first.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    try:
        second = subprocess.run(command, env=environment, capture_output=True, text=True)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"{tmp_path / 'out'}: another process works on it. Wait until" in second.stderr
    assert first.wait(120) == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "alone")
    assert not claim.exists()


@pytest.mark.slow
def test_sigkill_in_the_middle_of_a_fit(stores, tmp_path):
    """A true kill, and a detector whose fit goes on from its checkpoint."""
    options = {
        "layers": {"relu1_1": 1.0}, "latent_px": 4, "input_px": 16, "val_interval": 5,
        "statistics_tiles": 8, "max_steps": 20, "checkpoint_seconds": 0.01,
    }  # fmt: skip
    config = {
        "store": str(stores[0]), "anomalies": str(stores[1]), "detector": "dpa",
        "space": {"batch": [4]}, "options": options, "weights": "random", "folds": 2, "quiet": True,
    }  # fmt: skip
    wsiad.tune(**config, out=tmp_path / "whole")
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump({**config, "out": str(tmp_path / "out")}))
    command = [sys.executable, "-m", "wsiad", "tune", "--config", str(file)]
    path = str(Path(wsiad.__file__).parents[1])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    checkpoint = tmp_path / "out/trials/0001/fold-1/checkpoint.safetensors"
    end = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = wsiad.tune(**config, out=tmp_path / "out")
    assert rows(tmp_path / "whole") == rows(tmp_path / "out")
    assert result.best.healthy_loss > 0
    assert result.trials[0].folds[0].steps == 20
    assert not list((tmp_path / "out").rglob("checkpoint*"))
    assert list((tmp_path / "out").rglob("metrics.csv"))
