"""environment.yml (conda-forge) is in step with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

CONDA_NAMES = {
    "dask": "dask-core",
    "matplotlib": "matplotlib-base",
    "opencv-python-headless": "py-opencv",
    "openslide-bin": "openslide",
    "torch": "pytorch",
}
"""Where conda-forge's name is not PyPI's."""


def bounds(lines):
    return dict(re.match(r"([A-Za-z0-9_.-]+)(.*)", line).groups() for line in lines)


def test_environment_is_in_step():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = bounds(line for line in environment["dependencies"] if isinstance(line, str))
    # The extras that are not of jobs: conda users get every verb.
    wanted = bounds([*project["dependencies"], *project["optional-dependencies"]["tune"]])
    for name, bound in wanted.items():
        there = conda.pop(CONDA_NAMES.get(name, name))
        assert there == bound, name
    python = conda.pop("python")
    assert python.startswith(project["requires-python"])
    assert conda == {"pip": ""}
    versions = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if "Python :: 3." in c]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]


def test_constraints_satisfy_the_bounds():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "requirements/constraints.txt").read_text().splitlines()
        if "==" in line
    )
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["hpc"], *extras["tune"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text
