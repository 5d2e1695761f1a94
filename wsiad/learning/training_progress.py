"""The progress of a training: step of how many, time left, losses and rate, in one line.

Every method that is trained step by step shows it in the same way: a line that is renewed on a
terminal, and complete lines in the log of a job.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from wsiad.core.terminal import Progress, interval
from wsiad.learning.detector import Budget

_WINDOW_SECONDS = 60.0  # stages of a training differ in speed: only the last ones tell the rate


@dataclass(slots=True)
class Shown:
    """The numbers of a training that are shown.

    Parameters
    ----------
    limit : int
        Number of steps at which the training ends at the latest.
    step : int
        Number of steps taken.
    steps_per_second : float or None
        Rate of the last steps, validations included; ``None`` before there is one.
    seconds : float
        Time that the training took so far, with that before an interruption.
    max_minutes : float or None
        Time at which the training ends at the latest.
    stops_early : bool
        True if a held-out loss that stopped falling ends the training before.
    stage : str
        Name of the stage; empty if there is one stage alone.
    loss : float or None
        Mean loss of the last steps.
    held_out : float or None
        Last loss on held-out healthy tiles.
    best_step : int
        Step of the lowest held-out loss; 0 before there is one.
    """

    limit: int
    step: int = 0
    steps_per_second: float | None = None
    seconds: float = 0.0
    max_minutes: float | None = None
    stops_early: bool = False
    stage: str = ""
    loss: float | None = None
    held_out: float | None = None
    best_step: int = 0

    def left(self) -> tuple[float | None, str]:
        """Return the seconds until the training ends at the latest, and the bound that ends it."""
        rate = self.steps_per_second
        by_steps = (self.limit - self.step) / rate if rate else math.inf
        by_time = math.inf
        if self.max_minutes is not None:
            by_time = max(0.0, self.max_minutes * 60 - self.seconds)
        if by_time < by_steps:
            return by_time, "max_minutes"
        return (None if math.isinf(by_steps) else by_steps), "max_steps"

    def line(self, *, columns: int | None = None) -> str:
        """Return the line, in full, or in brief where that would exceed ``columns``."""
        full = self._line(brief=False)
        if columns is None or len(full) < columns:
            return full
        return self._line(brief=True)[: columns - 1]

    def _line(self, *, brief: bool) -> str:
        seconds, bound = self.left()
        most = "" if brief or not self.stops_early else "at most "
        left = interval(seconds) if seconds is not None else "?"
        steps = f"{self.step}/{self.limit}" if brief else f"step {self.step} of {most}{self.limit}"
        parts = [f"train: {steps}"]
        if brief:
            parts.append(f"{left} left" + (" (time)" if bound == "max_minutes" else ""))
        else:
            parts.append(f"{most}{left} left ({bound})")
        if self.stage:
            parts.append(self.stage)
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.held_out is not None:
            best = f" (best at step {self.best_step})" if self.best_step and not brief else ""
            parts.append(f"held out {self.held_out:.4g}{best}")
        if self.steps_per_second:
            parts.append(f"{self.steps_per_second:.3g} step/s")
        return ", ".join(parts)


class TrainingProgress:
    """Show the progress of a training while it works.

    Parameters
    ----------
    limit : int
        Number of steps at which the training ends at the latest.
    budget : Budget, optional
        Limits of the fit.
    step : int
        Number of steps taken before, as of an interrupted training.
    seconds : float
        Time that they took.
    stops_early : bool
        True if the training may end before its limit.
    quiet : bool
        True to print nothing.
    """

    def __init__(
        self,
        limit: int,
        *,
        budget: Budget | None = None,
        step: int = 0,
        seconds: float = 0.0,
        stops_early: bool = False,
        quiet: bool = False,
    ) -> None:
        minutes = budget.max_minutes if budget else None
        self.shown = Shown(
            limit, step=step, seconds=seconds, max_minutes=minutes, stops_early=stops_early
        )
        self._start, self._before = time.monotonic(), seconds
        self._marks = deque([(self._start, step)])
        self._progress = Progress("train", total=limit, unit="step", quiet=quiet, line=self._line)
        self._progress.begin_at(step)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, value, trace)

    def took(
        self,
        *,
        loss: float | None = None,
        held_out: float | None = None,
        best_step: int = 0,
        stage: str = "",
    ) -> None:
        """Report one more step; what is not stated of the losses stays as it was.

        Raises
        ------
        KeyboardInterrupt
            A signal asked the program to end; see :mod:`wsiad.core.signals`.
        """
        shown, now = self.shown, time.monotonic()
        shown.step += 1
        shown.stage = stage
        shown.loss = shown.loss if loss is None else loss
        if held_out is not None:
            shown.held_out, shown.best_step = held_out, best_step
        shown.seconds = self._before + now - self._start
        marks = self._marks
        if now - marks[-1][0] >= 1 or len(marks) == 1:
            marks.append((now, shown.step))
        while len(marks) > 2 and now - marks[1][0] > _WINDOW_SECONDS:
            marks.popleft()
        since, first = marks[0]
        if now > since:
            shown.steps_per_second = (shown.step - first) / (now - since)
        self._progress.update()

    def _line(self, *, terminal: bool) -> str:
        columns = shutil.get_terminal_size().columns if terminal else None
        return self.shown.line(columns=columns)
