"""Compare the figures of two results on the same slides, with intervals of the differences.

Both results are evaluated on the same slides and on the same resamples of them. What makes a
slide hard for both therefore does not count as uncertainty of the difference. The interval covers
the choice of slides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import EvaluationError
from wsiad.core.terminal import counted
from wsiad.evaluation.auc import (
    LEVEL,
    NO_RESAMPLES,
    Estimate,
    Floats,
    TilePool,
    percentile_interval,
    placements,
    slide_weights,
    undefined,
)
from wsiad.evaluation.figures import Settings
from wsiad.evaluation.froc import OPERATING_POINTS, Pool
from wsiad.evaluation.matching import PROTOCOLS, ProtocolName
from wsiad.evaluation.slide_evidence import SlideEvidence, TileScores

Weights = npt.NDArray[np.int64]

_NOTHING = 1e-18
"""Variances up to this are rounding errors."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a figure between two results, b minus a.

    Parameters
    ----------
    a, b : float or None
        Figure of the first and of the second result; ``None`` where it is not defined.
    estimate : Estimate
        Second minus first, with a 95 % interval.
    p : float or None
        Two-sided p-value for no difference; ``None`` where there is no interval.
    """

    a: float | None
    b: float | None
    estimate: Estimate
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        return {"a": self.a, "b": self.b, **self.estimate.as_json("difference"), "p": self.p}


def delong_pair(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """Return the areas under the ROC curves of several results, and their covariance.

    The method is that of DeLong et al., Biometrics 44 (1988), equations 4 to 6.

    Parameters
    ----------
    positive, negative : ndarray of float64, (K, M) and (K, N)
        Scores of the two classes by each of K results on the same slides; M and N at least 2.

    Returns
    -------
    areas, covariance : ndarray of float64, (K,) and (K, K)
        Areas, 0 to 1, and their covariance.
    """
    parts = [placements(p, n) for p, n in zip(positive, negative, strict=True)]
    of_positive, of_negative = (np.array(side) for side in zip(*parts, strict=True))
    covariance = np.cov(of_positive) / positive.shape[1] + np.cov(of_negative) / negative.shape[1]
    return of_positive.mean(axis=1), np.atleast_2d(covariance)


def auc_difference(positive: Floats, negative: Floats) -> Difference:
    """Return the difference of two slide AUCs with DeLong's paired test.

    Parameters
    ----------
    positive, negative : ndarray of float64, (2, M) and (2, N)
        Scores of tumour and of normal slides by the two results, slides in the same order.
    """
    from scipy import special

    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        return Difference(
            None, None, undefined(f"there is no {'normal' if m else 'tumour'} slide with a score")
        )
    a, b = (float(placements(p, q)[0].mean()) for p, q in zip(positive, negative, strict=True))
    value = b - a
    if m < 2 or n < 2:
        reason = "a class has fewer than two slides"
        return Difference(a, b, Estimate(value, interval_undefined=reason))
    _, covariance = delong_pair(positive, negative)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= _NOTHING:
        reason = "DeLong's variance is 0 for these scores"
        return Difference(a, b, Estimate(value, interval_undefined=reason))
    error = math.sqrt(variance)
    half = float(special.ndtri((1 + LEVEL) / 2)) * error
    # Both tails of the normal distribution.
    p = math.erfc(abs(value) / error / math.sqrt(2))
    # Areas lie between 0 and 1, so their difference does between -1 and 1.
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Difference(a, b, Estimate(value, low, high), p)


def froc_differences(a: Pool, b: Pool, *, resamples: int, seed: int) -> list[Difference]:
    """Return the differences of the FROC score and of the sensitivity at each operating point.

    Parameters
    ----------
    a, b : Pool
        Hits on the same slides, in the same order, by the same protocol.
    resamples, seed : int
        Number of resamples and seed of the bootstrap over slides.

    Returns
    -------
    list of Difference
        Seven differences; that of the FROC score is the first.
    """

    def figures(pool: Pool, weights: Weights | None) -> Floats | None:
        found = pool.sensitivities(weights)
        return None if found is None else np.array([found.mean(), *found])

    if a.lesions == 0:
        missing = Difference(None, None, undefined("there is no lesion to find"))
        return [missing] * (1 + len(OPERATING_POINTS))
    few = a.slides_with_lesions < 2
    return _differences(
        lambda weights: (figures(a, weights), figures(b, weights)),
        slide_weights(a.slides, resamples=0 if few else resamples, seed=seed),
        "lesions lie on fewer than two slides" if few else NO_RESAMPLES,
    )


def tile_difference(a: TilePool, b: TilePool, *, resamples: int, seed: int) -> Difference:
    """Return the difference of two tile AUROCs, with an interval by resampling slides.

    Parameters
    ----------
    a, b : TilePool
        Tiles of the same slides, in the same order; the tiles may differ.
    resamples, seed : int
        Number of resamples and seed of the bootstrap over slides.
    """

    def figures(pool: TilePool, weights: Weights | None) -> Floats | None:
        area = pool.area(weights)
        return None if area is None else np.array([area])

    for pool in (a, b):
        if pool.area() is None:
            return Difference(a.area(), b.area(), undefined(pool.missing))
    few = min(a.fewest_slides, b.fewest_slides) < 2
    return _differences(
        lambda weights: (figures(a, weights), figures(b, weights)),
        slide_weights(a.slides, resamples=0 if few else resamples, seed=seed),
        "tiles of a class come from fewer than two slides" if few else NO_RESAMPLES,
    )[0]


def _differences(
    figures: Callable[[Weights | None], tuple[Floats | None, Floats | None]],
    draws: Iterable[Weights],
    no_interval: str,
) -> list[Difference]:
    """Return the differences of several figures, with the same draws of slides for both results.

    Figures without weights must be defined.
    """
    a, b = figures(None)
    assert a is not None
    assert b is not None
    pairs = (figures(weights) for weights in draws)
    samples = [
        second - first for first, second in pairs if first is not None and second is not None
    ]
    found = []
    for index, (one, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        value = other - one
        if not samples:
            estimate = Estimate(value, interval_undefined=no_interval)
            found.append(Difference(one, other, estimate))
            continue
        drawn = np.array([sample[index] for sample in samples])
        low, high = percentile_interval(drawn).tolist()
        found.append(Difference(one, other, Estimate(value, low, high), bootstrap_p(drawn)))
    return found


def bootstrap_p(samples: Floats) -> float:
    """Return the two-sided p-value for no difference.

    It is twice the smaller tail of the resamples beyond 0. One is added to both counts, so that
    no number of resamples gives a p-value of 0 (Davison & Hinkley, *Bootstrap Methods and their
    Application*, 1997, section 4.2).

    Parameters
    ----------
    samples : ndarray of float64, (R,)
        Differences in the resamples; a difference of 0 is in both tails.
    """
    tails = np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0)
    return min(1.0, 2 * (1 + int(min(tails))) / (1 + len(samples)))


_NOTE = (
    "Differences are b minus a. Slide AUC: DeLong's paired test. All others: percentiles of paired "
    "resamples of the slides, each slide with all its lesions and tiles on both sides. p-values "
    "are two-sided and not corrected for their number. They cover the choice of slides, not "
    "another fit of either detector."
)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Paired differences of two results.

    Parameters
    ----------
    slide_auc, tile_auroc : Difference
        Areas under the ROC curves of slides and of tiles.
    tile_auroc_neighbourhoods : Difference or None
        Area by the maps of neighbourhoods at the tiles' centres; ``None`` where neither has one.
    froc : Mapping of str to list of Difference
        By protocol, the difference of the score, then that of the sensitivity at each of
        :data:`~wsiad.evaluation.froc.OPERATING_POINTS`.
    counts : Mapping of str to int or None
        Numbers of slides and lesions; lesions are those of the first protocol, ``None`` without
        ground truth.
    """

    slide_auc: Difference
    tile_auroc: Difference
    froc: Mapping[ProtocolName, Sequence[Difference]]
    counts: Mapping[str, int | None]
    tile_auroc_neighbourhoods: Difference | None = None


