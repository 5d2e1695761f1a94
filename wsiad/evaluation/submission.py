"""Read detections from files in the two formats of CAMELYON16 submissions.

A submission has one CSV per slide, named after the slide. Its rows are confidence, x and y in
level-0 pixels, without a header (2016) or with one (``p,x,y``; ``confidence,x,y``). A file
without rows is a slide without detections; a missing file is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiad.core import csv_file
from wsiad.core.csv_file import Row
from wsiad.core.errors import EvaluationError, InputError
from wsiad.core.files import checked_slide_name, real_path
from wsiad.core.geometry import Mpp, Size
from wsiad.evaluation.matching import Detections
from wsiad.heatmaps.score_map import Heatmap, read_windows
from wsiad.slides.slide_files import SUFFIXES

_HEADERS = {
    **dict.fromkeys(("confidence", "p", "probability", "prob", "score"), "confidence"),
    **dict.fromkeys(("x", "x_coord", "x coordinate"), "x"),
    **dict.fromkeys(("y", "y_coord", "y coordinate"), "y"),
}
_FIELDS = ("confidence", "x", "y")

_LONGEST = 4096
"""Maximum bytes of a part of a slide's name."""

Status = Literal["ok", "no-tissue", "unusable", "failed"]

StoredScore = Literal["max", "top_k_mean", "scan"]
"""Scores of a slide that its row in ``slides.csv`` has."""

SlideScore = Literal["max", "top_k_mean", "scan", "percentile"]
"""Scores of ``wsiad heatmap`` that can serve as the score of a slide."""

AskedScore = Literal["auto", "max", "top_k_mean", "scan", "percentile"]
"""Choices of a slide's score; ``"auto"`` is the scan score where all slides have one."""

SCAN_AGAIN = "Derive it with wsiad export --scales-um 100 200, or choose another score."
"""Remedy that errors state for results without scan scores."""

SCORE_AGAIN = "Run `wsiad heatmap` on the slide again, or exclude it."
"""Remedy that errors state for a slide with damaged results."""


@dataclass(frozen=True, slots=True)
class ScoredSlide:
    """Findings of a submission, or of ``wsiad heatmap``, on a slide.

    Parameters
    ----------
    slide : str
        Name of the slide.
    detections : Path
        CSV of the detections.
    status : str
        ``"ok"``; ``"no-tissue"`` for a slide that was seen and has nothing to score;
        ``"unusable"`` for a slide that could not be looked at; ``"failed"``. Only a slide with
        ``"ok"`` has a score.
    reason : str
        Reason why the slide has no score.
    score : float or None
        Anomaly score of the slide; ``None`` where there is none, or where the highest confidence
        is the score.
    size : Size or None
        Size of level 0, pixels, if known.
    mpp : Mpp or None
        µm per level-0 pixel, if known.
    windows : Path or None
        File of the scored windows, if there are any.
    bounds : (float, float) or None
        Top-left corner of the slide's bounds, level-0 pixels, if known.
    neighbourhoods : callable, optional
        Function that reads the map of neighbourhoods; it returns ``None`` where there is none.
    """

    slide: str
    detections: Path
    status: Status = "ok"
    reason: str = ""
    score: float | None = None
    size: Size | None = None
    mpp: Mpp | None = None
    windows: Path | None = None
    bounds: tuple[float, float] | None = None
    neighbourhoods: Callable[[], Heatmap | None] | None = None

    def read_windows(self) -> npt.NDArray[Any] | None:
        """Open the scored windows, memory-mapped; ``None`` where there are none.

        Returns
        -------
        structured ndarray, (N,), or None
            Fields ``x``, ``y``, ``width``, ``height`` (level-0 pixels) and ``score``.

        Raises
        ------
        EvaluationError
            The file is missing or not valid, or a score is not a number.
        """
        if self.windows is None:
            return None
        return read_windows(self.windows, self.slide, EvaluationError, remedy=SCORE_AGAIN)


