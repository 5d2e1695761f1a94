"""What there is to look at in a results folder: slides by rank, their files, their regions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from wsiad.annotations.geojson_outlines import MEMBER
from wsiad.core.errors import InputError
from wsiad.core.files import read_json
from wsiad.core.geometry import Box, Size
from wsiad.pictures.colours import HEALTHY_LEVELS
from wsiad.viewing.deep_zoom import SCORE_AGAIN

HEATMAP = "heatmap.png"
SCORES = "heatmap.ome.tif"
PICTURE = "tissue.png"
THUMBNAIL = "thumbnail.jpg"

_GEOMETRY = "heatmap.json"
_REGIONS = "lesions.geojson"
_NOT_ASSESSED = "not_assessed.geojson"


_Number = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=-1e12, le=1e12, strict=True)]
_Byte = Annotated[int, pydantic.Field(ge=0, le=255, strict=True)]
_Ring = Annotated[list[tuple[_Number, _Number]], pydantic.Field(min_length=1)]


class _Value(pydantic.BaseModel):
    """Part of a file; keys that are not looked at may be anything."""


class _Rectangle(_Value):
    x: _Number
    y: _Number
    width: Annotated[_Number, pydantic.Field(gt=0)]
    height: Annotated[_Number, pydantic.Field(gt=0)]

    def box(self) -> Box:
        return Box(self.x, self.y, self.width, self.height)


class _Step(_Value):
    score: Annotated[float, pydantic.Field(allow_inf_nan=False, strict=True)]
    percentile: Annotated[float, pydantic.Field(ge=0, le=100, strict=True)] | None
    rgba: tuple[_Byte, _Byte, _Byte, _Byte]


class _ColourScale(_Value):
    steps: Annotated[list[_Step], pydantic.Field(max_length=10_000)]


class _Geometry(_Value):
    bounds: _Rectangle
    level0_rectangle: _Rectangle
    colour_scale: _ColourScale


class _Polygon(_Value):
    type: Literal["Polygon"]
    coordinates: list[_Ring]

    @property
    def rings(self) -> list[_Ring]:
        return self.coordinates


class _Polygons(_Value):
    type: Literal["MultiPolygon"]
    coordinates: list[list[_Ring]]

    @property
    def rings(self) -> list[_Ring]:
        return [ring for polygon in self.coordinates for ring in polygon]


class _Properties(_Value):
    name: Annotated[str, pydantic.Field(strict=True)] = ""
    measurements: dict[str, Annotated[float, pydantic.Field(allow_inf_nan=False)]] = {}


class _Feature(_Value):
    geometry: Annotated[_Polygon | _Polygons, pydantic.Field(discriminator="type")]
    properties: _Properties


class _Origin(_Value):
    origin: tuple[_Number, _Number] | None = None


class _Collection(_Value):
    type: Literal["FeatureCollection"]
    features: list[_Feature]
    counted_from: Annotated[_Origin, pydantic.Field(alias=MEMBER)] = _Origin()

    @property
    def origin(self) -> tuple[float, float] | None:
        return self.counted_from.origin


M = TypeVar("M", bound=_Value)


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
    known = _checked(slide.folder / _GEOMETRY, _Geometry)
    # Without a heatmap nothing was found that bounds could move.
    bounds = known.bounds.box() if known else Box(0, 0, slide.size.width, slide.size.height)
    return {
        **slide.as_json(),
        "width": slide.size.width,
        "height": slide.size.height,
        "umPerPx": slide.um_per_px,
        "bounds": _rectangle(bounds),
        "problem": problem,
        "tileSize": tile_size,
        "overlap": overlap,
        "heatmap": known
        and {"rectangle": _rectangle(known.level0_rectangle.box()), "scale": _scale(known)},
        "regions": list(_shapes(slide.folder / _REGIONS, bounds)),
        "notAssessed": list(_shapes(slide.folder / _NOT_ASSESSED, bounds)),
    }


def _scale(known: _Geometry) -> list[dict[str, Any]]:
    """Scores at equal distances on the colour scale, and the healthy share below each."""
    steps = known.colour_scale.steps
    shares: list[float | None] = [*HEALTHY_LEVELS, *([None] * len(steps))]
    return [
        {**step.model_dump(), "below": share} for step, share in zip(steps, shares, strict=False)
    ]


def _shapes(path: Path, bounds: Box) -> Iterator[dict[str, Any]]:
    """Yield outlines of a GeoJSON file, moved from QuPath's origin to that of level 0."""
    collection = _checked(path, _Collection)
    if collection is None:
        return
    # Newer files say where they count from; a slide without a heatmap says nothing of bounds.
    left, top = collection.origin or (bounds.x, bounds.y)
    for feature in collection.features:
        yield {
            "name": feature.properties.name,
            "measurements": feature.properties.measurements,
            "rings": [[[x + left, y + top] for x, y in ring] for ring in feature.geometry.rings],
        }


def _rectangle(box: Box) -> dict[str, float]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}


def _checked(path: Path, kind: type[M]) -> M | None:
    """Read a JSON file of a slide's results; ``None`` if there is none."""
    if not path.exists():
        return None
    values = read_json(path, InputError, remedy=SCORE_AGAIN)
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"is damaged: {where}: {first['msg']}", subject=str(path), remedy=SCORE_AGAIN
        ) from None
