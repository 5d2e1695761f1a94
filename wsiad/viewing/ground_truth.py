"""Tell the page the outlines of tumour on a slide, and where they come from.

Outlines come from a folder of annotations that the reader names, or else from the last evaluation
of the results. The page says which. No outline, none in this folder, not evaluated and not
readable are four different answers; an evaluation that is gone is not readable.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wsiad.annotations import SUFFIXES, read_annotations
from wsiad.core.errors import WsiadError
from wsiad.core.terminal import counted
from wsiad.evaluation.truth import find_truth
from wsiad.results.evaluated_truth import EvaluatedTruth, read_evaluated_truth
from wsiad.results.slide_results import SlideResults

logger = logging.getLogger(__name__)


class GroundTruth:
    """Outlines of tumour on the slides of results.

    Parameters
    ----------
    results : Path
        Results folder, whose last evaluation is looked for.
    annotations : Path, optional
        Folder of outlines, which is taken instead.
    """

    def __init__(self, results: Path, annotations: Path | None = None) -> None:
        self._annotations = annotations
        self._evaluated: EvaluatedTruth | None = None
        self._problem = ""
        if annotations is not None:
            return
        try:
            self._evaluated = read_evaluated_truth(results)
        except WsiadError as error:  # there is more to see than the truth
            logger.warning("%s", error)
            self._problem = str(error)

    @property
    def source(self) -> str:
        """Source of the outlines in words; empty if there are none."""
        if self._annotations is not None:
            return f"outlines in {self._annotations}"
        if self._evaluated is not None:
            lesions = self._evaluated.lesions
            return f"{self._evaluated.path} of wsiad evaluate, lesions by {lesions.protocol}"
        return ""

    def of(self, slide: SlideResults) -> dict[str, Any] | None:
        """Return the outlines on a slide, as JSON values; ``None`` where none were looked for.

        ``rings`` are in level-0 pixels, ``told`` says where they come from or why there are none,
        and ``problem`` why they cannot be read.
        """
        if self._annotations is not None:
            return _annotated(slide, self._annotations)
        if self._problem:
            return _told("ground truth cannot be read", problem=self._problem)
        return None if self._evaluated is None else _evaluated(slide, self._evaluated)


def _told(
    told: str, *, problem: str = "", rings: list[list[tuple[float, float]]] | None = None
) -> dict[str, Any]:
    return {"told": told, "problem": problem, "rings": rings or []}


def _annotated(slide: SlideResults, folder: Path) -> dict[str, Any]:
    try:
        path = find_truth(folder, slide.name, suffixes=SUFFIXES)
        if path is None:
            return _told(f"no outlines of this slide in {folder.name}")
        bounds = slide.bounds()
        read = read_annotations(path, bounds=None if bounds is None else (bounds.x, bounds.y))
    except WsiadError as error:
        return _told("ground truth cannot be read", problem=str(error))
    rings = [ring.tolist() for one in read.outlines for ring in (one.shell, *one.holes)]
    return _told(f"ground truth: {path.name}", rings=rings)


def _evaluated(slide: SlideResults, truth: EvaluatedTruth) -> dict[str, Any]:
    """Return the lesions of the evaluation, with what it found of them where that still holds."""
    lesions = truth.of(slide)
    if lesions is None:
        return _told("the evaluation has no outlines of this slide")
    if not lesions:
        return _told(f"no annotated lesion ({truth.path.name})")
    source = f"ground truth: {truth.path.name}, as {truth.lesions.protocol} counts lesions"
    problem = ""
    since = truth.detections_since(slide)
    if since == "changed":
        hits = "hits are not known"
        problem = (
            "The detections of this slide have changed since the evaluation: ground truth is as it "
            "was then. Run wsiad evaluate again."
        )
    elif since == "unknown":
        hits = "hits are not known"
        problem = (
            "It cannot be told if the detections of this slide are those that were evaluated. Run "
            "wsiad evaluate again."
        )
    else:
        among = [lesion.found for lesion in lesions if lesion.kind != "itc"]
        rate = f"{counted(truth.lesions.false_positives, 'false positive', 'g')} a slide"
        hits = f"{sum(among)} of {counted(len(among), 'lesion')} hit at {rate}"
        if cells := len(lesions) - len(among):
            hits += f", {cells} of isolated tumour cells"
    return _told(f"{source}, {hits}", problem=problem, rings=[one.outline for one in lesions])
