"""Read what each slide contributes to the figures: its score, its hits and its windows.

The files of a slide are read once, slide by slide. Windows are sorted into tumour and healthy by
the outlines of their slide.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.core.geometry import Mpp
from wsiad.evaluation.cohort import Case
from wsiad.evaluation.lesion_table import Lesion, list_lesions
from wsiad.evaluation.lesions import Reading, SlideTruth
from wsiad.evaluation.matching import (
    PROTOCOLS,
    Detections,
    EvaluationMask,
    ProtocolName,
    SlideHits,
    match,
)
from wsiad.evaluation.submission import read_detections
from wsiad.evaluation.unscored import CountedAs, score_of_unscored
from wsiad.heatmaps.score_map import boxes_of

Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]
_Kinds = tuple[_Mask, _Mask, _Mask]

MIN_SHARE = 0.5
"""Minimum share of tumour in a window that counts as tumour by share."""

_MAX_CORNERS = 256
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class TileScores:
    """Scores of the windows of one slide, sorted by what the windows show.

    Windows that are neither tumour nor free of tumour are left out; `windows` counts them too.

    Parameters
    ----------
    tumour : ndarray of float64
        Scores of windows whose centre is tumour.
    mostly_tumour : ndarray of float64
        Scores of windows of which at least :data:`MIN_SHARE` is tumour.
    healthy : ndarray of float64
        Scores of windows without any tumour.
    windows : int
        Number of all windows.
    """

    tumour: Floats
    mostly_tumour: Floats
    healthy: Floats
    windows: int


def sort_windows(windows: npt.NDArray[Any], tumour: BaseGeometry | None) -> TileScores:
    """Sort the scored windows of a slide into tumour and healthy.

    A window is tumour if its centre is, as in PatchCamelyon (Veeling et al., MICCAI 2018), whose
    labels also depend on the centre of a tile. A window that merely touches tumour is neither
    tumour nor healthy.

    Parameters
    ----------
    windows : structured ndarray, (N,)
        Fields ``x``, ``y``, ``width``, ``height`` in level-0 pixels, and ``score``.
    tumour : geometry or None
        Tumour area in level-0 pixels without the cut-outs; ``None`` for a normal slide.
    """
    return _sorted(np.asarray(windows["score"], dtype=np.float64), _kinds(windows, tumour))


def _sorted(scores: Floats, kinds: _Kinds) -> TileScores:
    central, mostly, healthy = kinds
    return TileScores(scores[central], scores[mostly], scores[healthy], len(scores))


def _kinds(windows: npt.NDArray[Any], tumour: BaseGeometry | None) -> _Kinds:
    """Tell which windows are tumour by their centre, tumour by their share, and healthy."""
    if tumour is None or tumour.is_empty:
        none = np.zeros(len(windows), dtype=bool)
        return none, none, ~none
    x, y = (np.asarray(windows[name], dtype=np.float64) for name in ("x", "y"))
    width, height = (np.asarray(windows[name], dtype=np.float64) for name in ("width", "height"))
    pieces = shapely.STRtree(_pieces(tumour))
    share = _area_within(pieces, shapely.box(x, y, x + width, y + height)) / (width * height)
    centres = shapely.points(x + width / 2, y + height / 2)
    central = np.zeros(len(windows), dtype=bool)
    central[pieces.query(centres, predicate="intersects")[0]] = True
    return central, share >= MIN_SHARE - _ROUNDING, share <= _ROUNDING


def _pieces(area: BaseGeometry) -> list[BaseGeometry]:
    """Cut an area into pieces with few corners; outlines have tens of thousands of corners.

    Measuring the pieces gives the same result as measuring the area, many times faster.
    """
    pieces: list[BaseGeometry] = []
    waiting = [part for part in shapely.get_parts(area) if part.area > 0]
    while waiting:
        piece = waiting.pop()
        if shapely.get_num_coordinates(piece) <= _MAX_CORNERS:
            pieces.append(piece)
            continue
        left, top, right, bottom = piece.bounds
        if right - left > bottom - top:
            middle = (left + right) / 2
            halves = (left, top, middle, bottom), (middle, top, right, bottom)
        else:
            middle = (top + bottom) / 2
            halves = (left, top, right, middle), (left, middle, right, bottom)
        for half in halves:
            parts = shapely.get_parts(piece.intersection(shapely.box(*half)))
            waiting.extend(part for part in parts if part.area > 0)
    return pieces


def _area_within(pieces: shapely.STRtree, boxes: npt.NDArray[Any]) -> Floats:
    """Return the area of each box that the pieces cover; pieces do not overlap."""
    box, piece = pieces.query(boxes, predicate="intersects")
    areas = shapely.area(shapely.intersection(boxes[box], pieces.geometries[piece]))
    return np.bincount(box, areas, len(boxes)).astype(np.float64)


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ProtocolEvidence:
    """Hits on a slide by one protocol.

    Parameters
    ----------
    hits, hits_with_itc : SlideHits
        Hits without isolated tumour cells, and hits with isolated tumour cells as lesions.
    lesions : tuple of Lesion
        All tumour regions, including isolated tumour cells.
    spacing : str
        Source of the µm/px.
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
    """Contribution of one slide to the figures.

    Parameters
    ----------
    case : Case
        The slide.
    score : float
        Anomaly score of the slide; minus infinity where it was looked at and nothing was found,
        NaN where it has no score and is not ranked.
    detections : int
        Number of detections on the slide.
    bounded : bool
        True where the detections could be checked against the slide's size.
    by_protocol : Mapping of str to ProtocolEvidence
        Hits by protocol; empty where the slide takes no part in FROC.
    tiles : TileScores or None
        Scores of the windows, where there are outlines and windows.
    neighbourhoods : TileScores or None
        Values of the map of neighbourhoods at the centres of the windows, where there is one too.
    unmarked : bool
        True where the slide holds tumour by the reference but its ground truth marks none. It
        then takes no part in figures that need the position of tumour.
    reading : Reading
        Facts about the reading of the outlines.
    downsample : int
        Level-0 pixels per mask pixel; 0 where the slide takes no part in FROC.
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
    neighbourhoods: TileScores | None = None

    @property
    def ranked(self) -> bool:
        """True where the slide takes part in figures of slides."""
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
        Ground truth of the slide; ``None`` if the slide takes no part in FROC.
    protocols : sequence of str
        FROC protocols.
    given_mpp : float or None
        µm per level-0 pixel that the user sets for all slides.
    outlined : bool
        True where the ground truth is outlines, by which windows can be sorted.
    unscored : str
        Treatment of a slide without a score.

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
    tiles = near = None
    if truth is not None and located and outlined:
        tiles, near = _tile_scores(case, truth)
    return SlideEvidence(
        case=case,
        score=_score(case, detections) if case.has_score else score_of_unscored(unscored),
        detections=len(detections),
        bounded=limit is not None,
        by_protocol=_by_protocol(
            case, truth, detections=detections, protocols=protocols, given_mpp=given_mpp
        )
        if truth and located
        else {},
        tiles=tiles,
        unmarked=unmarked,
        reading=Reading() if truth is None else truth.reading,
        downsample=0 if truth is None else truth.downsample,
        neighbourhoods=near,
    )


def _tile_scores(case: Case, truth: SlideTruth) -> tuple[TileScores | None, TileScores | None]:
    """Return the scores of a slide's windows, and those of their neighbourhoods."""
    windows = case.scored.read_windows()
    if windows is None:
        return None, None
    kinds = _kinds(windows, truth.tumour)
    tiles = _sorted(np.asarray(windows["score"], dtype=np.float64), kinds)
    read = case.scored.neighbourhoods
    heatmap = read() if read else None
    if heatmap is None:
        return tiles, None
    values = heatmap.at_centres(boxes_of(windows))
    seen = np.isfinite(values)
    central, mostly, healthy = kinds
    return tiles, _sorted(values[seen], (central[seen], mostly[seen], healthy[seen]))


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
            hits=hits,
            hits_with_itc=with_itc,
            lesions=lesions,
            spacing=source,
            mpp=mpp if truth.mask is not None else None,
        )
    return evidence
