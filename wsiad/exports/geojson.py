"""Write GeoJSON for QuPath: any number of features, with only a few in memory at a time."""

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
"""Endings of names of files that QuPath imports."""

_LEVEL = 6


def write_features(path: Path, features: Iterator[list[str]], *, bounds: Box) -> None:
    """Write a feature collection, atomically.

    Parameters
    ----------
    path : Path
        File to write, whose name has one of `ENDINGS`.
    features : iterator of list of str
        Batches of features, each as JSON text without a line break.
    bounds : Box
        Non-empty part of the slide, level-0 pixels; positions are relative to its corner.

    Raises
    ------
    ExportError
        QuPath does not import files with this name.
    """
    if not path.name.lower().endswith(ENDINGS):
        raise ExportError(
            "QuPath does not import files with this name",
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
    """Return the member of a collection that states its origin: the bounds' corner, level-0 pixels.

    It is empty if that is the slide's corner. QuPath ignores this member;
    :func:`wsiad.annotations.read_geojson` reads it.
    """
    if bounds.x == 0 and bounds.y == 0:
        return {}
    corner = [int(value) if value == int(value) else value for value in (bounds.x, bounds.y)]
    return {MEMBER: {"origin": corner}}


def _head(bounds: Box) -> str:
    """Return the beginning of a file up to its features, with the origin first."""
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
