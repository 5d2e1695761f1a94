"""Judgements of reviewers on regions: one GeoJSON file for each slide, beside the results.

The file is what QuPath imports and what every reader of outlines takes: a judged region has the
class ``Tumor`` if it was accepted, ``Normal`` if it was rejected, and ``Disputed`` if reviewers
disagree. Who judged, when, and with which words stands in its metadata, which QuPath keeps. A
region is identified by its slide and outline, so that regions can be derived again.
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.annotations import Role, role_of
from wsiad.annotations.geojson_outlines import MEMBER
from wsiad.core.errors import InputError
from wsiad.core.files import parse_json, read_json, write_text
from wsiad.core.ownership import locked
from wsiad.core.typed_files import checked
from wsiad.results import file_names as names
from wsiad.results.outline_shapes import OutlinedShape
from wsiad.results.records import Record
from wsiad.results.slide_results import SlideResults

Verdict = Literal["accepted", "rejected", ""]
"""Opinion of a reviewer on a region; empty for a comment alone."""

DISPUTED = "disputed"
"""Verdict on a region of which reviewers disagree."""

MOST_COMMENT = 2_000
MOST_REVIEWER = 80
MOST_JUDGED = 10_000
"""Maximum number of judged regions of a slide."""

QUPATH = "QuPath"
"""Reviewer of a region whose class was changed in the file by another program."""

_SAME = 0.5
_KEY = "wsiad judgements"
_DESCRIPTION = "ANNOTATION_DESCRIPTION"  # where QuPath keeps the words on an annotation
_NAMESPACE = uuid.UUID("6b3b8d38-0a2e-5b53-9c0e-6f0b9a6d1e17")
_REMEDY = "Correct the file, or move it away: judgements in it would be lost."
_CLASSES = {
    "accepted": {"name": "Tumor", "color": [200, 0, 0]},
    "rejected": {"name": "Normal", "color": [0, 130, 60]},
    DISPUTED: {"name": "Disputed", "color": [230, 160, 0]},
}


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Judgement(Record):
    """Opinion of one reviewer on a region, with words and time."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    reviewer: Annotated[
        str,
        pydantic.Field(strict=True, min_length=1, max_length=MOST_REVIEWER),
        pydantic.AfterValidator(_one_line),
        pydantic.Field(min_length=1),
    ]
    """Name of the reviewer."""
    verdict: Verdict = ""
    comment: Annotated[
        str,
        pydantic.Field(strict=True, max_length=MOST_COMMENT),
        pydantic.AfterValidator(_one_line),
    ] = ""
    """Words of the reviewer, one line."""
    time: Annotated[str, pydantic.Field(strict=True, max_length=40)] = ""
    """Time of the judgement, UTC."""

    @property
    def says_something(self) -> bool:
        """True unless there is neither verdict nor comment."""
        return bool(self.verdict or self.comment)


_JUDGEMENTS = pydantic.TypeAdapter(tuple[Judgement, ...])


@dataclass(frozen=True, eq=False)
class JudgedRegion:
    """Region that somebody judged.

    Parameters
    ----------
    id : str
        Identifier, which follows from slide and outline.
    rings : list of list of (float, float)
        Outer rings and holes, level-0 pixels.
    judgements : tuple of Judgement
        The latest judgement of each reviewer, in the order of their names.
    """

    id: str
    rings: list[list[tuple[float, float]]]
    judgements: tuple[Judgement, ...]

    @property
    def verdict(self) -> str:
        """``accepted``, ``rejected`` or ``disputed``; empty if there are only comments."""
        said = {one.verdict for one in self.judgements if one.verdict}
        return DISPUTED if len(said) > 1 else next(iter(said), "")

    @functools.cached_property
    def area(self) -> BaseGeometry:
        """Area of the region, level-0 pixels."""
        return _area(self.rings)

    def by(self, reviewer: str) -> Judgement | None:
        """Return the judgement of a reviewer; ``None`` without one."""
        return next((one for one in self.judgements if one.reviewer == reviewer), None)


def _area(rings: Sequence[Sequence[tuple[float, float]]]) -> BaseGeometry:
    polygons = [shapely.Polygon(ring) for ring in rings if len(ring) > 2]
    whole: BaseGeometry = shapely.Polygon()
    for polygon in polygons:  # even-odd: a ring in another is a hole
        whole = whole.symmetric_difference(shapely.make_valid(polygon))
    return whole


def region_id(slide: str, shape: OutlinedShape) -> str:
    """Return the identifier of a region: that of its outline in QuPath, if the file has one."""
    return shape.id or str(uuid.uuid5(_NAMESPACE, f"{slide}/{json.dumps(shape.rings)}"))


