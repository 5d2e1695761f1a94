"""CSV files from outside: rows with the number by which an error can name them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from wsiad.errors import EvaluationError, InputError
from wsiad.files import checked_name
from wsiad.slides.inputs import SUFFIXES


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


def read_rows(path: Path, *, subject: str | None = None) -> list[Row]:
    """Read the rows of a comma-separated UTF-8 file.

    Raises
    ------
    EvaluationError
        The file is missing or is not CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [Row(reader.line_num, tuple(c.strip() for c in cells)) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(
            f"{path} cannot be read as CSV ({error})" if subject else f"is no CSV ({error})",
            subject=subject or str(path),
            remedy="Give a comma-separated file in UTF-8.",
        ) from error
    return [row for row in rows if any(row.cells)]


def number(text: str) -> float | None:
    """Return a finite number, or ``None`` if the text is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    # Python also reads 1_000, which no other program writes.
    return value if math.isfinite(value) and "_" not in text else None


def slide_name(text: str, *, subject: str) -> str:
    """Return a slide's name from a name or file name: ``test_001.tif`` is ``test_001``.

    Raises
    ------
    EvaluationError
        It cannot be the name of a slide's results, such as one with a path in it.
    """
    stem = text[: -len(Path(text).suffix)] if Path(text).suffix.lower() in SUFFIXES else text
    try:
        return checked_name(stem)
    except InputError as error:
        raise EvaluationError(error.problem, subject=subject, remedy=error.remedy) from None