def compare(
    a: Sequence[SlideEvidence],
    b: Sequence[SlideEvidence],
    settings: Settings,
) -> Comparison:
    """Compute the paired differences of all figures.

    Parameters
    ----------
    a, b : sequence of SlideEvidence
        Evidence of the two results, on the same slides in the same order.
    settings : Settings
        Settings of the computation; its reasons apply to both results.

    Raises
    ------
    EvaluationError
        The two results do not have the same slides, or lesions on a slide differ.
    """
    _check(a, b)
    pairs = list(zip(a, b, strict=True))
    # Paired figures are of the slides that both have looked at.
    ranked = [(s, t) for s, t in pairs if s.ranked and t.ranked]
    located = [(s, t) for s, t in pairs if s.by_protocol and t.by_protocol]
    if not located and not settings.no_truth:
        settings = replace(settings, no_truth="no slide was looked at by both")
    tumour = np.array([s.case.tumour for s, _ in ranked], dtype=bool)
    scores = np.array([[pair[side].score for pair in ranked] for side in (0, 1)], dtype=np.float64)
    resamples, seed, no_truth = settings.resamples, settings.seed, settings.no_truth
    froc = {}
    for name in settings.protocols:
        pools = [_pool([pair[side] for pair in located], name) for side in (0, 1)]
        froc[name] = (
            [Difference(None, None, undefined(no_truth))] * (1 + len(OPERATING_POINTS))
            if no_truth
            else froc_differences(*pools, resamples=resamples, seed=seed)
        )
    tiles = (
        Difference(None, None, undefined(settings.no_tiles))
        if settings.no_tiles
        else _tiles(
            pairs,
            lambda slide: slide.tiles,
            lacking="some slides have tiles on one side only",
            resamples=resamples,
            seed=seed,
        )
    )
    around = None
    if not settings.no_tiles and any(slide.neighbourhoods for pair in pairs for slide in pair):
        around = _tiles(
            pairs,
            lambda slide: slide.neighbourhoods,
            lacking="some slides have no map of neighbourhoods on one side",
            resamples=resamples,
            seed=seed,
        )
    counts = {
        "slides": len(ranked),
        "tumour_slides": int(tumour.sum()),
        "normal_slides": int((~tumour).sum()),
        "slides_in_froc": len(located),
        "lesions": None
        if no_truth
        else _pool([s for s, _ in located], settings.protocols[0]).lesions,
    }
    areas = auc_difference(scores[:, tumour], scores[:, ~tumour])
    return Comparison(areas, tiles, froc, counts, tile_auroc_neighbourhoods=around)


