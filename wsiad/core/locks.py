"""Locks between processes and machines that share a folder: for a moment, and for long."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from wsiad.core import ownership as leftovers
from wsiad.core.errors import InputError

STALE_SECONDS = 30.0
"""A lock that one owner has held for so long was left by a dead process: what is done under
it takes well under a second."""

BEAT_SECONDS = 15.0
"""So often the owner of a folder shows that it lives."""

CLAIM = ".claim"
"""In a folder that one process keeps for itself: which."""

_GIVE_UP_SECONDS = 600.0
_BEATS_MISSED = 4
_LOOK_SECONDS = 0.5

logger = logging.getLogger(__name__)


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


@contextlib.contextmanager
def claimed(folder: Path, *, beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Keep a folder for this process, for as long as it works on it.

    Nobody waits for it: who comes second is refused, at once where both are on one machine.
    What a process of another machine claims is watched for `_BEATS_MISSED` beats, in which one
    that lives changes its file's time; clocks of machines need not agree. The claim of a
    process that is dead is taken over.

    Parameters
    ----------
    folder : Path
        Is made if need be.
    beat_seconds : float
        How often to show that this process lives; the same for all who may claim it.

    Raises
    ------
    InputError
        Another process works on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, token = folder / CLAIM, leftovers.owner()
    while not _created(path, token):
        owner = _owner(path)
        if owner is None:
            continue
        if leftovers.is_alive(owner) or not (
            leftovers.is_dead(owner) or _silent(path, beat_seconds)
        ):
            raise InputError(
                "another process works on it",
                subject=str(folder),
                remedy="Wait until it has ended, or give another folder.",
            )
        _break(path, owner)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, token, ended, beat_seconds), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if _owner(path) == token:
            path.unlink(missing_ok=True)


def _beat(path: Path, token: str, ended: threading.Event, seconds: float) -> None:
    """Change the time of a claim until it ends, or is someone else's."""
    while not ended.wait(seconds):
        try:
            if _owner(path) != token:  # it had stood still for too long, or the file was deleted
                logger.error("%s: is no longer this process's; another may work here", path.parent)
                return
            os.utime(path)
        except OSError as error:  # a network file system may fail for a moment
            logger.warning("%s: %s", path, error)


def _silent(path: Path, beat_seconds: float) -> bool:
    """Tell whether nothing changes a claim for some beats."""
    seconds = _BEATS_MISSED * beat_seconds
    logger.warning("%s: looking for %.0f s whether its owner lives", path, seconds)
    end, first = time.monotonic() + seconds, _state(path)
    while time.monotonic() < end:
        time.sleep(min(beat_seconds, _LOOK_SECONDS))
        if _state(path) != first:
            return False
    return True


def _state(path: Path) -> tuple[int, int] | None:
    try:
        # Opened, as a network file system may answer from memory what is only asked for.
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            return stat.st_ino, stat.st_mtime_ns
    except FileNotFoundError:
        return None


def _created(path: Path, token: str) -> bool:
    """Create a lock exclusively; False if there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, token.encode())
    finally:
        os.close(handle)
    return True


def _acquire(path: Path, token: str, stale_seconds: float) -> None:
    begun = since = time.monotonic()
    seen: str | None = None
    while not _created(path, token):
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
