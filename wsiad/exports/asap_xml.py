"""ASAP's annotations: outlines of regions as XML.

ASAP's polygons have no holes. A hole is an annotation of a group of its own, which is
taken out of what lies under it, as CAMELYON16's group ``_2`` is; what of it belongs to
another region is left out of it. :func:`wsiad.annotations.read_asap_xml` reads the same
area back.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file
from wsiad.heatmaps.regions import Region

GROUP, HOLES = "Anomaly", "Exclusion"
"""Groups of outlines and of their holes."""

_COLOURS = {GROUP: "#C80000", HOLES: "#808080"}
_DECIMALS = 3


def write_annotations(
    regions: Sequence[Region], path: Path, *, percentiles: Sequence[float] | None = None
) -> None:
    """Write regions as polygons in level-0 pixels from the slide's corner.

    Parameters
    ----------
    regions : sequence of Region
        In the order in which they are to be named.
    path : Path
        Name ending in ``.xml``; written whole or not at all.
    percentiles : sequence of float, optional
        Of each region's maximum score among healthy windows, 0 to 100; for the name.

    Raises
    ------
    ExportError
        The name has another ending, or percentiles are not as many.
    """
    if path.suffix.lower() != ".xml":
        raise ExportError("the name of ASAP's annotations ends in .xml", subject=path.name)
    if percentiles is not None and len(percentiles) != len(regions):
        raise ExportError(
            f"{len(percentiles)} percentiles for {len(regions)} regions", subject=path.name
        )
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for rank, region in enumerate(regions, start=1):
        name = f"wsiad {rank}: score {region.max_score:.6g}"
        if percentiles is not None:
            name += f", percentile {percentiles[rank - 1]:.6g}"
        _add(annotations, name, GROUP, region.polygon)
    for rank, hole in _holes([region.polygon for region in regions]):
        _add(annotations, f"wsiad {rank}: hole", HOLES, hole)
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    for name, colour in _COLOURS.items():
        group = ElementTree.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=colour)
        ElementTree.SubElement(group, "Attributes")
    ElementTree.indent(root, " ")
    with atomic_file(path) as partial:
        ElementTree.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)


def _holes(polygons: Sequence[shapely.Polygon]) -> Iterator[tuple[int, shapely.Polygon]]:
    """Yield the rank of a region and what is to be cut out of it, without holes itself."""
    tree = shapely.STRtree(polygons)
    shapely.prepare(polygons)
    for rank, polygon in enumerate(polygons, start=1):
        for ring in polygon.interiors:
            hole = shapely.Polygon(ring)
            # Bounds first: a region may have thousands of holes, and many more corners.
            met = [polygons[i] for i in tree.query(hole).tolist() if i != rank - 1]
            left: BaseGeometry = hole
            for other in met:
                if other.intersects(hole):
                    left = left.difference(shapely.clip_by_rect(other, *hole.bounds))
            for part in _without_holes(left):
                yield rank, part


def _without_holes(area: shapely.Geometry) -> Iterator[shapely.Polygon]:
    """Cut an area, across its holes, into polygons that have none."""
    for part in shapely.get_parts(area):
        if not isinstance(part, shapely.Polygon) or part.is_empty:
            continue
        if not part.interiors:
            yield part
            continue
        left, top, right, bottom = part.bounds
        hole_left, _, hole_right, _ = part.interiors[0].bounds
        middle = (hole_left + hole_right) / 2
        for start, end in ((left, middle), (middle, right)):
            yield from _without_holes(part.intersection(shapely.box(start, top, end, bottom)))


def _add(parent: ElementTree.Element, name: str, group: str, polygon: shapely.Polygon) -> None:
    annotation = ElementTree.SubElement(
        parent, "Annotation", Name=name, Type="Polygon", PartOfGroup=group, Color=_COLOURS[group]
    )
    coordinates = ElementTree.SubElement(annotation, "Coordinates")
    corners = np.round(shapely.get_coordinates(polygon.exterior)[:-1], _DECIMALS)
    for order, (x, y) in enumerate(corners.tolist()):
        ElementTree.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x}", Y=f"{y}")