def read_submission(folder: Path, *, ignore: Iterable[Path] = ()) -> dict[str, ScoredSlide]:
    """List the detection files of a submission by slide.

    Parameters
    ----------
    folder : Path
        Folder of ``<slide>.csv`` files.
    ignore : iterable of Path
        Files in the folder that do not hold detections, such as the reference.

    Raises
    ------
    EvaluationError
        The folder does not exist or holds no CSV.
    """
    leave = {real_path(path) for path in ignore}
    paths = sorted(path for path in folder.glob("*.csv") if real_path(path) not in leave)
    if not paths:
        raise EvaluationError(
            "holds no detections",
            subject=str(folder),
            remedy="Pass a folder of CSV files, each named after its slide.",
        )
    found: dict[str, ScoredSlide] = {}
    for path in paths:
        slide = slide_name(path.stem, subject=str(path))
        if slide in found:
            raise EvaluationError(
                f"has several files: {found[slide].detections.name}, {path.name}",
                subject=slide,
                remedy="Keep one of them.",
            )
        found[slide] = ScoredSlide(slide, path)
    return found


def read_detections(path: Path, slide: str, *, limit: Size | None = None) -> Detections:
    """Read the detections on a slide.

    Parameters
    ----------
    path : Path
        CSV file.
    slide : str
        Name of the slide, for errors.
    limit : Size, optional
        Size of the slide, level-0 pixels. Without it, coordinates that are too large are not
        noticed.

    Raises
    ------
    EvaluationError
        The file is missing, or a row does not consist of three numbers, has a negative number,
        or lies beyond the slide.
    """
    rows = read_rows(path, subject=slide)
    order = _header(rows[0]) if rows else None
    if order is not None:
        rows = rows[1:]
    values = [_values(row, order or (0, 1, 2), path=path, slide=slide, limit=limit) for row in rows]
    table = np.array(values, dtype=np.float64).reshape(-1, 3)
    return Detections(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def _header(row: Row) -> tuple[int, int, int] | None:
    """Return the columns of confidence, x and y if the row is a header, else ``None``."""
    names = [_HEADERS.get(cell.lower()) for cell in row.cells]
    if sorted(name or "" for name in names) != sorted(_FIELDS):
        return None
    return names.index("confidence"), names.index("x"), names.index("y")


def _values(
    row: Row, order: tuple[int, int, int], path: Path, slide: str, limit: Size | None
) -> tuple[float, float, float]:
    def refuse(problem: str, remedy: str) -> EvaluationError:
        return EvaluationError(
            f"row {row.number} of {path.name} {problem}", subject=slide, remedy=remedy
        )

    if len(row.cells) != len(_FIELDS):
        raise refuse(f"has {len(row.cells)} fields, not 3", "Write rows as confidence,x,y.")
    cells = [row.cells[index] for index in order]
    confidence, x, y = (number(cell) for cell in cells)
    for name, value, cell in zip(_FIELDS, (confidence, x, y), cells, strict=True):
        if value is None:
            raise refuse(
                f"has {cell!r} as {name}, which is not a finite number",
                "Write rows as confidence,x,y. A header, if any, is `confidence,x,y` or `p,x,y`.",
            )
        if value < 0:
            raise refuse(
                f"has a negative {name} ({cell})",
                "Write positions in level-0 pixels, and confidences of at least 0, which both "
                "official protocols count as a miss.",
            )
    assert confidence is not None
    assert x is not None
    assert y is not None
    if limit is not None and (x >= limit.width or y >= limit.height):
        raise refuse(
            f"lies at ({x:g}, {y:g}), beyond the slide of {limit.width} × {limit.height} pixels",
            "Write level-0 pixels of the same slide, x before y.",
        )
    return confidence, x, y


def read_rows(path: Path, *, subject: str | None = None, delimiters: str = ",") -> list[Row]:
    """Read the rows of a CSV file; see :func:`wsiad.core.csv_file.read_rows`.

    Raises
    ------
    EvaluationError
        The file is missing or not a CSV file.
    """
    return csv_file.read_rows(path, EvaluationError, subject=subject, delimiters=delimiters)


def number(text: str) -> float | None:
    """Return a finite number, or ``None`` if the text is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    # Python also reads 1_000, which no other program writes.
    return value if math.isfinite(value) and "_" not in text else None


def slide_name(text: str, *, subject: str) -> str:
    """Return a slide's name from a name or file name: ``test_001.tif`` is ``test_001``.

    The name may be longer than that of a folder can be: such slides have a row, but no results.

    Raises
    ------
    EvaluationError
        The name cannot be that of a slide's results, for example because it contains a path.
    """
    stem = text[: -len(Path(text).suffix)] if Path(text).suffix.lower() in SUFFIXES else text
    try:
        return checked_slide_name(stem, longest=_LONGEST)
    except InputError as error:
        raise EvaluationError(error.problem, subject=subject, remedy=error.remedy) from None
