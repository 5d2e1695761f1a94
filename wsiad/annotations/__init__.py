"""Outlines drawn by people: ASAP XML and GeoJSON, read into level-0 polygons.

Nothing here knows of detections or metrics. Both formats come from outside: XML is
parsed without entities or document types, and whatever is not understood is an error
or is counted in :attr:`Annotations.ignored`, never dropped without a word.
"""

from __future__ import annotations

from pathlib import Path

from wsiad.annotations.asap_xml import read_asap_xml
from wsiad.annotations.geojson import read_geojson
from wsiad.annotations.outlines import Annotations, Outline, Role, role_of
from wsiad.annotations.rings import Ring, ring_area
from wsiad.errors import AnnotationError

__all__ = [
    "SUFFIXES",
    "Annotations",
    "Outline",
    "Ring",
    "Role",
    "read_annotations",
    "read_asap_xml",
    "read_geojson",
    "ring_area",
    "role_of",
]

SUFFIXES = (".xml", ".geojson", ".json")
"""Suffixes of files that :func:`read_annotations` reads."""


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
