"""What each slide contributes to the figures: read once, slide by slide."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsiad.core.units import Mpp
from wsiad.evaluation.cohort import Case
from wsiad.evaluation.lesion_table import Lesion, list_lesions
from wsiad.evaluation.lesions import Reading, SlideTruth
from wsiad.evaluation.matching import Detections, SlideHits, match
from wsiad.evaluation.protocols import PROTOCOLS, ProtocolName
from wsiad.evaluation.regions import EvaluationMask
from wsiad.evaluation.results_input import read_windows
from wsiad.evaluation.submission import read_detections
from wsiad.evaluation.tiles import TileScores, sort_windows
from wsiad.evaluation.unscored import CountedAs, score_of_unscored

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ProtocolEvidence:
    """Hits on a slide by one protocol.

    Parameters
    ----------
    hits, hits_with_itc : SlideHits
        Isolated tumour cells left out, and taken as lesions.
    lesions : tuple of Lesion
        Tumour regions one by one, isolated tumour cells too.
    spacing : str
        Where the µm/px come from.
    mpp : Mpp or None
        µm per level-0 pixel; ``None`` where there is no tumour to measure.
    """

    hits: SlideHits
    hits_with_itc: SlideHits
    lesions: tuple[Lesion, ...]
    spacing: str
    mpp: Mpp | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SlideEvidence:
    """What one slide contributes.

    Parameters
    ----------
    case : Case
        The slide.
    score : float
        Its anomaly score; minus infinity where it was looked at and nothing was found, NaN where
        it has none and is not ranked.
    detections : int
        How many there are on it.
    bounded : bool
        Whether the detections could be checked against the slide's size.
    by_protocol : Mapping of str to ProtocolEvidence
        Empty where the slide takes no part in FROC.
    tiles : TileScores or None
        Its windows, where there are outlines and windows.
    unmarked : bool
        Whether it holds tumour by the reference while its ground truth marks none; it then takes
        no part in figures that need to know where tumour is.
    reading : Reading
        What its file of ground truth says besides.
    downsample : int
        Level-0 pixels per mask pixel; 0 where it takes no part in FROC.
    """

    case: Case
    score: float
    detections: int
    bounded: bool
    by_protocol: Mapping[ProtocolName, ProtocolEvidence]
    tiles: TileScores | None
    unmarked: bool
    reading: Reading
    downsample: int = 0

    @property
    def ranked(self) -> bool:
        """Whether it takes part in figures of slides."""
        return not math.isnan(self.score)


def collect(
    case: Case,
    truth: SlideTruth | None,
    *,
    protocols: Sequence[ProtocolName],
    given_mpp: float | None,
    outlined: bool,
    unscored: CountedAs = "exclude",
) -> SlideEvidence:
    """Read the detections and windows on a slide and match them to its ground truth.

    Parameters
    ----------
    case : Case
        The slide.
    truth : SlideTruth or None
        Where its tumour is; ``None`` if the slide takes no part in FROC.
    protocols : sequence of str
        FROC protocols.
    given_mpp : float or None
        µm per level-0 pixel that the user gives for all slides.
    outlined : bool
        Whether ground truth is outlines, by which windows can be told apart.
    unscored : str
        What is made of a slide without a score.

    Raises
    ------
    EvaluationError
        Detections or windows are missing or not valid.
    """
    limit = case.scored.size if truth is None else truth.limit
    if not case.has_score:
        detections = Detections(np.zeros(0), np.zeros(0), np.zeros(0))
    else:
        detections = read_detections(case.scored.detections, case.slide, limit=limit)
    unmarked = truth is not None and truth.is_unmarked
    if unmarked:
        # Where its tumour is, nobody said: no finding on it is false, and no window healthy.
        logger.warning("%s holds tumour by the reference, but none is marked on it", case.slide)
    located = truth is not None and not unmarked
    tiles = None
    if truth is not None and located and outlined and case.scored.windows is not None:
        tiles = sort_windows(read_windows(case.scored.windows, case.slide), truth.tumour)
    return SlideEvidence(
        case,
        _score(case, detections) if case.has_score else score_of_unscored(unscored),
        len(detections),
        limit is not None,
        _by_protocol(case, truth, detections, protocols, given_mpp) if truth and located else {},
        tiles,
        unmarked,
        Reading() if truth is None else truth.reading,
        0 if truth is None else truth.downsample,
    )


def _score(case: Case, detections: Detections) -> float:
    if case.scored.score is not None:
        return case.scored.score
    return float(detections.confidence.max()) if len(detections) else -math.inf


def _by_protocol(
    case: Case,
    truth: SlideTruth,
    detections: Detections,
    protocols: Sequence[ProtocolName],
    given_mpp: float | None,
) -> dict[ProtocolName, ProtocolEvidence]:
    evidence = {}
    made: dict[float, EvaluationMask | None] = {}
    for protocol in protocols:
        mpp, source = truth.protocol_mpp(protocol, given_mpp, case.slide)
        if mpp not in made:
            made[mpp] = truth.regions(mpp)
        hits, with_itc = (
            match(
                detections,
                made[mpp],
                PROTOCOLS[protocol],
                downsample=truth.downsample,
                include_itc=include_itc,
            )
            for include_itc in (False, True)
        )
        lesions = list_lesions(
            made[mpp],
            with_itc,
            detections,
            downsample=truth.downsample,
            pixel_um=mpp * truth.downsample,
        )
        evidence[protocol] = ProtocolEvidence(
            hits, with_itc, lesions, source, mpp if truth.mask is not None else None
        )
    return evidence
