"""Annotations of ASAP's XML files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from wsiad.annotations.outlines import Annotations, Outline, role_of
from wsiad.annotations.rings import Ring, has_area, read_ring
from wsiad.errors import AnnotationError

_TYPES_WITH_AREA = frozenset({"polygon", "spline", "rectangle"})
_NO_GROUP = "None"


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
        ring = read_ring(_asap_corners(element, where), where)
        kind = element.get("Type", "")
        role, reason = role_of(group), _why_ignored(group, kind, ring)
        if role is None or reason:
            ignored[str(reason)] += 1
        else:
            outlines.append(Outline(name, group, role, ring))
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
    return None if has_area(ring) else f"no area in group {group}"


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
