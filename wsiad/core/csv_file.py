"""CSV files: those that users write, with numbered rows, and wsiad's own, free of formulas.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, even if it
is the name of a slide. Such a text is written with an apostrophe before it, which marks a text for
spreadsheets, and read without it. Numbers are unchanged.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiad.core.errors import WsiadError

MAX_BYTES = 1 << 28
"""Maximum size of a file that is read as a table, in bytes."""
MAX_LINES = 5_000_000
"""Maximum number of its lines: a line of one character takes a hundred times its size in memory."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)
_MARK = "'"

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ARCHIVE = b"PK\x03\x04"
_STATED = re.compile(r'"?sep=(.)"?\r?(?:\n|$)', re.IGNORECASE)
"""First line by which Excel is told what separates the cells."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a CSV file that is not blank.

    Parameters
    ----------
    number : int
        Line of the file on which the row ends, counted from 1, the header included.
    cells : tuple of str
        Cells without the apostrophes of :func:`safe`, and stripped if requested.
    """

    number: int
    cells: tuple[str, ...]


def read_rows(
    path: Path, error: type[WsiadError], *, subject: str | None = None, delimiters: str = ","
) -> list[Row]:
    """Read the rows of a CSV file that are not blank.

    The file is UTF-8 with or without a byte order mark, or UTF-16 with one, as Excel writes both.

    Parameters
    ----------
    path : Path
    error : type
        Type of the error that is raised; the caller knows the purpose of the table.
    subject : str, optional
        Subject of the error; by default the path.
    delimiters : str
        Characters that can separate the cells. The one that is most frequent in the first line
        is used, or the first one if none occurs; or that of a line ``sep=;`` before it.

    Raises
    ------
    WsiadError
        An `error`: the file cannot be read, is too large or is not CSV.
    """
    try:
        rows = parsed_rows(path, delimiters=delimiters)
    except _TooLargeError as cause:
        raise error(str(cause), subject=subject or str(path)) from None
    except OSError as cause:
        why = f"cannot be read: {cause.strerror or cause}"
        raise error(
            f"{path} {why}" if subject else why,
            subject=subject or str(path),
            remedy="Check the path.",
        ) from cause
    except (UnicodeError, csv.Error) as cause:
        why, remedy = _not_csv(cause)
        raise error(
            f"{path} cannot be read as CSV ({why})" if subject else f"is not CSV ({why})",
            subject=subject or str(path),
            remedy=remedy,
        ) from cause
    return rows


def _not_csv(cause: UnicodeError | csv.Error) -> tuple[str, str]:
    """Return why a file is not CSV, and what to do about it."""
    data = cause.object if isinstance(cause, UnicodeDecodeError) else b""
    if data.startswith(_ARCHIVE):
        return "it is a workbook, or another archive", "Save the sheet as 'CSV UTF-8'."
    if isinstance(cause, UnicodeDecodeError) and not data.startswith(_UTF16):
        line = data.count(b"\n", 0, cause.start) + 1
        return (
            f"line {line} is not UTF-8: it has the byte {data[cause.start]:#04x}",
            "Save it as 'CSV UTF-8', as spreadsheets call it.",
        )
    return str(cause), "Pass a comma-separated file in UTF-8."


class _TooLargeError(ValueError):
    """A file is larger than a table may be."""


def parsed_rows(
    path: Path, *, delimiters: str = ",", strip: bool = True, most: int = MAX_LINES
) -> list[Row]:
    """Read the rows of a CSV file that are not blank; raise Python's own errors.

    Parameters
    ----------
    path : Path
    delimiters : str
        Characters that can separate cells, as for :func:`read_rows`.
    strip : bool
        True to strip white space around cells.
    most : int
        Maximum number of lines, blank ones included.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is too large, or is not text.
    csv.Error
        The file is not CSV.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _TooLargeError(f"has more than {MAX_BYTES >> 20} MiB")
    text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    if (stated := _STATED.match(text)) and stated[1] in delimiters:
        delimiter, text = stated[1], "\n" + text[stated.end() :]  # lines keep their numbers
    else:
        first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
        delimiter = max(delimiters, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    for cells in reader:
        if reader.line_num > most:
            raise _TooLargeError(f"has more than {most:,} lines")
        if any(found := tuple(plain(c.strip() if strip else c) for c in cells)):
            rows.append(Row(reader.line_num, found))
    return rows


def safe(text: str) -> str:
    """Return a cell's text in the form in which it is written; :func:`plain` restores it.

    Examples
    --------
    >>> safe("=1+1"), safe("-0.5"), safe("slide_1")
    ("'=1+1", '-0.5', 'slide_1')
    """
    risky = text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    marked = text.startswith(_MARK) and text[1:].startswith((*_FORMULA, _MARK))
    return _MARK + text if risky or marked else text


def plain(text: str) -> str:
    """Return the text of a cell that :func:`safe` wrote, or that a user marked as text."""
    marked = text.startswith(_MARK) and text[1:].startswith((*_FORMULA, _MARK))
    return text[1:] if marked else text


def table_text(
    header: Sequence[str], rows: Iterable[Iterable[object]], *, line_end: str = "\n"
) -> str:
    """Return a table as CSV.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : iterable of iterable
        Values to write; ``None`` is an empty cell.
    line_end : str
    """
    lines = []
    for row in (header, *rows):
        line = io.StringIO()
        # By this end of a line the writer puts quotes around a carriage return, too.
        writer = csv.writer(line, lineterminator="\r\n")
        writer.writerow([safe(value) if isinstance(value, str) else value for value in row])
        lines.append(line.getvalue()[:-2] + line_end)
    return "".join(lines)
