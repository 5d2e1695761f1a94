"""The ownership of files that are being written, and locks between processes and machines.

A killed process cannot tidy up. The name of everything that is being written states which process
writes it, so that the next run can distinguish the leftovers of a dead process from the files of
a live one. Locks between processes and machines that share a folder are held for a moment, or
for long.
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
"""Time without a change after which the files of another machine's process count as abandoned:
whether a process of another machine lives cannot be seen."""

_OWNER = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<start>\d+)-[0-9a-f]{8}")
_OWNED = re.compile(rf"\.{_OWNER.pattern}\.(partial|old)(\.|$)")


def owner() -> str:
    """Return a name for something that this process writes, a different one at each call.

    It holds the machine, the process number and the start of the process, since process numbers
    are used again.
    """
    process = os.getpid()
    return f"{_machine()}-{process}-{_start(process) or 0}-{uuid.uuid4().hex[:8]}"


def try_folder(folder: Path, *, option: str) -> None:
    """Make a file in a folder and remove it; `option` names the folder on the command line.

    Raises
    ------
    InputError
        No file can be made there.
    """
    partial = folder / f".{owner()}.partial.tried"
    try:
        partial.touch(exist_ok=False)
        partial.unlink()
    except OSError as error:
        raise InputError(
            f"cannot be written to ({(error.strerror or 'refused').lower()})",
            subject=str(folder),
            remedy=f"Pass another path as {option}, or ask for the rights to this one.",
        ) from error


@contextlib.contextmanager
def called(path: Path, partial: Path) -> Iterator[None]:
    """Let errors of the system name what was asked for, and not the temporary name of it."""
    try:
        yield
    except OSError as error:
        names = ("filename", "strerror")  # HDF5 tells the file's name in words
        for key, said_there in ((key, getattr(error, key)) for key in names):
            if said_there is not None and str(partial) in str(said_there):
                setattr(error, key, str(said_there).replace(str(partial), str(path)))
        raise


def is_dead(name: str) -> bool:
    """Tell whether a name of :func:`owner` belongs to a dead process of this machine."""
    found = _OWNER.fullmatch(name)
    return found is not None and found["machine"] == _machine() and not _runs(found)


def is_alive(name: str) -> bool:
    """Tell whether a name of :func:`owner` belongs to a live process of this machine."""
    found = _OWNER.fullmatch(name)
    return found is not None and found["machine"] == _machine() and _runs(found)


def being_written(folder: Path) -> set[str]:
    """Return the names of what live processes are writing into a folder.

    A process of another machine counts as alive for a day after its last change.
    """
    entries = list(folder.iterdir()) if folder.is_dir() else []
    found = {entry: _OWNED.search(entry.name) for entry in entries}
    return {
        entry.name[1 : match.start()]
        for entry, match in found.items()
        if match and match[4] == "partial" and _lives(entry, match)
    }


def claimant(folder: Path) -> str:
    """Return who has claimed a folder: ``alive``, ``dead``, or ``elsewhere``; empty if nobody."""
    try:
        holder = _owner(folder / CLAIM)
    except (OSError, UnicodeDecodeError):
        return "elsewhere"
    if holder is None:
        return ""
    if is_alive(holder):
        return "alive"
    return "dead" if is_dead(holder) else "elsewhere"


def clear_leftovers(*folders: Path, of: str = "") -> int:
    """Remove files and folders that dead processes left incomplete.

    Parameters
    ----------
    *folders : Path
        Folders to search, without their sub-folders; missing ones are skipped.
    of : str, optional
        Name of a folder; only leftovers of this folder are removed.

    Returns
    -------
    int
        Number of files and folders removed.
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
    """Remove a file, or a complete folder, atomically: it loses its name first.

    Returns
    -------
    bool
        True if it existed.
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
    """Return the time of the last change of a file, or of anything in a folder."""
    latest = 0.0
    for path in (entry, *entry.rglob("*")):
        try:
            latest = max(latest, path.lstat().st_mtime)
        except FileNotFoundError:
            return time.time()  # someone is at work on it
    return latest


def _machine() -> str:
    """Return a short name of the host or container in which process numbers are unique."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _start(process: int) -> int | None:
    """Return the start of a process in clock ticks; 0 if unknown, ``None`` if it is gone."""
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
"""Time after which a lock with the same owner counts as left by a dead process. The work under a
lock takes well under a second."""

