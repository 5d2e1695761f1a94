"""What there is to look at in a results folder: slides by rank, their files, their regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiad.annotations.geojson import MEMBER
from wsiad.errors import InputError
from wsiad.files import read_json
from wsiad.geometry import Box, Size
from wsiad.heatmaps.colours import HEALTHY_LEVELS

HEATMAP = "heatmap.png"
SCORES = "heatmap.ome.tif"
PICTURE = "tissue.png"
THUMBNAIL = "thumbnail.jpg"

_GEOMETRY = "heatmap.json"
_REGIONS = "lesions.geojson"
_NOT_ASSESSED = "not_assessed.geojson"


@dataclass(frozen=True, slots=True)
class ViewedSlide:
    """A slide of a results folder.

    Parameters
    ----------
    name, status, reason, label : str
        As in the table of the results.
    rank : int or None
        From 1, by the highest score; ``None`` of a slide without one.
    score : float or None
    folder : Path
        Of its results.
    size : Size or None
        Of level 0, pixels; ``None`` of a slide that failed.
    um_per_px : tuple of float, or None
        µm per level-0 pixel, along x and y.
    file : Path or None
        The slide itself, if it is at hand.
    """

    name: str
    status: str
    reason: str
    label: str
    rank: int | None
    score: float | None
    folder: Path
    size: Size | None
    um_per_px: tuple[float, float] | None
    file: Path | None

    def as_json(self) -> dict[str, Any]:
        """Return what the list of slides shows."""
        return {
            "rank": self.rank,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "label": self.label,
            "score": self.score,
            "thumbnail": (self.folder / THUMBNAIL).exists(),
            "viewable": self.size is not None,
        }


def describe(slide: ViewedSlide, *, problem: str, tile_size: int, overlap: int) -> dict[str, Any]:
    """Return all that the page needs of a slide, in level-0 pixels.

    Parameters
    ----------
    slide : ViewedSlide
        With a size.
    problem : str
        Why its own pixels cannot be shown; empty where they can.
    tile_size, overlap : int
        Of the deep-zoom tiles, pixels.

    Raises
    ------
    InputError
        A file of its folder is damaged.
    """
    assert slide.size is not None
    known = _read(slide.folder / _GEOMETRY)
    # Without a heatmap nothing was found that bounds could move.
    bounds = _box(known["bounds"]) if known else Box(0, 0, slide.size.width, slide.size.height)
    return {
        **slide.as_json(),
        "width": slide.size.width,
        "height": slide.size.height,
        "umPerPx": slide.um_per_px,
        "bounds": _rectangle(bounds),
        "problem": problem,
        "tileSize": tile_size,
        "overlap": overlap,
        "heatmap": known and {"rectangle": known["level0_rectangle"], "scale": _scale(known)},
        "regions": list(_shapes(slide.folder / _REGIONS, bounds)),
        "notAssessed": list(_shapes(slide.folder / _NOT_ASSESSED, bounds)),
    }


def _scale(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores at equal distances on the colour scale, and the healthy share below each."""
    steps = known["colour_scale"]["steps"]
    shares: list[float | None] = [*HEALTHY_LEVELS, *([None] * len(steps))]
    return [{**step, "below": share} for step, share in zip(steps, shares, strict=False)]


def _shapes(path: Path, bounds: Box) -> Iterator[dict[str, Any]]:
    """Yield outlines of a GeoJSON file, moved from QuPath's origin to that of level 0."""
    collection = _read(path) or {}
    # Newer files say where they count from; a slide without a heatmap says nothing of bounds.
    left, top = collection.get(MEMBER, {}).get("origin", (bounds.x, bounds.y))
    for feature in collection.get("features", []):
        geometry, properties = feature["geometry"], feature["properties"]
        polygons = geometry["coordinates"]
        if geometry["type"] == "Polygon":
            polygons = [polygons]
        yield {
            "name": properties.get("name", ""),
            "measurements": properties.get("measurements", {}),
            "rings": [
                [[x + left, y + top] for x, y in ring] for polygon in polygons for ring in polygon
            ],
        }


def _box(values: Mapping[str, float]) -> Box:
    return Box(*(values[key] for key in ("x", "y", "width", "height")))


def _rectangle(box: Box) -> dict[str, float]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path, InputError) if path.exists() else None
