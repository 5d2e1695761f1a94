"""Describe the slides of a results folder for the page: rank, files, regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.geometry import Box, Size
from wsiad.heatmaps.heatmap_task import Ranking
from wsiad.pictures.colour_scale import HEALTHY_LEVELS
from wsiad.results import file_names as names
from wsiad.results.outline_shapes import OutlinedShape
from wsiad.results.records import HeatmapPlacement, heatmap_placement
from wsiad.results.reviews import JudgedRegion, SlideReview, region_id, same_region
from wsiad.results.slide_results import SlideResults
from wsiad.slides.slide_table import FAILED


@dataclass(frozen=True, slots=True)
class ViewedSlide:
    """Slide of a results folder, as the page lists it.

    Parameters
    ----------
    results : SlideResults
        Results of the slide.
    rank : int or None
        Rank from 1, by `ranked_by`; ``None`` for a slide without a score.
    file : Path or None
        File of the slide itself, if it is available.
    ranked_by : {"max", "scan"}
        Name of the score that ranks the slides.
    evaluated_label : str
        Label by the last evaluation, which comes before that of the manifest; empty if unknown.
    """

    results: SlideResults
    rank: int | None
    file: Path | None
    ranked_by: Ranking = "max"
    evaluated_label: str = ""

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.results.name

    @property
    def reason(self) -> str:
        """Reason why the slide failed or could not be looked at, or a note for its reader."""
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
        """Return the entry of the slide in the page's list, as JSON values."""
        row = self.results.row
        return {
            "rank": self.rank,
            "name": self.name,
            "status": row.status,
            "reason": row.reason,
            "label": self.evaluated_label or row.label,
            "score": row.score_scan if self.ranked_by == "scan" else row.score_max,
            "rankedBy": self.ranked_by,
            "thumbnail": self.results.file(names.THUMBNAIL) is not None,
            "viewable": self.size is not None,
            "judged": self._judged(),
        }

    def _judged(self) -> int:
        """Return the number of regions with a verdict; 0 where the file cannot be read."""
        try:
            return sum(bool(one.verdict) for one in SlideReview(self.results).regions())
        except WsiadError:
            return 0  # the slide itself says why


def describe(slide: ViewedSlide, *, problem: str, tile_size: int, overlap: int) -> dict[str, Any]:
    """Return everything that the page needs of a slide, in level-0 pixels.

    Parameters
    ----------
    slide : ViewedSlide
        Slide whose size is known.
    problem : str
        Reason why the slide's own pixels cannot be shown; empty if they can.
    tile_size, overlap : int
        Edge and overlap of the deep-zoom tiles, pixels.

    Raises
    ------
    InputError
        A file of the slide's results is damaged.
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
        "heatmap": _map(known),
        "neighbourhoods": _map(heatmap_placement(results.folder, names.SPATIAL_PLACEMENT)),
        "regions": _shapes(results.outlines() if _outlined(results) else ()),
        **reviewed(slide),
        "notAssessed": _shapes(results.not_assessed() if results.file(names.NOT_ASSESSED) else ()),
    }


def reviewed(slide: ViewedSlide) -> dict[str, Any]:
    """Return the review of a slide, as JSON values.

    ``reviews`` has an entry for each region: identifier, verdict and judgements. ``earlier`` are
    judged outlines that are no region (any more). ``reviewProblem`` says why a file cannot be read.
    """
    results = slide.results
    shapes = results.outlines() if _outlined(results) else []
    ids = [region_id(slide.name, shape) for shape in shapes]
    try:
        judged = SlideReview(results).regions()
    except InputError as error:
        nobody = [_judgements(key, None) for key in ids]
        return {"reviews": nobody, "earlier": [], "reviewProblem": str(error)}
    found, used = [], set()
    for key, shape in zip(ids, shapes, strict=True):
        same = same_region(JudgedRegion(key, shape.rings, ()), judged) if judged else None
        used.add(same.id if same else "")
        found.append(_judgements(key, same))
    earlier = [
        {**_judgements(one.id, one), "rings": one.rings} for one in judged if one.id not in used
    ]
    return {"reviews": found, "earlier": earlier, "reviewProblem": ""}


def _judgements(key: str, region: JudgedRegion | None) -> dict[str, Any]:
    return {
        "id": region.id if region else key,
        "verdict": region.verdict if region else "",
        "judgements": [one.model_dump() for one in region.judgements] if region else [],
    }


def _map(known: HeatmapPlacement | None) -> dict[str, Any] | None:
    if known is None:
        return None
    return {"rectangle": _rectangle(known.level0_rectangle.box()), "scale": _scale(known)}


def _outlined(results: SlideResults) -> bool:
    return results.is_scored and results.file(names.OUTLINES) is not None


def _scale(known: HeatmapPlacement) -> list[dict[str, Any]]:
    """Return scores at equal distances on the colour scale, and the healthy share below each."""
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
