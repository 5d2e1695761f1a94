"""Read the JSON records of a results folder: origin, slides, heatmaps' positions, judgements."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pydantic

from wsiad.core.errors import InputError, SlideOpenError
from wsiad.core.files import MOST_FACTS, read_json
from wsiad.core.geometry import Box, Mpp, PixelMap, Size, Spacing
from wsiad.core.typed_files import checked, read_record
from wsiad.heatmaps.heatmap_task import HeatmapRow, SlideTask, identity_of
from wsiad.results.file_names import EVALUATION, FACTS, PLACEMENT, SIGNIFICANCE, SLIDE
from wsiad.slides.slide_files import away_problem
from wsiad.slides.slide_table import DAMAGED_THERE

MAKE = "Make one with `wsiad heatmap`."
"""Remedy for a folder without results."""

SCORE_AGAIN = "Delete its folder and run wsiad heatmap again."
"""Remedy for a slide whose record is damaged."""

GEOMETRY, LACKING, NOTES = "geometry", "lacking", "notes"
"""Keys of a slide's record: position of its overlay and scale of its windows; true if evidence or
views of regions are missing; notes on its scoring, for the reader."""

_Text = Annotated[str, pydantic.Field(strict=True)]
_Score = Annotated[float, pydantic.Field(strict=True, allow_inf_nan=False)] | None
Number = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=-1e12, le=1e12, strict=True)]
_Length = Annotated[Number, pydantic.Field(gt=0)]
_Pixels = Annotated[int, pydantic.Field(gt=0, strict=True)]
_Byte = Annotated[int, pydantic.Field(ge=0, le=255, strict=True)]


class Record(pydantic.BaseModel):
    """Part of a file; keys that are not read may have any value."""


class _Facts(Record):
    digest: _Text
    run: Annotated[_Text, pydantic.Field(min_length=1)]
    detector: _Text
    versions: dict[str, _Text] = {}
    backends: dict[str, _Text] = {}


class _Row(Record):
    score_max: _Score = None
    score_top_k_mean: _Score = None
    score_scan: _Score = None


class _SlideFacts(Record):
    digest: _Text
    fingerprint: _Text
    row: _Row = _Row()


def results_facts(results: Path) -> dict[str, Any]:
    """Read ``run.json`` of a results folder: the run and the options that made the results.

    Returns
    -------
    dict
        ``digest``, ``run``, ``detector`` and more.

    Raises
    ------
    InputError
        The folder does not hold results, or the record is damaged.
    """
    path = results / FACTS
    if not path.exists():
        raise InputError("does not hold results", subject=str(results), remedy=MAKE)
    remedy = (
        "Run the same wsiad heatmap again: it rewrites the file and keeps the slides whose records "
        f"({SLIDE}) state their digest. Where none does, score into another --out."
    )
    facts = read_json(path, InputError, remedy=remedy)
    if "digest" not in facts and "detector" in facts and "stores" in facts:
        raise InputError("is a run, not a results folder", subject=str(results), remedy=MAKE)
    checked(_Facts, facts, path, InputError, remedy=remedy)
    return facts


def slide_facts(folder: Path) -> dict[str, Any] | None:
    """Read ``slide.json`` of a slide's results; ``None`` if there is no such file.

    Returns
    -------
    dict or None
        ``digest``, ``fingerprint``, ``row`` and more.

    Raises
    ------
    InputError
        The record is damaged.
    """
    path = folder / SLIDE
    if not path.exists():
        return None
    facts = read_json(path, InputError, remedy=SCORE_AGAIN, most=MOST_FACTS)
    checked(_SlideFacts, facts, path, InputError, remedy=SCORE_AGAIN)
    return facts


class Rectangle(Record):
    """Rectangle in level-0 pixels."""

    x: Number
    y: Number
    width: _Length
    height: _Length

    def box(self) -> Box:
        """Return the rectangle as a value of plane geometry."""
        return Box(self.x, self.y, self.width, self.height)


class _Dimensions(Record):
    width: _Pixels
    height: _Pixels

    def size(self) -> Size:
        return Size(self.width, self.height)


class _UmPerPx(Record):
    x: _Length
    y: _Length

    def spacing(self) -> Spacing:
        return Spacing(Mpp(self.x), Mpp(self.y))


class ColourStep(Record):
    """Score on the colour scale, its percentile among healthy windows, and its colour."""

    score: Annotated[float, pydantic.Field(allow_inf_nan=False, strict=True)]
    percentile: Annotated[float, pydantic.Field(ge=0, le=100, strict=True)] | None
    rgba: tuple[_Byte, _Byte, _Byte, _Byte]


class _ColourScale(Record):
    steps: Annotated[list[ColourStep], pydantic.Field(max_length=10_000)]


class HeatmapPlacement(Record):
    """Position of a heatmap on its slide, and meaning of its colours: ``heatmap.json``.

    Parameters
    ----------
    bounds : Rectangle
        Non-empty part of the slide, level-0 pixels.
    level0_rectangle : Rectangle
        Rectangle that the picture of the heatmap covers, level-0 pixels.
    image_size : _Dimensions
        Size of the picture, pixels.
    heatmap_pixels_per_image_pixel : int
        Edge of the blocks that the picture averages, heatmap pixels.
    slide_size : _Dimensions
        Size of level 0, pixels.
    level0_um_per_px : _UmPerPx
        µm per level-0 pixel.
    colour_scale : _ColourScale
        Scores at equal distances on the colour scale.
    """

    bounds: Rectangle
    level0_rectangle: Rectangle
    image_size: _Dimensions
    heatmap_pixels_per_image_pixel: _Pixels
    slide_size: _Dimensions
    level0_um_per_px: _UmPerPx
    colour_scale: _ColourScale


class _Bounds(Record):
    bounds: Rectangle


def heatmap_placement(folder: Path, name: str = PLACEMENT) -> HeatmapPlacement | None:
    """Read the position of a slide's heatmap; ``None`` if there is no such file.

    Parameters
    ----------
    folder : Path
        Folder of the slide's results.
    name : str
        Name of the file: that of the heatmap, or of the map of neighbourhoods.

    Raises
    ------
    InputError
        The record is damaged.
    """
    path = folder / name
    if not path.exists():
        return None
    return read_record(path, HeatmapPlacement, InputError, remedy=SCORE_AGAIN)


def slide_bounds(folder: Path) -> Box | None:
    """Read the bounds of a slide with a heatmap; ``None`` if there is no such file.

    Raises
    ------
    InputError
        The record is damaged.
    """
    path = folder / PLACEMENT
    if not path.exists():
        return None
    return read_record(path, _Bounds, InputError, remedy=SCORE_AGAIN).bounds.box()


def scored_record(task: SlideTask) -> tuple[dict[str, Any], HeatmapRow] | None:
    """Read the record of a slide with complete scores of the same slide, run and options.

    Raises
    ------
    InputError
        The scores are of another slide, or lack parts that the options request.
    SlideOpenError
        The slide's file is not there, or a stub is in its place.
    """
    path = task.folder / SLIDE
    if not path.exists():
        return None
    if not task.from_store and not task.slide.path.exists():
        _check_there(task)
    try:
        record = read_json(path, InputError, remedy=SCORE_AGAIN, most=MOST_FACTS)
        identity = identity_of(task)
        same = {key: record[key] for key in identity} == identity
        row = HeatmapRow(**record["row"])
        sound = isinstance(record[GEOMETRY], dict) and isinstance(record[NOTES], list)
    except (InputError, KeyError, TypeError):
        return None  # not whole: it is made again
    if not sound:
        return None
    if not same:
        _check_there(task)
        raise InputError(
            "has results from another file of this name, or at another µm/px",
            subject=task.slide.name,
            remedy=f"Rename the slide, or delete {task.folder} to score it again.",
        )
    skipped = row.damaged or DAMAGED_THERE in row.reason
    if skipped and task.preparation.damaged_tiles == "fail" and not task.from_store:
        raise InputError(
            "has results without its damaged parts, which --damaged-tiles skip left out",
            subject=task.slide.name,
            remedy=f"Set that option again, or delete {task.folder} to score a better copy.",
        )
    return record, replace(row, label=task.slide.label, split=task.slide.split)


def _check_there(task: SlideTask) -> None:
    """Check that nothing but another slide can be the reason why a slide differs."""
    if not task.from_store and (away := away_problem(task.slide.path)) is not None:
        raise SlideOpenError(
            f"has results, but {away[0]}",
            subject=task.slide.name,
            remedy=f"{away[1]} Then run the same command again, which takes its results as they "
            "are; so does wsiad export, without it.",
        )


def overlay_map(geometry: object) -> PixelMap | None:
    """Return the map from pixels of a slide's overlay to level-0 pixels; ``None`` if it is none.

    Parameters
    ----------
    geometry : object
        Value of `GEOMETRY` in the slide's record.
    """
    numbers = geometry.get("overlay") if isinstance(geometry, dict) else None
    if not isinstance(numbers, list) or len(numbers) != 4:
        return None
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return None
    x, y, scale_x, scale_y = (float(n) for n in numbers)
    return PixelMap(x, y, scale_x, scale_y) if scale_x > 0 and scale_y > 0 else None


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """Read the figures of ``wsiad evaluate``; ``None`` if it was not run.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path, remedy = folder / EVALUATION, "Run wsiad evaluate again, or delete it."
    if not path.exists():
        return None
    from wsiad.results.judged import Evaluation

    return _judged(path, Evaluation, remedy)


def read_significance(results: Path) -> dict[str, Any] | None:
    """Read the p-values of ``wsiad significance``; ``None`` if it was not run.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path, remedy = results / SIGNIFICANCE, "Run wsiad significance again, or delete it."
    if not path.exists():
        return None
    from wsiad.results.judged import Significance

    return _judged(path, Significance, remedy)


def _judged(path: Path, kind: type[pydantic.BaseModel], remedy: str) -> dict[str, Any]:
    values = read_json(path, InputError, remedy=remedy)
    checked(kind, values, path, InputError, remedy=remedy)
    return values
