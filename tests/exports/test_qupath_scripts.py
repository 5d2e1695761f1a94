"""Scripts for QuPath: whole, found again, and never written over what people changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsiad.core.errors import ExportError
from wsiad.exports.qupath.objects import CLASS_NAME, UNASSESSED_NAME
from wsiad.exports.qupath.project import SCRIPTS, script, write_scripts


def without_text(groovy):
    """Take comments and strings out."""
    return re.sub(r"//[^\n]*|/\*.*?\*/|'(?:\\.|[^'\\\n])*'|\"[^\"\n]*\"", "", groovy, flags=re.S)


@pytest.mark.parametrize("name", SCRIPTS)
def test_brackets_match_and_nothing_is_left_to_fill_in(name):
    text = script(name, Path("/data/results"))
    code = without_text(text)
    for opening, closing in ("()", "[]", "{}"):
        assert code.count(opening) == code.count(closing)
    assert "'" not in code
    assert not re.search(r"@[A-Z]+@", text)


def test_what_the_import_replaces_is_what_is_written():
    text = script("wsiad_import.groovy", Path("/data"))
    assert f"['{CLASS_NAME}', '{UNASSESSED_NAME}']" in text
    for file in ("tiles.geojson.gz", "lesions.geojson", "not_assessed.geojson"):
        assert f"'{file}'" in text


@pytest.mark.parametrize("name", SCRIPTS[:2])
def test_the_project_s_place_comes_before_the_folder_that_is_named(name):
    text = script(name, Path("/data/it's \\ here"))
    assert "new File('/data/it\\'s \\\\ here')\n" in text
    assert text.index("PROJECT_BASE_DIR") < text.index("/data/it")


def test_a_folder_cannot_break_out_of_the_script():
    with pytest.raises(ExportError):
        script("wsiad_import.groovy", Path("/data/a\nSystem.exit(1)"))


def test_a_script_that_was_changed_is_left(tmp_path, caplog):
    folder = tmp_path / "scripts"
    write_scripts(folder, Path("/old"))
    changed, ours = folder / SCRIPTS[0], folder / SCRIPTS[1]
    theirs = changed.read_text().replace("println", "print")
    changed.write_text(theirs)
    write_scripts(folder, Path("/new"))
    assert changed.read_text() == theirs
    assert "changed by hand" in caplog.text
    assert ours.read_text() == script(SCRIPTS[1], Path("/new"))
    ours.write_text("mine")
    write_scripts(folder, Path("/new"))
    assert ours.read_text() == "mine"
