"""Compute the figures of an evaluation and make ``evaluation.json`` from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsiad.evaluation.auc import LEVEL, Estimate, Floats, slide_auc, tile_auroc, undefined
from wsiad.evaluation.froc import OPERATING_POINTS
from wsiad.evaluation.froc_score import FrocScore, froc_score
from wsiad.evaluation.lesion_table import CLASS_RULE, SlideLesions
from wsiad.evaluation.matching import PROTOCOLS, ProtocolName
from wsiad.evaluation.slide_evidence import SlideEvidence
from wsiad.evaluation.truth import NOT_STATED
from wsiad.evaluation.unscored import CountedAs, told

_INTERVALS = (
    "Slide AUC: DeLong on the logit scale. All others: percentiles of resamples of the slides, "
    "each with all its lesions and tiles. They cover the choice of slides, not that of the "
    "slides the detector was fitted on, nor another fit of it."
)


_LISTED = 8
"""Maximum number of slides that a line names; ``evaluation.json`` names all."""


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """Figures of an evaluation.

    Parameters
    ----------
    slide_auc : Estimate
        Area under the ROC curve of slides.
    tile_auroc, tile_auroc_by_share : Estimate
        Area under the ROC curve of tiles, which are tumour by their centre, or by their share of
        tumour.
    froc : Mapping of str to FrocScore
        FROC score by protocol.
    counts : Mapping of str to int or None
        Numbers of ranked slides, lesions and so on; lesions are those of the first protocol.
    tile_auroc_neighbourhoods : Estimate or None
        Area by the map of neighbourhoods at the tiles' centres; ``None`` where there is no map.
    """

    slide_auc: Estimate
    tile_auroc: Estimate
    tile_auroc_by_share: Estimate
    froc: Mapping[ProtocolName, FrocScore]
    counts: Mapping[str, int | None]
    tile_auroc_neighbourhoods: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the computation of figures.

    Parameters
    ----------
    protocols : sequence of str
        FROC protocols.
    resamples, seed : int
        Number of resamples and seed of the bootstrap.
    no_truth, no_tiles : str or None
        Reason why there is no ground truth, and reason why there are no tile scores; ``None``
        where there are.
    """

    protocols: Sequence[ProtocolName]
    resamples: int
    seed: int
    no_truth: str | None
    no_tiles: str | None


def compute(slides: Sequence[SlideEvidence], settings: Settings) -> Figures:
    """Compute all figures of at least one slide."""
    resamples, seed = settings.resamples, settings.seed
    located = [slide for slide in slides if slide.by_protocol]
    froc = {
        name: froc_score(
            [slide.by_protocol[name].hits for slide in located],
            [slide.by_protocol[name].hits_with_itc for slide in located],
            PROTOCOLS[name],
            resamples=resamples,
            seed=seed,
            no_truth=settings.no_truth,
            kinds=[lesion.kind for slide in located for lesion in slide.by_protocol[name].lesions],
        )
        for name in settings.protocols
    }
    tiles = [slide.tiles for slide in slides if slide.tiles is not None]
    healthy = [tile.healthy for tile in tiles]
    by_centre, by_share = (
        undefined(settings.no_tiles)
        if settings.no_tiles
        else tile_auroc(tumour, healthy, resamples=resamples, seed=seed)
        for tumour in ([tile.tumour for tile in tiles], [tile.mostly_tumour for tile in tiles])
    )
    return Figures(
        slide_auc=slide_auc(*slide_scores(slides)),
        tile_auroc=by_centre,
        tile_auroc_by_share=by_share,
        froc=froc,
        counts=_counts(slides, froc),
        tile_auroc_neighbourhoods=_by_neighbourhoods(slides, resamples=resamples, seed=seed),
    )


def _by_neighbourhoods(
    slides: Sequence[SlideEvidence], *, resamples: int, seed: int
) -> Estimate | None:
    near = [slide.neighbourhoods for slide in slides if slide.neighbourhoods is not None]
    if not near:
        return None
    if len(near) < sum(slide.tiles is not None for slide in slides):
        return undefined("some slides have no map of neighbourhoods")
    tumour, healthy = [one.tumour for one in near], [one.healthy for one in near]
    return tile_auroc(tumour, healthy, resamples=resamples, seed=seed)


