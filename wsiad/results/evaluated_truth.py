"""Find the last evaluation of results, and tell whether the results have changed since.

``wsiad evaluate`` writes its files into the results folder or into one of their own, and notes in
``timings.json`` where. Which annotated lesions are hit stands in ``truth.json``
(:mod:`wsiad.evaluation.lesion_outlines`), with a digest of the detections that hit them: that of a
slide whose detections were derived anew says nothing about them any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from wsiad.core.errors import InputError
from wsiad.core.files import write_json
from wsiad.core.typed_files import read_record
from wsiad.evaluation.lesion_outlines import TrueLesion, TrueLesions, read_outlines
from wsiad.results import file_names as names
from wsiad.results.folder import Results
from wsiad.results.slide_results import SlideResults

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


def digest_of_detections(slide: SlideResults) -> str | None:
    """Return a digest of a slide's detections; ``None`` if it has none."""
    path = slide.file(names.DETECTIONS)
    if path is None:
        return None
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def digests_of_detections(results: Path, slides: Iterable[str]) -> dict[str, str]:
    """Return a digest of the detections of each slide that has any, by name.

    Raises
    ------
    InputError
        The folder does not contain results, or has none of a slide.
    """
    opened = Results(results)
    found = {name: digest_of_detections(opened.slide(name)) for name in slides if name in opened}
    return {name: digest for name, digest in found.items() if digest is not None}


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

    def is_stale(self, slide: SlideResults) -> bool:
        """Tell whether the detections of a slide are others than those that were evaluated."""
        known = self.lesions.detections.get(slide.name)
        return known is not None and known != digest_of_detections(slide)


def read_evaluated_truth(results: Path) -> EvaluatedTruth | None:
    """Read the lesions of the last evaluation of results; ``None`` if there was none.

    Raises
    ------
    EvaluationError, InputError
        A file is damaged.
    """
    path = evaluation_folder(results) / names.TRUTH
    lesions = read_outlines(path)
    return None if lesions is None else EvaluatedTruth(path, lesions)
