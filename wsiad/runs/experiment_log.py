"""The log of a training in TensorBoard or MLflow: it repeats ``metrics.csv`` and loses no step.

``metrics.csv`` owns the values. After an interruption it is cut to the step of the checkpoint, and
the log is made to say the same: TensorBoard's event files are written anew from its lines; MLflow
keeps what it has, and takes the steps that it lacks, since steps that are taken again give the same
values. Each training of a run has its own ``metrics.csv``: those of an autoencoder, a member of an
ensemble or a round of a trimming stand in folders within the run's, whose names the log shows.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from wsiad.core.config import Config, build
from wsiad.core.errors import ConfigError, RunError
from wsiad.core.files import read_json, write_json
from wsiad.detectors import registry
from wsiad.detectors.ensemble import EnsembleOptions
from wsiad.learning.detector import DetectorOptions, FitReport
from wsiad.learning.metrics import MetricsRow
from wsiad.learning.training_options import LoopOptions
from wsiad.runs.calibration import Calibration
from wsiad.runs.healthy_tiles import TrainingOptions

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

logger = logging.getLogger(__name__)

Kind = Literal["tensorboard", "mlflow"]

TENSORBOARD: Final = "tensorboard"
"""Folder of the event files in a run."""
MLFLOW: Final = "mlflow.json"
"""File of a run that names its run of MLflow."""
_MLRUNS = "mlruns"
_SERIES = ("train_loss", "stop_loss", "learning_rate")
_MOST_TEXT = 500
_AT_ONCE = 500


def check_log(kind: Kind, detector: str, options: DetectorOptions) -> None:
    """Check that there will be a log: the method has steps, and the package is installed.

    Raises
    ------
    ConfigError
        There is nothing to log, or the package is missing.
    """
    if not _has_steps(options):
        raise ConfigError(
            f"{detector} is not trained step by step, so that there is nothing to log",
            subject="log",
            remedy="Leave out --log.",
        )
    if importlib.util.find_spec(kind) is None:
        raise ConfigError(
            f"the package of {kind} is not installed",
            subject="log",
            remedy=f"pip install 'wsiad[{kind}]', or leave out --log.",
        )


def _has_steps(options: Config) -> bool:
    if isinstance(options, EnsembleOptions):
        return any(
            _has_steps(build(registry.load(member.detector).Options, member.options))
            for member in options.members
        )
    parts = [options, *(value for _, value in options)]
    return any(isinstance(part, LoopOptions) for part in parts)


def parameters_of(training: TrainingOptions, options: DetectorOptions) -> dict[str, Any]:
    """Return the options of a training by dotted names, numbers and texts."""
    values = training.model_dump(mode="json", exclude={"options", "about", "quiet", "out"})
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, list | tuple):
            found[name] = json.dumps(value)[:_MOST_TEXT]
        elif value is not None:
            found[name] = value[:_MOST_TEXT] if isinstance(value, str) else value

    add("", values | {"options": options.model_dump(mode="json")})
    return found


def figures_of(report: FitReport, calibration: Calibration) -> dict[str, float]:
    """Return the final figures of a training: steps, the best of them, usual healthy scores."""
    found: dict[str, float] = {
        "final/steps": report.steps,
        "final/healthy_median": float(calibration.median),
        "final/healthy_q99": float(calibration.quantile(0.99)),
    }
    for name in ("best_step", "best_stop_loss"):
        if isinstance(value := report.notes.get(name), int | float):
            found[f"final/{name}"] = value
    return found


class _Writer(Protocol):
    """A writer of the log of one kind; a part is a folder within the run's, or empty."""

    def begin(self, part: str, rows: Sequence[MetricsRow]) -> None: ...

    def add(self, part: str, row: MetricsRow) -> None: ...

    def finish(self, figures: Mapping[str, float], ended_by: str) -> None: ...

    def close(self, end: str) -> None: ...


