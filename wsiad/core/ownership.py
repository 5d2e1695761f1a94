"""Ownership of files that are being written: names that say by whom, and leftovers of the dead.

A process that is killed cannot tidy up. The name of whatever is being written says which
process writes it, so that the next run can tell what a dead one left from what a live
one is writing.

Locks between processes and machines that share a folder: for a moment, and for long.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from wsiad.core.errors import InputError, WsiadError

ABANDONED_SECONDS = 24 * 3600.0
"""After that long without a change, what another machine was writing is taken for dead:
whether a process of another machine lives cannot be seen."""

_OWNER = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<start>\d+)-[0-9a-f]{8}")
_OWNED = re.compile(rf"\.{_OWNER.pattern}\.(partial|old)(\.|$)")


def owner() -> str:
    """Return a name for something that this process writes; another at each call.

    It holds machine, process and the process's start, since the numbers of processes are
    given again.
    """
    process = os.getpid()
    return f"{_machine()}-{process}-{_start(process) or 0}-{uuid.uuid4().hex[:8]}"


def is_dead(name: str) -> bool:
    """Tell whether a name that :func:`owner` gave is of a process of this machine that is dead."""
    found = _OWNER.fullmatch(name)
    return found is not None and found["machine"] == _machine() and not _runs(found)


def is_alive(name: str) -> bool:
    """Tell whether a name that :func:`owner` gave is of a process of this machine that lives."""
    found = _OWNER.fullmatch(name)
    return found is not None and found["machine"] == _machine() and _runs(found)


def clear_leftovers(*folders: Path, of: str = "") -> int:
    """Remove what dead processes left half written.

    Parameters
    ----------
    *folders : Path
        Looked through, not below; absent ones are passed over.
    of : str, optional
        Only what would have become the folder of this name.

    Returns
    -------
    int
        How many files and folders were removed.
    """
    removed, prefix = 0, f".{of}." if of else "."
    for folder in folders:
        entries = list(folder.iterdir()) if folder.is_dir() else []
        for entry in entries:
            found = _OWNED.search(entry.name) if entry.name.startswith(prefix) else None
            if found and not _lives(entry, found):
                removed += discard(entry)
    return removed


def discard(path: Path) -> bool:
    """Remove a file, or a folder whole or not at all: it leaves its name first.

    Returns
    -------
    bool
        Whether there was one.
    """
    # What it is, is asked of the name that nobody else uses: the other may change meanwhile.
    gone = path.with_name(f".{owner()}.old")
    try:
        path.rename(gone)
    except FileNotFoundError:
        return False
    if gone.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
    else:
        gone.unlink(missing_ok=True)
    return True


def _lives(entry: Path, found: re.Match[str]) -> bool:
    if found["machine"] != _machine():
        return time.time() - _changed(entry) < ABANDONED_SECONDS
    return _runs(found)


def _runs(found: re.Match[str]) -> bool:
    start = _start(int(found["process"]))
    return start is not None and start in (0, int(found["start"]))


def _changed(entry: Path) -> float:
    """Time of the last change of a file, or of anything in a folder."""
    latest = 0.0
    for path in (entry, *entry.rglob("*")):
        try:
            latest = max(latest, path.lstat().st_mtime)
        except FileNotFoundError:
            return time.time()  # someone is at work on it
    return latest


def _machine() -> str:
    """Return a short name of where process numbers mean the same: a host, or a container."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _start(process: int) -> int | None:
    """When a process began, in clock ticks; 0 if that cannot be seen, ``None`` if it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _start_unseen(process)
    # The second field is the program's name in brackets, which may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _start_unseen(process: int) -> int | None:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return 0
    return 0


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
    token = owner()
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
    path, token = folder / CLAIM, owner()
    while not _created(path, token):
        holder = _owner(path)
        if holder is None:
            continue
        if is_alive(holder) or not (is_dead(holder) or _silent(path, beat_seconds)):
            raise InputError(
                "another process works on it",
                subject=str(folder),
                remedy="Wait until it has ended, or give another folder.",
            )
        _break(path, holder)
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
        elif owner is not None and (now - since > stale_seconds or is_dead(owner)):
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


def holds_other(folder: Path, *, marks: Collection[str] = (), begun: Collection[str] = ()) -> bool:
    """Tell whether a folder holds anything, and is not of a kind.

    Hidden entries count for nothing: they are claims, notes, and what was half written.

    Parameters
    ----------
    folder : Path
        It need not exist.
    marks : collection of str
        Files of which one is in every folder of the kind.
    begun : collection of str
        Folders in it that may be there before any mark, while another process makes it: only
        their entries count.
    """
    folders = [folder, *(folder / name for name in begun)]
    names = {entry.name for one in folders if one.is_dir() for entry in one.iterdir()} - {*begun}
    # Marks are looked for afterwards: another process may make the folder right now.
    there = any(not name.startswith(".") for name in names)
    return there and not any((folder / mark).exists() for mark in marks)


def refuse_foreign(
    folder: Path,
    error: type[WsiadError],
    *,
    what: str,
    marks: Collection[str],
    begun: Collection[str] = (),
) -> None:
    """Refuse a folder to write in that holds something else than what is written there.

    Parameters
    ----------
    folder : Path
        It need not exist; see :func:`holds_other`.
    error : type of WsiadError
        Error of the caller's kind.
    what : str
        What is written, such as ``"a search"``.
    marks, begun : collection of str
        See :func:`holds_other`.

    Raises
    ------
    WsiadError
        It holds anything, and none of these.
    """
    if holds_other(folder, marks=marks, begun=begun):
        raise error(
            f"holds something that is not {what}",
            subject=str(folder),
            remedy="Give an empty or a new folder as --out.",
        )
