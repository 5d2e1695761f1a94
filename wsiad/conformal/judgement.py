"""Judge a slide by p-values against healthy slides, and measure the false-alarm rates.

A slide is compared with held-out healthy slides: its own score, its tiles and its regions. The
false-alarm rates that these p-values state are checked on healthy slides that took no part in
the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from wsiad.conformal.p_values import (
    FloatArray,
    HealthyReference,
    HealthyRegions,
    RegionSignificance,
    attainable,
)
from wsiad.core.errors import EvaluationError
from wsiad.core.terminal import counted
from wsiad.evaluation.auc import LEVEL

Verdict = Literal["as stated", "more than stated", "fewer than stated"]
Kind = Literal["slides", "tiles", "family-wise regions", "significant regions"]

WORDS: dict[Kind, str] = {
    "slides": "slides whose p is at most",
    "tiles": "tiles, on average over slides, whose p is at most",
    "family-wise regions": "slides with a region whose family-wise p is at most",
    "significant regions": "slides with a significant region, at a false-discovery rate of",
}

_NEARLY_0 = 1e-12


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """False alarms on healthy slides at one level.

    Parameters
    ----------
    kind : Kind
        Kind of event that counts as an alarm.
    level : float
        Stated rate: the alarms should be no more frequent than this.
    alarms : float
        Number of slides with an alarm; for tiles, the sum of the slides' shares of alarms.
    slides : int
        Number of slides that were examined.
    low, high : float
        95 % interval of the rate, by slide.
    chance : float or None
        Probability of this many alarms or more, provided that these slides are like those of
        the reference; of this many or fewer where the verdict is "fewer than stated". The stated
        rate is an average over references, so a single reference may give more alarms. ``None``
        where the probability is not known.
    verdict : Verdict
        Position of the stated rate relative to the interval.
    """

    kind: Kind
    level: float
    alarms: float
    slides: int
    low: float
    high: float
    chance: float | None
    verdict: Verdict

    @property
    def rate(self) -> float:
        """Measured rate, 0 to 1."""
        return self.alarms / self.slides

    @property
    def words(self) -> str:
        """Rate and its interval, in words."""
        rate = f"{self.rate:.3f} ({self.low:.3f} to {self.high:.3f})"
        return f"{WORDS[self.kind]} {self.level:g}: {rate}"

    def __str__(self) -> str:
        return f"{self.words} on {counted(self.slides, 'healthy slide')}"


def clopper_pearson(alarms: int, slides: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a binomial proportion (Clopper and Pearson, 1934).

    Raises
    ------
    EvaluationError
        There are no slides, or more alarms than slides.
    """
    _check(alarms, slides)
    from scipy import stats

    interval = stats.binomtest(alarms, slides).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def mean_interval(shares: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return a 95 % interval of the mean of independent values within 0 and 1.

    Parameters
    ----------
    shares : ndarray of float64, (N,)
        One value per slide, such as the share of its tiles that raise an alarm.

    Raises
    ------
    EvaluationError
        There is no value, or a value is not between 0 and 1.

    Notes
    -----
    This is theorem 1 of Hoeffding (JASA 58, 1963), solved for the mean. The interval holds for
    every distribution between 0 and 1 and for every number of slides; in return, it is wide.
    """
    from scipy import optimize

    if not ((shares >= 0) & (shares <= 1)).all():
        raise EvaluationError("a share is not within 0 to 1")
    _check(float(shares.sum()), len(shares))
    mean = float(np.clip(shares.mean(), 0, 1))
    bound = math.log(2 / (1 - LEVEL)) / len(shares)

    def excess(rate: float) -> float:
        return _divergence(mean, rate) - bound

    # The divergence rises from 0 at the mean to both sides; near 0 and 1 it may not get there.
    least, most = _NEARLY_0, 1 - _NEARLY_0
    low = float(optimize.brentq(excess, least, mean)) if mean > least and excess(least) > 0 else 0.0
    high = float(optimize.brentq(excess, mean, most)) if mean < most and excess(most) > 0 else 1.0
    return low, high


def _divergence(p: float, q: float) -> float:
    """Return the Kullback–Leibler divergence of two coins with these probabilities."""
    first = p * math.log(p / q) if p > 0 else 0.0
    second = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return first + second


def _check(alarms: float, slides: int) -> None:
    if slides < 1 or not 0 <= alarms <= slides + 1e-9:
        raise EvaluationError(
            f"no rate follows from {counted(alarms, 'alarm', 'g')} on "
            f"{counted(slides, 'healthy slide')}",
            remedy="Pass healthy slides with tissue.",
        )


def count_slides(
    kind: Kind, alarms: npt.NDArray[np.bool_], *, level: float, reference: int
) -> FalseAlarms:
    """Measure how many healthy slides raise an alarm.

    Parameters
    ----------
    kind : Kind
        Kind of event that counts as an alarm.
    alarms : ndarray of bool, (N,)
        True for each slide that raises an alarm.
    level : float
        Stated rate.
    reference : int
        Number of slides in the reference.

    Notes
    -----
    Among slides that are exchangeable with the `reference` slides, the number with
    ``p <= level`` is beta-binomial: given the reference, the rate is a beta variable (Bates et
    al., Annals of Statistics 51, 2023). For regions this is a bound.

    Raises
    ------
    EvaluationError
        There is no slide.
    """
    count, slides = int(alarms.sum()), len(alarms)
    low, high = clopper_pearson(count, slides)
    stated = attainable(level, reference)
    verdict: Verdict = "as stated"
    if low > level:
        verdict = "more than stated"
    elif kind == "slides" and high < stated:
        verdict = "fewer than stated"  # others are stated as bounds only
    chance = _chance(count, slides, stated, reference, most=verdict == "fewer than stated")
    return FalseAlarms(
        kind=kind,
        level=level,
        alarms=count,
        slides=slides,
        low=low,
        high=high,
        chance=chance,
        verdict=verdict,
    )


def _chance(alarms: int, slides: int, stated: float, reference: int, *, most: bool) -> float:
    """Return the probability of this many alarms or more (or fewer) on slides of this kind."""
    from scipy import stats

    expected = round(stated * (reference + 1))
    if expected == 0 or expected > reference:
        certain = 0 if expected == 0 else slides  # alarms that there must be
        return float(alarms >= certain if most else alarms <= certain)
    number = stats.betabinom(slides, expected, reference + 1 - expected)
    return float(number.cdf(alarms) if most else number.sf(alarms - 1))


def mean_share(shares: npt.NDArray[np.float64], *, level: float) -> FalseAlarms:
    """Measure the mean share of a healthy slide's tiles that raise an alarm.

    Every slide has the same weight.

    Raises
    ------
    EvaluationError
        There is no slide, or a share is not within 0 to 1.
    """
    low, high = mean_interval(shares)
    verdict: Verdict = "more than stated" if low > level else "as stated"
    total = float(shares.sum())
    return FalseAlarms(
        kind="tiles",
        level=level,
        alarms=total,
        slides=len(shares),
        low=low,
        high=high,
        chance=None,
        verdict=verdict,
    )


@dataclass(frozen=True, slots=True, eq=False)
class SlideScores:
    """Scores of a slide that has tissue.

    Parameters
    ----------
    slide : float
        Score of the slide.
    tiles : ndarray of float64, (N,)
        Scores of its windows.
    regions : ndarray of float64, (M,)
        Highest score of each region that was kept, strongest first.
    n_regions : int
        Number of all regions. Regions that were not kept are no stronger than the weakest that
        was kept.
    """

    slide: float
    tiles: FloatArray
    regions: FloatArray
    n_regions: int

    def all_regions(self) -> FloatArray:
        """Return the highest score of each region; for regions not kept, an upper bound."""
        missing = self.n_regions - len(self.regions)
        if missing <= 0 or not len(self.regions):
            return self.regions
        return np.concatenate([self.regions, np.full(missing, self.regions.min())])


@dataclass(frozen=True, slots=True, eq=False)
class SlideJudgement:
    """P-values of a slide, of its N tiles and of its M regions."""

    p: float
    tiles: FloatArray
    regions: RegionSignificance


@dataclass(frozen=True, slots=True, eq=False)
class HealthySlides:
    """Held-out healthy slides: their own scores, their tiles and their regions."""

    slides: HealthyReference
    tiles: HealthyReference
    regions: HealthyRegions

    @classmethod
    def of(cls, healthy: Sequence[SlideScores]) -> Self:
        """Build the reference from the scores of healthy slides.

        Raises
        ------
        EvaluationError
            There is no slide, or a score is not a finite number.
        """
        return cls(
            HealthyReference.of([np.array([one.slide]) for one in healthy]),
            HealthyReference.of([one.tiles for one in healthy]),
            HealthyRegions.of([one.all_regions() for one in healthy]),
        )

    def judge(self, slide: SlideScores, *, fdr: float) -> SlideJudgement:
        """Compare a slide that is not in the reference with it.

        Parameters
        ----------
        slide : SlideScores
            Scores of the slide.
        fdr : float
            False-discovery rate to keep over the slide's regions.

        Raises
        ------
        EvaluationError
            A score is not a finite number.
        """
        tests = max(slide.n_regions, len(slide.regions))
        return SlideJudgement(
            float(self.slides.p_values(slide.slide)),
            self.tiles.p_values(slide.tiles),
            self.regions.judge(slide.regions, fdr=fdr, tests=tests),
        )


def false_alarms(
    healthy: Iterable[SlideJudgement], *, levels: Sequence[float], fdr: float, reference: int
) -> list[FalseAlarms]:
    """Measure the false alarms on healthy slides that were used neither to fit nor to compare.

    Parameters
    ----------
    healthy : iterable of SlideJudgement
        Judgements of these slides, made with the same ``fdr``; read once.
    levels : sequence of float
        Levels at which slides, tiles and family-wise regions are counted.
    fdr : float
        False-discovery rate at which significant regions are counted.
    reference : int
        Number of slides in the reference.

    Raises
    ------
    EvaluationError
        There is no slide.
    """
    slides, strongest, significant = [], [], []
    shares: list[list[float]] = []
    for one in healthy:
        slides.append(one.p)
        strongest.append(one.regions.p_family_wise.min(initial=np.inf))
        significant.append(bool(one.regions.significant.any()))
        shares.append([float((one.tiles <= level).mean()) for level in levels])
    by_level = np.array(shares).reshape(len(slides), len(levels)).T
    found = []
    for level, tiles in zip(levels, by_level, strict=True):
        found += [
            count_slides("slides", np.array(slides) <= level, level=level, reference=reference),
            mean_share(tiles, level=level),
            count_slides(
                "family-wise regions",
                np.array(strongest) <= level,
                level=level,
                reference=reference,
            ),
        ]
    found.append(
        count_slides("significant regions", np.array(significant), level=fdr, reference=reference)
    )
    return found
