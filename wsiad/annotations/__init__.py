"""Outlines drawn by people, read from ASAP XML and GeoJSON into level-0 polygons.

Nothing here depends on detections or metrics. Both formats come from outside. XML is parsed
without entities or document types. Content that is not understood is an error, or is counted in
:attr:`Annotations.ignored`; it is never dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from wsiad.annotations.asap_outlines import read_asap_xml
from wsiad.annotations.classes import ClassMap, Role, role_of
from wsiad.annotations.geojson_outlines import read_geojson
from wsiad.annotations.outlines import BOUNDS, LEVEL_0, Annotations, Outline, Ring, ring_area
from wsiad.core.errors import AnnotationError

__all__ = [
    "BOUNDS",
    "LEVEL_0",
    "SUFFIXES",
    "Annotations",
    "ClassMap",
    "Origin",
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

Origin = Literal["auto", "level0", "bounds"]
"""Origin of the positions of a file that does not state it."""


def read_annotations(
    path: Path,
    *,
    classes: ClassMap | Mapping[str, str] | None = None,
    origin: Origin = "auto",
    bounds: tuple[float, float] | None = None,
) -> Annotations:
    """Read an ASAP XML or a GeoJSON file, by its suffix, in level-0 pixels.

    Parameters
    ----------
    path : Path
    classes : ClassMap or mapping of str to str, optional
        Meaning of classes and groups; it overrides their own meaning.
    origin : str
        Origin of the positions in a file that does not state it (files of this package do):
        ``"level0"``, the slide's corner; ``"bounds"``, the corner of its bounds; ``"auto"``, the
        convention of the programs: bounds for QuPath's GeoJSON, level 0 for ASAP's XML.
    bounds : (float, float), optional
        Corner of the slide's bounds, level-0 pixels, if known. If it is not, ``"auto"`` counts
        from level 0, which is the same on slides without bounds.

    Raises
    ------
    AnnotationError
        The file is missing, not valid or not safe to read; or its positions count from bounds
        that are not known.
    """
    meanings = classes if isinstance(classes, ClassMap) else ClassMap(classes)
    if path.suffix.lower() == ".xml":
        read = read_asap_xml(path, meanings)
    elif path.suffix.lower() in SUFFIXES:
        read = read_geojson(path, meanings)
    else:
        raise AnnotationError(
            "is not a known annotation file",
            subject=str(path),
            remedy=f"Pass a file that ends in {', '.join(SUFFIXES)}.",
        )
    if read.counted_from != LEVEL_0:  # the file says so itself
        return read
    if origin == "bounds" and bounds is None:
        raise AnnotationError(
            "counts from the corner of the slide's bounds, which is not known",
            subject=str(path),
            remedy="Pass results of `wsiad heatmap`, which know it, or outlines in level-0 pixels.",
        )
    if origin == "level0" or (origin == "auto" and path.suffix.lower() == ".xml"):
        return read
    if bounds is None:
        return replace(read, counted_from=f"{LEVEL_0}, as its bounds are not known")
    return read.moved_to(bounds, BOUNDS) if any(bounds) else read
