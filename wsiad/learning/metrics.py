"""The metrics of a training: ``metrics.csv`` and the plot of its loss."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from wsiad.core.csv_file import MAX_LINES
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.files import atomic_file, read_text
from wsiad.core.images import save_figure

METRICS = "metrics.csv"

_MOST_LOSS = 1e6


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """A line of ``metrics.csv``.

    Parameters
    ----------
    step : int
        Number of optimiser steps taken.
    seconds : float
        Time since the fit began, including the time before an interruption.
    learning_rate : float
        Learning rate of the last step.
    train_loss : float or None
        Mean loss over the steps since the line before.
    stop_loss : float or None
        Mean loss over the held-out healthy tiles; ``None`` without a validation.
    """

    step: int
    seconds: float
    learning_rate: float
    train_loss: float | None = None
    stop_loss: float | None = None


_COLUMNS = tuple(field.name for field in fields(MetricsRow))


class MetricsFollower(Protocol):
    """A log elsewhere that repeats what is written to ``metrics.csv``, which owns the values."""

    def begin(self, folder: Path, rows: Sequence[MetricsRow]) -> None:
        """Take these lines as all that the ``metrics.csv`` of a folder has."""
        ...

    def add(self, folder: Path, row: MetricsRow) -> None:
        """Take one more line of the ``metrics.csv`` of a folder."""
        ...


class MetricsLog:
    """Append to ``metrics.csv``; after an interruption, continue from the checkpoint.

    Parameters
    ----------
    path : Path
        Path of the file.
    keep_steps : int
        Step of the checkpoint. Lines of later steps are dropped, as they will be written again.
    follower : MetricsFollower, optional
        Log elsewhere that repeats the lines.
    """

    def __init__(
        self, path: Path, *, keep_steps: int = 0, follower: MetricsFollower | None = None
    ) -> None:
        self._path, self._follower = path, follower
        kept = [row for row in read_metrics(path) if row.step <= keep_steps]
        with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(asdict(row) for row in kept)
        if follower:
            follower.begin(path.parent, kept)

    def append(self, row: MetricsRow) -> None:
        """Append a line; the file is closed when this returns."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, _COLUMNS).writerow(asdict(row))
        if self._follower:
            self._follower.add(self._path.parent, row)


def check_loss(loss: float, step: int) -> None:
    """Check that the loss of a training is still usable.

    Raises
    ------
    DetectorError
        The loss is not finite or exceeds 1e6.
    """
    if not math.isfinite(loss) or loss > _MOST_LOSS:
        raise DetectorError(
            f"the training diverged: the loss is {loss:g} at step {step}",
            remedy="Set a smaller learning_rate, or grad_clip; the last checkpoint is kept.",
        )


def read_metrics(path: Path) -> list[MetricsRow]:
    """Read ``metrics.csv``; a missing file gives no lines, and a truncated last line is left out.

    Raises
    ------
    RunError
        The file is damaged in another way.
    """
    if not path.is_file():
        return []
    try:
        text = read_text(path)
        if text.count("\n") > MAX_LINES:
            raise ValueError(f"it has more than {MAX_LINES:,} lines")  # noqa: TRY301
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [_parse(line) for line in lines[:-1]]
        with contextlib.suppress(TypeError, ValueError):  # the write was interrupted here
            rows += [_parse(line) for line in lines[-1:]]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise RunError(
            f"is not the table of a training ({' '.join(str(error).split())[:200]})",
            subject=str(path),
            remedy="Delete it: the training continues, and its plot begins there.",
        ) from error
    return rows


def _parse(line: dict[str, str]) -> MetricsRow:
    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is not a finite number")
        return value

    def optional(text: str) -> float | None:
        return finite(text) if text else None

    if any(line[column] is None for column in _COLUMNS):
        raise ValueError("cut short")
    return MetricsRow(
        step=int(line["step"]),
        seconds=finite(line["seconds"]),
        learning_rate=finite(line["learning_rate"]),
        train_loss=optional(line["train_loss"]),
        stop_loss=optional(line["stop_loss"]),
    )


def plot_loss(
    rows: list[MetricsRow],
    path: Path,
    *,
    best_step: int | None = None,
    stage_starts: Sequence[int] = (),
) -> None:
    """Plot the loss on the tiles of the fit and on the held-out ones, as PNG.

    Losses of different stages cannot be compared; a line marks the beginning of each stage.
    """
    # Figure and canvas by hand: pyplot would hold global state, and is slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [(row.step, row.train_loss) for row in rows if row.train_loss is not None]
    stop = [(row.step, row.stop_loss) for row in rows if row.stop_loss is not None]
    for points, label, style in ((train, "fitted on", "-"), (stop, "held out", "o-")):
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, style, label=label, markersize=4, linewidth=1.2)
    for start in stage_starts:
        axes.axvline(start, color="lightgrey", linewidth=0.8)
    if best_step:
        axes.axvline(best_step, color="grey", linestyle=":", label=f"kept: step {best_step}")
    axes.set(xlabel="step", ylabel="loss", title="Loss on healthy tiles")
    if train or stop:
        axes.legend()
    axes.grid(visible=True, alpha=0.3)
    save_figure(figure, path, dpi=120)
