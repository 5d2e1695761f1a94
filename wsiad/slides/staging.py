"""A slide copied to a local disk while it is read: network disks are slow at small reads."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from wsiad.errors import SlideOpenError
from wsiad.files import DISK_FULL, fingerprint

_PREFIX = "wsiad-stage"
_SPARE_BYTES = 64 * 2**20
_INDEX_SUFFIXES = frozenset({".vms", ".vmu"})
_INDEX_BYTES = 2**20


@contextlib.contextmanager
def staged(path: Path, folder: Path | None, *, name: str) -> Iterator[Path]:
    """Yield a copy of a slide on a local disk, deleted afterwards whatever happens.

    Parameters
    ----------
    path : Path
        The slide's file; what belongs to it is copied too, see :func:`parts`.
    folder : Path or None
        Folder on a local disk; ``None`` yields the path itself.
    name : str
        Of the slide, for messages.

    Raises
    ------
    SlideOpenError
        There is no such slide, no room for it, or the copy differs from it.
    """
    if folder is None:
        yield path
        return
    folder.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(folder)
    private = folder / f"{_PREFIX}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        yield _copied(path, folder, private, name)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def parts(path: Path) -> list[Path]:
    """List the files that a slide consists of, its own first.

    A MIRAX slide has a folder of its name beside it; the folder of a DICOM file holds its
    series; Hamamatsu's VMS and VMU name their images line by line. All others are one file.
    """
    suffix = path.suffix.lower()
    others: list[Path] = []
    if suffix == ".mrxs":
        others = [part for part in sorted(path.with_suffix("").rglob("*")) if part.is_file()]
    elif suffix == ".dcm":
        others = [part for part in sorted(path.parent.iterdir()) if part.is_file()]
    elif suffix in _INDEX_SUFFIXES and path.stat().st_size <= _INDEX_BYTES:
        text = path.read_text(encoding="utf-8", errors="replace")
        named = {line.partition("=")[2].strip() for line in text.splitlines()}
        plain = sorted(name for name in named if name and Path(name).name == name)
        others = [path.parent / name for name in plain if (path.parent / name).is_file()]
    return [path, *(part for part in others if part != path)]


def _copied(path: Path, folder: Path, private: Path, name: str) -> Path:
    try:
        sizes = {part: part.stat().st_size for part in parts(path)}
        _check_room(sum(sizes.values()) + _SPARE_BYTES, folder)
        private.mkdir(mode=0o700)
        for part, size in sizes.items():
            copy = private / part.relative_to(path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part, copy)
            _check(copy.stat().st_size == size, f"{part.name} was copied in part")
        _check(fingerprint(private / path.name) == fingerprint(path), "the copy differs")
    except OSError as error:
        full = error.errno in DISK_FULL
        first = f"Make room in {folder}, give" if full else "Check both disks, give"
        raise SlideOpenError(
            f"cannot be copied to {folder}: {error.strerror or error}",
            subject=name,
            remedy=f"{first} another --stage-dir, or leave it out.",
        ) from error
    return private / path.name


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"it needs {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} are free"
        raise OSError(errno.ENOSPC, text)


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise OSError(errno.EIO, problem)


def _clear_abandoned(folder: Path) -> None:
    """Delete what dead processes of this machine left."""
    for private in folder.glob(f"{_PREFIX}.{socket.gethostname()}.*"):
        process = private.name.rsplit(".", 2)[1]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(private, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
