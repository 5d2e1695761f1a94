"""``slides.csv``: one row per slide, whatever became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from wsiad.core.errors import InputError
from wsiad.core.files import write_text
from wsiad.core.ownership import locked
from wsiad.core.typed_table import TableKind

SLIDES_TABLE = "slides.csv"
"""Name of the table in a store and in a results folder."""
REPORT = "report.html"
"""Name of the report in a store and in a results folder."""

OK, NO_TISSUE, UNUSABLE, FAILED = "ok", "no-tissue", "unusable", "failed"

DAMAGED_THERE = "not assessed, as the file is damaged there"
"""In the reason of a slide of which damaged parts were left out."""


@dataclass(frozen=True, slots=True)
class SlideRow:
    """The row of a slide, as far as all verbs have it.

    Parameters
    ----------
    slide : str
        Name.
    status : str
        ``"ok"``; ``"no-tissue"``: the whole slide was seen and holds none; ``"unusable"``: it
        could not be looked at, or nothing of it can be used; or ``"failed"``.
    reason : str
        Why it failed or could not be looked at, or what its reader should know.
    seconds : float
        Time spent on it.
    mpp_x, mpp_y : float or None
        µm per level-0 pixel.
    width, height : int or None
        Of level 0, pixels.
    label, split : str
        From the manifest.
    file : str
        Where it was read from.
    backend : str
        What read its pixels, and why not directly: ``"jpeg-tiff"``, ``"openslide"``,
        ``"openslide: format leica"``, ``"store"``; empty where nothing was read.
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
    """A ``slides.csv`` that is rewritten, whole, whenever slides are done.

    Several processes, also of several machines, may put rows into one table at once.

    Parameters
    ----------
    path : Path
        Of the CSV; rows of an earlier run are kept until they are replaced.
    row : type
        Dataclass of the rows; its fields are the columns.
    """

    def __init__(self, path: Path, row: type[R]) -> None:
        self.path, self._row = path, row
        self._earlier: dict[str, R] = {item.slide: item for item in read_table(path, row)}
        self._put: dict[str, R] = {}

    def get(self, slide: str) -> R | None:
        """Row of a slide when the table was opened, or as it was put since."""
        return self._put.get(slide) or self._earlier.get(slide)

    def put(self, *rows: R) -> None:
        """Set rows and write the table, with what others have put into it meanwhile.

        Raises
        ------
        InputError
            The table was damaged, or others kept it busy for minutes.
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
    """Return the kind of a ``slides.csv`` with such rows."""
    return TableKind(
        row,
        "slides",
        "Delete it and run the command again.",
        InputError,
        digits=9,
        line_end="\r\n",
    )


def read_table(path: Path, row: type[R]) -> list[R]:
    """Read a ``slides.csv``; an absent file has no rows.

    Raises
    ------
    InputError
        The file is not such a table.
    """
    return slide_table_kind(row).read(path) if path.exists() else []


def slide_seconds(path: Path) -> float | None:
    """Seconds that a ``slides.csv`` tells of all its slides together; ``None`` without any.

    What a verb took in all is less, with several workers; but it is told of a last call only,
    and slides that were whole before take no time in that.

    Raises
    ------
    InputError
        The file is not such a table.
    """
    rows = read_table(path, SlideRow)
    return round(sum(row.seconds for row in rows), 3) if rows else None


def backends(rows: Iterable[SlideRow]) -> dict[str, str]:
    """Map slides to what read them; without those that nothing read."""
    return {row.slide: row.backend for row in rows if row.backend}


def backend_text(read: Mapping[str, object]) -> str:
    """Say what read a stored slide, as :attr:`wsiad.slides.slide.Slide.read_by` does."""
    return ": ".join(str(read[key]) for key in ("backend", "fallback") if read.get(key))


def failures(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Rows of the slides that failed."""
    return [row for row in rows if row.status == FAILED]


def unusable(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Rows of the slides that could not be looked at, which are not without tissue."""
    return [row for row in rows if row.status == UNUSABLE]


def partly_damaged(rows: Iterable[SlideRow]) -> list[SlideRow]:
    """Rows of the slides of which damaged parts were left out, and the rest was used."""
    return [row for row in rows if row.status != FAILED and DAMAGED_THERE in row.reason]


def outcome(rows: Sequence[SlideRow], done: str) -> str:
    """Say in a line what became of slides, such as ``"1 of 3 slides scored; 2 unusable"``."""
    counts = Counter(row.status for row in rows)
    words = {NO_TISSUE: "without tissue", UNUSABLE: "unusable", FAILED: "failed"}
    rest = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    if damaged := partly_damaged(rows):
        rest.append(f"{len(damaged)} with damaged parts left out")
    number = f"{len(rows)} slide{'s' if len(rows) != 1 else ''}"
    return "; ".join([f"{counts[OK]} of {number} {done}", *rest])
