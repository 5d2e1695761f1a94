"""How sure one can be of what a slide shows, by what healthy slides show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from wsiad.conformal.false_alarms import FalseAlarms, count_slides, mean_share
from wsiad.conformal.p_values import (
    FloatArray,
    HealthyReference,
    HealthyRegions,
    RegionSignificance,
)


@dataclass(frozen=True, slots=True, eq=False)
class SlideScores:
    """Scores of a slide that has tissue.

    Parameters
    ----------
    slide : float
        Its own.
    tiles : ndarray of float64, (N,)
        Of its windows.
    regions : ndarray of float64, (M,)
        Highest score of each region that was kept, strongest first.
    n_regions : int
        Regions in all; those that were not kept are no stronger than any that was.
    """

    slide: float
    tiles: FloatArray
    regions: FloatArray
    n_regions: int

    def all_regions(self) -> FloatArray:
        """Highest score of each region, or what it is at most."""
        missing = self.n_regions - len(self.regions)
        if missing <= 0 or not len(self.regions):
            return self.regions
        return np.concatenate([self.regions, np.full(missing, self.regions.min())])


@dataclass(frozen=True, slots=True, eq=False)
class SlideJudgement:
    """P-values of a slide, of its tiles, (N,), and of its regions, (M,)."""

    p: float
    tiles: FloatArray
    regions: RegionSignificance


@dataclass(frozen=True, slots=True, eq=False)
class HealthySlides:
    """What held-out healthy slides show: their own scores, their tiles and their regions."""

    slides: HealthyReference
    tiles: HealthyReference
    regions: HealthyRegions

    @classmethod
    def of(cls, healthy: Sequence[SlideScores]) -> Self:
        """Take the scores of healthy slides.

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
        """Compare a slide that is not among them; ``fdr`` is kept over its regions.

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
    """Measure the false alarms on healthy slides that took no part in anything.

    Parameters
    ----------
    healthy : iterable of SlideJudgement
        Of these slides, made with the same ``fdr``; gone through once.
    levels : sequence of float
        At which slides, tiles and family-wise regions are counted.
    fdr : float
        At which significant regions are.
    reference : int
        Slides of the reference.

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
