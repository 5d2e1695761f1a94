"""Reader of the annotations in ASAP's XML files."""

from __future__ import annotations

import reprlib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from wsiad.annotations.classes import ClassMap, Role, class_text, says_nothing
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

_TYPES_WITH_AREA = frozenset({"polygon", "spline", "rectangle"})
_NO_GROUP = "None"
_MOST_DIGITS = 15


def read_asap_xml(path: Path, classes: ClassMap | None = None) -> Annotations:
    """Read the annotations of an ASAP XML file (https://github.com/computationalpathologygroup/ASAP).

    Groups with a role (`ClassMap`) are kept, and so are groups within them that have no role of
    their own. Others are counted as ignored, as are annotations that enclose no area. A spline
    becomes the polygon of its points, from which ASAP makes its masks too.

    Parameters
    ----------
    path : Path
    classes : ClassMap, optional
        Meaning of groups.

    Raises
    ------
    AnnotationError
        The file is missing, too large, not XML or not an ASAP file. It declares a document type
        or an entity. It uses a group that it does not declare, or declares one within two
        others. Or a coordinate is not a finite number, or has no clear order.
    """
    meanings = classes or ClassMap()
    root = _parse_xml(path)
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"is not an ASAP file (its root is <{class_text(root.tag)}>)",
            subject=str(path),
            remedy="Export the annotations from ASAP, or as GeoJSON.",
        )
    parents = _parents(root, path)
    outlines: list[Outline] = []
    ignored: Counter[str] = Counter()
    seen: set[str] = set()
    for number, element in enumerate(root.iterfind("Annotations/Annotation"), start=1):
        name = class_text(element.get("Name") or f"annotation {number}")
        group = element.get("PartOfGroup", _NO_GROUP).strip()
        where = f"{path}, {name}"
        if group != _NO_GROUP and group not in parents:
            raise AnnotationError(
                f"belongs to the group {class_text(group)!r}, which the file does not declare",
                subject=where,
                remedy="Add the group to <AnnotationGroups>; ASAP refuses such a file too.",
            )
        ring = read_ring(_asap_corners(element, where), where)
        seen.add("" if says_nothing(group) else group)
        kind = element.get("Type", "")
        role = _role(group, parents, meanings)
        if role is None or (reason := _why_no_area(group, kind, ring)):
            no_role = "no group" if says_nothing(group) else f"group {class_text(group)}"
            ignored[no_role if role is None else str(reason)] += 1
        else:
            outlines.append(Outline(name, class_text(group), role, ring))
    return Annotations(str(path), tuple(outlines), dict(ignored), frozenset(seen))


def _parse_xml(path: Path) -> ElementTree.Element:
    import defusedxml.ElementTree
    from defusedxml.common import DefusedXmlException

    data = read_bytes(path)
    try:
        root = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise AnnotationError(
            f"declares a document type or an entity ({type(error).__name__}), which is not safe",
            subject=str(path),
            remedy="Remove the <!DOCTYPE …>; ASAP writes none.",
        ) from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise AnnotationError(
            f"is not valid XML ({error})",
            subject=str(path),
            remedy="Save it as UTF-8, or with the encoding that its first line declares.",
        ) from error
    assert isinstance(root, ElementTree.Element)
    return root


def _parents(root: ElementTree.Element, path: Path) -> dict[str, str]:
    """Return the group that contains each group."""
    parents: dict[str, str] = {}
    for element in root.iterfind("AnnotationGroups/Group"):
        group = element.get("Name", "").strip()
        parent = element.get("PartOfGroup", _NO_GROUP).strip()
        if parents.setdefault(group, parent) != parent:
            both = f"{class_text(parents[group])!r} and in {class_text(parent)!r}"
            raise AnnotationError(
                f"declares the group {class_text(group)!r} twice, in {both}",
                subject=str(path),
                remedy="Keep one of them in <AnnotationGroups>.",
            )
    return parents


def _role(group: str, parents: dict[str, str], meanings: ClassMap) -> Role | None:
    """Return the role of a group: its own, or that of the nearest group around it that has one."""
    for _ in range(MAX_DEPTH):
        if meanings.knows(group) or says_nothing(group) or group.endswith("*"):
            return meanings.role(group)
        group = parents.get(group, _NO_GROUP)
        if group == _NO_GROUP:
            return None
    return None


def _why_no_area(group: str, kind: str, ring: Ring) -> str | None:
    if kind.lower() not in _TYPES_WITH_AREA:
        return f"type {class_text(kind) or 'unknown'} in group {class_text(group)}"
    return None if has_area(ring) else f"no area in group {class_text(group)}"


def _asap_corners(element: ElementTree.Element, where: str) -> list[tuple[str, str]]:
    """Return coordinates as text, in the order of their attribute ``Order``."""
    corners: dict[int, tuple[str, str]] = {}
    for coordinate in element.iterfind("Coordinates/Coordinate"):
        order = coordinate.get("Order", "")
        whole = order.isascii() and order.isdigit() and len(order) <= _MOST_DIGITS
        if not whole or int(order) in corners:
            raise AnnotationError(
                f"the coordinate order {reprlib.repr(order)} "
                f"{'is given twice' if whole else 'is not a whole number'}",
                subject=where,
                remedy="Number the coordinates 0, 1, 2, …",
            )
        corners[int(order)] = (coordinate.get("X", ""), coordinate.get("Y", ""))
    return [corners[order] for order in sorted(corners)]
