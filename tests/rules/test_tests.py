"""Tests mirror the rooms of the package, import nothing of one another, and assert no clock."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FILES = sorted(TESTS.rglob("*.py"))
STEMS = {path.stem for path in FILES if path.name.startswith("test_")}

ROOMS = {path.name for path in (ROOT / "wsiad").iterdir() if path.is_dir()}
# Beside the rooms: what is not of the package.
OTHERS = {"rules", "pipelines", "benchmarks", "documents"}
CLOCK = re.compile(r"(time\.)?(perf_counter|process_time|monotonic|time)(_ns)?")
# The command line, the suites of `wsiad.testing` and the files in configs/zoo: above all rooms.
ABOVE = {"conftest.py", "test_cli.py", "test_conformance.py", "test_presets.py"}


def imported_tests(source: str) -> list[str]:
    """Test files that a file imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if STEMS & set(name.split("."))]


def is_clock(node: ast.AST) -> bool:
    """Whether a clock is read."""
    return isinstance(node, ast.Call) and bool(CLOCK.fullmatch(ast.unparse(node.func)))


def asserted_times(source: str) -> list[str]:
    """Assertions on a time that was measured: on a difference of clocks, by whatever name.

    To wait until a limit is over is no such one.
    """
    found = []
    for scope in ast.walk(ast.parse(source)):
        if not isinstance(scope, ast.FunctionDef):
            continue
        nodes = list(ast.walk(scope))
        differences = [
            node
            for node in nodes
            if isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Sub)
            and any(is_clock(part) for part in ast.walk(node.left))
        ]
        measured = {
            name.id
            for node in nodes
            if isinstance(node, ast.Assign | ast.Expr)
            and any(part in differences for part in ast.walk(node))
            for name in ast.walk(node)
            if isinstance(name, ast.Name)
            and (isinstance(node, ast.Expr) or isinstance(name.ctx, ast.Store))
        } - {"time"}
        found += [
            ast.unparse(node)
            for node in nodes
            if isinstance(node, ast.Assert)
            and any(
                part in differences or (isinstance(part, ast.Name) and part.id in measured)
                for part in ast.walk(node.test)
            )
        ]
    return found


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


def test_no_file_imports_a_test_file() -> None:
    for path in FILES:
        found = imported_tests(path.read_text("utf-8"))
        assert found == [], f"{path}: move what is shared to tests/support"


def test_imports_of_test_files_are_seen() -> None:
    assert imported_tests("from test_house import compared\nimport numpy\n") == ["test_house"]
    assert imported_tests("def f():\n    import rules.test_house\n") == ["rules.test_house"]
    assert imported_tests("from rules import test_house\n") == ["test_house"]
    assert imported_tests("from support.builders import blobs\n") == []


def test_no_clock_is_asserted() -> None:
    for path in FILES:
        found = asserted_times(path.read_text("utf-8"))
        assert found == [], f"{path}: measure it in benchmarks/, as a ratio"


@pytest.mark.parametrize(
    ("body", "times"),
    [
        ("assert time.perf_counter() - start < 3", 1),
        ("seconds = time.monotonic() - start\n    assert seconds < 20", 1),
        ("rates.append(9 / (time.perf_counter() - start))\n    assert max(rates) > 1", 1),
        ("while not ready():\n        assert time.monotonic() < limit", 0),
        ("assert len(found) - start < 3", 0),
        ("ready = wait(deadline - time.monotonic())\n    assert ready", 0),
        ("print(time.monotonic() - start)\n    assert found", 0),
    ],
)
def test_asserted_times_are_seen(body: str, times: int) -> None:
    assert len(asserted_times(f"def test():\n    {body}\n")) == times