def compute_groups(
    slides: Sequence[SlideEvidence], groups: Mapping[str, str], settings: Settings
) -> dict[str, Figures]:
    """Compute all figures separately for each group of slides, sorted by name of the group.

    Parameters
    ----------
    slides : sequence of SlideEvidence
        Evaluated slides.
    groups : mapping of str to str
        Group of each slide. Slides that it does not list form the group
        :data:`~wsiad.evaluation.truth.NOT_STATED`.
    settings : Settings
        Settings of the computation.
    """
    members: dict[str, list[SlideEvidence]] = {}
    for slide in slides:
        members.setdefault(groups.get(slide.case.slide, NOT_STATED), []).append(slide)
    found = {}
    for name in sorted(members):
        located = any(slide.by_protocol for slide in members[name])
        reason = settings.no_truth or (None if located else _NONE_LOCATED)
        found[name] = compute(members[name], replace(settings, no_truth=reason))
    return found


_NONE_LOCATED = "all slides of the group are excluded from FROC"


def slide_scores(slides: Sequence[SlideEvidence]) -> tuple[Floats, Floats]:
    """Return the scores of the ranked tumour slides and of the ranked normal slides."""
    slides = [slide for slide in slides if slide.ranked]
    scores = np.array([slide.score for slide in slides], dtype=np.float64)
    tumour = np.array([slide.case.tumour for slide in slides], dtype=bool)
    return scores[tumour], scores[~tumour]


def _counts(
    slides: Sequence[SlideEvidence], froc: Mapping[ProtocolName, FrocScore]
) -> dict[str, int | None]:
    first = next(iter(froc.values()))
    ranked = [slide for slide in slides if slide.ranked]
    tumour = sum(slide.case.tumour for slide in ranked)
    tiles = [slide.tiles for slide in slides if slide.tiles is not None]
    windows = sum(tile.windows for tile in tiles)
    tumour_tiles = sum(len(tile.tumour) for tile in tiles)
    healthy_tiles = sum(len(tile.healthy) for tile in tiles)
    return {
        "slides": len(ranked),
        "tumour_slides": tumour,
        "normal_slides": len(ranked) - tumour,
        "slides_without_score": sum(not s.case.has_score for s in slides),
        "slides_without_tissue": sum(s.case.scored.status == "no-tissue" for s in slides),
        "slides_in_froc": sum(bool(slide.by_protocol) for slide in slides),
        "lesions": first.lesions,
        "itc": first.itc,
        "detections": sum(slide.detections for slide in slides),
        "tiles": windows,
        "tumour_tiles": tumour_tiles,
        "healthy_tiles": healthy_tiles,
        "ignored_tiles": windows - tumour_tiles - healthy_tiles,
    }


def lesions(
    slides: Sequence[SlideEvidence], protocols: Sequence[ProtocolName]
) -> dict[ProtocolName, list[SlideLesions]]:
    """Return the lesions of the slides that take part in FROC, by protocol."""
    located = [slide for slide in slides if slide.by_protocol]
    return {
        name: [
            SlideLesions(s.case.slide, s.by_protocol[name].lesions, s.by_protocol[name].hits)
            for s in located
        ]
        for name in protocols
    }


