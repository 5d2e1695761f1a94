"""GeoJSON: the rules by which QuPath imports a feature collection whole, or not at all."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from wsiad.annotations.geojson_outlines import MEMBER
from wsiad.core.errors import ExportError
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
