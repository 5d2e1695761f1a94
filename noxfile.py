"""The tests on every Python that is supported: `nox`, or `nox -s tests-3.13 -- tests/core`.

`make test` checks one Python, with lint and types; this checks the others in environments of
their own. A Python that the machine lacks is skipped.
"""

from __future__ import annotations

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Install the package with the versions that are tested, and run its tests."""
    session.install("-c", "requirements/constraints.txt", "-e", ".[dev]")
    session.run("pytest", *(session.posargs or ["-n", "auto"]))
