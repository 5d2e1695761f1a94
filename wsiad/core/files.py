"""Files that are complete or absent, and names that stay inside their folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.ownership import called, discard, owner, try_folder
from wsiad.core.signals import postponed

_PROBE_BYTES = 256 * 1024
_MOST_TEXT = 64 << 20  # bytes; what wsiad states of a slide is below 1 kB in each of its files
MOST_FACTS = 1 << 20
"""Maximum size of a file with the facts of one slide, array or folder, bytes."""
_DEEPEST = 64
_MOST_DIGITS = 20

_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)
_NEW_FILE = 0o666 & ~_UMASK

NAME_BYTES = 200
"""Maximum length of a slide's name. A file system allows 255 bytes (NAME_MAX). Files of a slide add
up to 19 (``_likelihood_map.tif``), and its folder adds up to 48 while it is written."""
_FILE_NAME_BYTES = 255

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk or quota, or of a limit to the size of files."""

_OF_RUST = re.compile(r"\(os error (\d+)\)")

_REMEDIES = {
    errno.EACCES: "Use another path, or ask for the rights to this one.",
    errno.EPERM: "Use another path, or ask for the rights to this one.",
    errno.EROFS: "Use a path on a disk that can be written to.",
    errno.ENAMETOOLONG: "Use a shorter path.",
    errno.ENOENT: "Check the path, and that nothing else moves or deletes it.",
    errno.ENOTDIR: "A part of that path is a file: use another path.",
    errno.EISDIR: "That is a folder: use another path.",
    errno.EEXIST: "Use another path.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer workers.",
    errno.ENOMEM: "Use fewer workers, or a machine with more memory.",
    errno.ESTALE: "The network disk went away: run the same command again.",
    errno.EIO: "The disk is damaged or went away: run the same command again elsewhere.",
}


def said(error: OSError) -> str:
    """Return what the system refused, and the remedy, in one line."""
    if error.errno in DISK_FULL:
        why = "the disk or quota is full"
        if error.errno == errno.EFBIG:
            why = "the file is larger than the disk, a quota or ulimit -f allows"
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{why}. Make room and run the same command again."
    if error.errno is None or not error.strerror:
        words = " ".join(str(error).split()) or type(error).__name__
        return words if words.endswith(".") else f"{words}."
    where = f"{error.filename}: " if error.filename else ""
    why = error.strerror[:1].lower() + error.strerror[1:]
    return f"{where}{why}. {_REMEDIES.get(error.errno, '')}".rstrip()


def real_path(path: Path) -> Path:
    """Return a path without links; a path whose links form a circle is unchanged."""
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError until Python 3.12


def check_folder(path: Path, *, option: str = "--out", tried: bool = False) -> None:
    """Check that a folder to write to exists or can be created.

    Parameters
    ----------
    path : Path
    option : str
        Option that named it, for the remedy.
    tried : bool
        True to make a file in it, or in the folder in which it will be made, and to remove it.

    Raises
    ------
    InputError
        The path is a file or a link to nothing, or is in one; or no file can be made there.
    """
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise InputError(
                f"is a link to nothing ({part.readlink()})",
                subject=str(part),
                remedy=f"Create the folder that it points to, or pass another {option}.",
            )
        if part.is_dir():
            if tried:
                try_folder(part, option=option)
            return
        if part.exists():
            raise InputError(
                "is a file", subject=str(part), remedy=f"Pass another path as {option}."
            )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; rename it to ``path`` when it is complete.

    The temporary name keeps the suffix, by which writers choose the format. After any error the
    temporary file is removed and ``path`` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(_ended_by(f".{owner()}.partial.", path.name))
    try:
        with called(path, partial):
            yield partial
            _share(partial)
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    except Exception as error:
        # Writers in Rust, as that of safetensors, tell the system's error in words only.
        number = _OF_RUST.search(str(error))
        if number and not isinstance(error, OSError | WsiadError):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; rename it when complete, if ``path`` is free.

    If several processes do this at the same time, one of them succeeds.

    Raises
    ------
    FileExistsError
        The file exists, perhaps only since a moment ago; it is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(_ended_by(f".{owner()}.partial.", path.name))
    try:
        with called(path, partial):
            yield partial
            _share(partial)
            _sync(partial)
            try:
                path.hardlink_to(partial)
            except FileExistsError:
                raise
            except OSError:  # a file system without links: created by one, then written
                with path.open("xb") as file:
                    file.write(partial.read_bytes())
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _ended_by(prefix: str, name: str) -> str:
    """Put a prefix before the end of a name, as much of it as a file system allows."""
    room = _FILE_NAME_BYTES - len(prefix.encode())
    return prefix + name.encode(errors="replace")[-room:].decode(errors="ignore")


