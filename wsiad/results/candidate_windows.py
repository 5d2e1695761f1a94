"""Candidates for labels: the strangest windows of results, at most some of each slide.

They are chosen by what is stored, and only they are read from the slides again, with exactly the
pixels that the detector saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.geometry import Box
from wsiad.core.labels import is_healthy
from wsiad.heatmaps.heatmap_task import SlideTask, identity_of
from wsiad.heatmaps.score_map import boxes_of
from wsiad.heatmaps.space_options import ALONE
from wsiad.learning.detector import InputSpec, Tiles
from wsiad.results.evidence import window_places
from wsiad.results.file_names import SPATIAL
from wsiad.results.folder import Results
from wsiad.results.identity import options_of
from wsiad.results.label_candidates import (
    NEIGHBOURHOOD,
    SCORE,
    UNSURE,
    Candidate,
    Known,
    LabelCandidates,
    Signal,
    Why,
    is_unsure,
    nothing_left,
    of_all,
    of_slide,
    share_of_slide,
)
from wsiad.results.records import SCORE_AGAIN
from wsiad.results.scoring import window_source
from wsiad.results.scoring_inputs import reading_tasks
from wsiad.results.slide_results import SlideResults
from wsiad.slides.slide_table import unseen_rows


def candidate_windows(
    results: Results,
    *,
    run: Path,
    signal: Signal | None,
    most: int,
    per_slide: int | None,
    also_unsure: bool,
    known: Known,
    spec: InputSpec,
    device: str,
) -> LabelCandidates:
    """Choose the candidates of a results folder.

    Slides whose label means healthy have none.

    Parameters
    ----------
    results : Results
        Results folder.
    run : Path
        Run that made the results.
    signal : str, optional
        Value by which windows are candidates; by default that of the map of neighbourhoods, if
        the results have it, else their score.
    most : int
        Maximum number of candidates.
    per_slide : int, optional
        Maximum number of candidates of a slide, see :func:`share_of_slide`.
    also_unsure : bool
        True for as many candidates whose score is between usual and strange.
    known : collection of tuple
        Windows that were suggested earlier.
    spec : InputSpec
        Input of the run's detector.
    device : str
        Name of the device.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged.
    InputError
        The results are damaged, were made by another run, have no scored slide to choose from, or
        have no map of neighbourhoods although it is requested.
    """
    neighbours = options_of(results.facts, results.path).scales_um != ALONE
    if signal == NEIGHBOURHOOD and not neighbours:
        raise InputError(
            "has no map of neighbourhoods",
            subject=str(results.path),
            remedy="Run wsiad export on it with --scales-um 100 200, or set --by score.",
        )
    by: Signal = signal or (NEIGHBOURHOOD if neighbours else SCORE)
    left_out: Counter[str] = Counter()
    slides = []
    for slide in results:
        if not slide.is_scored:
            left_out[f"status {slide.row.status}"] += 1
        elif slide.row.label and is_healthy(slide.row.label):
            left_out["labelled healthy"] += 1
        else:
            slides.append(slide)
    cap = per_slide or share_of_slide(most, len(slides))
    by_slide = [
        of_slide(
            _windows(slide, by, known),
            _windows(slide, UNSURE, known) if also_unsure else (),
            cap,
        )
        for slide in slides
    ]
    chosen = of_all(by_slide, most)
    if not any(not one.known for one in chosen):
        reasons = unseen_rows(slide.row for slide in results)
        raise InputError(
            nothing_left("holds no window to suggest", left_out, reasons),
            subject=str(results.path),
            remedy="Score slides that are not labelled yet with wsiad heatmap.",
        )
    names = list(dict.fromkeys(one.slide for one in chosen))
    tasks = reading_tasks(results, names, run=run, device=device)

    def read(mine: Sequence[Candidate]) -> Iterator[Tiles]:
        return _read(results.slide(mine[0].slide), tasks[mine[0].slide], mine, spec)

    return LabelCandidates(
        candidates=chosen,
        signal=by,
        mpp=spec.mpp,
        bounds={name: _bounds(results.slide(name)) for name in names},
        read=read,
        left_out=dict(left_out),
    )


def _bounds(slide: SlideResults) -> Box:
    """Return the bounds of a slide, from its record if that states them."""
    return slide.bounds() or slide.heatmap().bounds


def _windows(slide: SlideResults, why: Why, known: Known) -> Iterator[Candidate]:
    """Yield the windows of a slide that are candidates: the known ones come first."""
    table = slide.windows()
    boxes = boxes_of(table)
    scores = np.asarray(table["score"], np.float64)
    strength = _neighbourhoods(slide, boxes) if why == NEIGHBOURHOOD else scores
    if why == UNSURE:
        strength = np.where(is_unsure(table["percentile"]), strength, -np.inf)
    was = np.zeros(len(boxes), bool)
    for place in known:
        if place[0] == slide.name and len(place) == 1 + boxes.shape[1]:
            was |= (boxes == np.array(place[1:], np.float64)).all(axis=1)
    strength = np.where(np.isfinite(strength), strength, -np.inf)
    for at in np.lexsort((-strength, ~was)).tolist():
        if (was[at] and why != UNSURE) or np.isfinite(strength[at]):
            x, y, width, height = boxes[at].tolist()
            yield Candidate(
                slide=slide.name,
                number=at,
                box=(x, y, width, height),
                score=float(scores[at]),
                percentile=float(table["percentile"][at]),
                strength=float(strength[at]),
                why=why,
                known=bool(was[at]),
            )


def _neighbourhoods(slide: SlideResults, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the value of the map of neighbourhoods at the centre of each box."""
    heatmap = slide.neighbourhoods()
    if heatmap is None:
        raise InputError(f"has no {SPATIAL}", subject=str(slide.folder), remedy=SCORE_AGAIN)
    return heatmap.at_centres(boxes)


def _read(
    slide: SlideResults, task: SlideTask, mine: Sequence[Candidate], spec: InputSpec
) -> Iterator[Tiles]:
    """Yield the pixels of windows of a slide, if its file is still the one that was scored."""
    if not task.slide.path.exists():
        raise InputError(f"its file {task.slide.path} is not available", subject=slide.name)
    if identity_of(task)["fingerprint"] != slide.fingerprint():
        raise InputError("its file has changed since it was scored", subject=slide.name)
    boxes = np.array([one.box for one in mine], np.float64)
    with window_source(task, spec) as source:
        rows, columns = window_places(boxes, source)
        yield from source.again(rows, columns)