def left_out(exclude: Sequence[str], exclude_from_froc: Sequence[str], unscored: str = "") -> str:
    """Return a line that names the slides that were excluded or have no score.

    The line accompanies every figure.
    """
    texts = {"excluded": exclude, "excluded from FROC and tile figures": exclude_from_froc}
    said = [f"{text}: {_listed(sorted(names))}" for text, names in texts.items() if names]
    if unscored:
        said.insert(0, unscored)
    return "; ".join(said) or "no slide was excluded"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def as_json(
    figures: Figures,
    slides: Sequence[SlideEvidence],
    *,
    exclude: Sequence[str],
    exclude_from_froc: Sequence[str],
    counted_as: CountedAs = "exclude",
    reference: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """Return ``evaluation.json`` as JSON values; an undefined figure is null with a reason.

    The reference, true for slides with tumour, gives the label of those that were excluded.
    """
    labels = {name: _label(tumour=tumour) for name, tumour in (reference or {}).items()}
    return {
        "unscored": told([slide.case for slide in slides], counted_as),
        **_areas(figures),
        "froc": {name: _froc(name, score, slides) for name, score in figures.froc.items()},
        "counts": {
            **figures.counts,
            "excluded": len(exclude),
            "excluded_from_froc": len(exclude_from_froc),
        },
        "exclusions": {"all": sorted(exclude), "froc": sorted(exclude_from_froc)},
        "excluded": [{"slide": name, "label": labels.get(name)} for name in sorted(exclude)],
        "intervals": {"level": LEVEL, "note": _INTERVALS},
        "lesion_classes": CLASS_RULE,
        "notes": notes(slides),
        "annotations_ignored": {
            s.case.slide: dict(s.reading.ignored) for s in slides if s.reading.ignored
        },
        "slides": [_slide(slide, figures.froc) for slide in slides],
    }


def _label(*, tumour: bool) -> str:
    return "tumour" if tumour else "normal"


def groups_json(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Return the figures of groups as JSON values, by group."""
    return {
        name: {
            **_areas(found),
            "froc": {protocol: score.as_json() for protocol, score in found.froc.items()},
            "counts": dict(found.counts),
        }
        for name, found in figures.items()
    }


def _areas(figures: Figures) -> dict[str, Any]:
    by_share = figures.tile_auroc_by_share.as_json()
    near = figures.tile_auroc_neighbourhoods
    return {
        "slide_auc": figures.slide_auc.as_json(),
        "tile_auroc": {**figures.tile_auroc.as_json(), "by_share": by_share},
        **({"tile_auroc_neighbourhoods": near.as_json()} if near else {}),
    }


def _froc(name: ProtocolName, score: FrocScore, slides: Sequence[SlideEvidence]) -> dict[str, Any]:
    spacing = Counter(s.by_protocol[name].spacing for s in slides if s.by_protocol)
    return {**score.as_json(), "spacing": dict(spacing)}


def notes(slides: Sequence[SlideEvidence]) -> list[str]:
    """Return lines with facts about the slides that a reader of the figures must know."""
    groups = {
        "slides without tissue, which FROC counts as slides without detections": [
            s for s in slides if s.case.scored.status == "no-tissue" and s.by_protocol
        ],
        "slides without detections, taken to have been looked at and ranked lowest": [
            s for s in slides if s.case.has_score and s.score == -math.inf
        ],
        "slides of unknown size, for which coordinates that are too large go unnoticed": [
            s for s in slides if s.case.has_score and not s.bounded
        ],
    }
    said = [
        f"{text}: {', '.join(slide.case.slide for slide in found)}"
        for text, found in groups.items()
        if found
    ]
    doubts = (doubt for slide in slides for doubt in slide.reading.doubts)
    return [*unmarked(slides), *said, *doubts]


def unmarked(slides: Sequence[SlideEvidence]) -> list[str]:
    """Return a line that names the tumour slides on which no tumour is marked, if any."""
    names = [slide.case.slide for slide in slides if slide.unmarked]
    text = "tumour slides left out of FROC and tile figures because no tumour is marked"
    return [f"{text}: {', '.join(names)}"] if names else []


def _slide(slide: SlideEvidence, froc: Mapping[ProtocolName, FrocScore]) -> dict[str, Any]:
    protocols = {
        name: {
            "lesions": found.hits.lesions,
            "itc": found.hits_with_itc.lesions - found.hits.lesions,
            "lesions_hit": int(np.count_nonzero(found.hits.regions)),
            "false_positives": len(found.hits.false_positives),
            "lesions_hit_at": _numbers_from(found.hits.regions, froc[name].thresholds),
            "false_positives_at": _numbers_from(found.hits.false_positives, froc[name].thresholds),
        }
        for name, found in slide.by_protocol.items()
    }
    return {
        "slide": slide.case.slide,
        "label": _label(tumour=slide.case.tumour),
        "status": slide.case.scored.status,
        "reason": slide.case.scored.reason,
        "score": slide.score if math.isfinite(slide.score) else None,
        "ranked": slide.ranked,
        "detections": slide.detections,
        "froc": protocols,
    }


def _numbers_from(confidences: Floats, thresholds: Sequence[float | None]) -> dict[str, int]:
    """Count the confidences that reach the threshold of each operating point; none is 0."""
    return {
        f"{point:g}": 0 if least is None else int(np.count_nonzero(confidences >= least))
        for point, least in zip(OPERATING_POINTS, thresholds, strict=True)
    }