def _pool(slides: Sequence[SlideEvidence], protocol: ProtocolName) -> Pool:
    hits = [slide.by_protocol[protocol].hits for slide in slides if slide.by_protocol]
    return Pool(hits, PROTOCOLS[protocol])


def _tiles(
    slides: Sequence[tuple[SlideEvidence, SlideEvidence]],
    of: Callable[[SlideEvidence], TileScores | None],
    *,
    lacking: str,
    resamples: int,
    seed: int,
) -> Difference:
    """Return the difference of tile AUROCs by the tiles, or neighbourhoods, of each slide."""
    scored = [(s, t) for s, t in slides if s.case.has_score and t.case.has_score]
    both = [(of(s), of(t)) for s, t in scored]
    pairs = [(one, other) for one, other in both if one and other]
    if len(pairs) < sum(bool(s.tiles or t.tiles) for s, t in scored):
        return Difference(None, None, undefined(lacking))
    first, second = (
        TilePool([pair[side].tumour for pair in pairs], [pair[side].healthy for pair in pairs])
        for side in (0, 1)
    )
    return tile_difference(first, second, resamples=resamples, seed=seed)


def _check(a: Sequence[SlideEvidence], b: Sequence[SlideEvidence]) -> None:
    if [slide.case.slide for slide in a] != [slide.case.slide for slide in b]:
        raise EvaluationError("only results on the same slides can be compared")
    for one, other in zip(a, b, strict=True):
        for name, found in one.by_protocol.items() if other.by_protocol else ():
            if found.hits.lesions != other.by_protocol[name].hits.lesions:
                raise EvaluationError(
                    f"has {counted(found.hits.lesions, 'lesion')} on one side and "
                    f"{other.by_protocol[name].hits.lesions} on the other",
                    subject=one.case.slide,
                    remedy="Set --spacing-um and --mask-downsample, because the size or the µm/px "
                    "of the slide differ.",
                )


