"""What is being written: names that say by whom, and clearing away what the dead left.

A process that is killed cannot tidy up. The name of whatever is being written says which
process writes it, so that the next run can tell what a dead one left from what a live
one is writing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from pathlib import Path

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
