"""Tables whose rows are dataclasses, written and read in one way."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from wsiad.core import csv_file
from wsiad.core.errors import InputError
from wsiad.core.typed_files import TableKind


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float | None
    note: str = ""
    more: int | None = None


EXACT = TableKind(Row, "things", "Make them again.", InputError)
ROUND = TableKind(Row, "things", "Make them again.", InputError, digits=3, line_end="\r\n")
ROWS = [Row("=1+1", 3, 1 / 3, 'a, "b"\nc', 0), Row(" b ", -2, None)]


def test_the_text_is_as_it_always_was():
    assert EXACT.text(ROWS) == (
        'name,count,share,note,more\n\'=1+1,3,0.3333333333333333,"a, ""b""\nc",0\n b ,-2,,,\n'
    )
    assert ROUND.text(ROWS[:1]) == (
        'name,count,share,note,more\r\n\'=1+1,3,0.333,"a, ""b""\nc",0\r\n'
    )


def test_rows_read_back_as_they_were(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(EXACT.text(ROWS), newline="")
    assert EXACT.read(path) == ROWS
    path.write_text(ROUND.text(ROWS), newline="")
    assert [row.share for row in ROUND.read(path)] == [0.333, None]
    path.write_text(EXACT.text([]), newline="")
    assert EXACT.read(path) == []


def test_columns_may_be_in_another_order_be_more_or_have_defaults(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffshare,later,count,name\n0.5,x,1,a\n".encode())
    assert EXACT.read(path) == [Row("a", 1, 0.5)]
    with pytest.raises(InputError, match="it has no column note"):
        EXACT.read(path, needed=["name", "note"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it has no column name, count, share"),
        ("name,count\na,1\n", "it has no column share"),
        ("name,count,share\na,1,2\nb,1\n", "row 3 does not have as many fields as the header"),
        ("name,count,share\na,1,2,3\n", "row 2 does not have as many fields as the header"),
        ("name,count,share\na,1.5,2\n", "row 2: count is '1.5', not a whole number"),
        ("name,count,share\na,1,x\n", "row 2: share is 'x', not a number"),
        ("name,count,share\na,,2\n", "row 2: count is '', not a whole number"),
        ('name,count,share\n"a,1,2\n', "unexpected end of data"),
    ],
)
def test_what_is_no_such_table_is_one_line_with_the_row(tmp_path, text, problem):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        EXACT.read(path)
    said = str(error.value)
    assert said.startswith(f"{path}: is not a table of things as wsiad writes it: {problem}")
    assert said.endswith("Make them again.")
    assert "\n" not in said


def test_what_cannot_be_read_is_not_an_empty_table(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    with pytest.raises(InputError, match="No such file"):
        EXACT.read(path)
    path.write_bytes(b"\xff\x00\x00")
    with pytest.raises(InputError, match=r"t\.csv: is not a table"):
        EXACT.read(path)
    path.write_text("name,count,share\n")
    monkeypatch.setattr(csv_file, "MAX_BYTES", 4)
    with pytest.raises(InputError, match="MiB"):
        EXACT.read(path)
