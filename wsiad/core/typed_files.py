"""Tables and JSON files that are checked as they are read; an error names the place in one line.

The rows of a table are dataclasses, whose fields are the columns. A column holds a text, an
integer or a number, and can be empty if the field's type allows ``None``.
"""

from __future__ import annotations

import csv
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from wsiad.core.csv_file import MAX_LINES, parsed_rows, table_text
from wsiad.core.errors import WsiadError
from wsiad.core.files import MOST_FACTS, read_json

R = TypeVar("R")
M = TypeVar("M", bound=pydantic.BaseModel)

_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True)
class TableKind(Generic[R]):
    """A kind of table, with its format and the words of its errors.

    Parameters
    ----------
    row : type
        Dataclass of the rows; its fields are the columns, in their order.
    noun : str
        Word for the rows, such as ``"slides"``.
    remedy : str
        Advice on what to do about a table that cannot be read.
    error : type
        Class of the error for such a table.
    digits : int or None
        Significant digits of numbers; ``None`` for as many as restore the same float64.
    line_end : str
        End of a line.
    most : int
        Maximum number of lines of a table that is read.
    """

    row: type[R]
    noun: str
    remedy: str
    error: type[WsiadError]
    digits: int | None = None
    line_end: str = "\n"
    most: int = MAX_LINES

    def text(self, rows: Iterable[R]) -> str:
        """Return rows as CSV with a header."""
        names = columns(self.row)
        cells = ([self._cell(getattr(row, name)) for name in names] for row in rows)
        return table_text(names, cells, line_end=self.line_end)

    def _cell(self, value: object) -> object:
        if isinstance(value, float) and self.digits is not None:
            return f"{value:.{self.digits}g}"
        return value

    def read(self, path: Path, *, needed: Sequence[str] = ()) -> list[R]:
        """Read the rows of a table; see :meth:`read_numbered`."""
        return [row for _, row in self.read_numbered(path, needed=needed)]

    def read_numbered(self, path: Path, *, needed: Sequence[str] = ()) -> list[tuple[int, R]]:
        """Read the rows of a table, each with the line of the file on which it ends.

        Columns that the dataclass does not have are skipped, because a later version wrote them.

        Parameters
        ----------
        path : Path
        needed : sequence of str
            Columns that must be present although the dataclass has a default for them.

        Raises
        ------
        WsiadError
            An `error` of the table's kind: the file is missing, is not CSV, lacks a column, or
            has a cell that its column does not accept; the row is named.
        """
        try:
            return list(self._rows(path, needed))
        except (OSError, ValueError, csv.Error) as error:
            why = error.strerror or error if isinstance(error, OSError) else error
            raise self.error(
                f"is not a table of {self.noun} as wsiad writes it: {why}",
                subject=str(path),
                remedy=self.remedy,
            ) from error

    def _rows(self, path: Path, needed: Sequence[str]) -> Iterator[tuple[int, R]]:
        rows = parsed_rows(path, strip=False, most=self.most)
        header = rows[0].cells if rows else ()
        readers = _readers(self.row)
        must = [*_without_default(self.row), *needed]
        if missing := [name for name in must if name not in header]:
            raise ValueError(f"it has no column {', '.join(missing)}")
        places = [(name, readers[name]) if name in readers else None for name in header]
        for row in rows[1:]:
            if len(row.cells) != len(header):
                raise ValueError(f"row {row.number} does not have as many fields as the header")
            values: dict[str, Any] = {}
            for place, text in zip(places, row.cells, strict=True):
                if place is None:
                    continue
                name, read = place
                try:
                    values[name] = read(text)
                except ValueError as error:
                    raise ValueError(f"row {row.number}: {name} is {text!r}, not {error}") from None
            yield row.number, self.row(**values)


def columns(row: type) -> list[str]:
    """Return the names of a dataclass's fields, which are the columns of its table."""
    return [field.name for field in fields(row)]


def _without_default(row: type) -> list[str]:
    return [
        field.name
        for field in fields(row)
        if field.default is MISSING and field.default_factory is MISSING
    ]


def _readers(row: type) -> dict[str, Callable[[str], object]]:
    """Return the function for each column that makes a value from its text."""
    hints = typing.get_type_hints(row)
    return {name: _reader(hints[name]) for name in columns(row)}


def _reader(hint: Any) -> Callable[[str], object]:
    kinds = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    optional = types.NoneType in kinds
    (kind,) = kinds - {types.NoneType}
    words = _KINDS[kind]

    def read(text: str) -> object:
        if optional and text == "":
            return None
        try:
            return kind(text)
        except ValueError:
            raise ValueError(words) from None

    return read


def read_record(
    path: Path, kind: type[M], error: type[WsiadError], *, remedy: str, most: int = MOST_FACTS
) -> M:
    """Read a JSON file of at most `most` bytes as a model.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, too large or is not JSON, or does not fit the model.
    """
    values = read_json(path, error, remedy=remedy, most=most)
    return checked(kind, values, path, error, remedy=remedy)


def checked(
    kind: type[M], values: dict[str, Any], path: Path, error: type[WsiadError], *, remedy: str
) -> M:
    """Check the values of a file by a model, and return the model.

    Parameters
    ----------
    kind : type
        Model; its validators can find the file's folder in their context as ``folder``.
    values : dict
        Values that were read from the file.
    path : Path
        Path of the file, for the error.
    error : type
        Class of the error.
    remedy : str
        Advice on what to do about damage.

    Raises
    ------
    WsiadError
        An `error`: a value is missing or of another type; the first such place is named.
    """
    try:
        return kind.model_validate(values, context={"folder": path.parent})
    except pydantic.ValidationError as invalid:
        problem = f"is damaged: {first_fault(invalid)}"
        raise error(problem, subject=str(path), remedy=remedy) from None


def first_fault(error: pydantic.ValidationError, *, whole: str = "the file") -> str:
    """Return the first fault of values that do not fit a model: its place and what is wrong there.

    Parameters
    ----------
    error : pydantic.ValidationError
    whole : str
        Name of the place where the fault is not in one of the values but in all together.
    """
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
