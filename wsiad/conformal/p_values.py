"""Conformal p-values: how rare a score would be among held-out healthy slides.

They assume nothing about the scores. They assume only that a new healthy slide and those of the
reference are *exchangeable by slide*: they could have come in any order. Tiles of one slide share
its stain, scanner and patient; counting them as independent would promise far more than is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import EvaluationError

FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # of a product that is a whole number but for it


@dataclass(frozen=True, slots=True, eq=False)
class HealthyReference:
    """Scores of slides, regions or tiles that were seen on healthy slides.

    Parameters
    ----------
    scores : ndarray of float64, (N,)
        Scores of all slides, ascending.
    tails : ndarray of float64, (N,)
        For each score, the sum over slides of the share of a slide's scores that are at
        least as high.
    slides : int
        Number of slides, including those without any score.

    Notes
    -----
    A reference takes 16 bytes per score, and 40 while it is built: a thousand slides of ten
    thousand tiles each take 160 MB, and 400 MB at first.
    """

    scores: FloatArray
    tails: FloatArray
    slides: int

    @classmethod
    def of(cls, groups: Sequence[npt.NDArray[np.floating]]) -> Self:
        """Build the reference from one array of scores per healthy slide, of any length.

        A slide without scores, such as a slide without a region, counts as a slide on which
        nothing reaches any score.

        Raises
        ------
        EvaluationError
            There is no slide, or a score is not a finite number.
        """
        if not groups:
            raise EvaluationError(
                "there is no healthy slide to compare with",
                remedy="Score healthy slides with wsiad heatmap.",
            )
        flat = np.concatenate([np.asarray(group, np.float64).ravel() for group in groups])
        if not np.isfinite(flat).all():
            raise EvaluationError("a score of a healthy slide is not a finite number")
        weights = np.concatenate([np.full(np.size(g), 1 / max(1, np.size(g))) for g in groups])
        order = np.argsort(flat, kind="stable")
        # Summed from the top, where the sums are small and the p-values matter.
        tails = np.cumsum(weights[order][::-1])[::-1]
        return cls(flat[order], np.ascontiguousarray(tails), len(groups))

    @property
    def smallest_p(self) -> float:
        """Smallest p-value that this number of slides can give."""
        return 1 / (self.slides + 1)

    def p_values(self, scores: npt.ArrayLike) -> FloatArray:
        """Return the p-value of each score: high scores have small p-values.

        Parameters
        ----------
        scores : array_like of float, (...)
            Scores of a slide that is not in the reference.

        Returns
        -------
        ndarray of float64, (...)
            ``(1 + sum over healthy slides of their share of scores as high) / (slides + 1)``:
            from ``smallest_p`` to 1, never 0.

        Raises
        ------
        EvaluationError
            A score is not a finite number.

        Notes
        -----
        With one score per slide this is the conformal p-value (Vovk, Gammerman and Shafer,
        *Algorithmic Learning in a Random World*, 2005; Bates et al., Annals of Statistics
        51, 2023): a new healthy slide, exchangeable with those of the reference,
        has ``p <= a`` with a probability of at most ``a``, for every ``a``.

        With several scores per slide it is the hierarchical p-value of Lee, Barber and Willett
        (arXiv:2306.06342, 2023; cf. Dunn, Wasserman and Ramdas, JASA 118, 2023). The same
        statement then holds for *one* score drawn at random from those of a new healthy slide,
        however similar and however many the scores of a slide are. To see why, replace the 1,
        which stands for the new slide, by the new slide's own share. That makes p smaller and
        treats all slides alike, and at most a share ``a`` of the weights of all slides lies on
        scores whose tail is at most ``a``.
        """
        asked = np.asarray(scores, np.float64)
        if not np.isfinite(asked).all():
            raise EvaluationError("a score is not a finite number, so it has no p-value")
        tails = np.append(self.tails, 0.0)[np.searchsorted(self.scores, asked, side="left")]
        return np.minimum((1 + tails) / (self.slides + 1), 1.0)


def attainable(level: float, slides: int) -> float:
    """Return the highest rate of ``p <= level`` that a reference of this size can state.

    Conformal p-values of slides are multiples of 1 / (slides + 1).

    Examples
    --------
    >>> attainable(0.05, 19), attainable(0.05, 18), attainable(0.05, 30) == 1 / 31
    (0.05, 0.0, True)
    """
    return math.floor(level * (slides + 1) + _ROUNDING) / (slides + 1)


def slides_needed(level: float) -> int:
    """Return the number of healthy slides with which a p-value can be as small as a level.

    Examples
    --------
    >>> [slides_needed(level) for level in (0.1, 0.05, 0.01, 0.001)]
    [9, 19, 99, 999]
    """
    return math.ceil(1 / level - _ROUNDING) - 1


def benjamini_hochberg(p_values: FloatArray, *, tests: int | None = None) -> FloatArray:
    """Adjust p-values for false discoveries.

    The adjusted value is the smallest false-discovery rate at which the test is significant.

    Parameters
    ----------
    p_values : ndarray of float64, (N,)
        P-values in any order.
    tests : int, optional
        Number of all tests, if only the smallest p-values were kept. The others count as 1,
        which can only make the adjusted values larger.

    Returns
    -------
    ndarray of float64, (N,)
        Step-up adjusted p-values, or *q-values* (Benjamini and Hochberg, JRSS B 57, 1995). They
        are rounded to 12 decimals, so that rounding errors lift none above the rate that it
        should meet.

    Raises
    ------
    EvaluationError
        A p-value is not between 0 and 1, or there are more p-values than tests.
    """
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise EvaluationError("a p-value is not within 0 to 1")
    missing = 0 if tests is None else tests - len(p_values)
    if missing < 0:
        raise EvaluationError(f"{len(p_values)} p-values of {tests} tests make no sense")
    if not len(p_values):
        return np.empty(0)
    from scipy import stats

    padded = np.concatenate([p_values, np.ones(missing)])
    adjusted = stats.false_discovery_control(padded, method="bh")[: len(p_values)]
    return np.round(adjusted, 12)


@dataclass(frozen=True, slots=True, eq=False)
class RegionSignificance:
    """Statistical significance of the regions of a slide; arrays in the regions' order.

    Parameters
    ----------
    p_family_wise : ndarray of float64, (N,)
        Probability that a healthy slide has *any* region with at least this score.
    p : ndarray of float64, (N,)
        Probability that *one* region, drawn at random from those of a healthy slide if it has
        any, has at least this score.
    q : ndarray of float64, (N,)
        `p`, adjusted over the slide's regions by Benjamini and Hochberg.
    significant : ndarray of bool, (N,)
        True for each significant region, see :meth:`HealthyRegions.judge`.
    """

    p_family_wise: FloatArray
    p: FloatArray
    q: FloatArray
    significant: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class HealthyRegions:
    """Regions of healthy slides: all of them, and the strongest of each slide."""

    all: HealthyReference
    strongest: HealthyReference

    @classmethod
    def of(cls, groups: Sequence[FloatArray]) -> Self:
        """Build the reference from one array of region scores per healthy slide.

        Many slides have no region; their arrays are empty.

        Raises
        ------
        EvaluationError
            There is no slide, or a score is not a finite number.
        """
        strongest = [group.max(keepdims=True) if group.size else group for group in groups]
        return cls(HealthyReference.of(groups), HealthyReference.of(strongest))

    def judge(
        self, scores: FloatArray, *, fdr: float, tests: int | None = None
    ) -> RegionSignificance:
        """Judge the regions of a slide that is not in the reference.

        A region is significant if its q is at most ``fdr`` *and* the slide's strongest region
        has a family-wise p of at most ``fdr``. The second condition is what keeps the rate: on a
        new healthy slide every significant region is false, and with this condition such a slide
        has one with a probability of at most ``fdr``. Benjamini and Hochberg's rule alone
        promises this only for p-values that are independent, or positively dependent in a
        certain way (Benjamini and Yekutieli, Annals of Statistics 29, 2001). Whether the regions
        of one slide are so is not known.

        Parameters
        ----------
        scores : ndarray of float64, (N,)
            Highest score of each region.
        fdr : float
            False-discovery rate to keep.
        tests : int, optional
            Number of all regions of the slide, if only the strongest are passed.

        Raises
        ------
        EvaluationError
            A score is not a finite number.
        """
        family_wise, p = self.strongest.p_values(scores), self.all.p_values(scores)
        q = benjamini_hochberg(p, tests=tests)
        gate = bool((family_wise <= fdr).any())
        return RegionSignificance(family_wise, p, q, (q <= fdr) & gate)