def as_json(found: Comparison, a: str, b: str) -> dict[str, Any]:
    """Return ``comparison.json`` as JSON values; an undefined figure is null with a reason."""
    around = found.tile_auroc_neighbourhoods
    return {
        "a": a,
        "b": b,
        "slide_auc": found.slide_auc.as_json(),
        "tile_auroc": found.tile_auroc.as_json(),
        **({"tile_auroc_neighbourhoods": around.as_json()} if around else {}),
        "froc": {
            name: {
                **score.as_json(),
                "sensitivity_at": {
                    f"{point:g}": difference.as_json()
                    for point, difference in zip(OPERATING_POINTS, at, strict=True)
                },
            }
            for name, (score, *at) in found.froc.items()
        },
        "counts": dict(found.counts),
        "intervals": {"level": LEVEL, "note": _NOTE},
    }


_HEADER = ("figure", "a", "b", "b - a", "95 %", "p")


def as_table(found: Comparison, a: str, b: str, excluded: Sequence[str]) -> str:
    """Return the comparison as a table for a terminal; it starts with what was left out."""
    rows = [_HEADER, *_rows(found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*excluded, f"a: {a}", f"b: {b}", *lines])


def as_markdown(found: Comparison, a: str, b: str, excluded: Sequence[str]) -> str:
    """Return the comparison as a page of Markdown."""
    table = [_HEADER, ("---",) * len(_HEADER), *_rows(found)]
    counts = found.counts
    said = f"{counted(counts['slides'] or 0, 'slide')} ({counts['tumour_slides']} with tumour)"
    if counts["lesions"] is not None:
        said += f", {counted(counts['lesions'], 'lesion')}"
    lines = [
        f"a is {_code(a)}, b is {_code(b)}; {said}; {'; '.join(excluded)}.",
        "",
        *("| " + " | ".join(row) + " |" for row in table),
        "",
        _NOTE,
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    yield _row("slide AUC", found.slide_auc)
    for name, (score, *at) in found.froc.items():
        yield _row(f"FROC {name}", score)
        if score.a is not None:
            for point, difference in zip(OPERATING_POINTS, at, strict=True):
                yield _row(f"  sensitivity at {point:g}", difference)
    yield _row("tile AUROC", found.tile_auroc)
    if found.tile_auroc_neighbourhoods:
        yield _row("tile AUROC, neighbourhoods", found.tile_auroc_neighbourhoods)


def _row(name: str, found: Difference) -> tuple[str, ...]:
    estimate = found.estimate
    a, b = (("-" if value is None else f"{value:.3f}") for value in (found.a, found.b))
    if estimate.value is None:
        return name, a, b, "not defined", estimate.undefined or "", ""
    change = f"{estimate.value:+.3f}"
    if estimate.low is None or estimate.high is None:
        return name, a, b, change, f"no interval: {estimate.interval_undefined}", ""
    p = "" if found.p is None else "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    return name, a, b, change, f"{estimate.low:+.3f} to {estimate.high:+.3f}", p
