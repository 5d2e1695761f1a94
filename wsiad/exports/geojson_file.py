"""GeoJSON files of any number of features: written, read back and checked in small parts."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file
from wsiad.core.geometry import Box
from wsiad.exports.geojson import check_features, origin_member

ENDINGS = (".geojson", ".json", ".geojson.gz", ".json.gz")
"""Endings of the files that QuPath imports."""

CHUNK = 1024
"""Features that are in memory at once."""

_TAIL = b"]}\n"
_LEVEL = 6


def write_features(path: Path, features: Iterator[list[str]], *, bounds: Box) -> None:
    """Write features, and put the file in place once it was read back and found sound.

    Parameters
    ----------
    path : Path
        Name with one of `ENDINGS`; written whole or not at all.
    features : iterator of list of str
        Some features at a time, each as JSON text without a line break.
    bounds : Box
        Non-empty part of the slide; positions count from its corner.

    Raises
    ------
    ExportError
        QuPath would not import the file whole and unchanged.
    """
    if not path.name.lower().endswith(ENDINGS):
        raise ExportError(
            "QuPath imports nothing from a file of this name",
            subject=path.name,
            remedy=f"Use one of the endings {', '.join(ENDINGS)}.",
        )
    with atomic_file(path) as partial:
        with partial.open("wb") as file:
            if path.suffix.lower() != ".gz":
                _write(file, features, bounds)
            else:
                # Neither name nor time in the header: equal results give equal files.
                with gzip.GzipFile("", "wb", _LEVEL, fileobj=file, mtime=0) as packed:
                    _write(packed, features, bounds)
        check_file(partial, bounds=bounds)


def check_file(path: Path, *, bounds: Box) -> int:
    """Check a file that :func:`write_features` wrote, a few thousand features at a time.

    Returns
    -------
    int
        Number of features.

    Raises
    ------
    ExportError
        It is damaged, or QuPath would not import it whole and unchanged.
    """
    count, identifiers = 0, []
    for part, last in _parts(_lines(path), head(bounds).encode(), path.name):
        features = _parsed(part, last=last, subject=path.name)
        check_features(features, bounds=bounds, start=count)
        count += len(features)
        text = "".join(feature["id"] for feature in features).replace("-", "")
        identifiers.append(np.frombuffer(bytes.fromhex(text), ">u8").reshape(-1, 2))
    if identifiers and _repeat(np.concatenate(identifiers)):
        raise ExportError("a feature has the identifier of another", subject=path.name)
    return count


def head(bounds: Box) -> str:
    """Return how a file begins, up to its features: its origin stands first."""
    members = {"type": "FeatureCollection", **origin_member(bounds)}
    return f'{json.dumps(members, separators=(",", ":"))[:-1]},"features":['


def _write(file: BinaryIO | gzip.GzipFile, features: Iterator[list[str]], bounds: Box) -> None:
    file.write(head(bounds).encode())
    separator = "\n"
    for texts in features:
        if texts:
            file.write((separator + ",\n".join(texts)).encode())
            separator = ",\n"
    file.write(b"\n" + _TAIL)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as packed:
                yield from packed
        else:
            with path.open("rb") as file:
                yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ExportError(f"cannot be unpacked: {error}", subject=path.name) from error


def _parts(
    lines: Iterator[bytes], begin: bytes, subject: str
) -> Iterator[tuple[list[bytes], bool]]:
    """Yield the features' lines in parts, and whether a part is the last."""
    if next(lines, b"").rstrip(b"\n") != begin:
        raise ExportError("does not begin as a feature collection", subject=subject)
    part: list[bytes] = []
    for line in lines:
        if line == _TAIL:
            if next(lines, None) is not None:
                raise ExportError("goes on after its end", subject=subject)
            if part:
                yield part, True
            return
        if len(part) == CHUNK:
            yield part, False
            part = []
        part.append(line)
    raise ExportError("breaks off", subject=subject)


def _parsed(lines: list[bytes], *, last: bool, subject: str) -> list[dict[str, Any]]:
    """Read one feature a line; all but the very last end in a comma."""
    separated = itertools.chain(lines[:-1], () if last else lines[-1:])
    if not all(line.endswith(b"},\n") for line in separated):
        raise ExportError("has features that are not separated", subject=subject)
    text = b"".join(lines)
    try:
        features = json.loads(b"[" + (text if last else text[:-2]) + b"]")
    except ValueError as error:
        raise ExportError(f"is not JSON: {error}", subject=subject) from error
    if len(features) != len(lines) or not all(isinstance(item, dict) for item in features):
        raise ExportError("does not hold one feature a line", subject=subject)
    return features


def _repeat(identifiers: npt.NDArray[np.uint64]) -> bool:
    """Tell whether two of the identifiers, (N, 2), are the same."""
    ordered = identifiers[np.lexsort(identifiers.T)]
    return bool((ordered[1:] == ordered[:-1]).all(axis=1).any())