def _share(path: Path) -> None:
    """Set the permissions of the user's umask on a file: some writers allow nobody else."""
    if path.stat().st_mode & 0o777 != _NEW_FILE:
        with contextlib.suppress(PermissionError):  # file systems without modes
            path.chmod(_NEW_FILE)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a folder next to ``path`` to fill; rename it to ``path`` when it is complete.

    On any error the partial folder is removed.

    Parameters
    ----------
    path : Path
    replace : bool
        True to replace an existing ``path``, even one that another process put there
        meanwhile. False to raise an error.

    Raises
    ------
    FileExistsError
        ``path`` exists and must not be replaced.
    FileNotFoundError
        Another process removed the partial folder; the files that were written since are
        incomplete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{owner()}.partial")
    handle = None
    try:
        with called(path, partial):
            partial.mkdir()
            handle = os.open(partial, os.O_RDONLY)
            yield partial
            # A writer that makes parent folders as it goes would not notice the loss of them.
            if not os.path.samestat(os.fstat(handle), partial.stat()):
                raise FileNotFoundError(errno.ENOENT, "was removed while it was written", partial)
            while not _put(partial, path):
                if not replace:
                    raise FileExistsError(errno.EEXIST, "exists", path)
                discard(path)
            _sync(path.parent)
    finally:
        with postponed():
            if handle is not None:
                os.close(handle)
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty folder next to a path, on the same disk; it is removed afterwards.

    Parameters
    ----------
    beside : Path
        File or folder; leftovers of a process that died are removed with its other leftovers.
    """
    partial = beside.with_name(f".{beside.name}.{owner()}.partial")
    with called(beside, partial):
        partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        with postponed():
            shutil.rmtree(partial, ignore_errors=True)


def _put(folder: Path, path: Path) -> bool:
    """Rename a folder; return False if another one has the name."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(
    path: Path,
    error: type[WsiadError],
    *,
    remedy: str,
    keys: Sequence[str] = (),
    most: int = _MOST_TEXT,
) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path
    error : type
        Type of the error that is raised; the caller knows the purpose of the file.
    remedy : str
        Remedy of the error.
    keys : sequence of str
        Keys that the object must have.
    most : int
        Maximum size of the file, bytes.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, too large or is not JSON, not an object, or lacks a key.
    """

    def unreadable(why: object) -> WsiadError:
        return error(f"cannot be read: {why}", subject=str(path), remedy=remedy)

    try:
        values = parse_json(read_text(path, most=most))
    except (OSError, ValueError) as cause:
        raise unreadable(cause) from cause
    if not isinstance(values, dict):
        raise unreadable("it does not hold a JSON object")
    if missing := [key for key in keys if key not in values]:
        raise unreadable(f"it has no {', '.join(missing)}")
    return values


def read_text(path: Path, *, most: int = _MOST_TEXT) -> str:
    """Read a UTF-8 file of at most `most` bytes.

    Raises
    ------
    OSError
        The file cannot be read, or the path is not a file.
    ValueError
        The file is larger, or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a file", str(path))
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it has more than {most >> 20} MiB")
        return file.read(most).decode("utf-8")


