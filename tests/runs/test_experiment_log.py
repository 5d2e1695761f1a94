"""The log of a training, read back by TensorBoard's own reader and by MLflow's client."""

import importlib.util
import json
import logging
from collections import Counter

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import ConfigError, RunError
from wsiad.learning.metrics import read_metrics
from wsiad.runs import experiment_log
from wsiad.runs.experiment_log import ExperimentLog

SERIES = ("train_loss", "stop_loss", "learning_rate")
DEEP_SVDD = {
    "channels": [4, 6], "representation": 5, "pretrain_steps": 5, "batch": 4, "max_steps": 10,
    "val_interval": 4, "log_interval": 1, "keep": "last", "input_px": 48,
}  # fmt: skip
PARTS = ("", "autoencoder")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    (folder / "slides").mkdir()
    for number in range(4):
        image = stained(160, 208, seed=number)
        write_tiff(folder / "slides" / f"s{number}.tif", image, mpp=0.5, levels=1)
    wsiad.tile(slides=folder / "slides", out=folder / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    return folder / "store"


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def train(store, run, log, detector="deep-svdd", options=DEEP_SVDD, **more):
    return wsiad.train(
        store=store, out=run, detector=detector, options=options, log=log, quiet=True,
        device="cpu", **more,
    )  # fmt: skip


def owned(folder):
    """Steps and values of each series in metrics.csv, whose last step may have two lines."""
    rows = read_metrics(folder / "metrics.csv")
    return {
        name: list(
            {row.step: getattr(row, name) for row in rows if getattr(row, name) is not None}.items()
        )
        for name in SERIES
    }


def shown_by_tensorboard(run, part):
    events = EventAccumulator(str(run / "tensorboard" / part), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def mlflow_client(run):
    return MlflowClient((run.absolute().parent / "mlruns").as_uri())


def mlflow_run(run):
    return mlflow_client(run).get_run(json.loads((run / "mlflow.json").read_text())["run_id"])


def shown_by_mlflow(run, part):
    client, found = mlflow_client(run), mlflow_run(run)
    keys = [key for key in found.data.metrics if key.rpartition("/")[0] == part]
    return {
        key.rpartition("/")[2]: [
            (metric.step, metric.value)
            for metric in client.get_metric_history(found.info.run_id, key)
        ]
        for key in keys
    }


SHOWN = {"tensorboard": shown_by_tensorboard, "mlflow": shown_by_mlflow}


def check_same(run, log):
    for part in PARTS:
        expected, found = owned(run / part), SHOWN[log](run, part)
        assert len(expected["train_loss"]) >= 5
        for name in SERIES:
            steps = [step for step, _ in found[name]]
            assert steps == [step for step, _ in expected[name]], (part, name)
            values = [value for _, value in found[name]]
            assert values == pytest.approx([value for _, value in expected[name]], rel=1e-6)


def killed(monkeypatch, at):
    """Let the training be killed after so many lines, when the last one is in the log."""
    count, add = Counter(), ExperimentLog.add

    def die(self, folder, row):
        add(self, folder, row)
        count[folder] += 1
        if self._part(folder) == at[0] and count[folder] == at[1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(ExperimentLog, "add", die)


@pytest.mark.parametrize("log", ["tensorboard", "mlflow"])
def test_a_log_has_the_lines_of_metrics_csv_once_also_after_kills(
    log, store, tmp_path, monkeypatch
):
    plain, run = tmp_path / "plain", tmp_path / "run"
    train(store, plain, None)
    assert not (plain / "tensorboard").exists()
    for at in (("autoencoder", 3), ("", 3), ("", 2)):
        with monkeypatch.context() as patch:
            killed(patch, at)
            with pytest.raises(KeyboardInterrupt):
                train(store, run, log)
    if log == "mlflow":
        assert mlflow_run(run).info.status == "KILLED"
    train(store, run, log)
    check_same(run, log)
    for part in PARTS:
        assert owned(run / part) == owned(plain / part)
    assert (run / "weights.safetensors").read_bytes() == (
        plain / "weights.safetensors"
    ).read_bytes()


def test_a_log_may_begin_when_a_training_goes_on(store, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed(patch, ("", 6))
        with pytest.raises(KeyboardInterrupt):
            train(store, run, "tensorboard")
    train(store, run, "mlflow")
    found = shown_by_mlflow(run, "")
    assert found["train_loss"] == owned(run)["train_loss"]


def test_options_and_final_figures_are_in_both(store, tmp_path):
    run = tmp_path / "run"
    train(store, run, "mlflow", seed=7)
    found = mlflow_run(run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["detector"] == "deep-svdd"
    assert found.data.params["seed"] == "7"
    assert found.data.params["options.batch"] == "4"
    assert found.data.params["options.channels"] == "[4, 6]"
    assert found.data.tags["ended_by"] == "max-steps"
    calibration = json.loads((run / "calibration.json").read_text())
    record = json.loads((run / "run.json").read_text())
    assert found.data.metrics["final/steps"] == record["steps"] == 10
    assert found.data.metrics["final/best_step"] == record["notes"]["best_step"]
    assert found.data.metrics["final/best_stop_loss"] == record["notes"]["best_stop_loss"]
    scores = wsiad_calibration(run)
    assert found.data.metrics["final/healthy_q99"] == pytest.approx(scores.quantile(0.99))
    assert calibration["n_slides"] == scores.n_slides

    again = tmp_path / "again"
    train(store, again, "tensorboard", seed=7)
    events = EventAccumulator(str(again / "tensorboard"))
    events.Reload()
    shown = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    for name, value in found.data.metrics.items():
        if name.startswith("final/"):
            assert shown[name] == pytest.approx(value, rel=1e-6), name
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"options.batch" in data
    assert b"max-steps" in data


def wsiad_calibration(run):
    from wsiad.runs.run import RunFolder

    return RunFolder.open(run).calibration()


def test_members_of_an_ensemble_are_parts(store, tmp_path):
    members = [
        {"detector": "gaussian", "weights": "random", "options": {"backbone": "squeezenet1_1"}},
        {
            "detector": "deep-svdd",
            "options": {k: v for k, v in DEEP_SVDD.items() if k != "input_px"},
        },
    ]
    options = {"members": members, "input_px": 48}
    train(store, tmp_path / "run", "tensorboard", "ensemble", options)
    folders = {
        path.parent.relative_to(tmp_path / "run" / "tensorboard").as_posix()
        for path in (tmp_path / "run" / "tensorboard").rglob("events.out.*")
    }
    assert folders == {".", "member-2", "member-2/autoencoder"}
    shown = shown_by_tensorboard(tmp_path / "run", "member-2")
    steps = [step for step, _ in owned(tmp_path / "run" / "member-2")["train_loss"]]
    assert [step for step, _ in shown["train_loss"]] == steps
    with pytest.raises(ConfigError, match="not trained step by step"):
        train(store, tmp_path / "other", "tensorboard", "ensemble", {"members": members[:1]})


@pytest.mark.parametrize("log", ["tensorboard", "mlflow"])
def test_a_log_without_steps_is_refused_before_anything_is_written(log, store, tmp_path):
    with pytest.raises(ConfigError, match="knn is not trained step by step") as caught:
        train(store, tmp_path / "run", log, "knn", {})
    assert "Leave out --log" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_written(log, store, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == log else find(n))
    with pytest.raises(ConfigError, match=f"{log} is not installed") as caught:
        train(store, tmp_path / "run", log)
    assert f"pip install 'wsiad[{log}]'" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_be_reached_ends_the_command_before_the_training(
    store, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="mlflow cannot be used") as caught:
        train(store, tmp_path / "run", "mlflow")
    assert "Check MLFLOW_TRACKING_URI" in str(caught.value)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_folder_of_mlflow_can_be_another(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nodes")
    train(store, tmp_path / "run", "mlflow")
    assert not (tmp_path / "mlruns").exists()
    client = MlflowClient((tmp_path / "elsewhere").as_uri())
    experiment = client.get_experiment_by_name("nodes").experiment_id
    (found,) = client.search_runs([experiment])
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [m.step for m in history] == [step for step, _ in owned(tmp_path / "run")["train_loss"]]


@pytest.mark.parametrize("log", ["tensorboard", "mlflow"])
def test_a_log_that_fails_for_a_while_loses_nothing_and_ends_no_training(
    log, store, tmp_path, monkeypatch, caplog
):
    writer = {"tensorboard": experiment_log._TensorBoard, "mlflow": experiment_log._Mlflow}[log]
    add, calls = writer.add, Counter()

    def broken(self, part, row):
        calls["all"] += 1
        if calls["all"] == 7:
            raise OSError("no space left")
        add(self, part, row)

    monkeypatch.setattr(writer, "add", broken)
    with caplog.at_level(logging.WARNING):
        train(store, tmp_path / "run", log)
    assert "the log could not be written (no space left); metrics.csv has all" in caplog.text
    check_same(tmp_path / "run", log)


def test_a_damaged_name_of_the_run_of_mlflow_is_said(store, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed(patch, ("", 2))
        with pytest.raises(KeyboardInterrupt):
            train(store, run, "mlflow")
    (run / "mlflow.json").write_text("{")
    with pytest.raises(RunError, match=r"mlflow\.json: cannot be read"):
        train(store, run, "mlflow")
    (run / "mlflow.json").write_text('{"run_id": "0123456789abcdef0123456789abcdef"}')
    train(store, run, "mlflow")
    check_same(run, "mlflow")
