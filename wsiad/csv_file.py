"""CSV files that people and other programs write: rows with the number to name them by."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from wsiad.errors import WsiadError

MAX_BYTES = 1 << 28
"""Largest file that is read as a table."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a CSV file that is not blank.

    Parameters
    ----------
    number : int
        Line of the file on which it ends, counted from 1, the header included.
    cells : tuple of str
        Without white space around them.
    """

    number: int
    cells: tuple[str, ...]


def read_rows(
    path: Path, error: type[WsiadError], *, subject: str | None = None, delimiters: str = ","
) -> list[Row]:
    """Read the rows of a CSV file that are not blank.

    UTF-8, with a byte order mark or without, or UTF-16 with one, as Excel writes both.

    Parameters
    ----------
    path : Path
    error : type
        Of the error where that is not possible: what the table is for, the caller knows.
    subject : str, optional
        Of the error; by default the path.
    delimiters : str
        What may part the cells. Of several, the one that the first line has most of, the
        first of them where none is there.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, too large or is not CSV.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        too_large = len(data) > MAX_BYTES
        text = (
            "" if too_large else data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
        )
        lines = (line for line in text.splitlines() if line.strip())
        first = next(lines, "")
        delimiter = max(delimiters, key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [Row(reader.line_num, tuple(c.strip() for c in cells)) for cells in reader]
    except (OSError, UnicodeError, csv.Error) as cause:
        raise error(
            f"{path} cannot be read as CSV ({cause})" if subject else f"is no CSV ({cause})",
            subject=subject or str(path),
            remedy="Give a comma-separated file in UTF-8.",
        ) from cause
    if too_large:
        raise error(f"has more than {MAX_BYTES >> 20} MiB", subject=subject or str(path))
    return [row for row in rows if any(row.cells)]
