"""Annotations of GeoJSON files, such as QuPath's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from wsiad.annotations.outlines import Annotations, Outline, Role, role_of
from wsiad.annotations.rings import Ring, has_area, read_ring
from wsiad.errors import AnnotationError


def read_geojson(path: Path) -> Annotations:
    """Read polygons and multipolygons of a GeoJSON file, level-0 pixels.

    Takes a FeatureCollection, a Feature, a geometry, or an array of features (QuPath).
    The group is QuPath's classification name; a polygon without one is tumour, since
    nothing else is said of it. Other geometries and classes are counted as ignored.

    Raises
    ------
    AnnotationError
        The file is missing, is not GeoJSON, or has a coordinate that is no number.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(f"cannot be read as GeoJSON ({error})", subject=str(path)) from error
    outlines: list[Outline] = []
    ignored: Counter[str] = Counter()
    for number, feature in enumerate(_features(document, path), start=1):
        where = f"{path}, feature {number}"
        properties = feature.get("properties") or {}
        geometry = feature.get("geometry") or {}
        if not isinstance(properties, dict) or not isinstance(geometry, dict):
            raise AnnotationError("is not a GeoJSON feature", subject=where)
        group = _class_name(properties)
        role = Role.TUMOUR if group is None else role_of(group)
        kind = str(geometry.get("type"))
        if role is None:
            ignored[f"group {group}"] += 1
        elif kind not in {"Polygon", "MultiPolygon"}:
            ignored[f"type {kind}"] += 1
        else:
            parts = geometry.get("coordinates")
            for rings in _parts([parts] if kind == "Polygon" else parts, where):
                if not rings or not has_area(rings[0]):
                    ignored["no area"] += 1
                    continue
                holes = tuple(ring for ring in rings[1:] if has_area(ring))
                name = str(properties.get("name") or f"feature {number}")
                outlines.append(Outline(name, group or "", role, rings[0], holes))
    return Annotations(str(path), tuple(outlines), dict(ignored))


def _features(document: Any, path: Path) -> list[dict[str, Any]]:
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, dict) and document.get("type") == "Feature":
        document = [document]
    elif isinstance(document, dict) and "coordinates" in document:
        document = [{"geometry": document}]
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise AnnotationError(
            "is not GeoJSON",
            subject=str(path),
            remedy="Export a FeatureCollection, for example from QuPath.",
        )
    return document


def _class_name(properties: dict[str, Any]) -> str | None:
    value = properties.get("classification")
    if isinstance(value, dict):
        value = value.get("name")
    return str(value) if value else None


def _parts(parts: Any, where: str) -> list[list[Ring]]:
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        raise AnnotationError("has no valid coordinates", subject=where)
    rings = [[ring if isinstance(ring, list) else [ring] for ring in part] for part in parts]
    return [[read_ring(ring, where) for ring in part] for part in rings]
