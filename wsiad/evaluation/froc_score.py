"""Compute the FROC score of one protocol, with its interval and alternative readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsiad.core.terminal import by_number
from wsiad.evaluation.auc import (
    NO_RESAMPLES,
    Estimate,
    percentile_interval,
    slide_weights,
    undefined,
)
from wsiad.evaluation.froc import OPERATING_POINTS, Curve, Pool
from wsiad.evaluation.lesion_table import CLASSES, LesionClass
from wsiad.evaluation.matching import Floats, Rules, SlideHits, all_thresholds, conservative


@dataclass(frozen=True, slots=True, eq=False)
class ClassScore:
    """Tumour regions of one class, and the number that were hit.

    Parameters
    ----------
    regions, hit : int
        Number of regions, and number of those that a detection hits.
    sensitivities : ndarray of float64, (6,), or None
        Sensitivity at each of :data:`~wsiad.evaluation.froc.OPERATING_POINTS`, which are rates
        of all false positives. ``None`` where there is no region, and for isolated tumour cells,
        which do not count as lesions.
    """

    regions: int
    hit: int
    sensitivities: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class FrocScore:
    """FROC score: sensitivity against mean false positives per slide.

    Parameters
    ----------
    rules : Rules
        Rules of the protocol.
    score : Estimate
        Mean sensitivity at the six operating points, with an interval by resampling slides.
    curve : Curve or None
        Complete curve; ``None`` without lesions.
    sensitivities : ndarray of float64, (6,), or None
        Sensitivity at each of :data:`~wsiad.evaluation.froc.OPERATING_POINTS`.
    interval : ndarray of float64, (2, 6), or None
        Low and high ends of the interval of each sensitivity.
    thresholds : list of float or None
        Lowest score that keeps to each of the operating points, see
        :meth:`~wsiad.evaluation.froc.Pool.thresholds`.
    by_class : Mapping of str to ClassScore
        Score by class of size; empty where lesions were not sorted into classes.
    score_all_thresholds, score_conservative, score_with_itc : float or None
        Score with all thresholds and exact ties, score without optimistic readings, and score
        with isolated tumour cells as lesions.
    lesions, itc, slides, false_positives, ties : int or None
        Counts; ``None`` without ground truth.
    resamples_without_lesion : int
        Number of resamples that could not be used.
    """

    rules: Rules
    score: Estimate
    curve: Curve | None
    sensitivities: Floats | None
    interval: Floats | None
    thresholds: Sequence[float | None]
    by_class: Mapping[LesionClass, ClassScore]
    score_all_thresholds: float | None
    score_conservative: float | None
    score_with_itc: float | None
    lesions: int | None
    itc: int | None
    slides: int
    false_positives: int | None
    ties: int | None
    resamples_without_lesion: int

    def as_json(self) -> dict[str, Any]:
        """Return everything but the curve as JSON values."""
        names = [f"{point:g}" for point in OPERATING_POINTS]
        values = [None] * len(names) if self.sensitivities is None else self.sensitivities.tolist()
        ends = [None] * len(names) if self.interval is None else self.interval.T.tolist()
        return {
            **self.score.as_json("score"),
            "sensitivity_at": dict(zip(names, values, strict=True)),
            "sensitivity_interval_at": dict(zip(names, ends, strict=True)),
            "threshold_at": dict(zip(names, self.thresholds, strict=True)),
            "by_class": {name: _class_json(found) for name, found in self.by_class.items()},
            "score_all_thresholds": self.score_all_thresholds,
            "score_conservative": self.score_conservative,
            "score_with_itc": self.score_with_itc,
            "slides": self.slides,
            "lesions": self.lesions,
            "itc": self.itc,
            "false_positives": self.false_positives,
            "n_ties": self.ties,
            "resamples_without_lesion": self.resamples_without_lesion,
            "rules": asdict(self.rules),
        }


def _class_json(found: ClassScore) -> dict[str, Any]:
    at = found.sensitivities
    return {
        "regions": found.regions,
        "hit": found.hit,
        "sensitivity_at": None
        if at is None
        else {f"{p:g}": float(v) for p, v in zip(OPERATING_POINTS, at, strict=True)},
    }


def froc_score(
    hits: Sequence[SlideHits],
    hits_with_itc: Sequence[SlideHits],
    rules: Rules,
    *,
    resamples: int,
    seed: int,
    no_truth: str | None = None,
    kinds: Sequence[LesionClass] | None = None,
) -> FrocScore:
    """Score the hits of all slides.

    Parameters
    ----------
    hits, hits_with_itc : sequence of SlideHits
        Hits of each slide without isolated tumour cells, and with them as lesions.
    rules : Rules
        Rules of the protocol.
    resamples, seed : int
        Number of resamples and seed of the bootstrap over slides.
    no_truth : str, optional
        Reason why there are no hits to score.
    kinds : sequence of str, optional
        Class of each tumour region of all slides, in order.
    """
    if no_truth:
        return FrocScore(
            rules,
            undefined(no_truth),
            curve=None,
            sensitivities=None,
            interval=None,
            thresholds=[None] * len(OPERATING_POINTS),
            by_class={},
            score_all_thresholds=None,
            score_conservative=None,
            score_with_itc=None,
            lesions=None,
            itc=None,
            slides=0,
            false_positives=None,
            ties=None,
            resamples_without_lesion=0,
        )
    pool, exact = Pool(hits, rules), Pool(hits, all_thresholds(rules))
    itc = sum(full.lesions - hit.lesions for hit, full in zip(hits, hits_with_itc, strict=True))
    sensitivities = pool.sensitivities()
    score, interval, unused = _estimate(
        pool, hits, sensitivities=sensitivities, itc=itc, resamples=resamples, seed=seed
    )
    return FrocScore(
        rules,
        score,
        curve=pool.curve(),
        sensitivities=sensitivities,
        interval=interval,
        thresholds=exact.thresholds(),
        by_class={} if kinds is None else _by_class(pool, hits_with_itc, kinds),
        score_all_thresholds=_mean(exact),
        score_conservative=_mean(Pool(hits, conservative(rules))),
        score_with_itc=_mean(Pool(hits_with_itc, rules)),
        lesions=pool.lesions,
        itc=itc,
        slides=len(hits),
        false_positives=sum(len(hit.false_positives) for hit in hits),
        ties=pool.ties,
        resamples_without_lesion=unused,
    )


def _estimate(
    pool: Pool,
    hits: Sequence[SlideHits],
    sensitivities: Floats | None,
    itc: int,
    resamples: int,
    seed: int,
) -> tuple[Estimate, Floats | None, int]:
    """Return the score with its interval, the sensitivities' intervals, and unusable resamples."""
    if sensitivities is None:
        regions = by_number(itc, "the only tumour region is", f"all {itc} tumour regions are")
        cells = f": {regions} isolated tumour cells" if itc else ""
        return undefined(f"there is no lesion to find{cells}"), None, 0
    value = float(sensitivities.mean())
    if pool.slides_with_lesions < 2:
        reason = "lesions lie on fewer than two slides"
        return Estimate(value, interval_undefined=reason), None, 0
    samples = [
        pool.sensitivities(w) for w in slide_weights(len(hits), resamples=resamples, seed=seed)
    ]
    usable = np.array([sample for sample in samples if sample is not None])
    if not len(usable):
        return Estimate(value, interval_undefined=NO_RESAMPLES), None, len(samples)
    low, high = percentile_interval(usable.mean(axis=1)).tolist()
    return Estimate(value, low, high), percentile_interval(usable), len(samples) - len(usable)


def _by_class(
    pool: Pool, hits_with_itc: Sequence[SlideHits], kinds: Sequence[LesionClass]
) -> dict[LesionClass, ClassScore]:
    best = np.concatenate([np.zeros(0), *(hit.regions for hit in hits_with_itc)])
    found: dict[LesionClass, ClassScore] = {}
    for name in CLASSES:
        among = np.array([kind == name for kind in kinds], dtype=bool)
        at = None if name == "itc" else pool.sensitivities(among=among)
        found[name] = ClassScore(int(among.sum()), int(np.count_nonzero(best[among])), at)
    return found


def _mean(pool: Pool) -> float | None:
    sensitivities = pool.sensitivities()
    return None if sensitivities is None else float(sensitivities.mean())
