"""A batch of slides: each is worked on, none is lost, the table is whole at any time."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from wsiad.cluster import run_tasks
from wsiad.errors import WsiadError
from wsiad.files import DISK_FULL
from wsiad.progress import Progress
from wsiad.slides.inputs import SlideInput
from wsiad.stages.slide_table import FAILED, SlideRow, SlideTable

logger = logging.getLogger(__name__)


class SlideTaskLike(Protocol):
    """What a batch has to know of a task: its slide."""

    @property
    def slide(self) -> SlideInput:
        """Slide to work on."""
        ...


T = TypeVar("T", bound=SlideTaskLike)
R = TypeVar("R", bound=SlideRow)


def run_batch(
    work: Callable[[T], R],
    tasks: Sequence[T],
    *,
    row: type[R],
    table: SlideTable[R],
    workers: int,
    label: str,
    quiet: bool,
) -> list[R]:
    """Work on slides; a slide that fails becomes a row that says why.

    Parameters
    ----------
    work : callable
        Module-level function that returns a slide's row or raises.
    tasks : sequence
        One per slide; picklable.
    row : type
        Class of the rows.
    table : SlideTable
        Gets every row as soon as it is there.
    workers : int
        Slides worked on at once.
    label : str
        For the progress.
    quiet : bool
        No progress output.

    Returns
    -------
    list
        Rows in order of the slides' names.
    """

    def lost(task: T, error: BaseException) -> R:
        return failed_row(row, task.slide, f"its worker was lost ({type(error).__name__}: {error})")

    guarded = functools.partial(_guarded, work, row)
    rows = []
    with Progress(label, total=len(tasks), unit="slide", quiet=quiet) as progress:
        for done in run_tasks(guarded, tasks, workers=workers, failed=lost):
            rows.append(done)
            table.put(done)
            if done.status == FAILED:
                progress.message(f"FAILED {done.slide}")
            progress.update(note=done.slide)
    return sorted(rows, key=lambda done: done.slide)


def failed_row(row: type[R], slide: SlideInput, reason: str) -> R:
    """Row of a slide that could not be worked on."""
    # The table has a column for the name; the reason need not begin with it.
    return row(
        slide.name,
        FAILED,
        reason.removeprefix(f"{slide.name}: "),
        label=slide.label,
        split=slide.split,
        file=str(slide.path),
    )


def _guarded(work: Callable[[T], R], row: type[R], task: T) -> R:
    if task.slide.problem:
        return failed_row(row, task.slide, task.slide.problem)
    start = time.monotonic()
    try:
        return work(task)
    except WsiadError as error:
        reason = str(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            reason = "the disk is full; nothing of it was kept. Make room and run again."
            return replace(failed_row(row, task.slide, reason), seconds=time.monotonic() - start)
        logger.exception("%s: unexpected error", task.slide.name)
        reason = f"unexpected {type(error).__name__}: {error}"
    return replace(failed_row(row, task.slide, reason), seconds=time.monotonic() - start)
