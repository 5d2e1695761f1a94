"""``trials.csv`` and ``trials.png``: what a search has tried, and what it gave."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.csv_file import table_text
from wsiad.core.files import atomic_file, write_text
from wsiad.tuning.space import Range, Space, key, options_of, values_of
from wsiad.tuning.trials import COMPLETE, FAILED, PRUNED, Trial, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito: told apart with every kind of colour vision; markers differ too.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#767676"

_MARKS = str.maketrans("", "", '{}[]"')
_TICK_WIDTH = 16  # characters

TABLE, PICTURE = "trials.csv", "trials.png"


def write_table(out: Path, trials: Sequence[Trial], space: Space, *, folds: int) -> None:
    """Write ``trials.csv``; see :func:`table`."""
    write_text(out / TABLE, table(trials, space, folds=folds))


def write_trials(out: Path, trials: Sequence[Trial], space: Space, *, folds: int) -> None:
    """Write table and picture of a search into its folder.

    Parameters
    ----------
    out : Path
    trials : sequence of Trial
        In order of their numbers.
    space : mapping of str to parameter
    folds : int
        Of a complete trial.
    """
    write_table(out, trials, space, folds=folds)
    if any(trial.folds for trial in trials):
        _plot(out / PICTURE, trials, space)


def table(trials: Sequence[Trial], space: Space, *, folds: int) -> str:
    """Return the trials as CSV: state, figures, folds, and the options that were set.

    Nothing in it depends on how long a trial took: the same search gives the same bytes.
    """
    options = _options(space, trials)
    names = [f"fold_{fold}" for fold in range(1, folds + 1)]
    figures = ["auroc", "auroc_spread", "healthy_loss"]
    header = ["trial", "state", *figures, *names, *options, "reason"]
    rows: list[list[object]] = []
    for trial in trials:
        of_folds = [_number(fold.auroc) for fold in trial.folds]
        set_to = options_of(space, trial.params)
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
    return list(options_of(space, trials[0].params)) if trials else []


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
    with atomic_file(path) as partial:
        # Without the version of the program the same figures are the same file.
        figure.savefig(partial, format="png", metadata={"Software": None})


def _tick(text: str) -> str:
    """Return a value's text in short lines without the marks of JSON."""
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
