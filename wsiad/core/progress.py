"""Progress with a rate and an ETA: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import lines, one_line


class Progress:
    """Count work done and say how fast it goes.

    Parameters
    ----------
    label : str
        What is being done.
    total : int, optional
        How many units there are, if known.
    unit : str
        Name of a unit, such as ``"tile"``.
    log_seconds : float
        On a stream that is no terminal: the least time between two lines.
    quiet : bool
        Say nothing.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        unit: str = "it",
        log_seconds: float = 30.0,
        quiet: bool = False,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._log_seconds = log_seconds
        self._start = self._last = time.monotonic()
        self._done = self._shown = self._before = 0
        self._note = ""
        self._bar: tqdm[Any] | None = None
        self._quiet = quiet
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(
                desc=label, total=total, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self._quiet and self._done > self._shown:
            self._line()

    def update(self, count: int = 1, *, note: str = "") -> None:
        """Report ``count`` more units as done, with an optional short note.

        Raises
        ------
        KeyboardInterrupt
            A signal asked the program to end; see :mod:`wsiad.core.signals`.
        """
        raise_if_ended()
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(one_line(note), refresh=False)
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._last >= self._log_seconds:
            self._line()

    def begin_at(self, count: int) -> None:
        """Say that ``count`` units were done before: they count, but not for rate and ETA."""
        self._done = self._shown = self._before = count
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = count
            self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar, or into the log."""
        if self._bar is not None:
            self._bar.write(one_line(text), file=sys.stderr)
        elif not self._quiet:
            print(one_line(text), file=sys.stderr, flush=True)

    def _line(self) -> None:
        self._last, self._shown = time.monotonic(), self._done
        text = tqdm.format_meter(
            self._done,
            self.total or 0,
            self._last - self._start,
            ncols=0,
            prefix=self.label,
            unit=f" {self.unit}",
            initial=self._before,
        )
        print(f"{text} {one_line(self._note)}".rstrip(), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Say something to who started the program, where there is nothing to count."""
    print(lines(text), file=sys.stderr, flush=True)
