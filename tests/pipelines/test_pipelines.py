"""The batch recipes: whole as shell, and with flags that there are."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wsiad.cli import VERBS, _verb_parser
from wsiad.core.config import config_class

PIPELINES = Path(__file__).parents[2] / "pipelines"
SHELL = sorted(path for path in PIPELINES.rglob("*") if path.suffix in (".sh", ".sbatch"))
SOURCED = {PIPELINES / "slurm/site.sh", PIPELINES / "slurm/site_check.sh"}
SCRIPTS = [path for path in SHELL if path not in SOURCED]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_scripts_are_whole(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert bool(path.stat().st_mode & stat.S_IXUSR) == (path not in SOURCED)
    assert path.read_text().startswith("# shellcheck shell=bash" if path in SOURCED else "#!")


def test_shellcheck_finds_nothing():
    check = [Path(sys.executable).with_name("shellcheck"), "--external-sources"]
    done = subprocess.run(
        [*check, *SHELL], cwd=PIPELINES.parent, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.fixture
def calls(tmp_path):
    """Run a script with a `wsiad` that only notes what it was given; returns that, parsed."""
    stub = tmp_path / "bin" / "wsiad"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {tmp_path}/arguments\n')
    stub.chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{stub.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(PIPELINES / script), *arguments],
            env=os.environ | {"PATH": path} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.returncode, done.stdout
        verb, *given = (tmp_path / "arguments").read_text().split("\0")[:-1]
        assert verb in VERBS
        module = __import__(f"wsiad.verbs.{verb}", fromlist=[verb])
        return verb, vars(_verb_parser(verb, config_class(getattr(module, verb))).parse_args(given))

    return run


@pytest.mark.parametrize("script", [str(path.relative_to(PIPELINES)) for path in SCRIPTS])
def test_without_arguments_they_say_how_they_are_called(calls, script):
    code, text = calls(script)
    assert code == 2
    assert f"pipelines/{script}" in text