class ExperimentLog:
    """Repeat the metrics of a training elsewhere; a log that fails never ends the training.

    Parameters
    ----------
    writer : object
        Writer of the kind.
    run : Path
        Run folder.
    """

    def __init__(self, writer: _Writer, run: Path) -> None:
        self._writer, self._run = writer, run
        self._rows: dict[str, list[MetricsRow]] = {}
        self._whole = True

    def begin(self, folder: Path, rows: Sequence[MetricsRow]) -> None:
        """Take these lines as all that the ``metrics.csv`` of a folder has."""
        part = self._part(folder)
        self._rows[part] = list(rows)
        self._tried(lambda: self._writer.begin(part, rows))

    def add(self, folder: Path, row: MetricsRow) -> None:
        """Take one more line of the ``metrics.csv`` of a folder."""
        part = self._part(folder)
        self._rows[part].append(row)
        if self._whole:
            self._tried(lambda: self._writer.add(part, row))

    def finish(self, figures: Mapping[str, float], *, ended_by: str) -> None:
        """Repeat what could not be written before, and add the final figures."""

        def everything() -> None:
            if not self._whole:
                for part, rows in self._rows.items():
                    self._writer.begin(part, rows)
            self._writer.finish(figures, ended_by)

        self._tried(everything, last=True)

    def close(self, end: str) -> None:
        """Close the log; ``end`` is MLflow's word for how the training ended."""
        self._tried(lambda: self._writer.close(end), last=True)

    def _part(self, folder: Path) -> str:
        part = folder.relative_to(self._run).as_posix()
        return "" if part == "." else part

    def _tried(self, write: Callable[[], None], *, last: bool = False) -> None:
        try:
            write()
        except Exception as error:  # of any library below; hours of training are worth more
            if self._whole or last:
                logger.warning(
                    "%s: the log could not be written (%s); metrics.csv has all%s",
                    self._run,
                    " ".join(str(error).split())[:200],
                    "" if last else ", and it is tried again at the end",
                )
            self._whole = False


@contextmanager
def experiment_log(
    kind: Kind | None, run: Path, parameters: Mapping[str, Any]
) -> Iterator[ExperimentLog | None]:
    """Open the log of a training; ``None`` without a kind.

    Raises
    ------
    ConfigError
        The log cannot be opened.
    """
    if kind is None:
        yield None
        return
    try:
        writer = (_TensorBoard if kind == "tensorboard" else _Mlflow)(run, parameters)
    except RunError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{kind} cannot be used ({' '.join(str(error).split())[:300]})",
            subject="log",
            remedy="Check MLFLOW_TRACKING_URI, or leave out --log."
            if kind == "mlflow"
            else "Install the package again, or leave out --log.",
        ) from error
    log = ExperimentLog(writer, run)
    try:
        yield log
    except KeyboardInterrupt:
        log.close("KILLED")
        raise
    except BaseException:
        log.close("FAILED")
        raise
    log.close("FINISHED")


class _TensorBoard:
    """Event files in a folder of the run, one for each of its trainings."""

    def __init__(self, run: Path, parameters: Mapping[str, Any]) -> None:
        import torch.utils.tensorboard  # noqa: F401  # fails here, and not in the training

        self._folder, self._parameters = run / TENSORBOARD, parameters
        self._writers: dict[str, tuple[SummaryWriter, float]] = {}
        self._points: set[tuple[str, str, int]] = set()

    def begin(self, part: str, rows: Sequence[MetricsRow]) -> None:
        """Write the event file of a part anew."""
        from torch.utils.tensorboard import SummaryWriter

        if part in self._writers:
            self._writers.pop(part)[0].close()
        folder = self._folder / part
        if folder.is_dir():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        start = time.time() - (rows[-1].seconds if rows else 0.0)
        self._writers[part] = (SummaryWriter(str(folder)), start)
        self._points = {point for point in self._points if point[0] != part}
        for row in rows:
            self._put(part, row)
        self._writers[part][0].flush()

    def add(self, part: str, row: MetricsRow) -> None:
        """Append a line."""
        self._put(part, row)
        self._writers[part][0].flush()

    def _put(self, part: str, row: MetricsRow) -> None:
        writer, start = self._writers[part]
        for name in _SERIES:
            point = (part, name, row.step)  # the last step may have a line for each loss
            if (value := getattr(row, name)) is not None and point not in self._points:
                writer.add_scalar(name, value, row.step, walltime=start + row.seconds)
                self._points.add(point)

    def finish(self, figures: Mapping[str, float], ended_by: str) -> None:
        """Write options and final figures as hyperparameters of TensorBoard."""
        from torch.utils.tensorboard import summary

        if "" not in self._writers:
            self.begin("", [])
        writer: Any = self._writers[""][0]
        hparams: Any = summary.hparams
        options = dict(self._parameters) | {"ended_by": ended_by}
        for part in hparams(options, dict(figures)):
            writer.file_writer.add_summary(part)
        for name, value in figures.items():
            writer.add_scalar(name, value, int(figures["final/steps"]))
        writer.flush()

    def close(self, end: str) -> None:
        """Close the files."""
        for writer, _ in self._writers.values():
            writer.close()


