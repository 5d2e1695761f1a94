"""Store the trials of a search, one folder each, and write their table and plot.

``trials/0001/trial.json`` has the setting of a trial and its state; ``fold-1.json`` has the score
of a fold. Each file is written immediately and atomically, so that a killed search continues with
the fold that it had reached. ``trials.csv`` and ``trials.png`` show all trials with their scores.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from wsiad.core.config import Config
from wsiad.core.csv_file import table_text
from wsiad.core.errors import RunError
from wsiad.core.files import read_json, write_json, write_text
from wsiad.core.images import save_figure
from wsiad.tuning.space import Range, Space, key, settings_of, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"

TRIALS = "trials"
_REMEDY = "Choose another folder for the search."


class FoldScore(Config):
    """Score of a fold of a trial."""

    fold: pydantic.PositiveInt
    """Number of the fold, counted from 1."""
    auroc: pydantic.confloat(ge=0, le=1)  # type: ignore[valid-type]
    """Area under the ROC curve of held-out healthy and anomalous tiles."""
    healthy_loss: float | None = None
    """Lowest loss of healthy tiles held out of the fit, where the detector has a loss."""
    healthy_tiles: pydantic.PositiveInt
    """Number of healthy tiles in the test."""
    anomalous_tiles: pydantic.PositiveInt
    """Number of anomalous tiles in the test."""
    ended_by: str
    """Reason why the fit ended."""
    steps: pydantic.NonNegativeInt = 0
    """Number of optimiser steps."""
    seconds: pydantic.NonNegativeFloat = 0.0
    """Duration of fit and test, seconds."""


class Trial(Config):
    """Setting that a search tries, with its state and scores."""

    number: pydantic.PositiveInt
    """Number of the trial, counted from 1."""
    params: dict[str, Any]
    """Value of each parameter of the space."""
    state: Literal["running", "complete", "pruned", "failed"] = "running"
    """State of the trial; `running` also if the search was interrupted."""
    reason: str = ""
    """Reason why the trial failed or was stopped."""
    folds: tuple[FoldScore, ...] = ()
    """Scores of the folds so far, in order of the folds."""

    @property
    def auroc(self) -> float | None:
        """Mean AUROC over the folds so far."""
        return statistics.fmean(fold.auroc for fold in self.folds) if self.folds else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the AUROC over two or more folds."""
        return statistics.stdev(f.auroc for f in self.folds) if len(self.folds) > 1 else None

    @property
    def healthy_loss(self) -> float | None:
        """Mean healthy loss over the folds; ``None`` unless each fold has one."""
        losses = [fold.healthy_loss for fold in self.folds if fold.healthy_loss is not None]
        return statistics.fmean(losses) if losses and len(losses) == len(self.folds) else None

    @property
    def seconds(self) -> float:
        """Duration of all folds so far, seconds."""
        return sum(fold.seconds for fold in self.folds)


def best(trials: list[Trial]) -> Trial | None:
    """Return the complete trial with the highest mean AUROC; of equal trials, the first."""
    done = [trial for trial in trials if trial.state == COMPLETE]
    return max(done, key=lambda t: (t.auroc or 0.0, -t.number), default=None)


def lowest_loss(trials: list[Trial]) -> Trial | None:
    """Return the complete trial with the lowest healthy loss: the choice without anomalies."""
    done = [(t.healthy_loss, t) for t in trials if t.state == COMPLETE]
    known = [(loss, trial.number, trial) for loss, trial in done if loss is not None]
    return min(known)[2] if known else None


