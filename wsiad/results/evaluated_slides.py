"""Read the slides of a results folder, or of a folder of detections, for evaluation."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from wsiad.core.errors import EvaluationError, InputError
from wsiad.core.geometry import Mpp, Size
from wsiad.evaluation.evaluation_inputs import EvaluationOptions
from wsiad.evaluation.slide_evidence import SlideEvidence
from wsiad.evaluation.submission import (
    SCAN_AGAIN,
    SCORE_AGAIN,
    AskedScore,
    ScoredSlide,
    SlideScore,
    Status,
    read_submission,
    slide_name,
)
from wsiad.heatmaps.heatmap_task import HeatmapRow, usual_score
from wsiad.results import file_names as names
from wsiad.results.folder import Results
from wsiad.results.slide_results import SlideResults
from wsiad.slides.folder_kinds import RESULTS, other_kinds_named
from wsiad.slides.slide_table import FAILED, OK

logger = logging.getLogger(__name__)

_REMEDY = "Pass results of wsiad heatmap, or a folder of detections as CSV."
_COLUMNS = ("status", "reason", "mpp_x", "mpp_y", "width", "height")


def chosen_score(
    asked: AskedScore,
    folders: Collection[Path],
    *,
    exclude: Collection[str] = (),
    beside: Iterable[Path] = (),
) -> SlideScore:
    """Return the score that ranks the slides of results.

    Parameters
    ----------
    asked : str
        Value of the option `slide_score`.
    folders : iterable of Path
        Results that are ranked in the same way; none for detections.
    exclude : collection of str
        Slides that are not ranked.
    beside : iterable of Path
        Paths in the other places of the command.

    Raises
    ------
    EvaluationError
        A folder is of another kind, or its ``slides.csv`` is missing or not valid.
    """
    if asked != "auto":
        return asked
    named = other_kinds_named(folders, RESULTS, EvaluationError, remedy=_REMEDY, beside=beside)
    with named, as_evaluation_error():
        rows = [row for folder in folders for row in Results(folder).slides]
    rows = [row for row in rows if row.slide not in exclude]
    score = usual_score(rows)
    lacking = [row.slide for row in rows if row.status == OK and row.score_scan is None]
    if score == "max" and any(row.score_scan is not None for row in rows) and lacking:
        logger.warning(
            "%s has no scan score, so all slides are ranked by their highest score. %s",
            lacking[0],
            SCAN_AGAIN,
        )
    return score


def read_scored(
    options: EvaluationOptions, folder: Path, *, results: bool
) -> dict[str, ScoredSlide]:
    """Read the findings on each slide from a folder.

    Parameters
    ----------
    options : EvaluationOptions
        Options of the evaluation; see :func:`chosen_score` for `slide_score`.
    folder : Path
        Results of ``wsiad heatmap``, or detections.
    results : bool
        True where the folder contains results.

    Raises
    ------
    EvaluationError
        The folder is of another kind, or a file in it is not valid.
    """
    beside = [options.reference]
    with other_kinds_named([folder], RESULTS, EvaluationError, remedy=_REMEDY, beside=beside):
        if results:
            return scored_slides(
                folder,
                score=chosen_score(options.slide_score, [folder], exclude=options.exclude),
                percentile=options.score_percentile,
                exclude=options.exclude,
            )
        return read_submission(folder, ignore=[options.reference])


def scored_slides(
    folder: Path, *, score: SlideScore, percentile: float = 99.0, exclude: Collection[str] = ()
) -> dict[str, ScoredSlide]:
    """Read the findings of ``wsiad heatmap`` on each slide.

    Parameters
    ----------
    folder : Path
        Results folder; its ``run.json`` is not read.
    score : str
        Name of the score that is the score of a slide; ``"percentile"`` is a percentile of its
        heatmap pixels.
    percentile : float
        That percentile, 0 to 100.
    exclude : collection of str
        Slides whose files are not read, so that damaged ones do not prevent the evaluation.

    Raises
    ------
    EvaluationError
        ``slides.csv`` is missing or not valid, or lists a slide twice; or a heatmap is missing
        or not valid.
    """
    with as_evaluation_error():
        results = Results(folder)
        needed = [*_COLUMNS, *([] if score == "percentile" else [f"score_{score}"])]
        rows = results.numbered_rows(needed=needed)
    slides: dict[str, ScoredSlide] = {}
    for number, row in rows:
        where = f"{folder / names.SLIDES_TABLE}, row {number}"
        # A name that no folder can have is that of a slide that failed by it.
        slide = row.slide if row.status == FAILED else slide_name(row.slide, subject=where)
        if slide in exclude:
            slides[slide] = ScoredSlide(slide, folder / slide, "failed", "excluded")
            continue
        if slide in slides:
            raise EvaluationError(
                f"{slide} is listed twice", subject=where, remedy="Keep one of the rows."
            )
        with as_evaluation_error():
            of_slide = results.of(row)
        slides[slide] = _slide(slide, row, of_slide, _Score(score, percentile), where=where)
    return slides


class _Score:
    """Score of a slide, by the value of the option `slide_score`."""

    def __init__(self, name: SlideScore, percentile: float) -> None:
        self.name, self._percentile = name, percentile

    def of(self, results: SlideResults) -> float | None:
        if self.name != "percentile":
            with as_evaluation_error():
                return results.score(self.name)
        scores = heatmap_scores(results)
        return float(np.percentile(scores[np.isfinite(scores)], self._percentile))


def _slide(
    slide: str, row: HeatmapRow, results: SlideResults, score: _Score, *, where: str
) -> ScoredSlide:
    if row.status not in get_args(Status):
        raise EvaluationError(
            f"the status of {slide} is {row.status!r}",
            subject=where,
            remedy=f"Use one of: {', '.join(get_args(Status))}.",
        )
    detections = results.folder / names.DETECTIONS
    if row.status != OK:
        return _unscored(slide, row, detections)
    for name in ("mpp_x", "mpp_y", "width", "height"):
        if _positive(getattr(row, name)) is None:
            raise EvaluationError(
                f"{name} of {slide} is {_text(getattr(row, name))!r}, not above 0",
                subject=where,
                remedy=SCORE_AGAIN,
            )
    value = score.of(results)
    if value is None or not math.isfinite(value):
        raise EvaluationError(
            f"score_{score.name} of {slide} is {_text(value)!r}, not a number",
            subject=where,
            remedy=SCAN_AGAIN if score.name == "scan" else SCORE_AGAIN,
        )
    with as_evaluation_error():
        bounds = results.bounds()
    known = _unscored(slide, row, detections)
    return ScoredSlide(
        slide=slide,
        detections=detections,
        status="ok",
        reason=row.reason,
        score=value,
        size=known.size,
        mpp=known.mpp,
        windows=results.folder / names.WINDOWS,
        bounds=None if bounds is None else (bounds.x, bounds.y),
        neighbourhoods=as_evaluation_error()(results.neighbourhoods),
    )


def _unscored(slide: str, row: HeatmapRow, detections: Path) -> ScoredSlide:
    """Return a slide without a score; even its size may be unknown."""
    width, height = _positive(row.width), _positive(row.height)
    mpp_x, mpp_y = _positive(row.mpp_x), _positive(row.mpp_y)
    return ScoredSlide(
        slide,
        detections,
        cast(Status, row.status),
        row.reason,
        size=Size(int(width), int(height)) if width and height else None,
        mpp=Mpp((mpp_x + mpp_y) / 2) if mpp_x and mpp_y else None,
    )


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def heatmap_scores(results: SlideResults) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Read the scores of a slide's heatmap, float32, (H, W); see :meth:`SlideResults.scores`.

    Raises
    ------
    EvaluationError
        The file is missing, is not a heatmap, is too large, or contains no score.
    """
    with as_evaluation_error():
        return results.scores()


