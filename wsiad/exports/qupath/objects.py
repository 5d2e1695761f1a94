"""Write objects for QuPath as GeoJSON: windows as tiles, regions as annotations.

QuPath's importer accepts a file completely or not at all: with one ring that is not closed, or one
class without a colour, nothing appears. Objects are therefore checked before they are written:
positions are finite and on the slide, outlines are valid, and no object occurs twice. QuPath's
origin is the corner of the slide's bounds. Positions are moved there, and rounded to the 0.01
pixel that QuPath keeps.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.core.errors import ExportError
from wsiad.core.files import parse_json, read_text, write_text
from wsiad.core.geometry import Box
from wsiad.core.terminal import counted
from wsiad.exports.export_format import ExportFormat, Findings
from wsiad.exports.geojson import write_features
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import WindowScores

SCORE = "wsiad: max score"
"""Measurement of a region: its maximum score."""

TOLERANCE = "wsiad: outline tolerance µm"
"""Name of the measurement of an outline's maximum distance from the pixels' edges."""

CLASS_NAME = "Anomaly"
CLASS_COLOUR = (200, 0, 0)
UNASSESSED_NAME = "Not assessed"
UNASSESSED_COLOUR = (128, 128, 128)
UNSURE_NAME = "Unsure"
UNSURE_COLOUR = (230, 160, 0)

_NAMESPACE = uuid.UUID("b0c0a7d2-5a0f-5f6c-9d53-6a3f0d1c7e02")
_CHUNK = 1024  # tiles whose text is in memory at once
_PER_PX = 100  # QuPath rounds positions to 0.01 px


def write_tiles(windows: WindowScores, path: Path, *, slide: str, bounds: Box) -> int:
    """Write one tile object for each window, with its score and percentile.

    Parameters
    ----------
    windows : WindowScores
        Squares that do not overlap. QuPath draws tiles over each other, so pass the square of
        the stride for each window if windows overlap. Squares are cut at the bounds. A score or
        percentile that is NaN is left out of its tile.
    path : Path
        File to write, whose name ends in ``.geojson`` or ``.geojson.gz``; written atomically.
    slide : str
        Name of the slide. It makes the identifier of a tile, together with the square, so that
        QuPath recognises a tile that was imported before.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.

    Returns
    -------
    int
        Number of tiles written: all except those completely outside the bounds.

    Raises
    ------
    ExportError
        A box or score is not finite, a box is empty, or two boxes are equal.

    Notes
    -----
    Memory use is that of the windows and of a few thousand tiles at a time. Equal windows give
    equal files.
    """
    edges, inside = _edges(windows.boxes, bounds, subject=path.name)
    scores, percentiles = windows.scores[inside], windows.percentiles[inside]
    if np.isinf(scores).any() or np.isinf(percentiles).any():
        raise ExportError("a score or percentile is infinite", subject=path.name)
    texts = _tile_texts(slide, edges, scores=scores, percentiles=percentiles)
    write_features(path, texts, bounds=bounds)
    return len(edges)


def write_lesions(
    regions: Sequence[Region],
    path: Path,
    *,
    slide: str,
    bounds: Box,
    percentiles: Sequence[float] | None = None,
) -> None:
    """Write regions as locked annotations of the class `CLASS_NAME`, strongest first.

    Parameters
    ----------
    regions : sequence of Region
        Regions, in the order of their ranks.
    path : Path
        File to write, whose name ends in ``.geojson`` or ``.geojson.gz``; written atomically.
    slide : str
        Name of the slide; it makes the identifier of an annotation, together with the outline.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.
    percentiles : sequence of float, optional
        Percentile of each region's maximum score among healthy windows, 0 to 100.

    Raises
    ------
    ExportError
        QuPath would not import a region, or the number of percentiles is not that of the regions.
    """
    if percentiles is not None and len(percentiles) != len(regions):
        raise ExportError(
            f"{counted(len(percentiles), 'percentile')} for {counted(len(regions), 'region')}",
            subject=path.name,
        )
    features = []
    for rank, region in enumerate(regions):
        extra = {} if percentiles is None else {"wsiad: percentile": percentiles[rank]}
        features.append(_lesion(slide, region, rank=rank + 1, bounds=bounds, extra=extra))
    _write_annotations(features, path, bounds)


def write_unassessed(
    regions: Iterable[tuple[str, Region]], path: Path, *, slide: str, bounds: Box
) -> None:
    """Write parts that were not assessed as locked annotations of the class `UNASSESSED_NAME`.

    Parameters
    ----------
    regions : iterable of (str, Region)
        Reason and outline of each part.
    path : Path
        File to write, whose name ends in ``.geojson`` or ``.geojson.gz``; written atomically.
    slide : str
        Name of the slide; it makes the identifier of an annotation, together with reason and
        outline.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.

    Raises
    ------
    ExportError
        QuPath would not import a region.
    """
    features = []
    for reason, region in regions:
        features.append(
            _annotation(
                _rings(region, bounds),
                kind=f"{slide}/unassessed/{reason}",
                name=f"not assessed: {reason}",
                class_name=UNASSESSED_NAME,
                colour=UNASSESSED_COLOUR,
                measurements={"wsiad: area µm^2": region.area},
            )
        )
    _write_annotations(features, path, bounds)


def write_suggestions(
    windows: Sequence[tuple[int, tuple[float, float, float, float], float, float]],
    path: Path,
    *,
    slide: str,
    bounds: Box,
) -> None:
    """Write windows to label as annotations of the class `UNSURE_NAME`, whose class can be changed.

    Parameters
    ----------
    windows : sequence of (int, tuple of float, float, float)
        Rank, rectangle (x, y, width, height, level-0 pixels), score and percentile of each.
    path : Path
        File to write, whose name ends in ``.geojson`` or ``.geojson.gz``; written atomically.
    slide : str
        Name of the slide; it makes the identifier of an annotation, together with the rectangle.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.

    Raises
    ------
    ExportError
        QuPath would not import a window.
    """
    features = []
    for rank, (x, y, width, height), score, percentile in windows:
        square = shapely.box(x, y, x + width, y + height)
        feature = _annotation(
            _polygon_rings(square, bounds),
            kind=f"{slide}/suggestion",
            name=f"wsiad label {rank}",
            class_name=UNSURE_NAME,
            colour=UNSURE_COLOUR,
            measurements={
                "wsiad: score": score,
                "wsiad: percentile": percentile,
                "wsiad: rank": rank,
            },
        )
        feature["properties"]["isLocked"] = False
        features.append(feature)
    _write_annotations(features, path, bounds)


def _edges(
    boxes: npt.NDArray[np.float64], bounds: Box, *, subject: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return left, top, right, bottom in hundredths of QuPath's pixels, and the boxes kept."""
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
        raise ExportError("a window is empty or not finite", subject=subject)
    corner = np.array([bounds.x, bounds.y, bounds.x, bounds.y])
    edges = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]) - corner
    ends = np.floor(np.array([bounds.width, bounds.height] * 2) * _PER_PX)
    whole = np.clip(np.rint(edges * _PER_PX), 0, ends).astype(np.int64)
    inside = (whole[:, 2] > whole[:, 0]) & (whole[:, 3] > whole[:, 1])
    kept = whole[inside]
    if len(np.unique(kept, axis=0)) != len(kept):
        raise ExportError("two windows are the same", subject=subject)
    return kept, inside