BEAT_SECONDS = 15.0
"""Interval at which the owner of a folder shows that it lives."""

CLAIM = ".claim"
"""Name of the file in a folder that states which process has claimed the folder."""

_GIVE_UP_SECONDS = 600.0
_BEATS_MISSED = 4
_LOOK_SECONDS = 0.5
_MOST_OWNER = 4096  # bytes of a lock file

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, stale_seconds: float = STALE_SECONDS) -> Iterator[None]:
    """Hold a lock file for a moment.

    The file is created exclusively, which every network file system does atomically (record
    locks are disabled on many clusters), and is removed at the end. A waiting process takes over
    when it has seen the same owner for `stale_seconds` by its own clock, so the clocks of machines
    need not agree. It takes over immediately if the owner was a process of this machine that is
    dead.

    Parameters
    ----------
    path : Path
        Path of the lock; its folder is created if missing.
    stale_seconds : float
        Time after which a lock counts as abandoned.

    Raises
    ------
    InputError
        Other processes kept the lock busy for ten minutes.
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
    """Claim a folder for this process while it works on it.

    No process waits for the folder. The second one is refused, immediately if both are on one
    machine. The claim of another machine's process is watched for `_BEATS_MISSED` beats, in which
    a live process changes the time of the claim's file; the clocks of machines need not agree. The
    claim of a dead process is taken over.

    Parameters
    ----------
    folder : Path
        Folder to claim; created if missing.
    beat_seconds : float
        Interval at which this process shows that it lives, the same for all that may claim it.

    Raises
    ------
    InputError
        Another process works on the folder.
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
                remedy="Wait until it has ended, or use another folder.",
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
    """Update the time of a claim until it ends, or belongs to another process."""
    while not ended.wait(seconds):
        try:
            if _owner(path) != token:  # it had stood still for too long, or the file was deleted
                logger.error("%s: is no longer this process's; another may work here", path.parent)
                return
            os.utime(path)
        except OSError as error:  # a network file system may fail for a moment
            logger.warning("%s: %s", path, error)


def _silent(path: Path, beat_seconds: float) -> bool:
    """Tell whether a claim does not change for some beats."""
    seconds = _BEATS_MISSED * beat_seconds
    logger.warning("%s: checking for %.0f s whether its owner lives", path, seconds)
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
    """Create a lock exclusively; return False if it exists."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        error.filename = str(path.parent)  # the lock is nothing that the user knows
        raise
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
        with path.open("rb") as file:
            return file.read(_MOST_OWNER).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _break(path: Path, owner: str) -> None:
    """Remove an abandoned lock; if several processes try, one renames it."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _owner(aside) != owner:
            # Another broke it first, and this one is alive: put it back.
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
    aside.unlink(missing_ok=True)


def holds_other(folder: Path, *, marks: Collection[str] = (), begun: Collection[str] = ()) -> bool:
    """Tell whether a folder holds anything, and is not of a certain kind.

    Hidden entries do not count: they are claims, notes and incomplete files.

    Parameters
    ----------
    folder : Path
        Folder, which need not exist.
    marks : collection of str
        Names of files of which at least one is in every folder of the kind.
    begun : collection of str
        Names of folders in it that can exist before any mark, while another process makes it;
        only their entries count.
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
    """Refuse a folder to write to that holds something of another kind.

    Parameters
    ----------
    folder : Path
        Folder, which need not exist; see :func:`holds_other`.
    error : type of WsiadError
        Type of the error.
    what : str
        Words for the content, such as ``"a search"``.
    marks, begun : collection of str
        Names that show the kind; see :func:`holds_other`.

    Raises
    ------
    WsiadError
        The folder holds something, but none of the marks.
    """
    if holds_other(folder, marks=marks, begun=begun):
        raise error(
            f"holds something that is not {what}",
            subject=str(folder),
            remedy="Pass an empty or a new folder as --out.",
        )
