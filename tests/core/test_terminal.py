"""What is printed cannot move the cursor, whatever names hold."""

import json
import logging

import pytest

from wsiad.cli import main
from wsiad.core.terminal import OneLine, by_number, counted, json_text, lines, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("a\x9b31m", "a\\x9b31m"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("\udc80", "\\udc80"),
        ("Größe µm – 大\u00a0x", "Größe µm – 大\u00a0x"),
    ],
)
def test_only_printable_characters_are_left(text, shown):
    assert one_line(text) == shown


def test_lines_are_kept_where_they_are_ours():
    assert lines("a\x1b\nb") == "a\\x1b\nb"


def test_json_is_read_as_it_was_whatever_is_in_it():
    text = "".join(map(chr, range(0x300))) + "\u2028\u202e\ufeff大\U000e0001\U0010fffd"
    value = {text: [text, 1.5, None]}
    shown = json_text(value)
    assert shown.isascii()
    assert lines(shown) == shown
    assert json.loads(shown) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text([float("inf")])


def test_errors_and_names_are_escaped(capsys, tmp_path):
    code = main(["heatmap", "a\x1b[31m\nb", str(tmp_path), "--out", str(tmp_path / "o")])
    err = capsys.readouterr().err
    assert code == 1
    assert err.count("\n") == 1
    assert "a\\x1b[31m\\nb" in err
    with pytest.raises(SystemExit):
        main(["tile", "--x\x1by"])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_slides_of_such_names_are_escaped(capsys, tmp_path):
    (tmp_path / "a\x1b[2Jb.svs").write_text("no slide")
    (tmp_path / "a\nb.svs").write_text("no slide")
    slides = str(tmp_path)
    main(["tile", slides, "--out", str(tmp_path / "o"), "--mpp", "1", "--tile", "64"])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "a\\x1b[2Jb" in err
    assert "a\\nb" in err


def test_log_lines():
    def line(formatter):
        try:
            raise ValueError("a\nb")
        except ValueError:
            record = logging.LogRecord(
                "w", logging.ERROR, "f", 1, "%s failed", ("x\x1by",), __import__("sys").exc_info()
            )
        return formatter.format(record)

    assert line(OneLine("%(levelname)s %(message)s", tracebacks=False)) == "ERROR x\\x1by failed"
    assert "Traceback" in line(OneLine("%(message)s", tracebacks=True))


@pytest.mark.parametrize(
    ("number", "spec", "said"),
    [
        (0, "", "0 slides"),
        (1, "", "1 slide"),
        (1.0, "g", "1 slide"),
        (0.5, "g", "0.5 slides"),
        (2, "", "2 slides"),
        (1200, ",", "1,200 slides"),
    ],
)
def test_a_number_agrees_with_its_noun(number, spec, said):
    assert counted(number, "slide", spec) == said
    assert by_number(number, "is", "are") == ("is" if number == 1 else "are")