def trial_folder(out: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return out / TRIALS / f"{number:04d}"


def write_trial(out: Path, trial: Trial) -> None:
    """Write a trial without its folds, which have files of their own."""
    values = trial.model_dump(mode="json", exclude={"folds"})
    write_json(trial_folder(out, trial.number) / "trial.json", values)


def write_fold(out: Path, number: int, fold: FoldScore) -> None:
    """Write the score of a fold of a trial."""
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


# Okabe & Ito: told apart with every kind of colour vision; markers differ too.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#767676"

_MARKS = str.maketrans("", "", '{}[]"')
_TICK_WIDTH = 16  # characters

TABLE, PICTURE = "trials.csv", "trials.png"


def write_table(out: Path, trials: Sequence[Trial], space: Space, *, folds: int) -> None:
    """Write ``trials.csv``; see :func:`table`."""
    write_text(out / TABLE, table(trials, space, folds=folds))


def write_trials(out: Path, trials: Sequence[Trial], space: Space, *, folds: int) -> None:
    """Write the table and the plot of a search into its folder.

    Parameters
    ----------
    out : Path
        Folder of the search.
    trials : sequence of Trial
        Trials in order of their numbers.
    space : mapping of str to parameter
        Search space.
    folds : int
        Number of folds of a complete trial.
    """
    write_table(out, trials, space, folds=folds)
    if any(trial.folds for trial in trials):
        _plot(out / PICTURE, trials, space)


def table(trials: Sequence[Trial], space: Space, *, folds: int) -> str:
    """Return the trials as CSV: state, figures, folds, and the options that were set.

    The table does not contain durations, so the same search gives the same bytes.
    """
    options = _options(space, trials)
    names = [f"fold_{fold}" for fold in range(1, folds + 1)]
    figures = ["auroc", "auroc_spread", "healthy_loss"]
    header = ["trial", "state", *figures, *names, *options, "reason"]
    rows: list[list[object]] = []
    for trial in trials:
        of_folds = [_number(fold.auroc) for fold in trial.folds]
        set_to = settings_of(space, trial.params)
        rows.append(
            [
                trial.number,
                trial.state,
                *map(_number, (trial.auroc, trial.spread, trial.healthy_loss)),
                *of_folds,
                *[""] * (folds - len(of_folds)),
                *(_text(set_to[name]) for name in options),
                trial.reason,
            ]
        )
    return table_text(header, rows)


def _options(space: Space, trials: Sequence[Trial]) -> list[str]:
    return list(settings_of(space, trials[0].params)) if trials else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else key(value)


def _plot(path: Path, trials: Sequence[Trial], space: Space) -> None:
    """Plot AUROC by trial, and by each parameter of the space."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, 1 + len(space))
    rows = -(-(1 + len(space)) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    axes[0].set(ylabel="AUROC, mean over folds")
    numbers = [float(trial.number) for trial in trials]
    _points(axes[0], numbers, trials, label="trial")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize="small", frameon=False)
    for each, (name, parameter) in zip(axes[1:], space.items(), strict=False):
        values = [trial.params[name] for trial in trials]
        if isinstance(parameter, Range):
            _points(each, values, trials, label=name)
            each.set_xscale("log" if parameter.log else "linear")
            continue
        known = [key(value) for value in values_of(parameter) or ()]
        _points(each, [float(known.index(key(value))) for value in values], trials, label=name)
        each.set_xticks(range(len(known)), map(_tick, known), fontsize="xx-small")
    for each in axes[1 + len(space) :]:
        each.remove()
    save_figure(figure, path)


def _tick(text: str) -> str:
    """Return a value's text in short lines, without the brackets and quotes of JSON."""
    return "\n".join(textwrap.wrap(text.translate(_MARKS), _TICK_WIDTH))


def _points(axes: Axes, places: Sequence[float], trials: Sequence[Trial], *, label: str) -> None:
    """Mark the mean of each trial, with its spread; circle the best one."""
    styles = {COMPLETE: (_BLUE, "o"), PRUNED: (_GREY, "v"), FAILED: (_VERMILION, "x")}
    for state, (colour, marker) in styles.items():
        some = [
            (x, t.auroc, t.spread or 0.0)
            for x, t in zip(places, trials, strict=True)
            if t.state == state and t.auroc is not None
        ]
        if some:
            x, y, bars = zip(*some, strict=True)
            axes.errorbar(
                x, y, yerr=bars, color=colour, marker=marker, linestyle="none", markersize=5,
                elinewidth=0.8, label=state,
            )  # fmt: skip
    leader = best(list(trials))
    if leader is not None:
        at = places[[trial.number for trial in trials].index(leader.number)]
        axes.plot(
            [at], [leader.auroc or 0.0], color=_VERMILION, marker="o", markersize=10,
            markerfacecolor="none", linestyle="none", label="best",
        )  # fmt: skip
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(xlabel=label)
