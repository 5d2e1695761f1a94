"""Write and read ``truth.json``: where the lesions are, and which were found at one rate.

An evaluation reads the ground truth; whoever draws its results, such as the report, needs only
this file. A lesion is outlined as the protocol counts it: widened, with its holes filled. It is
found if a detection on it reaches the score that leaves :data:`FALSE_POSITIVES` false positive a
slide on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from wsiad.annotations.outlines import MAX_BYTES
from wsiad.core.errors import EvaluationError
from wsiad.core.files import write_json
from wsiad.core.typed_files import read_record
from wsiad.evaluation.froc import OPERATING_POINTS
from wsiad.evaluation.lesion_table import LesionClass, SlideLesions
from wsiad.evaluation.matching import ProtocolName

FALSE_POSITIVES = 1.0
"""Mean false positives per slide at which a lesion counts as found."""

_FORMAT = 1
_MOST_CORNERS = 400
_Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class TrueLesion(pydantic.BaseModel):
    """Lesion of a slide as it is drawn.

    Parameters
    ----------
    number : int
        Number of the lesion on its slide, as in ``lesions.csv``.
    kind : str
        ``"macro"``, ``"micro"`` or ``"itc"``; isolated tumour cells count neither way.
    found : bool
        True where a detection on it reaches the threshold.
    score : float or None
        Highest confidence on it; ``None`` if no detection is on it.
    outline : sequence of (float, float)
        Corners, level-0 pixels.
    """

    number: Annotated[int, pydantic.Field(ge=1)]
    kind: LesionClass
    found: bool
    score: _Number | None
    outline: list[tuple[_Number, _Number]]


class TrueLesions(pydantic.BaseModel):
    """Lesions of all slides.

    Parameters
    ----------
    format : int
        Version of the file.
    protocol : str
        Protocol that divides tumour into lesions.
    false_positives : float
        Mean false positives per slide at which lesions are found or missed.
    threshold : float or None
        Lowest confidence that keeps to it; ``None`` if even the highest does not.
    slides : dict of str to list of TrueLesion
        Lesions by slide; a slide without lesions has an empty list.
    detections : dict of str to str or None
        Digest by slide of the detections that were evaluated, ``None`` for a slide of the results
        that had no table of them; empty if they are of no results.
    """

    format: Annotated[int, pydantic.Field(ge=_FORMAT, le=_FORMAT)]
    protocol: ProtocolName
    false_positives: _Number
    threshold: _Number | None
    slides: dict[str, list[TrueLesion]]
    detections: dict[str, str | None] = {}


def write_outlines(
    path: Path,
    protocol: ProtocolName,
    slides: Sequence[SlideLesions],
    thresholds: Sequence[float | None],
    *,
    detections: Mapping[str, str | None],
) -> None:
    """Write the lesions of the slides that take part in FROC, atomically.

    Parameters
    ----------
    path : Path
        File to write.
    protocol : str
        Name of the protocol.
    slides : sequence of SlideLesions
        Lesions of each slide by that protocol.
    thresholds : sequence of float or None
        Lowest confidence that keeps to each of
        :data:`~wsiad.evaluation.froc.OPERATING_POINTS`.
    detections : mapping of str to str or None
        Digest by slide of the detections, where they are of results; ``None`` for a slide without
        a table of them.
    """
    threshold = thresholds[OPERATING_POINTS.index(FALSE_POSITIVES)]
    write_json(
        path,
        {
            "format": _FORMAT,
            "protocol": protocol,
            "false_positives": FALSE_POSITIVES,
            "threshold": threshold,
            "slides": {slide.slide: list(_lesions(slide, threshold)) for slide in slides},
            "detections": dict(detections),
        },
    )


def _lesions(slide: SlideLesions, threshold: float | None) -> list[Mapping[str, Any]]:
    return [
        {
            "number": lesion.number,
            "kind": lesion.kind,
            "found": _reaches(lesion.score, threshold),
            "score": lesion.score,
            # Enough to draw: of a longer outline every second corner, or fewer, is left out.
            "outline": np.round(
                lesion.outline[:: -(-len(lesion.outline) // _MOST_CORNERS)], 1
            ).tolist(),
        }
        for lesion in slide.lesions
    ]


def _reaches(score: float | None, threshold: float | None) -> bool:
    return score is not None and threshold is not None and score >= threshold


def read_outlines(path: Path) -> TrueLesions | None:
    """Read the lesions back; ``None`` if there is no such file.

    Raises
    ------
    EvaluationError
        The file is damaged.
    """
    if not path.exists():
        return None
    remedy = "Run wsiad evaluate again, or delete it."
    return read_record(path, TrueLesions, EvaluationError, remedy=remedy, most=MAX_BYTES)
