"""A lock between processes and machines that share a folder."""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from wsiad import leftovers
from wsiad.errors import InputError

STALE_SECONDS = 30.0
"""A lock that one owner has held for so long was left by a dead process: what is done under
it takes well under a second."""

_GIVE_UP_SECONDS = 600.0


@contextlib.contextmanager
def locked(path: Path, *, stale_seconds: float = STALE_SECONDS) -> Iterator[None]:
    """Hold a lock file for a moment.

    The file is created exclusively, which every network file system does atomically (record
    locks are switched off on many clusters), and removed at the end. A waiter takes over
    when it has seen one and the same owner for `stale_seconds` by its own clock, so clocks
    of machines need not agree; at once, if the owner was a process of this machine that is dead.

    Parameters
    ----------
    path : Path
        Of the lock; its folder is made if need be.
    stale_seconds : float
        When a lock counts as abandoned.

    Raises
    ------
    InputError
        Others kept the lock busy for ten minutes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = leftovers.owner()
    _acquire(path, token, stale_seconds)
    try:
        yield
    finally:
        if _owner(path) == token:
            path.unlink(missing_ok=True)


def _acquire(path: Path, token: str, stale_seconds: float) -> None:
    begun = since = time.monotonic()
    seen: str | None = None
    while True:
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                os.write(handle, token.encode())
            finally:
                os.close(handle)
            return
        now, owner = time.monotonic(), _owner(path)
        if owner != seen:
            seen, since = owner, now
        elif owner is not None and (now - since > stale_seconds or leftovers.is_dead(owner)):
            _break(path, owner)
            seen = None
        if now - begun > max(_GIVE_UP_SECONDS, 2 * stale_seconds):
            raise InputError(
                "is kept busy by other processes",
                subject=str(path),
                remedy="Delete it if no other wsiad works on this folder.",
            )
        time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - only spreads the waiters


def _owner(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _break(path: Path, owner: str) -> None:
    """Remove an abandoned lock; of several that try, one renames it."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _owner(aside) != owner:
            # Another broke it first, and this one is alive: put it back.
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
    aside.unlink(missing_ok=True)
