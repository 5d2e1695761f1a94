"""The figures of two results on the same slides side by side, with their differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsiad.core.errors import EvaluationError
from wsiad.evaluation.auc import TilePool
from wsiad.evaluation.bootstrap import LEVEL, undefined
from wsiad.evaluation.figures import Settings
from wsiad.evaluation.froc import OPERATING_POINTS, Pool
from wsiad.evaluation.paired import Difference, auc_difference, froc_differences, tile_difference
from wsiad.evaluation.protocols import PROTOCOLS, ProtocolName
from wsiad.evaluation.slide_evidence import SlideEvidence

_NOTE = (
    "Differences are b less a. Slide AUC: DeLong's paired test. All others: percentiles of paired "
    "resamples of the slides, each slide with all its lesions and tiles on both sides. p-values "
    "are two-sided and each by itself: not corrected for how many there are. They cover the choice "
    "of slides, not another fit of either detector."
)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Paired differences of two results.

    Parameters
    ----------
    slide_auc, tile_auroc : Difference
        Areas under the ROC curves of slides and of tiles.
    froc : Mapping of str to list of Difference
        By protocol: the score, then the sensitivity at each of
        :data:`~wsiad.evaluation.froc.OPERATING_POINTS`.
    counts : Mapping of str to int or None
        Slides and lesions; lesions are those of the first protocol, ``None`` without
        ground truth.
    """

    slide_auc: Difference
    tile_auroc: Difference
    froc: Mapping[ProtocolName, Sequence[Difference]]
    counts: Mapping[str, int | None]


def compare(
    a: Sequence[SlideEvidence],
    b: Sequence[SlideEvidence],
    settings: Settings,
) -> Comparison:
    """Compute the paired differences of all figures.

    Parameters
    ----------
    a, b : sequence of SlideEvidence
        Of the same slides in the same order.
    settings : Settings
        Reasons why there is nothing to compute are of both.

    Raises
    ------
    EvaluationError
        The two do not have the same slides, or lesions on a slide differ.
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
        else _tiles(pairs, resamples=resamples, seed=seed)
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
    return Comparison(areas, tiles, froc, counts)


def _pool(slides: Sequence[SlideEvidence], protocol: ProtocolName) -> Pool:
    hits = [slide.by_protocol[protocol].hits for slide in slides if slide.by_protocol]
    return Pool(hits, PROTOCOLS[protocol])


def _tiles(
    slides: Sequence[tuple[SlideEvidence, SlideEvidence]], *, resamples: int, seed: int
) -> Difference:
    scored = [(s, t) for s, t in slides if s.case.has_score and t.case.has_score]
    pairs = [(s.tiles, t.tiles) for s, t in scored if s.tiles and t.tiles]
    if len(pairs) < sum(bool(s.tiles or t.tiles) for s, t in scored):
        reason = "some slides have tiles on one side only"
        return Difference(None, None, undefined(reason))
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
                    f"has {found.hits.lesions} lesions on one side and "
                    f"{other.by_protocol[name].hits.lesions} on the other",
                    subject=one.case.slide,
                    remedy="Size or µm/px of the slide differ; give --spacing-um and "
                    "--mask-downsample.",
                )


def as_json(found: Comparison, a: str, b: str) -> dict[str, Any]:
    """Return ``comparison.json`` as JSON values; what is not defined is null with a reason."""
    return {
        "a": a,
        "b": b,
        "slide_auc": found.slide_auc.as_json(),
        "tile_auroc": found.tile_auroc.as_json(),
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
    """Return the comparison as a table for a terminal; what is left out stands first."""
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
    said = f"{counts['slides']} slides ({counts['tumour_slides']} with tumour)"
    if counts["lesions"] is not None:
        said += f", {counts['lesions']} lesions"
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
