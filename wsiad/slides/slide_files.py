"""The files that a slide consists of, and its identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wsiad.core.errors import SlideOpenError
from wsiad.core.files import fingerprint, state
from wsiad.slides.dicom import may_be_dicom, series_files

SUFFIXES = frozenset(
    {".bif", ".btf", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide"}
    | {".tif", ".tiff", ".vms", ".vmu", ".zvi"}
)
"""Suffixes by which slides are found in a folder; a file that is named directly is always tried."""

_STUBS = (
    (b"version https://git-lfs", "is a pointer of Git LFS", "Fetch it: git lfs pull."),
    (b"/annex/objects/", "is a pointer of git-annex", "Fetch it: git annex get."),
    (b"<!doctype html", "is a web page, such as a log-in or an error", "Download the slide again."),
    (b"<html", "is a web page, such as a log-in or an error", "Download the slide again."),
)
_HEAD_BYTES = 4096

_INDEX_SUFFIXES = frozenset({".vms", ".vmu"})
_INDEX_BYTES = 2**20


def slide_files(path: Path) -> list[Path]:
    """List the files that a slide consists of, its own file first.

    A MIRAX slide has a folder of its name next to it; a DICOM slide is a series of files in one
    folder; Hamamatsu's VMS and VMU name their images line by line. All others are one file.

    Raises
    ------
    OSError
        The slide's file cannot be read.
    """
    suffix = path.suffix.lower()
    others: list[Path] = []
    if suffix == ".mrxs":
        others = [part for part in sorted(path.with_suffix("").rglob("*")) if part.is_file()]
    elif suffix in _INDEX_SUFFIXES and path.stat().st_size <= _INDEX_BYTES:
        text = path.read_text(encoding="utf-8", errors="replace")
        named = {line.partition("=")[2].strip() for line in text.splitlines()}
        plain = sorted(name for name in named if name and Path(name).name == name)
        others = [path.parent / name for name in plain if (path.parent / name).is_file()]
    elif may_be_dicom(path) and path.is_file():
        others = _series_or_all(path)
    return [path, *(part for part in others if part != path)]


def _series_or_all(path: Path) -> list[Path]:
    """Return the files of a DICOM file's series, or all possible ones if it cannot be read."""
    try:
        return series_files(path)
    except SlideOpenError:
        if path.suffix.lower() != ".dcm":
            return []
        return [part for part in sorted(path.parent.iterdir()) if part.is_file()]


def slide_fingerprint(path: Path) -> str:
    """Return a fingerprint of all files of a slide, ``sha256:…``; that of the file if it is one.

    Raises
    ------
    OSError
        A file cannot be read.
    """
    found = slide_files(path)
    if len(found) == 1:
        return fingerprint(path)
    digest = hashlib.sha256()
    for part in sorted(found):
        name = part.relative_to(path.parent).as_posix()
        digest.update(f"{len(name.encode())} {name} {fingerprint(part)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def slide_state(path: Path) -> dict[Path, tuple[int, int]]:
    """Return the sizes and times of the last change of a slide's files, a quick first check.

    Raises
    ------
    OSError
        A file does not exist.
    """
    return {part: state(part) for part in slide_files(path)}


def stub_problem(path: Path) -> tuple[str, str] | None:
    """Return what a file is in place of a slide, and the remedy; ``None`` if it may be a slide.

    Archives and downloads leave such files: empty files, pointers, web pages, zeros.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    again = "Fetch it from its archive, or copy it again."
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "is empty (0 bytes): a stub of an archive, or a failed copy", again
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for begin, problem, remedy in _STUBS:
        if plain.startswith(begin):
            return f"{problem}, not a slide", remedy
    if not any(head):
        return "begins with zeros: a stub of an archive, or a copy with holes", again
    if path.suffix.lower() not in {".mrxs", *_INDEX_SUFFIXES} and _is_text(head):
        words = " ".join(head[:80].decode(errors="replace").split())[:40]
        return f"is not a slide in any format: it is text, which begins with {words!r}", again
    return None


def away_problem(path: Path) -> tuple[str, str] | None:
    """Return why a slide that was read before cannot be looked at now, and the remedy.

    It is ``None`` if the file is there and may be a slide, whether or not it is the same one.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    if not path.exists():
        return f"there is no file {path} now", "Put it back, or mount its disk."
    stub = stub_problem(path) if path.is_file() else None
    return None if stub is None else (f"{path} {stub[0]}", stub[1])


def _is_text(head: bytes) -> bool:
    try:
        words = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a character is cut in two
            return False
        words = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n\f" for c in words)
