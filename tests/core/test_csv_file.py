"""Tables that people open in a spreadsheet."""

import csv
import io
import random

import pytest

from wsiad.core.csv_file import parsed_rows, plain, read_rows, safe, table_text
from wsiad.core.errors import InputError
from wsiad.slides.slide_table import SlideRow, SlideTable, read_table

FORMULAE = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "=")


@pytest.mark.parametrize("text", FORMULAE)
def test_no_cell_is_a_formula(text):
    (line,) = list(csv.reader(io.StringIO(table_text(["a"], [[text]]), newline="")))[1:]
    assert line == ["'" + text]
    assert plain(line[0]) == text


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+3", "-1e-05", "-inf", 7, None, "slide", "'tis"])
def test_numbers_and_plain_texts_stay_as_they_are(value):
    (line,) = list(csv.reader(io.StringIO(table_text(["a", "b"], [[value, 0]]))))[1:]
    assert line[0] == ("" if value is None else str(value))


def test_every_text_reads_back_as_it_was(tmp_path):
    rng = random.Random(0)
    texts = ["".join(rng.choices("=+-@'\t\r\n1.e ,\"ab", k=rng.randint(0, 6))) for _ in range(9999)]
    text = table_text(["a", "b"], ([t, 0] for t in texts))
    (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
    found = parsed_rows(tmp_path / "table.csv", strip=False)
    assert [row.cells[0] for row in found[1:]] == texts
    assert not any(safe(t).startswith(("=", "@", "\t", "\r")) for t in texts)


def test_slides_of_such_names(tmp_path):
    table = SlideTable(tmp_path / "slides.csv", SlideRow)
    table.put(SlideRow("=1+1", "failed", "-x: \x1b[31m", label="@a", mpp_x=-0.5))
    written = (tmp_path / "slides.csv").read_text()
    assert "'=1+1" in written
    assert ",-0.5," in written
    (row,) = read_table(tmp_path / "slides.csv", SlideRow)
    assert (row.slide, row.reason, row.label, row.mpp_x) == ("=1+1", "-x: \x1b[31m", "@a", -0.5)
    rows = read_rows(tmp_path / "slides.csv", InputError)
    assert rows[1].cells[0] == "=1+1"  # as a reference or a manifest


@pytest.mark.parametrize("line", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_excel_can_be_told_what_separates_cells(tmp_path, line):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (line + "slide;a,b\r\nx;1,5\r\n").encode())
    rows = read_rows(path, InputError, delimiters=",;\t")
    assert [(row.number, row.cells) for row in rows] == [(2, ("slide", "a,b")), (3, ("x", "1,5"))]


def test_a_line_of_other_separators_is_a_row(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("sep=;\n1\n")
    assert [row.cells for row in read_rows(path, InputError)] == [("sep=;",), ("1",)]


def test_lines_are_counted_before_they_take_memory(tmp_path):
    (tmp_path / "slides.csv").write_text("slide,status\na,ok\n" + "\n" * 1_000_000)
    with pytest.raises(InputError, match="wsiad writes it: has more than 1,000,000 lines"):
        read_table(tmp_path / "slides.csv", SlideRow)
    rows = parsed_rows(tmp_path / "slides.csv")
    assert [row.cells for row in rows] == [("slide", "status"), ("a", "ok")]
    with pytest.raises(ValueError, match="more than 9 lines"):
        parsed_rows(tmp_path / "slides.csv", most=9)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("slide,label\nä,normal\n".encode("cp1252"), r"line 2 is not UTF-8: it has the byte 0xe4"),
        ("ä,label\n".encode("cp1252"), "line 1 is not UTF-8.*Save it as 'CSV UTF-8'"),
        (b"PK\x03\x04\xff\xfe", "it is a workbook, or another archive.*Save the sheet as 'CSV UTF"),
        (b"\xff\xfea", "is not CSV .*truncated data"),
        (b'a,"b\n', "is not CSV .*Pass a comma-separated file in UTF-8"),
    ],
)
def test_what_is_not_csv_is_answered_with_what_to_do(tmp_path, data, said):
    (tmp_path / "table.csv").write_bytes(data)
    with pytest.raises(InputError, match=said):
        read_rows(tmp_path / "table.csv", InputError)
