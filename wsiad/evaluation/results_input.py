"""The results folder of ``wsiad heatmap``, as far as evaluation reads it."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import EvaluationError
from wsiad.core.files import read_json
from wsiad.core.geometry import Mpp, Size
from wsiad.evaluation.submission import ScoredSlide, Status
from wsiad.evaluation.table import number, read_rows, slide_name
from wsiad.heatmaps import score_map
from wsiad.heatmaps.score_map import read_scores

SlideScore = Literal["max", "top_k_mean", "percentile"]

HEATMAP = "heatmap.ome.tif"
GEOMETRY = "heatmap.json"
_AGAIN = "Run `wsiad heatmap` on the slide again, or exclude it."

_COLUMNS = ("slide", "status", "reason", "mpp_x", "mpp_y", "width", "height")


def read_results(
    folder: Path, *, score: SlideScore, percentile: float = 99.0, exclude: Collection[str] = ()
) -> dict[str, ScoredSlide]:
    """Read what ``wsiad heatmap`` says of each slide.

    Parameters
    ----------
    folder : Path
        Holds ``slides.csv``.
    score : str
        Which score of a slide is its score; ``"percentile"`` is that of its heatmap pixels.
    percentile : float
        Which one, 0 to 100.
    exclude : collection of str
        Slides of which nothing is read, so that nothing wrong with them is in the way.

    Raises
    ------
    EvaluationError
        ``slides.csv`` is missing or not valid, or lists a slide twice.
    """
    path = folder / "slides.csv"
    rows = read_rows(path)
    columns = rows[0].cells if rows else ()
    given = () if score == "percentile" else (f"score_{score}",)
    missing = [name for name in (*_COLUMNS, *given) if name not in columns]
    if missing:
        raise EvaluationError(
            f"has no column {', '.join(missing)}",
            subject=str(path),
            remedy="Give the folder that `wsiad heatmap` wrote.",
        )
    found: dict[str, ScoredSlide] = {}
    for row in rows[1:]:
        where = f"{path}, row {row.number}"
        if len(row.cells) != len(columns):
            raise EvaluationError("does not have as many fields as the header", subject=where)
        cells = dict(zip(columns, row.cells, strict=True))
        # A name that no folder can have is that of a slide that failed by it.
        failed = cells["status"] == "failed"
        slide = cells["slide"] if failed else slide_name(cells["slide"], subject=where)
        if slide in exclude:
            found[slide] = ScoredSlide(slide, folder / slide, "failed", "excluded")
            continue
        if slide in found:
            raise EvaluationError(
                f"{slide} is listed twice", subject=where, remedy="Keep one of the rows."
            )
        if score == "percentile" and cells["status"] == "ok":
            scores = read_heatmap(folder / slide / HEATMAP, slide)
            value = float(np.percentile(scores[np.isfinite(scores)], percentile))
            cells["score_percentile"] = repr(value)
        found[slide] = _slide(slide, cells, folder, score, where)
    return found


def _slide(
    slide: str, cells: dict[str, str], folder: Path, score: SlideScore, where: str
) -> ScoredSlide:
    status = cells["status"]
    if status not in get_args(Status):
        raise EvaluationError(
            f"the status of {slide} is {status!r}",
            subject=where,
            remedy=f"It is one of: {', '.join(get_args(Status))}.",
        )
    detections = folder / slide / "detections.csv"
    if status != "ok":
        return _unscored(slide, cells, detections)
    mpp_x, mpp_y, width, height = (
        _positive(cells, key, slide, where) for key in ("mpp_x", "mpp_y", "width", "height")
    )
    value = number(cells.get(f"score_{score}", ""))
    if value is None:
        raise EvaluationError(
            f"score_{score} of {slide} is {cells[f'score_{score}']!r}, not a number",
            subject=where,
            remedy="Run `wsiad heatmap` on the slide again, or exclude it.",
        )
    return ScoredSlide(
        slide,
        detections,
        "ok",
        cells["reason"],
        value,
        Size(int(width), int(height)),
        Mpp((mpp_x + mpp_y) / 2),
        folder / slide / "windows.npy",
        _bounds(folder / slide / GEOMETRY),
    )


def _unscored(slide: str, cells: dict[str, str], detections: Path) -> ScoredSlide:
    """Return a slide without a score; of some not even the size is known."""
    mpp_x, mpp_y, width, height = (
        number(cells[key]) or 0 for key in ("mpp_x", "mpp_y", "width", "height")
    )
    return ScoredSlide(
        slide,
        detections,
        cast(Status, cells["status"]),
        cells["reason"],
        size=Size(int(width), int(height)) if min(width, height) >= 1 else None,
        mpp=Mpp((mpp_x + mpp_y) / 2) if min(mpp_x, mpp_y) > 0 else None,
    )


def _bounds(path: Path) -> tuple[float, float] | None:
    """Corner of a slide's bounds; ``None`` where nothing was found that has a place on it."""
    if not path.exists():
        return None
    bounds = read_json(path, EvaluationError, remedy=_AGAIN).get("bounds")
    x, y = (bounds.get(key) if isinstance(bounds, dict) else None for key in ("x", "y"))
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (x, y)):
        raise EvaluationError("does not state the slide's bounds", subject=str(path), remedy=_AGAIN)
    return float(cast(float, x)), float(cast(float, y))


def _positive(cells: dict[str, str], key: str, slide: str, where: str) -> float:
    value = number(cells[key])
    if value is None or value <= 0:
        raise EvaluationError(
            f"{key} of {slide} is {cells[key]!r}, not above 0",
            subject=where,
            remedy="Run `wsiad heatmap` on the slide again, or exclude it.",
        )
    return value


def read_windows(path: Path, slide: str) -> npt.NDArray[Any]:
    """Open the scored windows of a slide; see :func:`wsiad.heatmaps.score_map.read_windows`."""
    return score_map.read_windows(path, slide, EvaluationError, remedy=_AGAIN)


def read_heatmap(path: Path, slide: str) -> npt.NDArray[np.float32]:
    """Read the heatmap of a slide.

    Returns
    -------
    ndarray of float32, (H, W)
        Anomaly scores; NaN where none was scored, not everywhere.

    Raises
    ------
    EvaluationError
        The file is missing or no such image, is too large, or holds no score.
    """
    scores = read_scores(path, EvaluationError, remedy=_AGAIN)
    if not np.isfinite(scores).any():
        raise EvaluationError(f"{path} holds no score", subject=slide, remedy=_AGAIN)
    return scores