def parse_json(text: str) -> Any:
    """Parse JSON strictly: only values that JSON and wsiad's own writers allow.

    Raises
    ------
    ValueError
        The text is not JSON, nests deeper than 64, or holds a number that is not finite, an
        integer of more than 20 digits, or half a character.
    """
    try:
        values = json.loads(
            text, parse_float=_finite, parse_int=_integer, parse_constant=_not_finite
        )
    except RecursionError:
        raise ValueError(f"it nests deeper than {_DEEPEST}") from None
    layer = [values]
    for _ in range(_DEEPEST):
        layer = [
            part
            for value in layer
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not layer:
            break
    else:
        raise ValueError(f"it nests deeper than {_DEEPEST}")
    if "\\ud" in text.lower():  # a pair of them is one character, one alone cannot be written
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(text)
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits")
    return int(text)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def fingerprint(path: Path) -> str:
    """Return a fingerprint of a file, ``sha256:…``, from its size and three probes.

    Hashing a gigapixel slide completely would take longer than tiling it. Size, head, middle and
    tail catch every change that a scanner, an interrupted copy or a conversion makes. A folder
    (DICOM, MRXS data) is identified by its files.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for part in sorted(path.iterdir()):
            digest.update(part.name.encode())
            if part.is_file():
                digest.update(fingerprint(part).encode())
        return f"sha256:{digest.hexdigest()}"
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _PROBE_BYTES)):
            file.seek(start)
            digest.update(file.read(_PROBE_BYTES))
    return f"sha256:{digest.hexdigest()}"


def state(path: Path) -> tuple[int, int]:
    """Return the size and the time of the last change of a file, bytes and ns, as a quick check.

    Raises
    ------
    OSError
        The file does not exist.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


_OF_GROUPS = "zarr.json"


def checked_name(name: str, *, longest: int = NAME_BYTES) -> str:
    """Return ``name`` if it is safe as one path component of at most ``longest`` bytes.

    Raises
    ------
    InputError
        The name is empty, hidden, too long or that of the file that marks a group of a store, or
        has a separator or a control character.
    """
    length = len(name.encode(errors="surrogatepass"))
    bad = (
        not name
        or name.startswith(".")
        or name != name.strip()
        or any(c in "/\\\0" or not c.isprintable() for c in name)
        or length > longest
        or name == _OF_GROUPS
    )
    if bad:
        raise InputError(
            f"{name!r} cannot be used as a name in the output folder",
            remedy="Rename the slide: no separators or control characters, no leading dot, no "
            f"blanks at its ends, not {_OF_GROUPS}, at most {NAME_BYTES} bytes (it has {length}).",
        )
    return name


def name_problem(name: str, *, count: int, noun: str) -> str:
    """Return why a name cannot be one of the output folder; empty if it can.

    Parameters
    ----------
    name : str
        Name of a slide.
    count : int
        Number of inputs that have this name.
    noun : str
        Word for an input, such as ``"source"``.
    """
    try:
        checked_slide_name(name)
    except InputError as error:
        return str(error)
    if count == 1:
        return ""
    return f"another {noun} is named {name!r} too. Rename one, or import into different folders."


_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def checked_slide_name(name: str, *, longest: int = NAME_BYTES) -> str:
    """Return a slide's name if it is safe as a path; ``patient1/1`` is in a folder of its own.

    Raises
    ------
    InputError
        A part of the name is not safe as a path component; see :func:`checked_name`.
    """
    if name.startswith("/") or _OF_WINDOWS.match(name):
        raise InputError(
            f"{name!r} cannot be used as a name in the output folder: it is a whole path"
            f"{'' if name.startswith('/') else ' of Windows'}",
            remedy="Write a path as this machine has it, and a name without the folders that lead "
            "to it.",
        )
    for part in name.split("/"):
        try:
            checked_name(part, longest=longest)
        except InputError as error:
            raise InputError(
                f"{name!r} cannot be used as a name in the output folder", remedy=error.remedy
            ) from None
    return name
