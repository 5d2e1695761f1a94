"""The tests on every Python that is supported, and with the oldest dependencies.

`nox -s tests-3.13 -- tests/core` runs tests on one Python, `nox -s smoke-3.13` a few tests of each
library; `nox -s lowest` the same few with the lowest versions that pyproject.toml allows, as uv
resolves them; `nox -s docs` builds the documents. `nox` runs all but the smoke, whose tests `tests`
has too.

`make test` checks one Python, with lint and types; this checks the others in environments of
their own. A Python that the machine lacks is skipped.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lowest", "docs"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

# Paths of tests, without the remarks behind them.
_LINES = Path(__file__).with_name("tests").joinpath("smoke.txt").read_text("utf-8").splitlines()
SMOKE = [path for line in _LINES if (path := line.partition("#")[0].strip())]

# What the tests of the smoke need beside the package.
TOOLS = ["hypothesis", "jsonschema", "pytest"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Install the package with the versions that are tested, and run its tests."""
    session.install("-c", "requirements/constraints.txt", "-e", ".[dev]")
    session.run("pytest", *(session.posargs or ["-n", "auto"]))


@nox.session(python=PYTHONS)
def smoke(session: nox.Session) -> None:
    """Install the package with the versions that are tested, and run something of each library."""
    session.install("-c", "requirements/constraints.txt", *TOOLS, "-e", ".[frames,tune]")
    _run_smoke(session)


@nox.session(python=PYTHONS[0], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Install the lowest versions that are allowed, and run a smoke test of each library."""
    found = Path(session.create_tmp()) / "lowest.txt"
    resolve = ["pip", "compile", "pyproject.toml", "--extra", "frames", "--extra", "tune"]
    session.run_install(
        "uv", *resolve, "--resolution", "lowest-direct", "--python-version", PYTHONS[0],
        "--quiet", "--output-file", str(found), external=True,
    )  # fmt: skip
    session.install("-r", str(found), *TOOLS, "-e", ".")
    _run_smoke(session)


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """Build the documents; a warning is an error."""
    session.install("-c", "requirements/constraints.txt", "-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-E", "-q",
                "-c", "docs/site", "-d", "build/docs-cache", "docs", "build/docs")  # fmt: skip


def _run_smoke(session: nox.Session) -> None:
    session.run("wsiad", "doctor")
    session.run("wsiad", "demo", "--fast", "--out", str(Path(session.create_tmp()) / "demo"))
    session.run("pytest", "-m", "not slow", *(session.posargs or SMOKE))