class _Mlflow:
    """A run of MLflow, on a server or in a folder beside the run."""

    def __init__(self, run: Path, parameters: Mapping[str, Any]) -> None:
        # Without an answer within a minute the training goes on.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # A folder is no longer recommended by MLflow, but is what can be had without a server.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        folder = (run.absolute().parent / _MLRUNS).as_uri()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or folder)
        self._id = self._resumed(run / MLFLOW) or self._new(run)
        known = self._client.get_run(self._id).data.params
        for name, value in parameters.items():
            if name not in known:  # a parameter of MLflow keeps its first value
                self._client.log_param(self._id, name, value)
        self._steps: dict[str, set[int]] = {}

    def _resumed(self, path: Path) -> str:
        """Return the run of MLflow that an interrupted training began; empty if there is none."""
        from mlflow.exceptions import MlflowException

        if not path.exists():
            return ""
        remedy = "Delete it: the training continues, and is a new run of MLflow."
        found = read_json(path, RunError, keys=("run_id",), remedy=remedy)["run_id"]
        try:
            there = self._client.get_run(str(found))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # of another server, or deleted
                return ""
            raise
        if there.info.lifecycle_stage != "active":
            return ""
        self._client.update_run(there.info.run_id, status="RUNNING")
        return str(there.info.run_id)

    def _new(self, run: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "wsiad"
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name)
        found = self._client.create_run(experiment, run_name=run.absolute().name).info.run_id
        write_json(run / MLFLOW, {"run_id": found})
        return str(found)

    def begin(self, part: str, rows: Sequence[MetricsRow]) -> None:
        """Log the lines that MLflow lacks."""
        for key in map(_key(part), _SERIES):
            history = self._client.get_metric_history(self._id, key)
            self._steps[key] = {metric.step for metric in history}
        self._put(part, rows)

    def add(self, part: str, row: MetricsRow) -> None:
        """Log a line, unless it was logged before an interruption."""
        self._put(part, [row])

    def _put(self, part: str, rows: Sequence[MetricsRow]) -> None:
        from mlflow.entities import Metric

        now, name_of = int(time.time() * 1000), _key(part)
        missing = {
            (name_of(name), row.step): Metric(name_of(name), value, now, row.step)
            for row in rows
            for name in _SERIES
            if (value := getattr(row, name)) is not None
            and row.step not in self._steps[name_of(name)]
        }
        metrics = list(missing.values())
        for first in range(0, len(metrics), _AT_ONCE):
            some = metrics[first : first + _AT_ONCE]
            self._client.log_batch(self._id, metrics=some)
            for metric in some:
                self._steps[metric.key].add(metric.step)

    def finish(self, figures: Mapping[str, float], ended_by: str) -> None:
        """Log the final figures, once."""
        step = int(figures["final/steps"])
        for name, value in figures.items():
            if not self._client.get_metric_history(self._id, name):
                self._client.log_metric(self._id, name, value, step=step)
        self._client.set_tag(self._id, "ended_by", ended_by)

    def close(self, end: str) -> None:
        """State how the training ended."""
        self._client.set_terminated(self._id, status=end)


def _key(part: str) -> Callable[[str], str]:
    """Return a function from a column to its name in MLflow, which holds all parts in one run."""
    return lambda name: f"{part}/{name}" if part else name
