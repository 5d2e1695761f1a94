"""Outlines drawn by people: ASAP XML and GeoJSON, read into level-0 polygons.

Nothing here knows of detections or metrics. Both formats come from outside: XML is
parsed without entities or document types, and whatever is not understood is an error
or is counted in :attr:`Annotations.ignored`, never dropped without a word.
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
"""Where the positions of a file count from that does not say so itself."""


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
        What classes and groups mean, where they do not say so themselves.
    origin : str
        Where a file counts from that does not say so, as files of this package do:
        ``"level0"``, the slide's corner; ``"bounds"``, that of its bounds; ``"auto"``, as
        the programs do, QuPath's GeoJSON from the bounds and ASAP's XML from level 0.
    bounds : (float, float), optional
        Corner of the slide's bounds, level-0 pixels, if known. Where it is not,
        ``"auto"`` takes level 0, which is the same on slides without bounds.

    Raises
    ------
    AnnotationError
        The file is missing, not valid or not safe to read; or it counts from bounds that
        are not known.
    """
    meanings = classes if isinstance(classes, ClassMap) else ClassMap(classes)
    if path.suffix.lower() == ".xml":
        read = read_asap_xml(path, meanings)
    elif path.suffix.lower() in SUFFIXES:
        read = read_geojson(path, meanings)
    else:
        raise AnnotationError(
            "is no annotation file that is known",
            subject=str(path),
            remedy=f"Give a file that ends in {', '.join(SUFFIXES)}.",
        )
    if read.counted_from != LEVEL_0:  # the file says so itself
        return read
    if origin == "bounds" and bounds is None:
        raise AnnotationError(
            "counts from the corner of the slide's bounds, which is not known",
            subject=str(path),
            remedy="Give results of `wsiad heatmap`, which know it, or outlines in level-0 pixels.",
        )
    if origin == "level0" or (origin == "auto" and path.suffix.lower() == ".xml"):
        return read
    if bounds is None:
        return replace(read, counted_from=f"{LEVEL_0}, as its bounds are not known")
    return read.moved_to(bounds, BOUNDS) if any(bounds) else read
