"""A look at slides before a long job: what will be made of each, how long that takes, what fails.

Nothing is written. Every slide is opened and its tissue is found, as the job does it. What a tile
takes is measured on a few blocks of the first slides; times and bytes of all follow from that and
are estimates.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsiad.compute.batch import BatchTask, guarded
from wsiad.core.terminal import Progress, counted, interval, json_text, one_line
from wsiad.slides.slide_table import FAILED, NO_TISSUE, OK, UNUSABLE, SlideRow

if TYPE_CHECKING:
    from wsiad.slides.slide import Slide
    from wsiad.store.tile_task import TileTask
    from wsiad.tiling.plan import SlidePlan
    from wsiad.tiling.preparation import CompressionOptions

SAMPLED_SLIDES = 2
"""Number of slides of which some blocks are worked on, to measure what a tile takes."""
_SAMPLED_TILES = 256
_SAMPLED_SECONDS = 20.0

DONE = "done"
"""Status of a slide that is complete in the output already."""

_SOURCES = {"manifest": "manifest", "--slide-mpp": "option"}
_SIZE_OF = {"tile": "store", "window": "file"}
_SIZE_WORDS = {"tile": "in the store", "window": "to read"}
_COLUMNS = 79


@dataclass(frozen=True, slots=True)
class PreviewRow(SlideRow):
    """A slide before a job; `seconds` is an estimate, `status` is ``"ok"`` if it will work.

    Parameters
    ----------
    format : str
        Vendor's format, as OpenSlide names it; ``"store"`` for a stored slide.
    mpp_source : str
        Place where the µm/px is stated: a property of the file, ``manifest`` or ``--slide-mpp``.
    tissue_share : float or None
        Share of the slide that is tissue, 0 to 1.
    tiles : int or None
        Number of tiles or windows with enough tissue. Those without pixels or of bad quality are
        left out later.
    bytes : int or None
        Size in bytes: estimated, of the tiles in a store; or of the slide's files, for scoring.
    """

    format: str = ""
    mpp_source: str = ""
    tissue_share: float | None = None
    tiles: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Measurement of the work on a few blocks.

    Parameters
    ----------
    tiles : int
        Number of tiles.
    seconds : float
        Time that they took.
    size : int
        Bytes that they take in the output; 0 if that is not known.
    slides : int
        Number of slides.
    plan_seconds : float
        Time that these slides took before their first tile.
    """

    tiles: int = 0
    seconds: float = 0.0
    size: int = 0
    slides: int = 0
    plan_seconds: float = 0.0

    def __add__(self, other: Sample) -> Sample:
        return Sample(
            tiles=self.tiles + other.tiles,
            seconds=self.seconds + other.seconds,
            size=self.size + other.size,
            slides=self.slides + other.slides,
            plan_seconds=self.plan_seconds + other.plan_seconds,
        )

    def estimated(self, row: PreviewRow) -> PreviewRow:
        """Return a row with the time and size that its tiles are expected to take."""
        if row.status != OK or not row.tiles or not self.tiles:
            return row
        seconds = self.plan_seconds / self.slides + row.tiles * self.seconds / self.tiles
        size = row.bytes
        if self.size:
            size = round(row.tiles * self.size / self.tiles)
        return replace(row, seconds=round(seconds, 1), bytes=size)


def sampled(blocks: Iterable[tuple[int, int]], *, plan_seconds: float) -> Sample:
    """Work on blocks until there are enough, and return what they took.

    Parameters
    ----------
    blocks : iterable of (int, int)
        Number of tiles of each block, and the bytes that they take in the output; taking the next
        one does the work.
    plan_seconds : float
        Time that the slide took before.
    """
    start, count, size = time.monotonic(), 0, 0
    for tiles, taken in blocks:
        count, size = count + tiles, size + taken
        if count >= _SAMPLED_TILES or time.monotonic() - start >= _SAMPLED_SECONDS:
            break
    seconds = time.monotonic() - start
    return Sample(tiles=count, seconds=seconds, size=size, slides=1, plan_seconds=plan_seconds)


