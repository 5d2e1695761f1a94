"""Process a batch of slides: each gets a row, none is lost, and the table is always complete.

The work on a slide can be divided: its parts are separate tasks, and a last task joins them.

If one process works on all slides in turn, a slide that kills it (a library crashes, memory runs
out) would stop every later call at the same slide. A process therefore leaves a note while it works
on a slide. After several such deaths the slide gets a process of its own. One death means nothing
yet, because a process that was killed from outside leaves the same note.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wsiad.compute.compute_options import ComputeOptions
from wsiad.compute.tasks import run_tasks
from wsiad.core.errors import UnusableSlideError, WsiadError
from wsiad.core.files import DISK_FULL, MOST_FACTS, read_text
from wsiad.core.ownership import is_alive, is_dead, owner
from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import Progress
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import FAILED, UNUSABLE, SlideRow, SlideTable, failures, unusable
from wsiad.slides.staging import Staging, discard_staged, staged

if TYPE_CHECKING:
    from wsiad.slides.slide import Slide
    from wsiad.tiling.preparation import Preparation


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTask:
    """One slide to process; the task of a verb adds what the verb needs, and a worker gets it all.

    Parameters
    ----------
    slide : SlideInput
        The slide.
    staging : Staging, optional
        Place to which the slide is copied before it is read.
    spent : float
        Seconds that other tasks have spent on the slide, if its work was divided.
    """

    slide: SlideInput
    staging: Staging | None = None
    spent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask(BatchTask):
    """One slide to process, whose pixels are read as a preparation states.

    Parameters
    ----------
    preparation : Preparation
        Options that lead from the slide to its tiles.
    target : dict
        Stain profile to which slides are normalised, as JSON values.
    override_mpp : bool
        True if the user's µm/px replaces the one that the slide states.
    """

    preparation: Preparation
    target: dict[str, Any]
    override_mpp: bool = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[Slide]:
        """Open the slide, or its copy.

        Raises
        ------
        SlideOpenError
            The file does not exist, is not a slide or is damaged, or it cannot be copied.
        ScaleError
            The slide's µm/px is stated nowhere.
        """
        from wsiad.slides.opening import open_slide

        with (
            staged(self.slide.path, self.staging, name=self.slide.name) as local,
            open_slide(
                local,
                name=self.slide.name,
                manifest_mpp=self.slide.mpp,
                fallback_mpp=self.preparation.slide_mpp,
                skip_damaged=self.preparation.damaged_tiles == "skip",
                override_mpp=self.override_mpp,
            ) as slide,
        ):
            yield slide


T = TypeVar("T", bound=BatchTask)


@dataclass(frozen=True, slots=True)
class Divided(Generic[T]):
    """Result of a task that is too large: other tasks that replace it.

    Parameters
    ----------
    parts : tuple
        Tasks that can be done in any order, and at the same time if there are workers.
    last : task
        Task that follows when all parts are done; it returns the slide's row.
    seconds : float
        Seconds spent so far.
    """

    parts: tuple[T, ...]
    last: T
    seconds: float


@dataclass(frozen=True, slots=True)
class PartDone:
    """Result of the task of a part.

    Parameters
    ----------
    slide : str
        Name of the slide.
    seconds : float
        Seconds spent on the part.
    """

    slide: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Open:
    """Slide with parts that are not done yet."""

    last: BatchTask
    left: int
    seconds: float
    failed: bool = False


class Divisions:
    """Tracks the slides of a batch whose work is divided."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._said: dict[str, bool] = {}

    def more(self, task: Any, result: object) -> Sequence[Any]:
        """Return the tasks that follow from the result of a task.

        A slide with a failed part is not joined. Its other parts are still done, so that the
        next run finds them.
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
        """Tell whether a row is the first to state that its slide failed."""
        said = self._said.get(row.slide, False)
        if row.slide in self._said:
            self._said[row.slide] = row.status in (FAILED, UNUSABLE)
        return not said


OFTEN = 2
"""Number of deaths after which a slide is processed in a process of its own."""

_PREFIX = ".working."


class Deaths:
    """Notes, in an output folder, of processes that died while they worked on a slide.

    Parameters
    ----------
    folder : Path
        Output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes: dict[str, list[Path]] = {}
        for note in folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, ValueError):
                if is_dead(note.name.removeprefix(_PREFIX)):
                    self._notes.setdefault(read_text(note, most=MOST_FACTS), []).append(note)

    def often(self, slide: str) -> bool:
        """Tell whether processes have died on a slide more than once."""
        return len(self._notes.get(slide, [])) >= OFTEN

    @contextlib.contextmanager
    def noted(self, slide: str) -> Iterator[None]:
        """Note that this process works on a slide; when it is done, delete the slide's notes."""
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


def worked_on(folder: Path) -> set[str]:
    """Return the slides of an output folder on which live processes of this machine work."""
    found = set()
    for note in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            if is_alive(note.name.removeprefix(_PREFIX)):
                found.add(read_text(note, most=MOST_FACTS))
    return found


logger = logging.getLogger(__name__)

_TABLE_SECONDS = 1.0
"""Minimum seconds between two writings of the table; resumed slides take almost no time."""


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
    """Process slides; a slide that fails becomes a row that states the reason.

    Parameters
    ----------
    work : callable
        Module-level function of a task that returns the slide's row or raises; it can also
        return the tasks into which the slide is divided.
    tasks : sequence
        One task per slide; picklable.
    row : type
        Class of the rows.
    table : SlideTable
        Table that gets the rows, at most once a second and at the end.
    options : ComputeOptions
        Number of slides that are processed at the same time, and the place.
    label : str
        Label of the progress display.
    quiet : bool
        Show no progress.
    stored : callable, optional
        Function of a task that returns the slide's row if the slide is complete in the output.
        It is called before a slide counts as lost with its worker.

    Returns
    -------
    list
        Rows in order of the slides' names.

    Raises
    ------
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs.
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

    safe = functools.partial(guarded, work, row)
    deaths = Deaths(table.path.parent)
    rows: list[R] = []
    divisions = Divisions()
    kept, start, tiles = 0, time.monotonic(), 0
    last = start
    with Progress(label, total=len(tasks), unit="slide", quiet=quiet) as progress:
        results = run_tasks(
            safe,
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
    """Return the note of the progress display: counts, speed and the last slide."""
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
    """Return the tasks with the folder to copy their slides to, and the slide to copy ahead.

    Only if one process works on all slides in turn is it known which slide it reads next;
    slides that are ``done`` are not read.
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
    """Return the row of a slide that could not be processed."""
    # The table has a column for the name; the reason need not begin with it.
    return row(
        slide.name,
        FAILED,
        reason.removeprefix(f"{slide.name}: "),
        label=slide.label,
        split=slide.split,
        file=str(slide.path.absolute()),
    )


W = TypeVar("W")


def guarded(work: Callable[[T], W], row: type[R], task: T) -> R | W:
    """Return the result of the work on a slide, or the slide's row with the reason of a failure."""
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
            "with more memory, or fewer workers. If the slide is small, it is damaged."
        )
    except Exception as error:
        raise_if_ended()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            reason = "the disk is full; nothing of the slide was kept. Make room and run again."
            return replace(failed_row(row, task.slide, reason), seconds=time.monotonic() - start)
        logger.exception("%s: unexpected error", task.slide.name)
        reason = f"unexpected {type(error).__name__}: {error}"
    return replace(failed_row(row, task.slide, reason), seconds=time.monotonic() - start)
