"""``slides.csv``, with one row per slide, whatever became of the slide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from wsiad.core.errors import InputError
from wsiad.core.files import write_text
from wsiad.core.ownership import locked
from wsiad.core.terminal import counted, first_of
from wsiad.core.typed_files import TableKind

SLIDES_TABLE = "slides.csv"
"""Name of the table in a store and in a results folder."""
REPORT = "report.html"
"""Name of the report in a store and in a results folder."""

_MOST_LINES = 1_000_000

OK, NO_TISSUE, UNUSABLE, FAILED = "ok", "no-tissue", "unusable", "failed"

ROWS_AGAIN = (
    "Run the command that wrote it again, unless it still runs: it keeps what is complete and "
    "writes the rows."
)
"""Remedy for complete slides that have no row in the table of their store or results."""

DAMAGED_THERE = "not assessed, as the file is damaged there"
"""Words in the reason of a slide whose damaged parts were left out."""
NOT_IN_MASK = "of what may be tissue is not in its mask"
"""Words in the reason of a slide whose mask may lack much of the tissue."""
FILE_AWAY = "its tiles are those of the file that was there"
"""Words in the reason of a stored slide whose file is away."""


@dataclass(frozen=True, slots=True)
class SlideRow:
    """The row of a slide, with the columns that all verbs share.

    Parameters
    ----------
    slide : str
        Name of the slide.
    status : str
        ``"ok"``; ``"no-tissue"``: the complete slide was seen and holds none; ``"unusable"``: it
        could not be looked at, or nothing of it can be used; or ``"failed"``.
    reason : str
        Reason why it failed or could not be looked at, or a note for its reader.
    seconds : float
        Time spent on it.
    mpp_x, mpp_y : float or None
        Size of a level-0 pixel, µm.
    width, height : int or None
        Size of level 0, pixels.
    label, split : str
        Label and split of the manifest.
    file : str
        Path from which it was read.
    backend : str
        Reader of its pixels, and why not the direct one: ``"jpeg-tiff"``, ``"openslide"``,
        ``"openslide: format leica"``, ``"store"``; empty if nothing was read.
    """

    slide: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    mpp_x: float | None = None
    mpp_y: float | None = None
    width: int | None = None
    height: int | None = None
    label: str = ""
    split: str = ""
    file: str = ""
    backend: str = ""


R = TypeVar("R", bound=SlideRow)


class SlideTable(Generic[R]):
    """A ``slides.csv`` that is rewritten completely whenever slides are done.

    Several processes, also on several machines, can put rows into one table at the same time.

    Parameters
    ----------
    path : Path
        Path of the CSV; rows of an earlier run are kept until they are replaced.
    row : type
        Dataclass of the rows; its fields are the columns.
    """

    def __init__(self, path: Path, row: type[R]) -> None:
        self.path, self._row = path, row
        self._earlier: dict[str, R] = {item.slide: item for item in read_table(path, row)}
        self._put: dict[str, R] = {}

    def get(self, slide: str) -> R | None:
        """Return the row of a slide, as it was put last or when the table was opened."""
        return self._put.get(slide) or self._earlier.get(slide)

    def changed(self, rows: Iterable[R]) -> list[R]:
        """Return the rows of slides on which something was done since the table was opened.

        Other slides have the row of before, but for what is stated of them: label, split and notes.
        """
        kind = slide_table_kind(self._row)

        def done(row: R) -> bool:
            was = self._earlier.get(row.slide)
            if was is None:
                return True
            stated = replace(was, label=row.label, split=row.split, reason=row.reason)
            return kind.text([stated]) != kind.text([row])

        return [row for row in rows if done(row)]

    def names(self) -> set[str]:
        """Return the slides that have a row by now, from any process."""
        return {row.slide for row in read_table(self.path, self._row)}

    def put(self, *rows: R) -> None:
        """Set rows and write the table, together with rows that other processes put meanwhile.

        Raises
        ------
        InputError
            The table is damaged, or other processes kept it busy for minutes.
        """
        given = {row.slide: row for row in rows}
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            there = {row.slide: row for row in read_table(self.path, self._row)}
            # Rows of ours come back, should one whose lock was taken over have dropped them.
            self._write({**self._put, **there, **given})
        self._put.update(given)

    def _write(self, rows: dict[str, R]) -> None:
        text = slide_table_kind(self._row).text(row for _, row in sorted(rows.items()))
        write_text(self.path, text)


def slide_table_kind(row: type[R]) -> TableKind[R]:
    """Return the kind of a ``slides.csv`` with rows of this type."""
    return TableKind(
        row,
        "slides",
        "Delete it, and run the command that wrote it (such as wsiad tile or wsiad heatmap) again: "
        "it keeps what is complete, and writes the table anew.",
        InputError,
        digits=9,
        line_end="\r\n",
        most=_MOST_LINES,
    )


def read_table(path: Path, row: type[R]) -> list[R]:
    """Read a ``slides.csv``; a missing file has no rows.

    Raises
    ------
    InputError
        The file is not such a table.
    """
    return slide_table_kind(row).read(path) if path.exists() else []


def slide_seconds(path: Path) -> float | None:
    """Return the total seconds of all slides of a ``slides.csv``; ``None`` without slides.

    A verb with several workers takes less time in total. But its own time is that of the last
    call only, in which slides that were complete before take no time.

    Raises
    ------
    InputError
        The file is not such a table.
    """
    rows = read_table(path, SlideRow)
    return round(sum(row.seconds for row in rows), 3) if rows else None


def backends(rows: Iterable[SlideRow]) -> dict[str, str]:
    """Return the reader of each slide's pixels, without slides of which nothing was read."""
    return {row.slide: row.backend for row in rows if row.backend}


