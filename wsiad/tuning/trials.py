"""Trials as they are kept: one folder each, read back by the next call.

``trials/0001/trial.json`` says what is tried and what became of it, ``fold-1.json`` what a
fold gave. Each is written at once and whole, so that a search that is killed goes on with the
fold that it was at.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Literal

import pydantic

from wsiad.core.config import Config
from wsiad.core.errors import RunError
from wsiad.core.files import read_json, write_json

RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"

TRIALS = "trials"
_REMEDY = "Choose another folder for the search."


class FoldScore(Config):
    """What a fold of a trial gave."""

    fold: pydantic.PositiveInt
    """Counted from 1."""
    auroc: pydantic.confloat(ge=0, le=1)  # type: ignore[valid-type]
    """Area under the ROC curve of held-out healthy and anomalous tiles."""
    healthy_loss: float | None = None
    """Lowest loss of healthy tiles held out of the fit, where the detector has a loss."""
    healthy_tiles: pydantic.PositiveInt
    """Healthy tiles tested on."""
    anomalous_tiles: pydantic.PositiveInt
    """Anomalous tiles tested on."""
    ended_by: str
    """What ended the fit."""
    steps: pydantic.NonNegativeInt = 0
    """Optimiser steps taken."""
    seconds: pydantic.NonNegativeFloat = 0.0
    """Of fit and test."""


class Trial(Config):
    """A setting that is tried."""

    number: pydantic.PositiveInt
    """Counted from 1."""
    params: dict[str, Any]
    """Value of each parameter of the space."""
    state: Literal["running", "complete", "pruned", "failed"] = "running"
    """What became of it; `running` also where the search was interrupted."""
    reason: str = ""
    """Why it failed, or was given up."""
    folds: tuple[FoldScore, ...] = ()
    """What the folds gave so far, in their order."""

    @property
    def auroc(self) -> float | None:
        """Mean over the folds so far."""
        return statistics.fmean(fold.auroc for fold in self.folds) if self.folds else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the folds, of two or more."""
        return statistics.stdev(f.auroc for f in self.folds) if len(self.folds) > 1 else None

    @property
    def healthy_loss(self) -> float | None:
        """Mean over the folds, if each has one."""
        losses = [fold.healthy_loss for fold in self.folds if fold.healthy_loss is not None]
        return statistics.fmean(losses) if losses and len(losses) == len(self.folds) else None

    @property
    def seconds(self) -> float:
        """Of all folds so far."""
        return sum(fold.seconds for fold in self.folds)


def best(trials: list[Trial]) -> Trial | None:
    """Return the complete trial with the highest mean AUROC; of equal ones the first."""
    done = [trial for trial in trials if trial.state == COMPLETE]
    return max(done, key=lambda t: (t.auroc or 0.0, -t.number), default=None)


def lowest_loss(trials: list[Trial]) -> Trial | None:
    """Return the complete trial that would be chosen without anomalies, by its healthy loss."""
    done = [(t.healthy_loss, t) for t in trials if t.state == COMPLETE]
    known = [(loss, trial.number, trial) for loss, trial in done if loss is not None]
    return min(known)[2] if known else None


def trial_folder(out: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return out / TRIALS / f"{number:04d}"


def write_trial(out: Path, trial: Trial) -> None:
    """Keep a trial; its folds are kept by themselves."""
    values = trial.model_dump(mode="json", exclude={"folds"})
    write_json(trial_folder(out, trial.number) / "trial.json", values)


def write_fold(out: Path, number: int, fold: FoldScore) -> None:
    """Keep what a fold of a trial gave."""
    path = trial_folder(out, number) / f"fold-{fold.fold}.json"
    write_json(path, fold.model_dump(mode="json"))


def read_trials(out: Path) -> list[Trial]:
    """Read the trials of a folder, in order of their numbers.

    Raises
    ------
    RunError
        A file is damaged, or a trial is missing.
    """
    found = [_read(path) for path in sorted((out / TRIALS).glob("[0-9]*/trial.json"))]
    found.sort(key=lambda trial: trial.number)
    if [trial.number for trial in found] != list(range(1, len(found) + 1)):
        raise RunError(
            "its trials are not numbered from 1 without gaps",
            subject=str(out / TRIALS),
            remedy="Choose another folder.",
        )
    return found


def _read(path: Path) -> Trial:
    folds: list[dict[str, Any]] = []
    while (file := path.with_name(f"fold-{len(folds) + 1}.json")).exists():
        folds.append(read_json(file, RunError, remedy=_REMEDY))
    values = read_json(path, RunError, remedy=_REMEDY)
    try:
        return Trial.model_validate({**values, "folds": folds})
    except pydantic.ValidationError as error:
        problem = f"cannot be read: {' '.join(str(error).split())}"
        raise RunError(problem, subject=str(path), remedy=_REMEDY) from error
