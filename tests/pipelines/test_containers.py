"""Dockerfile and Apptainer definition, which are not built here: what they copy and install."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
APPTAINER = (ROOT / "apptainer.def").read_text()


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, in order."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


def section(name: str) -> list[str]:
    """Lines of a section of the definition."""
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", APPTAINER, flags=re.DOTALL | re.MULTILINE)
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def copied() -> set[str]:
    """What the Dockerfile copies from the project's folder."""
    words = [shlex.split(rest) for rest in of("COPY") if not rest.startswith("--from")]
    return {source for *sources, _ in words for source in sources}


def arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for rest in of("ARG"))


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_what_is_copied_exists_and_is_what_docker_is_shown():
    assert all((ROOT / source).exists() for source in copied())
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied()
    files = dict(line.split() for line in section("files"))
    assert files == {source: f"/build/{source}" for source in copied()}


def test_the_package_can_be_built_of_what_is_copied():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"}
    build = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed |= {*build["packages"], *build["force-include"]}
    assert needed <= copied()
    assert settings["tool"]["hatch"]["version"]["path"].split("/")[0] in copied()


def pip_lines() -> list[str]:
    """The installations of both images, with their arguments in place."""
    values = arguments()
    docker = [line for line in of("RUN") if " install " in line]
    for name, value in values.items():
        docker = [line.replace(f"${{{name}}}", value) for line in docker]
    apptainer = [line for line in section("post") if " install " in line]
    for name, value in (line.split("=", 1) for line in section("arguments")):
        apptainer = [line.replace(f"{{{{ {name} }}}}", value) for line in apptainer]
    return docker + apptainer


def test_both_install_the_same_as_make_does_with_the_versions_that_are_tested():
    first, second = pip_lines()
    assert first == second
    words = shlex.split(first)
    makefile = (ROOT / "Makefile").read_text()
    assert "-m pip install --quiet -c requirements/constraints.txt -e .\n" in makefile
    assert words[:3] == ["/opt/wsiad/bin/python", "-m", "pip"]
    assert words[words.index("-c") + 1] == "requirements/constraints.txt"
    assert words[words.index("--extra-index-url") + 1] == arguments()["TORCH_INDEX"]
    path, extras = re.fullmatch(r"(.)\[(.*)\]", words[-1]).groups()
    assert path == "."
    pins = (ROOT / "requirements/constraints.txt").read_text().lower().replace("_", "-")
    known = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *(text for e in extras.split(",") for text in known[e])):
        assert f"\n{Requirement(text).name.lower()}==" in pins, text


def test_no_package_of_the_system_is_needed():
    """OpenSlide is a wheel; what apt installs would not be pinned."""
    assert not [line for line in [*of("RUN"), *section("post")] if "apt" in shlex.split(line)[0]]
    assert any(text.startswith("openslide-bin") for text in PROJECT["dependencies"])


def test_both_begin_with_a_python_that_is_tested():
    python = arguments()["PYTHON"]
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    assert {line.split()[0] for line in of("FROM")} == {"python:${PYTHON}-slim-trixie"}
    assert "From: python:{{ python }}-slim-trixie" in APPTAINER
    assert f"python={python}" in section("arguments")


def test_the_image_runs_wsiad_without_root_and_without_a_network():
    user = of("USER")[-1]
    assert user.isdecimal()
    assert int(user) > 0
    assert of("ENTRYPOINT") == ['["wsiad"]']
    assert section("runscript") == ['exec wsiad "$@"']
    values = dict(word.split("=", 1) for word in shlex.split(of("ENV")[0]))
    # All that libraries write at run time, and what keeps them from downloading.
    assert {values[name].split("/")[1] for name in ("HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR")} == {
        "tmp"
    }
    assert values["HF_HUB_OFFLINE"] == "1"
    assert values["PATH"].split(":")[0] == "/opt/wsiad/bin"


@pytest.mark.parametrize("name", ["post", "environment", "runscript"])
def test_sections_are_shell(name, tmp_path):
    script = tmp_path / "section.sh"
    script.write_text("\n".join(["#!/bin/sh", *section(name)]) + "\n")
    check = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([check, script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
