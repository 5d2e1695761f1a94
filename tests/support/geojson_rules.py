"""The rules by which QuPath imports a feature collection whole, or not at all."""

import gzip
import json
import math
import re

import numpy as np
import shapely

PROPERTIES = {"objectType", "name", "classification", "isLocked", "measurements", "metadata"}
UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")


class RuleError(AssertionError):
    """A feature collection breaks a rule."""


def check_file(path, *, bounds):
    """Check a GeoJSON file, packed or not, and return its features.

    Besides the importer's rules: one feature a line, and no line above them but the head.
    """
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    collection = json.loads(text)
    check_collection(collection, bounds=bounds)
    features = collection["features"]
    _need(text.endswith("\n]}\n"), "does not end as a feature collection")
    lines = text.splitlines()[1:-1]
    _need([json.loads(line.removesuffix(",")) for line in lines] == features, "lines")
    return features


def check_collection(collection, *, bounds):
    """Check that QuPath would import a feature collection whole and unchanged."""
    members = {"type": "FeatureCollection"}
    if (bounds.x, bounds.y) != (0, 0):
        members["wsiad"] = {"origin": [bounds.x, bounds.y]}
    others = {key: value for key, value in collection.items() if key != "features"}
    _need(others == members, "is not a feature collection with this origin")
    for number, feature in enumerate(collection["features"]):
        try:
            check_feature(feature, bounds=bounds)
        except RuleError as error:
            raise RuleError(f"feature {number}: {error}") from None
    identifiers = [feature["id"] for feature in collection["features"]]
    _need(len(set(identifiers)) == len(identifiers), "a feature has the identifier of another")


def check_feature(feature, *, bounds):
    """Check that QuPath would import a feature, and as it is meant.

    The profile is narrower than what QuPath reads: polygons with an identifier, and no
    key that it would pass over.
    """
    _need(set(feature) == {"type", "id", "geometry", "properties"}, "has wrong keys")
    _need(feature["type"] == "Feature", "is not a feature")
    identifier = feature["id"]
    _need(isinstance(identifier, str) and UUID.fullmatch(identifier), "has no UUID")
    geometry = feature["geometry"]
    _need(set(geometry) == {"type", "coordinates"}, "has wrong geometry keys")
    _need(geometry["type"] == "Polygon", "is not a polygon")
    _check_rings(geometry["coordinates"], bounds)
    _check_properties(feature["properties"])


def _need(holds, problem):
    if not holds:
        raise RuleError(problem)


def _check_rings(rings, bounds):
    _need(rings, "has no outline")
    for ring in rings:
        _need(len(ring) >= 4 and ring[0] == ring[-1], "has a ring that is not closed")
        _need(
            all(len(point) == 2 and {*map(type, point)} <= {int, float} for point in ring),
            "has a position that is not two numbers",
        )
        positions = np.array(ring, np.float64)
        _need(np.isfinite(positions).all(), "has a position that is not finite")
        inside = (positions >= 0) & (positions <= (bounds.width, bounds.height))
        _need(inside.all(), "reaches beyond the slide")
    polygon = shapely.Polygon(rings[0], rings[1:])
    _need(polygon.is_valid and polygon.area > 0, "is not a valid polygon")


def _check_properties(properties):
    _need(set(properties) <= PROPERTIES, "has unknown properties")
    _need(
        properties.get("objectType") in ("annotation", "detection", "tile"),
        "has no known object type",
    )
    _need(_is_name(properties.get("name", "none")), "has a blank name")
    _need(isinstance(properties.get("isLocked", False), bool), "is neither locked nor not locked")
    if "classification" in properties:
        _check_class(properties["classification"])
    texts = properties.get("metadata", {}).items()
    _need(all(_is_name(key) and isinstance(value, str) for key, value in texts), "has no texts")
    for name, value in properties.get("measurements", {}).items():
        _need(_is_name(name), "has a measurement with a blank name")
        finite = type(value) in (int, float) and math.isfinite(value)
        _need(finite, f"has a measurement {name!r} that is not a finite number")


def _check_class(classification):
    _need(
        isinstance(classification, dict) and set(classification) == {"name", "color"},
        "has a class without name or colour",
    )
    colour = classification["color"]
    _need(_is_name(classification["name"]), "has a class with a blank name")
    _need(
        isinstance(colour, list)
        and len(colour) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in colour),
        "has a class whose colour is not three numbers from 0 to 255",
    )


def _is_name(value):
    return isinstance(value, str) and bool(value.strip())
