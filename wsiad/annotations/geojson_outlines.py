"""Reader of the annotations in GeoJSON files, with QuPath's conventions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiad.annotations.classes import ClassMap, class_text, says_nothing
from wsiad.annotations.outlines import (
    MAX_DEPTH,
    Annotations,
    Outline,
    Ring,
    has_area,
    read_bytes,
    read_ring,
)
from wsiad.core.errors import AnnotationError

MEMBER = "wsiad"
"""Member of a feature collection in which this package states the origin of positions."""

_AREAS = ("Polygon", "MultiPolygon")
_SHAPES = ("Point", "MultiPoint", "LineString", "MultiLineString", *_AREAS, "GeometryCollection")
_TYPE_KEYS = ("objectType", "object_type", "type")
_NEVER_TISSUE = {"tmacore": "TMA core", "root": "root object"}
_OBJECTS = frozenset({"annotation", "detection", "tile", "cell", *_NEVER_TISSUE})
_MAX_POSITION = 1e9


def read_geojson(path: Path, classes: ClassMap | None = None) -> Annotations:
    """Read the areas of a GeoJSON file, in pixels from the file's origin.

    The document is a FeatureCollection, a Feature, a geometry, or an array of these;
    ``childObjects`` and the members of collections are read like all others. The class of an
    area gives its meaning (`ClassMap`). An area without a class has no meaning, even if it is a
    tile, a cell, a detection or an annotation. A TMA core is a place, not tissue. Everything that
    is neither tumour nor cut out of it is counted in `Annotations.ignored`.

    Parameters
    ----------
    path : Path
    classes : ClassMap, optional
        Meaning of classes.

    Returns
    -------
    Annotations
        The outlines; their origin is the one that the file states, as files of this package do.

    Raises
    ------
    AnnotationError
        The file is missing, is too large or too deep, is not GeoJSON, or has a coordinate
        that is not a number.
    """
    try:
        # Bytes, of which Python knows UTF-8, -16 and -32 apart, with and without a mark.
        document = json.loads(read_bytes(path))
    except RecursionError as error:
        raise AnnotationError("nests too deeply for GeoJSON", subject=str(path)) from error
    except ValueError as error:
        raise AnnotationError(f"cannot be read as GeoJSON ({error})", subject=str(path)) from error
    found = _Found(classes or ClassMap())
    for where, feature in _features(document, path):
        found.take(feature, where)
    read = Annotations(
        str(path), tuple(found.outlines), dict(found.ignored), frozenset(found.classes)
    )
    stated = _stated_origin(document, path)
    return read if stated is None else read.moved_to(stated, "where the file says")


@dataclass(slots=True)
class _Found:
    """The outlines that were read so far from a file."""

    meanings: ClassMap
    outlines: list[Outline] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    classes: set[str] = field(default_factory=set)

    def take(self, feature: dict[str, Any], where: str) -> None:
        """Add the outlines of a feature, or count it as ignored."""
        properties = _mapping(feature.get("properties"), where)
        geometry = _mapping(feature.get("geometry"), where)
        name, kind = _class_name(properties.get("classification")), _object_type(feature)
        self.classes.add(name)
        role = None if kind in _NEVER_TISSUE else self.meanings.role(name)
        if says_nothing(name) and kind != "annotation":
            role = None
        # What is left aside is read as well: a file that is broken is so throughout.
        areas, others = _areas(geometry, where)
        if role is None:
            self.ignored[_why_ignored(name, kind)] += 1
            return
        self.ignored.update(f"type {class_text(other)}" for other in others)
        if not areas and not others:
            self.ignored["no area"] += 1
        title = class_text(properties.get("name") or where.rpartition(", ")[2])
        for rings in areas:
            if not rings or not has_area(rings[0]):
                self.ignored["no area"] += 1
                continue
            holes = tuple(ring for ring in rings[1:] if has_area(ring))
            self.outlines.append(
                Outline(name=title, group=name, role=role, shell=rings[0], holes=holes)
            )


def _why_ignored(name: str, kind: str) -> str:
    if kind in _NEVER_TISSUE:
        return _NEVER_TISSUE[kind]
    if says_nothing(name):
        return "no class" if kind == "annotation" else f"{kind} without a class"
    return f"class {name}"


def _features(document: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every feature of a file, nested ones included, with its name for errors."""
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, dict) and document.get("type") in ("Feature", *_SHAPES):
        document = [document]
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise AnnotationError(
            "is not GeoJSON",
            subject=str(path),
            remedy="Export a FeatureCollection, for example from QuPath.",
        )
    for number, item in enumerate(document, start=1):
        waiting = [(f"{path}, feature {number}", item, 0)]
        while waiting:
            where, feature, depth = waiting.pop()
            if feature.get("type") in _SHAPES and "geometry" not in feature:
                feature = {"geometry": feature}
            collection = feature.get("type") == "FeatureCollection"
            if not collection:
                yield where, feature
            children = _children(feature, where, key="features" if collection else "childObjects")
            if children and depth == MAX_DEPTH:
                raise _too_deep(where)
            inner = [(f"{where}.{n}", c, depth + 1) for n, c in enumerate(children, start=1)]
            waiting.extend(reversed(inner))