def middle(tiles: int) -> int:
    """Return the first tile of a sample in the middle of a slide, where tissue is usual."""
    return max(0, (tiles - _SAMPLED_TILES) // 2)


def looked_at(slide: Slide, plan: SlidePlan, row: PreviewRow, *, noun: str) -> PreviewRow:
    """Return a row with what an open slide and its plan tell."""
    from wsiad.tiling.verdict import why_unusable
    from wsiad.tissue.quality import LeftOut

    status, reason = OK, slide.scale_note
    if not len(plan):
        why = why_unusable(plan, LeftOut(), noun=noun)
        status, reason = (UNUSABLE, why) if why else (NO_TISSUE, reason)
    return replace(
        row,
        status=status,
        reason=reason,
        format=slide.format,
        backend=slide.read_by,
        mpp_x=float(slide.spacing.x),
        mpp_y=float(slide.spacing.y),
        mpp_source=slide.spacing_source,
        width=slide.size.width,
        height=slide.size.height,
        tissue_share=round(plan.tissue.tissue_share, 4),
        tiles=len(plan),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Outlook on a job.

    Parameters
    ----------
    rows : tuple of PreviewRow
        The slides, in order of their names.
    sample : Sample
        Measurement from which times and sizes are estimated.
    noun : str
        ``"tile"`` or ``"window"``.
    workers : int
        Number of processes that share the slides.
    out : Path
        Folder of the output.
    as_json : bool
        True to be read by a program.
    """

    rows: tuple[PreviewRow, ...]
    sample: Sample
    noun: str
    workers: int
    out: Path
    as_json: bool

    @property
    def problems(self) -> tuple[PreviewRow, ...]:
        """Slides that will fail, or that cannot be looked at."""
        return tuple(row for row in self.rows if row.status in (FAILED, UNUSABLE))

    @property
    def size(self) -> int:
        """Bytes of all slides: see :class:`PreviewRow`."""
        return sum(row.bytes or 0 for row in self.rows)

    @property
    def seconds(self) -> float | None:
        """Estimated time of all slides, shared by the workers; ``None`` if nothing was measured."""
        if not self.sample.tiles:
            return None
        return sum(row.seconds for row in self.rows) / self.workers

    @property
    def no_room(self) -> str:
        """Sentence on a disk that is too small; empty if there is room."""
        there = next(one for one in (self.out.absolute(), *self.out.absolute().parents)
                     if one.exists())  # fmt: skip
        free = shutil.disk_usage(there).free
        if not self.sample.size or self.size <= free:
            return ""
        return f"the disk of {self.out} has {_bytes(free)} free, fewer than will be written"

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if something will fail."""
        return 1 if self.problems or self.no_room else 0

    @property
    def summary(self) -> str:
        """Table for the terminal, or JSON."""
        if self.as_json:
            return json_text(self.values())
        return "\n".join([*self._table(), *self._said()])

    def values(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        total = {
            "slides": len(self.rows),
            **dict(Counter(row.status for row in self.rows)),
            f"{self.noun}s": sum(row.tiles or 0 for row in self.rows if row.status == OK),
            "bytes": self.size,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "workers": self.workers,
            "sample": {"slides": self.sample.slides, f"{self.noun}s": self.sample.tiles},
            "no_room": self.no_room,
        }
        return {"total": total, "slides": [asdict(row) for row in self.rows]}

    def _table(self) -> list[str]:
        head = ("slide", "format", "µm/px", "tissue", f"{self.noun}s", _SIZE_OF[self.noun], "time")
        width = max([len("slide"), *(len(one_line(row.slide)) for row in self.rows)])
        width = min(width, 18)
        lines = [_line(head, width)]
        lines += [_line(self._cells(row, width), width) for row in self.rows]
        return lines

    def _cells(self, row: PreviewRow, width: int) -> tuple[str, ...]:
        name = one_line(row.slide)
        name = name if len(name) <= width else f"{name[: width - 1]}…"
        scale = f"{row.mpp_x:.4g} {_SOURCES.get(row.mpp_source, 'slide')}" if row.mpp_x else ""
        share = f"{row.tissue_share:.0%}" if row.tissue_share is not None else ""
        seen = (name, one_line(row.format), scale, share)
        if row.status != OK:
            return (*seen, {FAILED: "will fail"}.get(row.status, row.status), "", "")
        size = _bytes(row.bytes) if row.bytes is not None else "?"
        return (*seen, f"{row.tiles:,}", size, interval(row.seconds) if self.sample.tiles else "?")

    def _said(self) -> list[str]:
        counts = Counter(row.status for row in self.rows)
        tiles = sum(row.tiles or 0 for row in self.rows if row.status == OK)
        words = {DONE: "done already", NO_TISSUE: "without tissue", UNUSABLE: "unusable"}
        parts = [f"{counts[OK]} of {counted(len(self.rows), 'slide')} to do"]
        parts += [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
        parts += [f"{counts[FAILED]} will fail"] if counts[FAILED] else []
        lines = ["", f"{', '.join(parts)}."]
        if self.seconds is not None:
            some = f"{self.workers} processes" if self.workers > 1 else "one process"
            lines.append(
                f"{counted(tiles, self.noun, ',')}, {_bytes(self.size)} "
                f"{_SIZE_WORDS[self.noun]}, about "
                f"{interval(self.seconds)} with {some}: estimated from "
                f"{counted(self.sample.tiles, self.noun)} of "
                f"{counted(self.sample.slides, 'slide')}."
            )
        if self.no_room:
            lines.append(f"This will fail: {self.no_room}.")
        for row in self.problems:
            kind = "will fail" if row.status == FAILED else "cannot be looked at"
            lines.append(f"{one_line(row.slide)} {kind}: {one_line(row.reason)}")
        lines.append("Nothing was written. Without --dry-run, the work begins.")
        return [
            wrapped
            for line in lines
            for wrapped in textwrap.wrap(line, _COLUMNS, subsequent_indent="  ") or [""]
        ]


def _line(cells: Sequence[str], width: int) -> str:
    name, kind, scale, *numbers = cells
    text = f"{name:<{width}}  {kind:<12.12} {scale:<14.14}"
    return f"{text} {numbers[0]:>6} {numbers[1]:>9} {numbers[2]:>7} {numbers[3]:>7}".rstrip()


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def look_to_tile(
    task: TileTask, row: PreviewRow, sample: bool, *, compression: CompressionOptions
) -> tuple[PreviewRow, Sample]:
    """Plan a slide as :func:`tile_one` does, and make some of its tiles if a sample is wanted.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px does not allow the requested one.
    InputError
        There are no coordinates for the slide, or they do not fit.
    """
    from wsiad.stain.profile import StainProfile
    from wsiad.store.shards import encode
    from wsiad.store.tile_task import coordinates_of
    from wsiad.tiling.plan import plan_slide
    from wsiad.tiling.stream import stream

    start, target = time.monotonic(), StainProfile.from_dict(task.target)
    path, _ = coordinates_of(task)
    with task.opened() as slide:
        plan = plan_slide(
            slide,
            task.preparation,
            target=target,
            coordinates=path,
            stain=None if sample else target,  # no pixel is used
        )
        found = looked_at(slide, plan, row, noun="tile")
        if not sample or not len(plan):
            return found, Sample()
        made = (
            (len(block), len(encode(block.pixels, compression)) if len(block) else 0)
            for block in stream(plan, quality=True, first=middle(len(plan)))
        )
        return found, sampled(made, plan_seconds=time.monotonic() - start)


T = TypeVar("T", bound=BatchTask)


def preview_slides(
    tasks: Sequence[T],
    *,
    done: Callable[[T], bool],
    look: Callable[[T, PreviewRow, bool], tuple[PreviewRow, Sample]],
    noun: str,
    workers: int,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> Preview:
    """Look at slides one after the other; one that will fail is a row with its reason.

    Parameters
    ----------
    tasks : sequence
        A task for each slide.
    done : callable
        Function of a task that tells whether the slide is complete in the output; it raises if
        the output has another slide of this name.
    look : callable
        Function of a task, the row so far, and whether to work on some blocks; it returns the
        row, and what those blocks took.
    noun : str
        ``"tile"`` or ``"window"``.
    workers : int
    out : Path
    as_json : bool
    quiet : bool
        True to show no progress.
    """
    total = Sample()

    def one(task: T) -> PreviewRow:
        nonlocal total
        slide = task.slide
        row = PreviewRow(
            slide.name, OK, label=slide.label, split=slide.split, file=str(slide.path.absolute())
        )
        if done(task):
            return replace(row, status=DONE)
        found, sample = look(task, row, total.slides < SAMPLED_SLIDES)
        total += sample
        return found

    rows = []
    with Progress("look", total=len(tasks), unit="slide", quiet=quiet) as progress:
        for task in tasks:
            found = guarded(one, PreviewRow, task)
            rows.append(replace(found, seconds=0.0))
            progress.update(note=found.slide)
    return Preview(
        rows=tuple(sorted(map(total.estimated, rows), key=lambda row: row.slide)),
        sample=total,
        noun=noun,
        workers=workers,
        out=out,
        as_json=as_json,
    )
