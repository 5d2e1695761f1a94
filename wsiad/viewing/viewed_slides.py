"""The slides of a results folder to look at: by rank, with their files and regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiad.core.geometry import Box, Size
from wsiad.pictures.colours import HEALTHY_LEVELS
from wsiad.results import file_names as names
from wsiad.results.outline_shapes import OutlinedShape
from wsiad.results.records import HeatmapPlacement
from wsiad.results.slide_results import SlideResults
from wsiad.slides.slide_table import FAILED


@dataclass(frozen=True, slots=True)
class ViewedSlide:
    """A slide of a results folder, as the page lists it.

    Parameters
    ----------
    results : SlideResults
    rank : int or None
        Place from 1, by the highest score; ``None`` for a slide without one.
    file : Path or None
        The slide itself, if it is at hand.
    """

    results: SlideResults
    rank: int | None
    file: Path | None

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.results.name

    @property
    def reason(self) -> str:
        """Why it failed or could not be looked at, or what its reader should know."""
        return self.results.row.reason

    @property
    def size(self) -> Size | None:
        """Size of level 0, pixels; ``None`` for a slide that failed."""
        row = self.results.row
        if row.status == FAILED or row.width is None or row.height is None:
            return None
        return Size(row.width, row.height)

    @property
    def um_per_px(self) -> tuple[float, float] | None:
        """µm per level-0 pixel, along x and y."""
        row = self.results.row
        return (row.mpp_x, row.mpp_y) if row.mpp_x and row.mpp_y else None

    def as_json(self) -> dict[str, Any]:
        """Return what the list of slides shows."""
        row = self.results.row
        return {
            "rank": self.rank,
            "name": self.name,
            "status": row.status,
            "reason": row.reason,
            "label": row.label,
            "score": row.score_max,
            "thumbnail": self.results.file(names.THUMBNAIL) is not None,
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
    results = slide.results
    known = results.placement()
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
        "regions": _shapes(results.outlines() if _outlined(results) else ()),
        "notAssessed": _shapes(results.not_assessed() if results.file(names.NOT_ASSESSED) else ()),
    }


def _outlined(results: SlideResults) -> bool:
    return results.is_scored and results.file(names.OUTLINES) is not None


def _scale(known: HeatmapPlacement) -> list[dict[str, Any]]:
    """Scores at equal distances on the colour scale, and the healthy share below each."""
    steps = known.colour_scale.steps
    shares: list[float | None] = [*HEALTHY_LEVELS, *([None] * len(steps))]
    return [
        {**step.model_dump(), "below": share} for step, share in zip(steps, shares, strict=False)
    ]


def _shapes(shapes: Sequence[OutlinedShape]) -> list[dict[str, Any]]:
    return [
        {"name": shape.name, "measurements": shape.measurements, "rings": shape.rings}
        for shape in shapes
    ]


def _rectangle(box: Box) -> dict[str, float]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
