"""GeoJSON for QuPath: files of any number of features, of which a few are in memory at once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wsiad.annotations.geojson_outlines import MEMBER
from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file
from wsiad.core.geometry import Box

ENDINGS = (".geojson", ".json", ".geojson.gz", ".json.gz")
"""Endings of the files that QuPath imports."""

_LEVEL = 6


def write_features(path: Path, features: Iterator[list[str]], *, bounds: Box) -> None:
    """Write a feature collection, atomically.

    Parameters
    ----------
    path : Path
        Name with one of `ENDINGS`; the file is written whole or not at all.
    features : iterator of list of str
        Some features at a time, each as JSON text without a line break.
    bounds : Box
        Non-empty part of the slide; positions count from its corner.

    Raises
    ------
    ExportError
        QuPath imports nothing from a file of this name.
    """
    if not path.name.lower().endswith(ENDINGS):
        raise ExportError(
            "QuPath imports nothing from a file of this name",
            subject=path.name,
            remedy=f"Use one of the endings {', '.join(ENDINGS)}.",
        )
    with atomic_file(path) as partial, partial.open("wb") as file:
        if path.suffix.lower() != ".gz":
            _write(file, features, bounds)
        else:
            # Neither name nor time in the header: equal results give equal files.
            with gzip.GzipFile("", "wb", _LEVEL, fileobj=file, mtime=0) as packed:
                _write(packed, features, bounds)


def origin_member(bounds: Box) -> dict[str, Any]:
    """Return what a collection says of its origin, the corner of the bounds in level-0 pixels.

    It is nothing where that is the slide's corner. QuPath passes over it, and
    :func:`wsiad.annotations.read_geojson` reads it.
    """
    if bounds.x == 0 and bounds.y == 0:
        return {}
    corner = [int(value) if value == int(value) else value for value in (bounds.x, bounds.y)]
    return {MEMBER: {"origin": corner}}


def _head(bounds: Box) -> str:
    """Return how a file begins, up to its features: its origin stands first."""
    members = {"type": "FeatureCollection", **origin_member(bounds)}
    return f'{json.dumps(members, separators=(",", ":"))[:-1]},"features":['


def _write(file: BinaryIO | gzip.GzipFile, features: Iterator[list[str]], bounds: Box) -> None:
    file.write(_head(bounds).encode())
    separator = "\n"
    for texts in features:
        if texts:
            file.write((separator + ",\n".join(texts)).encode())
            separator = ",\n"
    file.write(b"\n]}\n")