def _tile_texts(
    slide: str,
    edges: npt.NDArray[np.int64],
    *,
    scores: npt.NDArray[np.float32],
    percentiles: npt.NDArray[np.float32],
) -> Iterator[list[str]]:
    """Yield lists of features as JSON text, equal to that of json.dumps, but faster."""
    for start in range(0, len(edges), _CHUNK):
        part = slice(start, start + _CHUNK)
        # NumPy writes the shortest text that reads back as the same float32.
        rows = zip(
            edges[part].tolist(),
            scores[part].astype(np.str_).tolist(),
            percentiles[part].astype(np.str_).tolist(),
            strict=True,
        )
        yield [
            _tile_text(slide, edge, score=score, percentile=percentile)
            for edge, score, percentile in rows
        ]


def _tile_text(slide: str, edge: list[int], *, score: str, percentile: str) -> str:
    left, top, right, bottom = (_px(value) for value in edge)
    identifier = uuid.uuid5(_NAMESPACE, f"{slide}/tile/{left},{top},{right},{bottom}")
    named = (("wsiad: score", score), ("wsiad: percentile", percentile))
    measurements = ",".join(f'"{name}":{value}' for name, value in named if value != "nan")
    return (
        f'{{"type":"Feature","id":"{identifier}","geometry":{{"type":"Polygon","coordinates":'
        f"[[[{left},{top}],[{right},{top}],[{right},{bottom}],[{left},{bottom}],[{left},{top}]]]}},"
        f'"properties":{{"objectType":"tile","measurements":{{{measurements}}}}}}}'
    )


def _px(hundredths: int) -> float:
    """Convert hundredths to pixels; whole numbers remain whole, which keeps the file small."""
    whole, rest = divmod(hundredths, _PER_PX)
    return hundredths / _PER_PX if rest else whole


