"""GeoJSON: the rules by which QuPath imports a feature collection whole, or not at all.

GeoJSON files of any number of features: written, read back and checked in small parts.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.annotations.geojson_outlines import MEMBER
from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file
from wsiad.core.geometry import Box

_PROPERTIES = frozenset({"objectType", "name", "classification", "isLocked", "measurements"})
_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


def origin_member(bounds: Box) -> dict[str, Any]:
    """Return what a collection says of its origin, the corner of the bounds in level-0 pixels.

    It is nothing where that is the slide's corner. QuPath passes over it, and
    :func:`wsiad.annotations.read_geojson` reads it.
    """
    if bounds.x == 0 and bounds.y == 0:
        return {}
    corner = [int(value) if value == int(value) else value for value in (bounds.x, bounds.y)]
    return {MEMBER: {"origin": corner}}


def check_collection(collection: Mapping[str, Any], *, bounds: Box) -> None:
    """Refuse a feature collection that QuPath would not import whole and unchanged.

    Raises
    ------
    ExportError
        Naming the first feature that breaks a rule.
    """
    members = {"type": "FeatureCollection", **origin_member(bounds)}
    if {key: collection[key] for key in collection if key != "features"} != members:
        raise ExportError("is not a GeoJSON feature collection with this origin")
    check_features(collection["features"], bounds=bounds)
    seen: set[str] = set()
    for number, feature in enumerate(collection["features"]):
        if feature["id"] in seen:
            raise ExportError("has the identifier of another", subject=f"feature {number}")
        seen.add(feature["id"])


def check_features(features: Sequence[Mapping[str, Any]], *, bounds: Box, start: int = 0) -> None:
    """Refuse features that QuPath would not import; identifiers may repeat.

    Parameters
    ----------
    features : sequence of mapping
    bounds : Box
        Non-empty part of the slide; positions count from its corner.
    start : int
        Number of the first one, for the message.

    Raises
    ------
    ExportError
        Naming the first feature that breaks a rule.
    """
    try:
        _check(features, bounds)
    except ExportError:
        for number, feature in enumerate(features, start):
            try:
                _check([feature], bounds)
            except ExportError as error:
                raise ExportError(error.problem, subject=f"feature {number}") from None
        raise


def check_feature(feature: Mapping[str, Any], *, bounds: Box) -> None:
    """Refuse a feature that QuPath would not import, or not as it is meant.

    The profile is narrower than what QuPath reads: polygons with an identifier, and no
    key that it would pass over.

    Raises
    ------
    ExportError
        Saying which rule is broken.
    """
    _check([feature], bounds)


def _check(features: Sequence[Mapping[str, Any]], bounds: Box) -> None:
    for feature in features:
        _need(set(feature) == {"type", "id", "geometry", "properties"}, "has wrong keys")
        _need(feature["type"] == "Feature", "is not a feature")
        identifier = feature["id"]
        _need(
            isinstance(identifier, str) and _UUID.fullmatch(identifier) is not None,
            f"has the identifier {identifier!r}, which is no UUID",
        )
        geometry = feature["geometry"]
        _need(set(geometry) == {"type", "coordinates"}, "has wrong geometry keys")
        _need(geometry["type"] == "Polygon", "is not a polygon")
        _check_properties(feature["properties"])
    _check_polygons([feature["geometry"]["coordinates"] for feature in features], bounds)


def _need(holds: bool, problem: str) -> None:
    if not holds:
        raise ExportError(problem)


def _check_polygons(polygons: Sequence[Sequence[Any]], bounds: Box) -> None:
    """Check outlines and holes of many polygons at once: one by one takes ten times as long."""
    if not polygons:
        return
    _need(all(polygons), "has no outline")
    rings = list(itertools.chain.from_iterable(polygons))
    _need(
        all(len(ring) >= 4 and ring[0] == ring[-1] for ring in rings),
        "has a ring that is not closed",
    )
    points = list(itertools.chain.from_iterable(rings))
    _need(
        all(len(point) == 2 for point in points)
        and set(map(type, itertools.chain.from_iterable(points))) <= {int, float},
        "has a position that is not two numbers",
    )
    positions = np.array(points, np.float64)
    _need(bool(np.isfinite(positions).all()), "has a position that is not finite")
    inside = (positions >= 0) & (positions <= (bounds.width, bounds.height))
    _need(bool(inside.all()), "reaches beyond the slide")
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    polygon_of = np.repeat(np.arange(len(polygons)), [len(part) for part in polygons])
    closed = np.asarray(shapely.linearrings(positions, indices=ring_of))
    made = shapely.polygons(closed, indices=polygon_of)
    _need(
        bool(shapely.is_valid(made).all() and (shapely.area(made) > 0).all()),
        "is not a valid polygon",
    )


def _check_properties(properties: Mapping[str, Any]) -> None:
    _need(set(properties) <= _PROPERTIES, "has unknown properties")
    _need(
        properties.get("objectType") in ("annotation", "detection", "tile"),
        "has no known object type",
    )
    if "name" in properties:
        _need(_is_name(properties["name"]), "has a blank name")
    if "isLocked" in properties:
        _need(isinstance(properties["isLocked"], bool), "is neither locked nor not locked")
    if "classification" in properties:
        _check_class(properties["classification"])
    for name, value in properties.get("measurements", {}).items():
        _need(_is_name(name), "has a measurement with a blank name")
        _need(_is_finite(value), f"has a measurement {name!r} that is not a finite number")


def _check_class(classification: object) -> None:
    _need(
        isinstance(classification, Mapping) and set(classification) == {"name", "color"},
        "has a class without name or colour",
    )
    assert isinstance(classification, Mapping)
    colour = classification["color"]
    _need(_is_name(classification["name"]), "has a class with a blank name")
    _need(
        isinstance(colour, list)
        and len(colour) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in colour),
        "has a class whose colour is not three numbers from 0 to 255",
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


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
