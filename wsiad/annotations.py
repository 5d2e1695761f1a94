"""Outlines drawn by people: ASAP XML and GeoJSON, read into level-0 polygons.

Nothing here knows of detections or metrics. Both formats come from outside: XML is
parsed without entities or document types, and whatever is not understood is an error
or is counted in :attr:`Annotations.ignored`, never dropped without a word.
"""

from __future__ import annotations

import enum
import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.errors import AnnotationError

Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2) ``x, y`` in level-0 pixels; open, the last joins the first."""

SUFFIXES = (".xml", ".geojson", ".json")
"""Suffixes of files that :func:`read_annotations` reads."""

_TYPES_WITH_AREA = frozenset({"polygon", "spline", "rectangle"})
_NO_GROUP = "None"
_MAX_COORDINATE = 1e9


class Role(enum.StrEnum):
    """What an outline says about the tissue within it."""

    TUMOUR = "tumour"
    CUT_OUT = "cut-out"


_ROLES = {
    **dict.fromkeys(("_0", "_1", "tumor", "tumour", "metastasis", "metastases"), Role.TUMOUR),
    "anomaly": Role.TUMOUR,  # wsiad's own, perhaps corrected by a pathologist
    **dict.fromkeys(("_2", "normal", "exclusion"), Role.CUT_OUT),
}


def role_of(group: str) -> Role | None:
    """Role of an annotation group by its name, letter case aside; ``None`` if it has none.

    ``_0``, ``_1`` and ``_2`` are CAMELYON16's groups, ``metastases`` and ``normal``
    those of CAMELYON17.
    """
    return _ROLES.get(group.lower())


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """One outlined area.

    Parameters
    ----------
    name, group : str
        As the file has them.
    role : Role
        Tumour, or cut out of it.
    shell : ndarray of float64, (N, 2)
        Outer ring, level-0 pixels. It may cross itself: what it winds around at least
        once is inside.
    holes : tuple of ndarray
        Inner rings; only GeoJSON has them.
    """

    name: str
    group: str
    role: Role
    shell: Ring
    holes: tuple[Ring, ...] = ()

    def polygon(self) -> BaseGeometry:
        """Return the outlined area as a valid geometry."""
        area = ring_area(self.shell)
        return area.difference(shapely.union_all([ring_area(hole) for hole in self.holes]))


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """All outlines of a slide that have a role, and what the file holds besides.

    Parameters
    ----------
    source : str
        The file.
    outlines : tuple of Outline
        In the order of the file.
    ignored : Mapping of str to int
        How many annotations were left aside, by reason.
    """

    source: str
    outlines: tuple[Outline, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)

    def with_role(self, role: Role) -> tuple[Outline, ...]:
        """Outlines of one role."""
        return tuple(outline for outline in self.outlines if outline.role is role)

    def tumour(self) -> BaseGeometry:
        """Return the tumour area: all tumour outlines less all cut-outs, level-0 pixels.

        A cut-out wins over every tumour outline under it, as in the CAMELYON masks,
        where it is painted last.
        """
        tumour = shapely.union_all([o.polygon() for o in self.with_role(Role.TUMOUR)])
        cut_out = shapely.union_all([o.polygon() for o in self.with_role(Role.CUT_OUT)])
        return tumour.difference(cut_out)


def ring_area(ring: Ring) -> BaseGeometry:
    """Return what a ring winds around at least once; rings that cross themselves included."""
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    edges = shapely.node(shapely.LinearRing(ring))
    faces = shapely.get_parts(shapely.polygonize([edges]))
    inside = [face for face in faces if _winding_number(ring, face.representative_point())]
    return shapely.union_all(inside)


def _winding_number(ring: Ring, point: shapely.Point) -> int:
    x, y = point.x, point.y
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
    upward = (y0 <= y) & (y1 > y) & (side > 0)
    downward = (y1 <= y) & (y0 > y) & (side < 0)
    return int(upward.sum() - downward.sum())


def read_annotations(path: Path) -> Annotations:
    """Read an ASAP XML or a GeoJSON file, by its suffix.

    Raises
    ------
    AnnotationError
        The file is missing, not valid or not safe to read.
    """
    if path.suffix.lower() == ".xml":
        return read_asap_xml(path)
    if path.suffix.lower() in SUFFIXES:
        return read_geojson(path)
    raise AnnotationError(
        "is no annotation file that is known",
        subject=str(path),
        remedy=f"Give a file that ends in {', '.join(SUFFIXES)}.",
    )


def read_asap_xml(path: Path) -> Annotations:
    """Read the annotations of an ASAP XML file (https://github.com/computationalpathologygroup/ASAP).

    Groups with a role (:func:`role_of`) are kept, others are counted as ignored, as are
    annotations that enclose no area. A spline is taken as the polygon of its points,
    which is what ASAP makes its masks of.

    Raises
    ------
    AnnotationError
        The file is missing, is no XML or no ASAP file, declares a document type or an
        entity, uses a group that it does not declare, or has a coordinate that is no
        finite number or whose order is not clear.
    """
    root = _parse_xml(path)
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"is not an ASAP file (its root is <{root.tag}>)",
            subject=str(path),
            remedy="Export the annotations from ASAP, or as GeoJSON.",
        )
    declared = {group.get("Name", "") for group in root.iterfind("AnnotationGroups/Group")}
    outlines: list[Outline] = []
    ignored: Counter[str] = Counter()
    for number, element in enumerate(root.iterfind("Annotations/Annotation"), start=1):
        name = element.get("Name") or f"annotation {number}"
        group = element.get("PartOfGroup", _NO_GROUP)
        where = f"{path}, {name}"
        if group != _NO_GROUP and group not in declared:
            raise AnnotationError(
                f"belongs to the group {group!r}, which the file does not declare",
                subject=where,
                remedy="Add the group to <AnnotationGroups>; ASAP refuses such a file too.",
            )
        ring = _ring(_asap_corners(element, where), where)
        kind = element.get("Type", "")
        reason = _why_ignored(group, kind, ring)
        if reason:
            ignored[reason] += 1
        else:
            outlines.append(Outline(name, group, _ROLES[group.lower()], ring))
    return Annotations(str(path), tuple(outlines), dict(ignored))


def _parse_xml(path: Path) -> ElementTree.Element:
    import defusedxml.ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        root = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise AnnotationError(
            f"declares a document type or an entity ({type(error).__name__}), which is not safe",
            subject=str(path),
            remedy="Remove the <!DOCTYPE …>; ASAP writes none.",
        ) from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise AnnotationError(f"is not valid XML ({error})", subject=str(path)) from error
    except OSError as error:
        raise AnnotationError(f"cannot be read ({error})", subject=str(path)) from error
    assert root is not None
    return root


def _why_ignored(group: str, kind: str, ring: Ring) -> str | None:
    if role_of(group) is None:
        return "no group" if group == _NO_GROUP else f"group {group}"
    if kind.lower() not in _TYPES_WITH_AREA:
        return f"type {kind or 'unknown'} in group {group}"
    return None if _has_area(ring) else f"no area in group {group}"


def _has_area(ring: Ring) -> bool:
    """Whether the corners are not all on one line."""
    return len(ring) >= 3 and int(np.linalg.matrix_rank(ring - ring[0])) == 2


def _asap_corners(element: ElementTree.Element, where: str) -> list[tuple[str, str]]:
    """Coordinates as text, in the order that their attribute ``Order`` gives."""
    corners: dict[int, tuple[str, str]] = {}
    for coordinate in element.iterfind("Coordinates/Coordinate"):
        order = coordinate.get("Order", "")
        if not order.isascii() or not order.isdigit() or int(order) in corners:
            problem = "is given twice" if order.isdigit() else "is not a whole number"
            raise AnnotationError(
                f"the coordinate order {order!r} {problem}",
                subject=where,
                remedy="Number the coordinates 0, 1, 2, …",
            )
        corners[int(order)] = (coordinate.get("X", ""), coordinate.get("Y", ""))
    return [corners[order] for order in sorted(corners)]


def _ring(corners: Iterable[Sequence[Any]], where: str) -> Ring:
    """Corners as numbers, without a repeated first corner at the end."""
    points: list[tuple[float, float]] = []
    for corner in corners:
        try:
            x, y = float(corner[0]), float(corner[1])
        except (TypeError, ValueError, OverflowError, IndexError, KeyError):
            x = y = math.nan
        # Not only NaN and infinity: no slide has a billion pixels to a side.
        if not (abs(x) < _MAX_COORDINATE and abs(y) < _MAX_COORDINATE):
            raise AnnotationError(
                f"the coordinate {corner!r} is not a position on a slide",
                subject=where,
                remedy="Write x and y in level-0 pixels, with a decimal point.",
            )
        points.append((x, y))
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()
    return np.array(points, dtype=np.float64).reshape(-1, 2)


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
                if not rings or not _has_area(rings[0]):
                    ignored["no area"] += 1
                    continue
                holes = tuple(ring for ring in rings[1:] if _has_area(ring))
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
    return [[_ring(ring, where) for ring in part] for part in rings]
