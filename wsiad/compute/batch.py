"""A batch of slides: each is worked on, none is lost, the table is whole at any time."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from wsiad.compute.compute_options import ComputeOptions, take_shard
from wsiad.compute.deaths import Deaths
from wsiad.compute.division import Divided, Divisions, PartDone
from wsiad.compute.tasks import run_tasks
from wsiad.core.errors import UnusableSlideError, WsiadError
from wsiad.core.files import DISK_FULL
from wsiad.core.progress import Progress
from wsiad.core.signals import raise_if_ended
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import FAILED, UNUSABLE, SlideRow, SlideTable, failures, unusable
from wsiad.slides.staging import Staging, discard_staged

logger = logging.getLogger(__name__)

_TABLE_SECONDS = 1.0
"""The least time between two writings of the table: on resumption slides take no time."""


class SlideTaskLike(Protocol):
    """What a batch has to know of a task: its slide."""

    @property
    def slide(self) -> SlideInput:
        """Slide to work on."""
        ...


T = TypeVar("T", bound=SlideTaskLike)
R = TypeVar("R", bound=SlideRow)


def run_batch(
    work: Callable[[T], R | Divided[Any] | PartDone],
    tasks: Sequence[T],
    *,
    row: type[R],
    table: SlideTable[R],
    options: ComputeOptions,
    label: str,
    quiet: bool,
    stored: Callable[[T], R | None] | None = None,
) -> list[R]:
    """Work on slides; a slide that fails becomes a row that says why.

    Parameters
    ----------
    work : callable
        Module-level function that returns a slide's row or raises; or, in the place of the
        row, tasks that the slide is divided into.
    tasks : sequence
        One per slide; picklable.
    row : type
        Class of the rows.
    table : SlideTable
        Gets every row within a second or so.
    options : ComputeOptions
        How many slides are worked on at once, and where.
    label : str
        For the progress.
    quiet : bool
        No progress output.
    stored : callable, optional
        Returns a slide's row if the slide is whole in the output; asked before a slide is
        called lost with its worker.

    Returns
    -------
    list
        Rows in order of the slides' names.

    Raises
    ------
    ClusterError
        There is no such cluster or scheduler, or it takes no jobs.
    """

    def lost(task: T, reason: str) -> R | Divided[Any] | PartDone:
        return failed_row(row, task.slide, reason)

    def whole(task: T) -> R | Divided[Any] | PartDone | None:
        if stored is None or task.slide.problem:
            return None
        try:
            return stored(task)
        except (WsiadError, OSError) as error:
            logger.info("%s: %s", task.slide.name, error)
            return None

    guarded = functools.partial(_guarded, work, row)
    deaths = Deaths(table.path.parent)
    rows: list[R] = []
    divisions = Divisions()
    kept, start, tiles = 0, time.monotonic(), 0
    last = start
    with Progress(label, total=len(tasks), unit="slide", quiet=quiet) as progress:
        results = run_tasks(
            guarded,
            tasks,
            options=options,
            failed=lost,
            notice=progress.message,
            more=divisions.more,
            whole=whole,
            noted=lambda task: deaths.noted(task.slide.name),
            apart=lambda task: deaths.often(task.slide.name),
        )
        try:
            # Workers end before what they leave half written is cleared away.
            with contextlib.closing(results):
                for done in results:
                    if isinstance(done, Divided | PartDone) or not divisions.is_news(done):
                        continue
                    rows.append(done)
                    now = time.monotonic()
                    if now - last >= _TABLE_SECONDS:
                        table.put(*rows[kept:])
                        kept, last = len(rows), now
                    if done.status in (FAILED, UNUSABLE):
                        progress.message(f"{done.status.upper()} {done.slide}")
                    tiles += getattr(done, "tiles", 0)
                    progress.update(note=_note(rows, tiles, now - start))
        finally:
            table.put(*rows[kept:])
            if options.stage_dir is not None:
                discard_staged(options.stage_dir)
    return sorted(rows, key=lambda done: done.slide)


def _note(rows: Sequence[SlideRow], tiles: int, seconds: float) -> str:
    """Say how the batch does, and which slide was the last."""
    parts = [rows[-1].slide]
    if tiles:
        parts.insert(0, f"{tiles / seconds:.0f} tiles/s")
    for word, some in (("unusable", unusable(rows)), ("failed", failures(rows))):
        if some:
            parts.insert(0, f"{len(some)} {word}")
    return ", ".join(parts)


class StagedTaskLike(SlideTaskLike, Protocol):
    """A task whose slide can be copied to a local disk first."""

    @property
    def staging(self) -> Staging | None:
        """Where to, and which slide is the next."""
        ...


S = TypeVar("S", bound=StagedTaskLike)


def with_staging(
    tasks: Sequence[S], options: ComputeOptions, *, done: Callable[[S], bool]
) -> list[S]:
    """Tell each task where to copy its slide to, and which slide to copy ahead meanwhile.

    Only where one process works on all in turn is it known which slide it reads next; it
    is not one that is ``done``.
    """
    if options.stage_dir is None:
        return list(tasks)
    following: Path | None = None
    staged = []
    for task in reversed(tasks):
        staged.append(replace(task, staging=Staging(options.stage_dir, following)))  # type: ignore[type-var]
        if options.in_turn and not task.slide.problem and not done(task):
            following = task.slide.path
    return staged[::-1]


def slides_of_shard(slides: Sequence[SlideInput], shard: str | None) -> list[SlideInput]:
    """Return the slides of a shard ``"i/n"``, or all.

    They are sorted by name first: shards that find them in another order are no less apart.
    """
    if shard is None:
        return list(slides)
    return take_shard(sorted(slides, key=lambda slide: (slide.name, str(slide.path))), shard)


def record_path(out: Path, shard: str | None) -> Path:
    """Where a call says what it did: ``run.json``, or a shard its own ``runs/shard-2-of-8.json``.

    Shards share a folder; one that wrote its counts as those of all would be wrong.
    """
    return out / (f"runs/shard-{shard.replace('/', '-of-')}.json" if shard else "run.json")


def failed_row(row: type[R], slide: SlideInput, reason: str) -> R:
    """Row of a slide that could not be worked on."""
    # The table has a column for the name; the reason need not begin with it.
    return row(
        slide.name,
        FAILED,
        reason.removeprefix(f"{slide.name}: "),
        label=slide.label,
        split=slide.split,
        file=str(slide.path.absolute()),
    )


def _guarded(
    work: Callable[[T], R | Divided[Any] | PartDone], row: type[R], task: T
) -> R | Divided[Any] | PartDone:
    if task.slide.problem:
        known = failed_row(row, task.slide, task.slide.problem)
        return replace(known, status=UNUSABLE) if task.slide.unusable else known
    start = time.monotonic()
    try:
        return work(task)
    except UnusableSlideError as error:
        raise_if_ended()
        said = failed_row(row, task.slide, str(error))
        return replace(said, status=UNUSABLE, seconds=time.monotonic() - start)
    except WsiadError as error:
        raise_if_ended()
        reason = str(error)
    except MemoryError as error:
        raise_if_ended()
        reason = (
            f"needs more memory than there is ({error or 'how much is not known'}). Use a machine "
            "with more of it, or fewer workers; if the slide is small, it is damaged."
        )
    except Exception as error:
        raise_if_ended()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            reason = "the disk is full; nothing of it was kept. Make room and run again."
            return replace(failed_row(row, task.slide, reason), seconds=time.monotonic() - start)
        logger.exception("%s: unexpected error", task.slide.name)
        reason = f"unexpected {type(error).__name__}: {error}"
    return replace(failed_row(row, task.slide, reason), seconds=time.monotonic() - start)