@dataclass(frozen=True, slots=True)
class _File:
    """Features of a file as they are, and the origin from which its positions count."""

    features: list[dict[str, Any]]
    origin: tuple[float, float]


class SlideReview:
    """Review of a slide of a results folder.

    Parameters
    ----------
    slide : SlideResults
        Results of the slide.
    """

    def __init__(self, slide: SlideResults) -> None:
        self._slide = slide
        self.path = slide.results / names.REVIEWS / f"{slide.name}.geojson"

    def regions(self) -> list[JudgedRegion]:
        """Read the regions that were judged, in the order in which they first were.

        Regions whose class another program changed have a judgement of :data:`QUPATH`. Outlines
        that are no areas, or that were drawn without a class, are passed over.

        Raises
        ------
        InputError
            The file is damaged, or is that of another slide of this name.
        """
        there = self._read()
        found = (_judged(feature, there.origin) for feature in there.features)
        return [region for region in found if region is not None]

    def judge(
        self, region: str, judgement: Judgement, *, now: datetime | None = None
    ) -> tuple[JudgedRegion | None, Judgement | None]:
        """Store what a reviewer says of a region, in place of what the reviewer said before.

        Other processes can do the same at the same time. A judgement that says nothing withdraws
        the reviewer's earlier one; a region without any judgement leaves the file.

        Parameters
        ----------
        region : str
            Identifier of a region of the slide, or of one that was judged.
        judgement : Judgement
            What the reviewer says; its time is set here.
        now : datetime, optional
            Time of the judgement.

        Returns
        -------
        JudgedRegion or None
            The region as it is stored now; ``None`` if nobody judges it any more.
        Judgement or None
            What the same reviewer said before.

        Raises
        ------
        InputError
            There is no such region (any more), or the file is damaged or of another slide.
        OSError
            The file cannot be written.
        """
        time = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        judgement = judgement.model_copy(update={"time": time})
        with locked(self.path.parent / f".{self.path.name}.lock"):
            there = self._read()
            number, known = self._place(region, there)
            before = known.by(judgement.reviewer)
            others = [one for one in known.judgements if one.reviewer != judgement.reviewer]
            kept = [*others, judgement] if judgement.says_something else others
            known = replace(known, judgements=tuple(sorted(kept, key=lambda one: one.reviewer)))
            features = list(there.features)
            if not known.judgements:
                if number is not None:
                    del features[number]
            elif number is not None:
                features[number] = _changed(features[number], known)
            else:
                if len(features) >= MOST_JUDGED:
                    raise InputError(
                        f"holds {MOST_JUDGED} regions, and takes no more", subject=str(self.path)
                    )
                features.append(self._feature(known, there.origin))
            self._write(replace(there, features=features))
        return (known if known.judgements else None), before

    def _place(self, region: str, there: _File) -> tuple[int | None, JudgedRegion]:
        """Return the number of a region's feature, if it has one, and the region."""
        judged = {
            number: found
            for number, feature in enumerate(there.features)
            if (found := _judged(feature, there.origin, also_silent=True)) is not None
        }
        for number, found in judged.items():
            if found.id == region:
                return number, found
        for shape in self._slide.outlines():
            if region_id(self._slide.name, shape) == region:
                new = JudgedRegion(region, shape.rings, ())
                same = same_region(new, list(judged.values()))
                at = next((n for n, one in judged.items() if one is same), None)
                return (at, judged[at]) if at is not None else (None, new)
        raise InputError(
            "has no such region any more: its regions were derived again",
            subject=self._slide.name,
            remedy="Load the page again.",
        )

    def _feature(self, region: JudgedRegion, origin: tuple[float, float]) -> dict[str, Any]:
        shape = next(
            one for one in self._slide.outlines() if region_id(self._slide.name, one) == region.id
        )
        left, top = origin
        rings = [[[round(x - left, 2), round(y - top, 2)] for x, y in ring] for ring in shape.rings]
        feature = {
            "type": "Feature",
            "id": region.id,
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "name": shape.name,
                "isLocked": False,
                "measurements": shape.measurements,
            },
        }
        return _changed(feature, region)

    def _read(self) -> _File:
        bounds = self._slide.bounds()
        corner = (bounds.x, bounds.y) if bounds else (0.0, 0.0)
        if not self.path.exists():
            return _File([], corner)
        values = read_json(self.path, InputError, remedy=_REMEDY)
        found = checked(_Collection, values, self.path, InputError, remedy=_REMEDY)
        about = found.about
        if about.fingerprint and about.fingerprint != self._slide.fingerprint():
            raise InputError(
                "is a review of another slide of this name",
                subject=str(self.path),
                remedy="Move it away, or rename one of the slides.",
            )
        return _File(found.features, about.origin or corner)

    def _write(self, content: _File) -> None:
        if not content.features:
            self.path.unlink(missing_ok=True)
            return
        about = {"origin": list(content.origin), "fingerprint": self._slide.fingerprint()}
        head = _dumps({"type": "FeatureCollection", MEMBER: about})[:-1]
        body = ",\n".join(_dumps(feature) for feature in content.features)
        write_text(self.path, f'{head},"features":[\n{body}\n]}}\n')


