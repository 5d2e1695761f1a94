"""Find the last evaluation of results, and tell whether the results have changed since.

``wsiad evaluate`` writes its files into the results folder or into one of their own, and notes in
``timings.json`` where. Which annotated lesions are hit stands in ``truth.json``
(:mod:`wsiad.evaluation.lesion_outlines`), with a digest of the detections that hit them: that of a
slide whose detections were derived anew says nothing about them any more. A slide without a digest
is not known to be unchanged, and an evaluation that is no longer where it was is not none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from wsiad.core.errors import EvaluationError, InputError
from wsiad.core.files import write_json
from wsiad.core.typed_files import read_record
from wsiad.evaluation.lesion_outlines import TrueLesion, TrueLesions, read_outlines
from wsiad.results import file_names as names
from wsiad.results.folder import Results
from wsiad.results.records import read_evaluation
from wsiad.results.slide_results import SlideResults

Since = Literal["unchanged", "changed", "unknown"]
"""Answers to whether the detections of a slide are still those that were evaluated."""

EVALUATE_AGAIN = "Put it back, or run wsiad evaluate again."
"""Remedy where files of the last evaluation are gone."""

_HERE = "."


class Timings(pydantic.BaseModel):
    """Seconds of the stages that made results, and where they were evaluated last.

    Parameters
    ----------
    seconds : dict of str to float
        Duration of each stage, seconds.
    evaluation : str or None
        Folder of the last evaluation, relative to the results folder if it is that folder itself.
    """

    seconds: dict[str, Annotated[float, pydantic.Field(ge=0, strict=True)]] = {}
    evaluation: Annotated[str, pydantic.Field(min_length=1, strict=True)] | None = None


def read_timings(results: Path) -> Timings:
    """Read ``timings.json`` of a results folder; empty if there is no such file.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = results / names.TIMINGS
    if not path.exists():
        return Timings()
    return read_record(path, Timings, InputError, remedy="Delete it, and make the report again.")


def write_timings(results: Path, seconds: dict[str, float], evaluation: Path | None) -> None:
    """Write ``timings.json`` of a results folder, atomically.

    Parameters
    ----------
    results : Path
        Results folder.
    seconds : dict of str to float
        Duration of each stage, seconds.
    evaluation : Path or None
        Folder of the last evaluation. If it is the results folder, it stays so when that is moved.
    """
    told = None
    if evaluation is not None:
        folder = evaluation.resolve()
        told = _HERE if folder == results.resolve() else str(folder)
    write_json(results / names.TIMINGS, {"seconds": seconds, "evaluation": told})


def evaluation_folder(results: Path) -> Path:
    """Return the folder of the last evaluation of results; the results folder by default.

    Raises
    ------
    InputError
        ``timings.json`` is damaged.
    """
    return results / (read_timings(results).evaluation or _HERE)


def lost_evaluation(results: Path, file: str) -> str:
    """Return words for a file of the last evaluation that is gone; empty if it is there.

    They are empty too if the results were never evaluated.

    Parameters
    ----------
    results : Path
        Results folder.
    file : str
        Name of the file in the folder of the evaluation.

    Raises
    ------
    InputError
        ``timings.json`` is damaged.
    """
    known = read_timings(results).evaluation
    if known is None or (results / known / file).exists():
        return ""
    folder = results / known
    gone = f"where {file} is missing" if folder.is_dir() else "which is not there"
    return f"the last evaluation was in {folder}, {gone}"


def digest_of_detections(slide: SlideResults) -> str | None:
    """Return a digest of a slide's detections; ``None`` if it has none."""
    path = slide.file(names.DETECTIONS)
    if path is None:
        return None
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digests_of_detections(results: Path, slides: Iterable[str]) -> dict[str, str | None]:
    """Return a digest of the detections of each slide of the results, by name.

    It is ``None`` for a slide without a table of detections, such as one that failed.

    Raises
    ------
    InputError
        The folder does not contain results.
    """
    opened = Results(results)
    return {name: digest_of_detections(opened.slide(name)) for name in slides if name in opened}


def evaluated_labels(results: Path) -> dict[str, str]:
    """Return the label of each slide that the last evaluation of results knows, by name.

    Raises
    ------
    InputError
        A file is damaged.
    """
    known = read_evaluation(evaluation_folder(results)) or {}
    return {one["slide"]: one["label"] for one in known.get("slides", []) if one.get("label")}


@dataclass(frozen=True, slots=True)
class EvaluatedTruth:
    """Annotated lesions of the last evaluation of results.

    Parameters
    ----------
    path : Path
        File of the lesions.
    lesions : TrueLesions
        Its content.
    """

    path: Path
    lesions: TrueLesions

    def of(self, slide: SlideResults) -> list[TrueLesion] | None:
        """Return the lesions of a slide; ``None`` if the evaluation did not cover it."""
        return self.lesions.slides.get(slide.name)

    def detections_since(self, slide: SlideResults) -> Since:
        """Tell whether the detections of a slide are still those that were evaluated.

        It is not known where the evaluation noted nothing about them: it was made by an earlier
        version, or of detections that are not those of the results.
        """
        digests = self.lesions.detections
        if slide.name not in digests:
            return "unknown"
        return "unchanged" if digests[slide.name] == digest_of_detections(slide) else "changed"


def read_evaluated_truth(results: Path) -> EvaluatedTruth | None:
    """Read the lesions of the last evaluation of results; ``None`` if there was none.

    Raises
    ------
    EvaluationError, InputError
        A file is damaged, or the last evaluation is no longer where it was.
    """
    if lost := lost_evaluation(results, names.TRUTH):
        raise EvaluationError(lost, subject=str(results), remedy=EVALUATE_AGAIN)
    path = evaluation_folder(results) / names.TRUTH
    lesions = read_outlines(path)
    return None if lesions is None else EvaluatedTruth(path, lesions)