def _lesion(
    slide: str, region: Region, *, rank: int, bounds: Box, extra: Mapping[str, float]
) -> dict[str, Any]:
    return _annotation(
        _rings(region, bounds),
        kind=f"{slide}/lesion",
        name=f"wsiad {rank}",
        class_name=CLASS_NAME,
        colour=CLASS_COLOUR,
        measurements={
            SCORE: region.max_score,
            "wsiad: mean score": region.mean_score,
            **extra,
            **({} if region.scale_um is None else {"wsiad: neighbourhood µm": region.scale_um}),
            "wsiad: area µm^2": region.area,
            "wsiad: rank": rank,
            TOLERANCE: region.tolerance,
        },
    )


def _write_annotations(features: Sequence[dict[str, Any]], path: Path, bounds: Box) -> None:
    if len({feature["id"] for feature in features}) != len(features):
        raise ExportError("two regions have the same identifier", subject=path.name)
    write_features(path, iter([[_dumps(feature) for feature in features]]), bounds=bounds)


def _annotation(
    rings: list[list[list[float]]],
    *,
    kind: str,
    name: str,
    class_name: str,
    colour: tuple[int, int, int],
    measurements: Mapping[str, float],
) -> dict[str, Any]:
    """Return a locked annotation; `kind` and the outline make its identifier."""
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{kind}/{_dumps(rings)}")),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": class_name, "color": list(colour)},
            "isLocked": True,
            "measurements": measurements,
        },
    }


def _rings(region: Region, bounds: Box) -> list[list[list[float]]]:
    """Return outline and holes of a region in QuPath's pixels."""
    return _polygon_rings(region.polygon, bounds)


def _polygon_rings(polygon: shapely.Polygon, bounds: Box) -> list[list[list[float]]]:
    ends = np.floor(np.array([bounds.width, bounds.height]) * _PER_PX)
    rings = []
    for ring in (polygon.exterior, *polygon.interiors):
        moved = shapely.get_coordinates(ring) - (bounds.x, bounds.y)
        if not np.isfinite(moved).all():
            raise ExportError("a region has a position that is not finite")
        whole = np.clip(np.rint(moved * _PER_PX), 0, ends).astype(np.int64)
        rings.append([[_px(x), _px(y)] for x, y in whole.tolist()])
    rounded = shapely.Polygon(rings[0], rings[1:])
    if not rounded.is_valid or rounded.area == 0:
        raise ExportError("a region is not a valid polygon within the slide")
    return rings


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:
        raise ExportError("a number is not finite") from error


def add_measurements(path: Path, measurements: Sequence[Mapping[str, float]]) -> None:
    """Add measurements to the annotations of a GeoJSON file, or replace those of the same names.

    Parameters
    ----------
    path : Path
        Feature collection that :func:`wsiad.exports.qupath.write_lesions` wrote; it is written
        again atomically, and only the measurements change.
    measurements : sequence of mapping of str to float
        Measurements of each annotation, in the order of the file.

    Raises
    ------
    ExportError
        The file is missing or damaged, has another number of annotations, or a value is
        not a finite number.
    """
    if not all(math.isfinite(value) for each in measurements for value in each.values()):
        raise ExportError("a measurement is not a finite number", subject=str(path))
    try:
        collection = parse_json(read_text(path))
        features = collection.pop("features")
        known = [feature["properties"]["measurements"] for feature in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(
            f"does not hold regions as wsiad writes them: {error}",
            subject=str(path),
            remedy="Delete the slide's folder and run wsiad heatmap again.",
        ) from error
    if len(known) != len(measurements):
        raise ExportError(
            f"holds {counted(len(known), 'region')}, but there are measurements of "
            f"{len(measurements)}",
            subject=str(path),
            remedy="Delete the slide's folder and run wsiad heatmap again.",
        )
    for feature, there, new in zip(features, known, measurements, strict=True):
        feature["properties"]["measurements"] = {**there, **new}
    head = json.dumps(collection, ensure_ascii=False, separators=(",", ":"))[:-1]
    texts = [json.dumps(f, ensure_ascii=False, separators=(",", ":")) for f in features]
    body = "".join(f"{',' if number else ''}\n{text}" for number, text in enumerate(texts))
    write_text(path, f'{head},"features":[{body}\n]}}\n')


class QuPath(ExportFormat):
    """Format of QuPath: the heatmap as tiles with their scores; `wsiad` also writes a project."""

    name = "qupath"
    summary = "QuPath: the heatmap as tiles, and a project of all slides"

    def files(self, slide: str) -> tuple[str, ...]:
        """Return the name of the file of tiles."""
        del slide
        return ("tiles.geojson.gz",)

    def write(self, folder: Path, findings: Findings) -> None:
        """Write the scored pixels of the heatmap as tiles."""
        heatmap = findings.heatmap
        path = folder / self.files(heatmap.slide)[0]
        write_tiles(findings.pixels(), path, slide=heatmap.slide, bounds=heatmap.bounds)
