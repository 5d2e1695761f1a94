"""Read the outlines of a slide's results in level-0 pixels: regions and unassessed parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from wsiad.annotations.geojson_outlines import MEMBER
from wsiad.annotations.outlines import MAX_BYTES
from wsiad.core.errors import InputError
from wsiad.core.geometry import Box
from wsiad.core.typed_files import read_record
from wsiad.results.records import SCORE_AGAIN, Number, Record

_Ring = Annotated[list[tuple[Number, Number]], pydantic.Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class OutlinedShape:
    """Outline as it was written for QuPath.

    Parameters
    ----------
    name : str
        Name of the outline, such as ``"wsiad 1"`` for the strongest region.
    measurements : dict of str to float
        Measurements that QuPath shows with the outline.
    rings : list of list of (float, float)
        Outer rings and holes, level-0 pixels.
    id : str
        Identifier in QuPath, which follows from slide and outline; empty in a file without any.
    """

    name: str
    measurements: dict[str, float]
    rings: list[list[tuple[float, float]]]
    id: str = ""


class _Polygon(Record):
    type: Literal["Polygon"]
    coordinates: list[_Ring]

    @property
    def rings(self) -> list[_Ring]:
        return self.coordinates


class _Polygons(Record):
    type: Literal["MultiPolygon"]
    coordinates: list[list[_Ring]]

    @property
    def rings(self) -> list[_Ring]:
        return [ring for polygon in self.coordinates for ring in polygon]


class _Properties(Record):
    name: Annotated[str, pydantic.Field(strict=True)] = ""
    measurements: dict[str, Annotated[float, pydantic.Field(allow_inf_nan=False)]] = pydantic.Field(
        default_factory=dict
    )


class _Feature(Record):
    id: str = ""
    geometry: Annotated[_Polygon | _Polygons, pydantic.Field(discriminator="type")]
    properties: _Properties


class _Origin(Record):
    origin: tuple[Number, Number] | None = None


class _Collection(Record):
    type: Literal["FeatureCollection"]
    features: list[_Feature]
    counted_from: Annotated[_Origin, pydantic.Field(alias=MEMBER)] = _Origin()


def read_shapes(path: Path, bounds: Box) -> list[OutlinedShape]:
    """Read the outlines of a GeoJSON file.

    Parameters
    ----------
    path : Path
        GeoJSON file of a slide's results.
    bounds : Box
        Bounds of the slide, level-0 pixels; positions in older files, which do not state their
        origin, are relative to its corner.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    collection = read_record(path, _Collection, InputError, remedy=SCORE_AGAIN, most=MAX_BYTES)
    left, top = collection.counted_from.origin or (bounds.x, bounds.y)
    return [
        OutlinedShape(
            feature.properties.name,
            feature.properties.measurements,
            [[(x + left, y + top) for x, y in ring] for ring in feature.geometry.rings],
            feature.id,
        )
        for feature in collection.features
    ]
