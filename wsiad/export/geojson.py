"""GeoJSON: the rules by which QuPath imports a feature collection whole, or not at all."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely

from wsiad.errors import ExportError
from wsiad.geometry import Box

_PROPERTIES = frozenset({"objectType", "name", "classification", "isLocked", "measurements"})


def check_collection(collection: Mapping[str, Any], *, bounds: Box) -> None:
    """Refuse a feature collection that QuPath would not import whole and unchanged.

    Raises
    ------
    ExportError
        Naming the first feature that breaks a rule.
    """
    if set(collection) != {"type", "features"} or collection["type"] != "FeatureCollection":
        raise ExportError("is not a GeoJSON feature collection")
    seen: set[str] = set()
    for number, feature in enumerate(collection["features"]):
        try:
            check_feature(feature, bounds=bounds)
        except ExportError as error:
            raise ExportError(error.problem, subject=f"feature {number}") from None
        if feature["id"] in seen:
            raise ExportError("has the identifier of another", subject=f"feature {number}")
        seen.add(feature["id"])


def check_feature(feature: Mapping[str, Any], *, bounds: Box) -> None:
    """Refuse a feature that QuPath would not import, or not as it is meant.

    The profile is narrower than what QuPath reads: polygons with an identifier, and no
    key that it would pass over.

    Raises
    ------
    ExportError
        Saying which rule is broken.
    """
    _need(set(feature) == {"type", "id", "geometry", "properties"}, "has missing or unknown keys")
    _need(feature["type"] == "Feature", "is not a feature")
    _check_id(feature["id"])
    _check_geometry(feature["geometry"], bounds)
    _check_properties(feature["properties"])


def _need(holds: bool, problem: str) -> None:
    if not holds:
        raise ExportError(problem)


def _check_id(identifier: object) -> None:
    try:
        same = str(uuid.UUID(str(identifier))) == identifier
    except ValueError:
        same = False
    _need(same, f"has the identifier {identifier!r}, which is no UUID")


def _check_geometry(geometry: Mapping[str, Any], bounds: Box) -> None:
    _need(set(geometry) == {"type", "coordinates"}, "has missing or unknown geometry keys")
    _need(geometry["type"] == "Polygon", "is not a polygon")
    rings = geometry["coordinates"]
    _need(bool(rings), "has no outline")
    for ring in rings:
        _need(len(ring) >= 4 and ring[0] == ring[-1], "has a ring that is not closed")
        _need(
            all(len(point) == 2 and all(map(_is_finite, point)) for point in ring),
            "has a position that is not two finite numbers",
        )
        points = np.asarray(ring, np.float64)
        inside = (points >= 0) & (points <= (bounds.width, bounds.height))
        _need(bool(inside.all()), "reaches beyond the slide")
    polygon = shapely.Polygon(rings[0], rings[1:])
    _need(polygon.is_valid and polygon.area > 0, "is not a valid polygon")


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
