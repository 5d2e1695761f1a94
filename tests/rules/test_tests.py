"""Tests mirror the rooms of the package, and import nothing of one another."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FILES = sorted(TESTS.rglob("*.py"))

ROOMS = {path.name for path in (ROOT / "wsiad").iterdir() if path.is_dir()}
# Beside the rooms: what is not of the package.
OTHERS = {"rules", "pipelines", "benchmarks"}
# The command line, which is above all rooms.
ABOVE = {"conftest.py", "test_cli.py"}


def imported_tests(source: str) -> list[str]:
    """Test files that a file imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    stems = {path.stem for path in FILES if path.name.startswith("test_")}
    return [name for name in names if stems & set(name.split("."))]


def test_a_test_lies_in_the_room_of_what_it_tests() -> None:
    for path in FILES:
        place = path.relative_to(TESTS).parts
        if len(place) == 1:
            assert place[0] in ABOVE, f"{path}: put it in the room of what it tests"
        elif place[0] == "support":
            assert not path.name.startswith("test_"), f"{path}: support holds no tests"
        else:
            assert place[0] in ROOMS | OTHERS, f"{path}: there is no room {place[0]} in wsiad/"
            assert re.fullmatch(r"test_\w+\.py", path.name), f"{path}: what is shared is support"


def test_names_of_test_files_are_unique() -> None:
    names = Counter(path.name for path in FILES)
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("path", [p.relative_to(TESTS).as_posix() for p in FILES])
def test_no_file_imports_a_test_file(path: str) -> None:
    found = imported_tests((TESTS / path).read_text("utf-8"))
    assert found == [], "move what is shared to tests/support"


def test_imports_of_test_files_are_seen() -> None:
    assert imported_tests("from test_house import compared\nimport numpy\n") == ["test_house"]
    assert imported_tests("def f():\n    import rules.test_house\n") == ["rules.test_house"]
    assert imported_tests("from rules import test_house\n") == ["test_house"]
    assert imported_tests("from support.builders import blobs\n") == []
