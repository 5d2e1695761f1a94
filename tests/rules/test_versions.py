"""The Pythons that are supported are those that are tested, wherever they are listed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = [
    name.rpartition(" ")[2]
    for name in PROJECT["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
]


def test_the_lowest_python_is_the_first_that_is_listed() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert sorted(PYTHONS, key=lambda version: int(version.partition(".")[2])) == PYTHONS


def test_nox_and_the_public_workflow_test_all_of_them() -> None:
    nox = re.search(r"^PYTHONS = (\[.*\])$", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    assert yaml.safe_load(nox[1]) == PYTHONS
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS


def test_the_citation_has_the_licence_and_the_name_of_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]


def test_the_tests_of_the_smoke_exist() -> None:
    lines = (ROOT / "tests" / "smoke.txt").read_text("utf-8").splitlines()
    paths = [path for line in lines if (path := line.partition("#")[0].strip())]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
