"""Write results for ASAP: the heatmap as a likelihood map, the regions as annotations.

ASAP (https://github.com/computationalpathologygroup/ASAP) opens
``<slide>_likelihood_map.tif`` automatically if it is next to the slide, and lays it over the slide.
It knows neither the position nor the scale of a map. It divides width by width and height by
height, in whole numbers, shows nothing if the quotients differ, and uses the quotient as scale. A
map therefore covers the slide from its corner in whole steps.

Annotations are outlines of regions as XML. ASAP's polygons have no holes. A hole is therefore an
annotation of a separate group, which is cut out of what is under it, like CAMELYON16's group
``_2``. A part of a hole that belongs to another region is left out of it.
:func:`wsiad.annotations.read_asap_xml` reads the same area back.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file
from wsiad.core.geometry import Size
from wsiad.core.terminal import counted
from wsiad.exports.export_format import ExportFormat, Findings
from wsiad.exports.ome import reduce_by, sample_range
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import Heatmap
from wsiad.pictures.colour_scale import ColourScale

SUFFIX = "_likelihood_map.tif"

UNSCORED = 0.0
"""Value of unscored pixels, for which ASAP has no colour; 0 is the healthy median, or less."""

_TILE = 512


def write_likelihood_map(heatmap: Heatmap, path: Path, *, scale: ColourScale) -> int:
    """Write a heatmap as a tiled, pyramidal TIFF of float32 from 0 to 1.

    The value is the position of the score on the colour scale of the run: 0 at the healthy
    median, 1 at the upper end. It is not a probability. Each pixel has the value of the
    heatmap pixel under its centre. Edges in the map are therefore at most half a step
    away from those of the heatmap. Each level states 0 and 1 as SMinSampleValue and
    SMaxSampleValue, whatever its own pixels: ASAP stretches its relative colours between them, and
    takes 0 and 255 for a map that states none.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap to write.
    path : Path
        File to write, whose name ends in `SUFFIX`; written atomically. Equal heatmaps give equal
        files.
    scale : ColourScale
        Colour scale of the run.

    Returns
    -------
    int
        The step: level-0 pixels along the edge of a pixel of the map. A strip narrower than the
        step, at the right and at the bottom of the slide, is not covered.

    Raises
    ------
    ExportError
        The name has another ending.
    """
    import tifffile

    if not path.name.endswith(SUFFIX):
        raise ExportError(f"the name of ASAP's map ends in {SUFFIX}", subject=path.name)
    placement = heatmap.placement
    step = whole_step(heatmap.slide_size, most=min(placement.scale_x, placement.scale_y))
    values = np.nan_to_num(scale.unit(_sampled(heatmap, step)), nan=UNSCORED)
    with atomic_file(path) as partial, tifffile.TiffWriter(partial) as tiff:
        level = 0
        while True:
            micrometres = [um * step * 2**level for um in (heatmap.spacing.x, heatmap.spacing.y)]
            tiff.write(
                values,
                tile=(_TILE, _TILE),
                compression="lzw",
                photometric="minisblack",
                resolutionunit="CENTIMETER",
                resolution=(1e4 / micrometres[0], 1e4 / micrometres[1]),
                subfiletype=int(level > 0),
                metadata=None,
                software=False,
                extratags=sample_range(0.0, 1.0),
            )
            if max(values.shape) <= _TILE:
                return step
            values, level = reduce_by(values, 2), level + 1


def whole_step(slide: Size, *, most: float) -> int:
    """Return the largest step, level-0 pixels, that ASAP accepts for a map of a slide.

    ASAP accepts a step s for a map of ⌊W/s⌋ × ⌊H/s⌋ pixels only if ⌊W/⌊W/s⌋⌋ and
    ⌊H/⌊H/s⌋⌋ are s. This always holds if s² is at most the shorter edge of the slide.

    Parameters
    ----------
    slide : Size
        Size of level 0, pixels.
    most : float
        Maximum step: the pitch of the heatmap, level-0 pixels.
    """
    edges = (slide.width, slide.height)
    for step in range(max(1, min(math.floor(most), *edges)), 1, -1):
        if all(edge // (edge // step) == step for edge in edges):
            return step
    return 1


def _sampled(heatmap: Heatmap, step: int) -> npt.NDArray[np.float32]:
    """Return the scores under the centres of the map's pixels; NaN beyond the heatmap."""
    size = heatmap.slide_size
    x = (np.arange(size.width // step) + 0.5) * step
    y = (np.arange(size.height // step) + 0.5) * step
    columns = np.floor((x - heatmap.placement.x) / heatmap.placement.scale_x).astype(np.int64)
    rows = np.floor((y - heatmap.placement.y) / heatmap.placement.scale_y).astype(np.int64)
    inside_x = (columns >= 0) & (columns < heatmap.size.width)
    inside_y = (rows >= 0) & (rows < heatmap.size.height)
    sampled = np.full((len(rows), len(columns)), np.nan, np.float32)
    there = np.ix_(rows[inside_y], columns[inside_x])
    sampled[np.ix_(inside_y, inside_x)] = heatmap.scores[there]
    return sampled


GROUP, HOLES = "Anomaly", "Exclusion"
"""Group of the outlines, and group of their holes."""

_COLOURS = {GROUP: "#C80000", HOLES: "#808080"}
_DECIMALS = 3


def write_annotations(
    regions: Sequence[Region], path: Path, *, percentiles: Sequence[float] | None = None
) -> None:
    """Write regions as polygons in level-0 pixels from the slide's corner.

    Parameters
    ----------
    regions : sequence of Region
        Regions, in the order of their ranks.
    path : Path
        File to write, whose name ends in ``.xml``; written atomically.
    percentiles : sequence of float, optional
        Percentile of each region's maximum score among healthy windows, 0 to 100; part of the
        region's name.

    Raises
    ------
    ExportError
        The name has another ending, or the number of percentiles is not that of the regions.
    """
    if path.suffix.lower() != ".xml":
        raise ExportError("the name of ASAP's annotations ends in .xml", subject=path.name)
    if percentiles is not None and len(percentiles) != len(regions):
        raise ExportError(
            f"{counted(len(percentiles), 'percentile')} for {counted(len(regions), 'region')}",
            subject=path.name,
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
    """Yield the rank of a region, and a polygon without holes to cut out of it."""
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
    """Cut an area across its holes into polygons without holes."""
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


class Asap(ExportFormat):
    """Format of ASAP: likelihood map and annotations."""

    name = "asap"
    summary = "ASAP: the heatmap as a likelihood map, the regions as annotations"
    shows_regions = True

    def files(self, slide: str) -> tuple[str, ...]:
        """Return the names of the map and of the annotations."""
        return f"{Path(slide).name}{SUFFIX}", "annotations.xml"

    def write(self, folder: Path, findings: Findings) -> None:
        """Write the likelihood map and the annotations."""
        likelihood_map, annotations = self.files(findings.heatmap.slide)
        write_likelihood_map(findings.heatmap, folder / likelihood_map, scale=findings.scale)
        write_annotations(findings.regions, folder / annotations, percentiles=findings.percentiles)
