"""What the detections on a slide hit: which tumour regions, and which none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.evaluation.protocols import Rules
from wsiad.evaluation.regions import EvaluationMask

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detections on one slide.

    Parameters
    ----------
    confidence : ndarray of float64, (N,)
        At least 0; higher is surer.
    x, y : ndarray of float64, (N,)
        Level-0 pixels.
    """

    confidence: Floats
    x: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.confidence)


@dataclass(frozen=True, slots=True, eq=False)
class SlideHits:
    """What the detections on one slide hit.

    Parameters
    ----------
    regions : ndarray of float64, (R,)
        Highest confidence on each tumour region; 0 for a missed one, and for isolated
        tumour cells.
    false_positives : ndarray of float64, (F,)
        Confidence of every detection outside all regions.
    lesions : int
        Regions that are to be found.
    """

    regions: Floats
    false_positives: Floats
    lesions: int


def match(
    detections: Detections,
    truth: EvaluationMask | None,
    rules: Rules,
    *,
    downsample: float,
    include_itc: bool = False,
) -> SlideHits:
    """Match the detections on a slide to its tumour regions.

    Several hits on a region count once, with the highest confidence. Hits on isolated
    tumour cells count neither way, unless they are included. A detection beyond the mask
    is outside all regions, save that one which rounding puts one pixel beyond it
    belongs to the pixel that it lies in.

    Parameters
    ----------
    detections : Detections
        In level-0 pixels, none negative.
    truth : EvaluationMask or None
        Regions of the slide; ``None`` for a normal slide.
    rules : Rules
        Of the protocol.
    downsample : float
        Level-0 pixels per mask pixel.
    include_itc : bool
        Take isolated tumour cells as lesions.
    """
    if truth is None:
        return SlideHits(np.zeros(0), detections.confidence, 0)
    label = _labels_at(detections, truth.labels, rules, downsample)
    regions = np.zeros(len(truth.regions) + 1)
    np.maximum.at(regions, label, detections.confidence)
    itc = np.array([] if include_itc else sorted(truth.itc), dtype=int)
    regions[itc] = 0.0
    lesions = len(truth.regions) if include_itc else truth.lesions
    return SlideHits(regions[1:], detections.confidence[label == 0], lesions)


def _labels_at(
    detections: Detections, labels: npt.NDArray[np.int32], rules: Rules, downsample: float
) -> npt.NDArray[np.int32]:
    pixels, inside = [], np.ones(len(detections), dtype=bool)
    for position, length in ((detections.y, labels.shape[0]), (detections.x, labels.shape[1])):
        truncated = np.trunc(position / downsample)
        index = np.rint(position / downsample) if rules.coordinate == "round" else truncated
        inside &= truncated < length
        pixels.append(index.astype(np.int64).clip(0, length - 1))
    return np.where(inside, labels[pixels[0], pixels[1]], 0).astype(np.int32)
