"""A batch of slides: each is worked on, none is lost, the table is whole at any time.

A slide whose work is divided: parts are tasks of their own, and a last one joins them.

Slides on which processes died: noted while they are worked on, and worked on apart then.

Where one process works on all slides in turn, one that ends it (a library that crashes, memory
that runs out) would end every run after it at the same slide. A process that was killed from
outside leaves the same note, so that one death says nothing of the slide yet.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from wsiad.compute.compute_options import ComputeOptions
from wsiad.compute.tasks import run_tasks
from wsiad.core.errors import UnusableSlideError, WsiadError
from wsiad.core.files import DISK_FULL
from wsiad.core.ownership import is_dead, owner
from wsiad.core.progress import Progress
from wsiad.core.signals import raise_if_ended
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import FAILED, UNUSABLE, SlideRow, SlideTable, failures, unusable
from wsiad.slides.staging import Staging, discard_staged


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTask:
    """One slide to work on, as it travels to a worker; the task of a verb adds what that needs.

    Parameters
    ----------
    slide : SlideInput
    staging : Staging, optional
        Where the slide is copied to before it is read.
    spent : float
        Seconds that others have worked on it, where its work was divided.
    """

    slide: SlideInput
    staging: Staging | None = None
    spent: float = 0.0


T = TypeVar("T", bound=BatchTask)


@dataclass(frozen=True, slots=True)
class Divided(Generic[T]):
    """The result of a task that is too large: other tasks in its place.

    Parameters
    ----------
    parts : tuple
        Done in any order, at once if there are workers.
    last : task
        Done when all parts are; returns the slide's row.
    seconds : float
        Spent so far.
    """

    parts: tuple[T, ...]
    last: T
    seconds: float


@dataclass(frozen=True, slots=True)
class PartDone:
    """The result of the task of a part.

    Parameters
    ----------
    slide : str
    seconds : float
        Spent on it.
    """

    slide: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Open:
    """A slide of which parts are still to be done."""

    last: BatchTask
    left: int
    seconds: float
    failed: bool = False


class Divisions:
    """Keeps account of the slides of a batch whose work is divided."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._said: dict[str, bool] = {}

    def more(self, task: Any, result: object) -> Sequence[Any]:
        """Return the tasks that follow from the result of one.

        A slide of which a part failed is not joined; its other parts are done all the
        same, and are there for the next run.
        """
        name = task.slide.name
        if isinstance(result, Divided):
            self._said[name] = False
            if not result.parts:
                return [replace(result.last, spent=result.seconds)]
            self._open[name] = _Open(result.last, len(result.parts), result.seconds)
            return result.parts
        if (division := self._open.get(name)) is None:
            return []
        failed = division.failed or not isinstance(result, PartDone)
        seconds = division.seconds + (result.seconds if isinstance(result, PartDone) else 0.0)
        if division.left > 1:
            self._open[name] = replace(
                division, left=division.left - 1, seconds=seconds, failed=failed
            )
            return []
        del self._open[name]
        return [] if failed else [replace(division.last, spent=seconds)]

    def is_news(self, row: SlideRow) -> bool:
        """Whether no part of the same slide said before that the slide failed."""
        said = self._said.get(row.slide, False)
        if row.slide in self._said:
            self._said[row.slide] = row.status in (FAILED, UNUSABLE)
        return not said


OFTEN = 2
"""After so many deaths a slide is worked on by a process of its own."""

_PREFIX = ".working."


class Deaths:
    """The notes in an output folder.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes: dict[str, list[Path]] = {}
        for note in folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if is_dead(note.name.removeprefix(_PREFIX)):
                    self._notes.setdefault(note.read_text(encoding="utf-8"), []).append(note)

    def often(self, slide: str) -> bool:
        """Whether processes have died on a slide more than once."""
        return len(self._notes.get(slide, [])) >= OFTEN

    @contextlib.contextmanager
    def noted(self, slide: str) -> Iterator[None]:
        """Note that this process works on a slide; when it has done so, forget its deaths."""
        note = self._folder / f"{_PREFIX}{owner()}"
        # Where there is no room for a note, none is needed for the slide to go on.
        with contextlib.suppress(OSError):
            note.write_text(slide, encoding="utf-8")
        try:
            yield
            for one in self._notes.pop(slide, []):
                one.unlink(missing_ok=True)
        finally:
            note.unlink(missing_ok=True)


logger = logging.getLogger(__name__)

_TABLE_SECONDS = 1.0
"""The least time between two writings of the table: on resumption slides take no time."""


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


def with_staging(
    tasks: Sequence[T], options: ComputeOptions, *, done: Callable[[T], bool]
) -> list[T]:
    """Tell each task where to copy its slide to, and which slide to copy ahead meanwhile.

    Only where one process works on all in turn is it known which slide it reads next; it
    is not one that is ``done``.
    """
    if options.stage_dir is None:
        return list(tasks)
    following: Path | None = None
    staged = []
    for task in reversed(tasks):
        staged.append(replace(task, staging=Staging(options.stage_dir, following)))
        if options.in_turn and not task.slide.problem and not done(task):
            following = task.slide.path
    return staged[::-1]


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