def _children(feature: dict[str, Any], where: str, *, key: str) -> list[dict[str, Any]]:
    """Return the objects within an object, which QuPath puts among the properties."""
    found: list[Any] = []
    for holder in (_mapping(feature.get("properties"), where), feature):
        children = holder.get(key)
        if children is not None and not isinstance(children, list):
            raise AnnotationError(f"has {key} that are not a list", subject=where)
        found.extend(children or ())
    if not all(isinstance(child, dict) for child in found):
        raise AnnotationError(f"has {key} that are not features", subject=where)
    return found


def _shapes(geometry: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield a geometry, or the members of a collection."""
    waiting = [(geometry, 0)]
    while waiting:
        shape, depth = waiting.pop()
        if shape.get("type") != "GeometryCollection":
            yield shape
            continue
        members = shape.get("geometries")
        if not isinstance(members, list) or not all(isinstance(item, dict) for item in members):
            raise AnnotationError("has a GeometryCollection without geometries", subject=where)
        if depth == MAX_DEPTH:
            raise _too_deep(where)
        waiting.extend((member, depth + 1) for member in reversed(members))


def _areas(geometry: dict[str, Any], where: str) -> tuple[list[list[Ring]], list[Any]]:
    """Return the rings of every polygon of a geometry, and the types of its other shapes."""
    areas: list[list[Ring]] = []
    others = []
    for shape in _shapes(geometry, where):
        if shape.get("type") in _AREAS:
            parts = shape.get("coordinates")
            areas.extend(_parts([parts] if shape["type"] == "Polygon" else parts, where))
        else:
            others.append(shape.get("type"))
    return areas, others


def _too_deep(where: str) -> AnnotationError:
    return AnnotationError(
        f"holds objects within each other more than {MAX_DEPTH} deep", subject=where
    )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise AnnotationError("is not a GeoJSON feature", subject=where)
    return value or {}


def _object_type(feature: dict[str, Any]) -> str:
    """Return the type of an object in QuPath, where an unknown type is an annotation."""
    properties = feature.get("properties") or {}
    # QuPath 0.2 wrote the type where newer ones have the identifier.
    texts = [*(properties.get(key) for key in _TYPE_KEYS), feature.get("id")]
    for text in texts:
        if isinstance(text, str):
            kind = text.lower().replace("_", "").replace(" ", "")
            kind = kind.removeprefix("path").removesuffix("object")
            if kind in _OBJECTS:
                return kind
    return "annotation"


def _class_name(value: Any) -> str:
    """Return the name of a classification in any of its forms; ``""`` if there is none.

    A derived class is named as QuPath shows it, ``Tumor: Positive``.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        # Programs of geographers write what they do not know as text.
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return class_text(value)
        value = inner
    if isinstance(value, dict):
        value = value.get("names") or value.get("name")
    if isinstance(value, list):
        value = ": ".join(part if isinstance(part, str) else class_text(part) for part in value)
    name = "" if value is None else class_text(value)
    return "" if says_nothing(name) else name


def _stated_origin(document: Any, path: Path) -> tuple[float, float] | None:
    """Return the origin of positions that the file states, level-0 pixels; ``None`` without one."""
    if not isinstance(document, dict) or MEMBER not in document:
        return None
    member = document[MEMBER]
    origin = member.get("origin") if isinstance(member, dict) else None
    if (
        isinstance(origin, list)
        and len(origin) == 2
        and all(type(value) in (int, float) for value in origin)
        and all(math.isfinite(value) and abs(value) < _MAX_POSITION for value in origin)
    ):
        return float(origin[0]), float(origin[1])
    raise AnnotationError(
        f"its member {MEMBER!r} does not state where positions count from",
        subject=str(path),
        remedy=f'It is "{MEMBER}": {{"origin": [x, y]}}, level-0 pixels; or remove it.',
    )


def _parts(parts: Any, where: str) -> list[list[Ring]]:
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        raise AnnotationError("has no valid coordinates", subject=where)
    rings = [[ring if isinstance(ring, list) else [ring] for ring in part] for part in parts]
    return [[read_ring(ring, where) for ring in part] for part in rings]
