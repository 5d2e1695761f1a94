"""Read CSV files of other programs, with row numbers for error messages."""

from __future__ import annotations

import math
from pathlib import Path

from wsiad.core import csv_file
from wsiad.core.csv_file import Row
from wsiad.core.errors import EvaluationError, InputError
from wsiad.core.files import checked_slide_name
from wsiad.slides.slide_files import SUFFIXES

_LONGEST = 4096
"""Maximum bytes of a part of a slide's name."""


def read_rows(path: Path, *, subject: str | None = None, delimiters: str = ",") -> list[Row]:
    """Read the rows of a CSV file; see :func:`wsiad.core.csv_file.read_rows`.

    Raises
    ------
    EvaluationError
        The file is missing or not a CSV file.
    """
    return csv_file.read_rows(path, EvaluationError, subject=subject, delimiters=delimiters)


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

    The name may be longer than that of a folder can be: such slides have a row, but no results.

    Raises
    ------
    EvaluationError
        The name cannot be that of a slide's results, for example because it contains a path.
    """
    stem = text[: -len(Path(text).suffix)] if Path(text).suffix.lower() in SUFFIXES else text
    try:
        return checked_slide_name(stem, longest=_LONGEST)
    except InputError as error:
        raise EvaluationError(error.problem, subject=subject, remedy=error.remedy) from None
