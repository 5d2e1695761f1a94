"""Windows of a cohort that stand out from healthy slides at a stated false-discovery rate.

At a threshold, two things are expected by chance: some *windows* above it, as many as healthy
slides have on average, and some *slides* with such windows, in the proportion of healthy slides.
Expected over observed is an estimate of the share that is false. Both shares are held below the
stated rate, because neither is enough alone: a few odd healthy slides can have many high windows,
and slides with a single high window need not be of interest.

For slides, the expected number is that of conformal p-values, so the rule is that of Benjamini and
Hochberg on them (Bates et al., Annals of Statistics 51, 2023). In a cohort of healthy slides alone,
exchangeable with those of the reference, it lets anything through with a probability of at most the
stated rate. All slides of the cohort count as healthy in the expected numbers, so the estimates are
too high rather than too low where many are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.conformal.p_values import HealthyReference
from wsiad.core.errors import EvaluationError
from wsiad.core.terminal import counted

Values = npt.NDArray[np.floating]

_MOST_THRESHOLDS = 4096


@dataclass(frozen=True, slots=True)
class StandingOut:
    """Windows above a threshold, and how many of them are expected to be false.

    Parameters
    ----------
    threshold : float
        Lowest value that stands out.
    windows, slides : int
        Number of windows at or above it, and of slides that have one.
    window_rate, slide_rate : float
        Expected share of these windows, and of these slides, that a healthy cohort would have too.
    share : float
        Share of the cohort's windows that stand out.
    """

    threshold: float
    windows: int
    slides: int
    window_rate: float
    slide_rate: float
    share: float

    @property
    def rate(self) -> float:
        """The higher of the two estimates of the false-discovery rate."""
        return max(self.window_rate, self.slide_rate)


def standing_out(
    cohort: Sequence[Values], healthy: Sequence[Values], *, most_share: float
) -> list[StandingOut]:
    """Estimate the false-discovery rate at thresholds, the lowest threshold first.

    Parameters
    ----------
    cohort : sequence of ndarray of float, (N,)
        Values of the windows of each slide.
    healthy : sequence of ndarray of float, (M,)
        Values of the windows of each held-out healthy slide, standardised in the same way.
    most_share : float
        Maximum share of the cohort's windows above a threshold.

    Returns
    -------
    list of StandingOut
        One for each threshold, at most 4096; empty if ties leave none within `most_share`.

    Raises
    ------
    EvaluationError
        A value is not a finite number, or the cohort or the reference has none.
    """
    if not cohort or not healthy or not all(len(one) for one in (*cohort, *healthy)):
        raise EvaluationError("there are no windows to compare with those of healthy slides")
    every = np.sort(np.concatenate([np.asarray(one, np.float64) for one in cohort]))
    if not np.isfinite(every).all():
        raise EvaluationError("a value of a window is not a finite number")
    maxima = np.sort([float(one.max()) for one in cohort])
    windows = HealthyReference.of(healthy)
    slides = HealthyReference.of([one.max(keepdims=True) for one in healthy])
    first = len(every) - math.floor(most_share * len(every))
    thresholds = np.unique(every[first:])
    if first:  # a threshold lets all windows of its value through
        thresholds = thresholds[thresholds > every[first - 1]]
    step = -(-len(thresholds) // _MOST_THRESHOLDS) or 1
    thresholds = thresholds[::step]
    count = len(every) - np.searchsorted(every, thresholds, side="left")
    with_one = len(cohort) - np.searchsorted(maxima, thresholds, side="left")
    tails = np.append(windows.tails, 0.0)[np.searchsorted(windows.scores, thresholds, side="left")]
    window_rate = tails / windows.slides * len(every) / count
    slide_rate = slides.p_values(thresholds) * len(cohort) / with_one
    return [
        StandingOut(
            threshold=float(threshold),
            windows=int(n),
            slides=int(m),
            window_rate=float(first_rate),
            slide_rate=float(second_rate),
            share=float(n / len(every)),
        )
        for threshold, n, m, first_rate, second_rate in zip(
            thresholds, count, with_one, window_rate, slide_rate, strict=True
        )
    ]


def lowest(
    found: Sequence[StandingOut], *, rate: float, least_slides: int
) -> tuple[StandingOut | None, str]:
    """Choose the lowest threshold at which the rate is kept on enough slides.

    Returns
    -------
    StandingOut or None
        The choice; ``None`` if there is none.
    str
        Reason why there is none, one line.
    """
    enough = [one for one in found if one.slides >= least_slides]
    for one in enough:
        if one.rate <= rate:
            return one, ""
    if not enough:
        most = max((one.slides for one in found), default=0)
        return None, (
            f"the windows that stand out most are of {counted(most, 'slide')}, and at least "
            f"{least_slides} are needed"
        )
    best = min(enough, key=lambda one: one.rate)
    return None, (
        f"at best {best.slide_rate:.0%} of the slides and {best.window_rate:.0%} of the windows "
        f"that stand out are expected by chance, and at most {rate:.0%} are allowed"
    )


def healthy_slides_needed(cohort: int, *, rate: float, slides: int) -> int:
    """Return how many healthy slides a reference needs at least.

    Parameters
    ----------
    cohort : int
        Number of slides of the cohort.
    rate : float
        Stated false-discovery rate.
    slides : int
        Number of slides of the cohort that are above all healthy ones.

    Returns
    -------
    int
        With fewer, the rate cannot be kept even if no healthy slide stands out.
    """
    return max(1, math.ceil(cohort / (rate * slides) - 1 - 1e-9))
