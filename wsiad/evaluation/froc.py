"""Compute free-response ROC curves (FROC) of pooled hits, by the rules of a protocol.

The rules of the protocols are in :mod:`wsiad.evaluation.matching`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.evaluation.matching import Floats, Rules, SlideHits

OPERATING_POINTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Mean false positives per slide at which sensitivity is read; the score is their mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points of a FROC curve, from the lowest threshold to one that no detection reaches.

    Parameters
    ----------
    false_positives : ndarray of float64, (N,)
        Mean number of false positives per slide, descending to 0.
    sensitivity : ndarray of float64, (N,)
        Share of the lesions that are hit, descending to 0.
    """

    false_positives: Floats
    sensitivity: Floats


class Pool:
    """Hits of all slides, prepared to compute the curve for any weights of the slides.

    A bootstrap needs the curves of a thousand resamples. Scores are therefore sorted once, and
    a resample is a weight per slide.

    Parameters
    ----------
    hits : sequence of SlideHits
        Hits of each slide.
    rules : Rules
        Rules of the protocol.
    """

    def __init__(self, hits: Sequence[SlideHits], rules: Rules) -> None:
        self.rules = rules
        self.slides = len(hits)
        self._lesions = np.array([hit.lesions for hit in hits], dtype=np.int64)
        self._fp, self._fp_slide, _ = _sorted([hit.false_positives for hit in hits])
        regions = [hit.regions for hit in hits]
        if rules.single_precision:
            regions = [r.astype(np.float32).astype(np.float64) for r in regions]
        self._tp, self._tp_slide, self._tp_order = _sorted(regions)
        self._thresholds = np.unique(np.concatenate([self._fp, self._tp]))
        # A float32 array is compared with a Python float in float32.
        tp_thresholds = self._thresholds
        if rules.single_precision:
            tp_thresholds = tp_thresholds.astype(np.float32).astype(np.float64)
        self._fp_below = np.searchsorted(self._fp, self._thresholds)
        self._tp_below = np.searchsorted(self._tp, tp_thresholds)
        self._fp_value = np.searchsorted(self._thresholds, self._fp)
        self._tp_value = np.searchsorted(self._thresholds, self._tp)

    @property
    def lesions(self) -> int:
        """Number of lesions on all slides."""
        return int(self._lesions.sum())

    @property
    def slides_with_lesions(self) -> int:
        """Number of slides with a lesion."""
        return int(np.count_nonzero(self._lesions))

    @property
    def ties(self) -> int:
        """Number of false positives with the same score as another one or as a hit region.

        If it is 0, and a lesion is missed or there are isolated tumour cells, the protocols
        differ only in their coordinates and readings.
        """
        size = len(self._thresholds)
        fp = np.bincount(self._fp_value, minlength=size)
        tp = np.bincount(self._tp_value[self._tp > 0], minlength=size)
        return int(fp[fp + tp > 1].sum())

    def curve(
        self,
        weights: npt.NDArray[np.int64] | None = None,
        *,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> Curve | None:
        """Return the FROC curve with each slide counted as often as its weight.

        Parameters
        ----------
        weights : ndarray of int, (slides,), optional
            Number of times that each slide counts; once by default.
        among : ndarray of bool, (regions,), optional
            True for the regions of all slides, in order, that are the lesions; by default those
            that the protocol counts as lesions. The thresholds remain those of all regions, so
            that the sensitivities of classes add up to that of all lesions.

        Returns
        -------
        Curve or None
            The curve; ``None`` where there is no lesion, hence no sensitivity.
        """
        if weights is None:
            weights = np.ones(self.slides, dtype=np.int64)
        fp_weight, tp_weight = weights[self._fp_slide], weights[self._tp_slide]
        counted = tp_weight if among is None else tp_weight * among[self._tp_order]
        lesions = int(weights @ self._lesions if among is None else counted.sum())
        if lesions == 0:
            return None
        drawn = np.zeros(len(self._thresholds), dtype=bool)
        drawn[self._fp_value[fp_weight > 0]] = drawn[self._tp_value[tp_weight > 0]] = True
        chosen = np.flatnonzero(drawn)
        chosen = chosen[1:] if self.rules.drop_lowest else chosen[self._thresholds[chosen] > 0]
        fp = _weight_from(fp_weight)[self._fp_below[chosen]]
        tp = _weight_from(counted)[self._tp_below[chosen]]
        return Curve(
            np.append(fp, 0) / float(weights.sum()),
            np.append(tp, 0) / float(lesions),
        )

    def sensitivities(
        self,
        weights: npt.NDArray[np.int64] | None = None,
        *,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> Floats | None:
        """Return the sensitivity at each of :data:`OPERATING_POINTS`; ``None`` without lesions."""
        curve = self.curve(weights, among=among)
        return None if curve is None else read_curve(curve, self.rules)

    def false_positives_from(self, confidence: float) -> float:
        """Return the mean number of false positives per slide of at least `confidence`."""
        return (len(self._fp) - int(np.searchsorted(self._fp, confidence))) / self.slides

    def thresholds(self) -> list[float | None]:
        """Return the lowest score that keeps to each of :data:`OPERATING_POINTS`.

        Only scores above 0 count. A score keeps to an operating point if the mean number of
        false positives per slide, from that score upwards, is not above it. The threshold is
        ``None`` where even the highest score does not.
        """
        scores = self._thresholds[self._thresholds > 0]
        rate = (len(self._fp) - np.searchsorted(self._fp, scores)) / self.slides
        kept = [scores[rate <= point] for point in OPERATING_POINTS]
        return [float(scores[0]) if len(scores) else None for scores in kept]


def _sorted(
    parts: Sequence[Floats],
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the scores of all slides in ascending order, the slide of each, and the order."""
    values = np.concatenate([np.zeros(0), *parts])
    slide = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.argsort(values, kind="stable")
    return values[order], slide[order], order


def _weight_from(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sum of the weights from each position to the end, (N + 1,)."""
    return np.append(np.cumsum(weights[::-1])[::-1], 0)


def read_curve(curve: Curve, rules: Rules) -> Floats:
    """Return the sensitivity of a curve at each of :data:`OPERATING_POINTS`, (6,)."""
    x, y = curve.false_positives[::-1], curve.sensitivity[::-1]
    match rules.reading:
        case "linear":
            return np.interp(OPERATING_POINTS, x, y)
        case "step-up":
            index = np.searchsorted(x, OPERATING_POINTS, side="left")
            return y[index.clip(max=len(x) - 1)]
        case "step-down":
            return y[np.searchsorted(x, OPERATING_POINTS, side="right") - 1]