class _About(Record):
    origin: tuple[float, float] | None = None
    fingerprint: str = ""


class _Collection(Record):
    type: Literal["FeatureCollection"]
    features: Annotated[list[dict[str, Any]], pydantic.Field(max_length=10 * MOST_JUDGED)]
    about: Annotated[_About, pydantic.Field(alias=MEMBER)] = _About()


_Ring = Annotated[
    list[Annotated[list[float], pydantic.Field(min_length=2)]], pydantic.Field(min_length=3)
]


class _Polygon(Record):
    type: Literal["Polygon"]
    coordinates: list[_Ring]


class _Polygons(Record):
    type: Literal["MultiPolygon"]
    coordinates: list[list[_Ring]]


class _Properties(Record):
    classification: Any = None
    metadata: dict[str, Any] = pydantic.Field(default_factory=dict)


class _Feature(Record):
    id: Any = None
    geometry: Annotated[_Polygon | _Polygons, pydantic.Field(discriminator="type")]
    properties: _Properties

    @property
    def rings(self) -> list[list[list[float]]]:
        """Outer rings and holes, pixels from the file's origin."""
        if isinstance(self.geometry, _Polygon):
            return self.geometry.coordinates
        return [ring for polygon in self.geometry.coordinates for ring in polygon]

    @property
    def verdict(self) -> str:
        """Verdict that the class of the feature stands for."""
        value = self.properties.classification
        name = value.get("name") if isinstance(value, dict) else value
        if not isinstance(name, str):
            return ""
        said: dict[Role | None, str] = {Role.TUMOUR: "accepted", Role.CUT_OUT: "rejected"}
        return DISPUTED if name.casefold() == DISPUTED else said.get(role_of(name), "")


def _judged(
    feature: dict[str, Any], origin: tuple[float, float], *, also_silent: bool = False
) -> JudgedRegion | None:
    """Return the region of a feature; ``None`` for one without an area or a judgement."""
    try:
        found = _Feature.model_validate(feature)
        told = parse_json(str(found.properties.metadata.get(_KEY, "[]")))
        judgements = _JUDGEMENTS.validate_python(told)
    except ValueError:
        return None  # drawn by others; it stays as it is
    left, top = origin
    rings = [[(point[0] + left, point[1] + top) for point in ring] for ring in found.rings]
    region = JudgedRegion(str(found.id or uuid.uuid5(_NAMESPACE, repr(rings))), rings, judgements)
    if found.verdict in ("accepted", "rejected") and found.verdict != region.verdict:
        others = [one for one in judgements if one.reviewer != QUPATH]
        changed = Judgement.model_validate({"reviewer": QUPATH, "verdict": found.verdict})
        region = replace(region, judgements=(*others, changed))
    return region if region.judgements or also_silent else None


def _changed(feature: dict[str, Any], region: JudgedRegion) -> dict[str, Any]:
    """Return a feature with the judgements of a region, and the class that follows from them."""
    properties = {**feature["properties"]}
    properties.pop("classification", None)
    if region.verdict:
        properties["classification"] = _CLASSES[region.verdict]
    told = [one.model_dump() for one in region.judgements]
    words = [
        f"{one.verdict or 'commented'} by {one.reviewer}" + f": {one.comment}" * bool(one.comment)
        for one in region.judgements
    ]
    properties["metadata"] = {
        **(properties.get("metadata") or {}),
        _KEY: _dumps(told),
        _DESCRIPTION: "; ".join(words),
    }
    return {**feature, "id": region.id, "properties": properties}


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def same_region(region: JudgedRegion, judged: Sequence[JudgedRegion]) -> JudgedRegion | None:
    """Return the judged region that is the same as another one; ``None`` if there is none.

    It has the same identifier, or else the largest share of its area, at least half of what both
    cover together, in common.
    """
    for one in judged:
        if one.id == region.id:
            return one
    area, best, share = region.area, None, _SAME
    for one in judged:
        other = one.area
        if not area.intersects(other):
            continue
        common = area.intersection(other).area
        union = area.area + other.area - common
        if union and common / union >= share:
            best, share = one, common / union
    return best


def why_read_only(results: Path) -> str:
    """Return why reviews cannot be written beside results; empty if they can."""
    folder = results / names.REVIEWS
    there = folder if folder.exists() else results
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    return f"{there} cannot be written"