def classify_heatmaps(
    folder: Path, slides: Sequence[SlideEvidence], *, quantiles: tuple[float, ...], seed: int
) -> dict[str, Any]:
    """Return the slide AUC of a cross-validated classifier of heatmaps, as JSON values.

    Parameters
    ----------
    folder : Path
        Results folder of the slides.
    slides : sequence of SlideEvidence
        Evaluated slides; those without a heatmap are left out.
    quantiles : tuple of float
        High and low healthy quantile of the features.
    seed : int
        Seed of the folds and of the classifier.

    Raises
    ------
    EvaluationError
        A heatmap cannot be read.
    """
    from wsiad.evaluation.slide_classifier import (
        NAMES,
        HealthyScale,
        cross_validated_forest,
        slide_features,
    )

    slides = [slide for slide in slides if slide.case.has_score]
    results = Results(folder)
    windows = ((s.case.slide, s.case.scored.read_windows()) for s in slides)
    scale = HealthyScale.of((name, table) for name, table in windows if table is not None)
    high, low = quantiles
    features = np.zeros((len(slides), len(NAMES)))
    for row, slide in zip(features, slides, strict=True):
        shares = scale.of_heatmap(heatmap_scores(results.slide(slide.case.slide)))
        row[:] = slide_features(shares, high=high, low=low)
    tumour = np.array([slide.case.tumour for slide in slides], dtype=bool)
    result = cross_validated_forest(features, tumour, seed=seed)
    return result.as_json([slide.case.slide for slide in slides], (high, low))


@contextlib.contextmanager
def as_evaluation_error() -> Iterator[None]:
    """Convert errors of reading results to errors of evaluation.

    Raises
    ------
    EvaluationError
        The block raised an ``InputError``; the texts are the same.
    """
    try:
        yield
    except InputError as error:
        raise EvaluationError(error.problem, subject=error.subject, remedy=error.remedy) from error