def backend_text(read: Mapping[str, object]) -> str:
    """Return the reader of a stored slide, like :attr:`wsiad.slides.slide.Slide.read_by`."""
    return ": ".join(str(read[key]) for key in ("backend", "fallback") if read.get(key))


def failures(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Return the rows of the slides that failed."""
    return [row for row in rows if row.status == FAILED]


def unusable(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Return the rows of the slides that could not be looked at, which may have tissue."""
    return [row for row in rows if row.status == UNUSABLE]


def unseen_rows(rows: Iterable[SlideRow]) -> dict[str, str]:
    """Map the slides that failed or are unusable to status and reason."""
    return {
        row.slide: f"{row.status}: {row.reason}" for row in rows if row.status in (FAILED, UNUSABLE)
    }


def first_reasons(found: Mapping[str, str]) -> str:
    """Return the first three slides with their reasons, such as ``"a: failed: is not a slide"``."""
    return first_of([f"{name}: {why}" for name, why in found.items()], apart="; ")


def without_result(rows: Sequence[SlideRow], problem: str) -> str:
    """Return a problem that no slide of results has a result for, with counts and first reasons.

    Examples
    --------
    >>> without_result([SlideRow("a", "failed", "is not a slide")], "holds no scored slide")
    'holds no scored slide (1 failed; a: failed: is not a slide)'
    """
    counts = Counter(row.status for row in rows)
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    said = "; ".join(filter(None, [said, first_reasons(unseen_rows(rows))]))
    return f"{problem} ({said})" if said else problem


def partly_damaged(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Return the rows of the slides that were used without their damaged parts."""
    return [row for row in rows if row.status != FAILED and DAMAGED_THERE in row.reason]


def partly_masked(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Return the rows of the slides that were read, and whose masks may lack much of the tissue."""
    return [row for row in rows if row.status != FAILED and NOT_IN_MASK in row.reason]


def away(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Return the rows of the slides whose files are away, and whose tiles are used all the same."""
    return [row for row in rows if row.status != FAILED and FILE_AWAY in row.reason]


def lost_rows(table: Path, slides: Sequence[str]) -> str:
    """Return what a table lacks, of which complete slides, and the remedy."""
    return (
        f"{'lacks rows' if table.exists() else 'is missing'}: labels and failures of "
        f"{counted(len(slides), 'slide')} ({first_of(slides)}) are not known. {ROWS_AGAIN}"
    )


def outcome(rows: Sequence[SlideRow], done: str) -> str:
    """Return a line on the fate of slides, such as ``"1 of 3 slides scored; 2 unusable"``."""
    counts = Counter(row.status for row in rows)
    words = {NO_TISSUE: "without tissue", UNUSABLE: "unusable", FAILED: "failed"}
    rest = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    if damaged := partly_damaged(rows):
        rest.append(f"{len(damaged)} with damaged parts left out")
    if masked := partly_masked(rows):
        rest.append(f"{len(masked)} that may have more tissue than was found")
    number = counted(len(rows), "slide")
    return "; ".join([f"{counts[OK]} of {number} {done}", *rest])
