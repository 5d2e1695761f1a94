"""Write detections as the CSV file that FROC scripts of CAMELYON read."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file
from wsiad.heatmaps.peaks import Detection

HEADER = ("confidence", "x", "y")


def confidences(
    scores: npt.NDArray[np.floating], *, median: float, upper: float
) -> npt.NDArray[np.float64]:
    """Convert anomaly scores to confidences between 0 and 1.

    With ``z = (score - median) / (upper - median)`` and ``l = sign(z) log(1 + |z|)``,
    the confidence is ``(1 + l / (1 + |l|)) / 2``. It is 0.5 at the healthy median, 0.70 at
    the upper quantile, and 0.85 ten times as far out. Unlike a logistic function it does
    not saturate. It levels off so slowly that neighbouring float32 scores remain different in
    float64, however high they are, and a FROC curve loses no operating point.

    Parameters
    ----------
    scores : ndarray of float, (N,)
        Anomaly scores.
    median, upper : float
        Median and a high quantile (99 %) of healthy scores; the same for all slides.

    Returns
    -------
    ndarray of float64, (N,)
        Confidences in (0, 1), in the order of the scores.

    Raises
    ------
    ExportError
        A score is not finite, ``upper`` is not above ``median``, or two different
        scores have the same confidence.
    """
    if not (math.isfinite(median) and math.isfinite(upper) and upper > median):
        raise ExportError(
            f"healthy scores from {median} (median) to {upper} give no scale",
            remedy="Calibrate on more healthy slides.",
        )
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise ExportError("a detection's score is not a finite number")
    z = (scores - median) / (upper - median)
    logs = np.copysign(np.log1p(np.abs(z)), z)
    values: npt.NDArray[np.float64] = 0.5 * (1 + logs / (1 + np.abs(logs)))
    if len(np.unique(values)) != len(np.unique(scores)):
        raise ExportError(
            f"different scores have the same confidence on a scale from {median} to {upper}",
            remedy="Calibrate on slides of the same kind.",
        )
    return values


def write_detections(
    detections: Sequence[Detection], path: Path, *, median: float, upper: float
) -> None:
    """Write detections as ``confidence,x,y`` with a header.

    Parameters
    ----------
    detections : sequence of Detection
        Detections, in the order of the file; without any, the file has only a header.
    path : Path
        CSV file to write, atomically.
    median, upper : float
        Median and high quantile of healthy scores, see :func:`confidences`.

    Raises
    ------
    ExportError
        The scores have no confidences, see :func:`confidences`, or a position is negative or
        not finite.

    Notes
    -----
    Confidences are written so that they read back as the same float64. A position is written as
    the level-0 pixel that contains the point, because FROC scripts read whole numbers.
    """
    scores = np.array([detection.score for detection in detections], np.float64)
    places = [(detection.x, detection.y) for detection in detections]
    for x, y in places:
        if not (math.isfinite(x) and math.isfinite(y) and x >= 0 and y >= 0):
            raise ExportError(f"a detection at ({x}, {y}) is off the slide", subject=path.name)
    values = confidences(scores, median=median, upper=upper).tolist()
    with atomic_file(path) as partial, partial.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for value, (x, y) in zip(values, places, strict=True):
            writer.writerow((repr(value), math.floor(x), math.floor(y)))
