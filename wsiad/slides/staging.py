"""Copies of slides on a local disk while they are read: network disks are slow at small reads."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wsiad.core.errors import SlideOpenError
from wsiad.core.files import DISK_FULL
from wsiad.slides.slide_files import slide_files, slide_fingerprint

logger = logging.getLogger(__name__)

_PREFIX = "wsiad-stage"
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Staging:
    """Options of the copy of a slide on a local disk.

    Parameters
    ----------
    folder : Path
        Folder on a local disk.
    following : Path, optional
        Slide that this process will read next, which is copied while this one is processed.
    """

    folder: Path
    following: Path | None = None


@contextlib.contextmanager
def staged(path: Path, staging: Staging | None, *, name: str) -> Iterator[Path]:
    """Yield a copy of a slide on a local disk, which is deleted afterwards in any case.

    Parameters
    ----------
    path : Path
        Path of the slide's file; all its files are copied, see
        :func:`wsiad.slides.slide_files.slide_files`.
    staging : Staging or None
        Options; ``None`` yields the path itself.
    name : str
        Name of the slide, for messages.

    Raises
    ------
    SlideOpenError
        There is no such slide or no room for it, or the copy differs from it.
    """
    if staging is None:
        yield path
        return
    folder = staging.folder
    folder.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(folder)
    private = _private(folder, path)
    try:
        try:
            _copy(path, private)
        except OSError as error:
            full = error.errno in DISK_FULL
            first = f"Make room in {folder}, pass" if full else "Check both disks, pass"
            raise SlideOpenError(
                f"cannot be copied to {folder}: {error.strerror or error}",
                subject=name,
                remedy=f"{first} another --stage-dir, or leave it out.",
            ) from error
        with ThreadPoolExecutor(max_workers=1) as ahead:
            if staging.following is not None:
                ahead.submit(_copy_ahead, staging.following, folder)
            yield private / path.name
    finally:
        shutil.rmtree(private, ignore_errors=True)


def discard_staged(folder: Path) -> None:
    """Delete copies of this process that were not read, and leftovers of its dead workers."""
    _clear_abandoned(folder)
    for private in folder.glob(f"{_PREFIX}.{socket.gethostname()}.{os.getpid()}.*"):
        shutil.rmtree(private, ignore_errors=True)


def _private(folder: Path, path: Path) -> Path:
    """Return the folder of this process for a slide's copy, which is complete if it exists."""
    key = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
    return folder / f"{_PREFIX}.{socket.gethostname()}.{os.getpid()}.{key}"


def _copy_ahead(path: Path, folder: Path) -> None:
    try:
        _copy(path, _private(folder, path))
    except OSError as error:
        # It is tried again, and told of, when it is the slide's turn.
        logger.debug("%s: cannot be copied ahead: %s", path, error)


def _copy(path: Path, private: Path) -> None:
    if private.exists():
        return
    partial = private.with_name(f"{private.name}-partial")
    try:
        sizes = {part: part.stat().st_size for part in slide_files(path)}
        _check_room(sum(sizes.values()) + _SPARE_BYTES, private.parent)
        partial.mkdir(mode=0o700)
        for part, size in sizes.items():
            copy = partial / part.relative_to(path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part, copy)
            _check(copy.stat().st_size == size, f"{part.name} was copied in part")
        same = slide_fingerprint(partial / path.name) == slide_fingerprint(path)
        _check(same, "the copy differs")
        partial.rename(private)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"it needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} are free"
        raise OSError(errno.ENOSPC, text)


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise OSError(errno.EIO, problem)


def _clear_abandoned(folder: Path) -> None:
    """Delete the leftovers of dead processes of this machine."""
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
