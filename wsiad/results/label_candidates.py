"""Candidates for labels: the strangest windows of results, at most some of each slide.

They are chosen by what is stored, and only they are read from the slides again, with exactly the
pixels that the detector saw. :mod:`wsiad.results.candidate_tiles` finds them in a store.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DetectorError, InputError, WsiadError
from wsiad.core.geometry import Box, Mpp
from wsiad.core.labels import is_healthy
from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import Progress
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.heatmaps.score_map import read_scores
from wsiad.heatmaps.space_options import ALONE
from wsiad.heatmaps.windows import identity_of
from wsiad.learning.detector import Detector, Embeds, InputSpec, Tiles
from wsiad.learning.representatives import rank_weights, representatives
from wsiad.results.evidence import window_places
from wsiad.results.file_names import SPATIAL
from wsiad.results.folder import Results
from wsiad.results.identity import options_of
from wsiad.results.records import SCORE_AGAIN
from wsiad.results.scoring import window_source
from wsiad.results.scoring_inputs import reading_tasks
from wsiad.results.slide_results import SlideResults
from wsiad.slides.slide_table import FAILED, SlideRow

Signal = Literal["neighbourhood", "score"]
"""Value by which windows are candidates: that of the map of neighbourhoods, or their score."""

NEIGHBOURHOOD: Final = "neighbourhood"
SCORE: Final = "score"

_BATCH = 64
_FEWEST_SLIDES = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """Window that a reviewer could label.

    Parameters
    ----------
    slide : str
        Name of the slide, or of the group of an imported store.
    number : int
        Number of the window in the results, or of the tile in the store.
    box : tuple of float, optional
        x, y, width and height, level-0 pixels; ``None`` for tiles without positions.
    score, percentile : float
        Score, and its percentile among healthy windows.
    strength : float
        Value by which it is a candidate: higher is stranger.
    known : bool
        True where it was suggested earlier.
    """

    slide: str
    number: int
    box: tuple[float, float, float, float] | None
    score: float
    percentile: float
    strength: float
    known: bool = False

    @property
    def key(self) -> str:
        """Name of the candidate that is safe as that of a file."""
        return hashlib.sha256(f"{self.slide}/{self.number}".encode()).hexdigest()

    @property
    def place(self) -> tuple[object, ...]:
        """Value that is equal for the same window in other results of the same slide."""
        return (self.slide, *(self.box or (self.number,)))


Known = Collection[tuple[object, ...]]
"""Places of windows that were suggested earlier, see :attr:`Candidate.place`."""

Keep = Callable[[Candidate, Tiles], None]
"""Function that keeps the pixels of a candidate, uint8 (S, S, 3)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LabelCandidates:
    """Candidates of all slides, and how their pixels are read.

    Parameters
    ----------
    candidates : tuple of Candidate
        Candidates, by slide, and the strongest of a slide first.
    signal : str
        Value by which they were chosen.
    mpp : Mpp
        Scale of the windows, µm/px.
    bounds : dict of str to Box
        Non-empty part of each slide with known positions, level-0 pixels.
    read : callable
        Function of the candidates of one slide that yields their pixels, uint8 (S, S, 3).
    left_out : dict of str to int
        Number of slides that have no candidates, by reason.
    """

    candidates: tuple[Candidate, ...]
    signal: Signal
    mpp: Mpp
    bounds: dict[str, Box]
    read: Callable[[Sequence[Candidate]], Iterator[Tiles]]
    left_out: dict[str, int]

    def choose(
        self,
        detector: Detector,
        count: int,
        *,
        per_slide: int | None,
        keep: Keep,
        quiet: bool,
    ) -> tuple[list[Candidate], list[SlideRow]]:
        """Choose the candidates that stand for many others in the detector's features.

        Parameters
        ----------
        detector : Detector
            Fitted detector.
        count : int
            Number of windows to choose.
        per_slide : int, optional
            Maximum number of windows of a slide, see :func:`share_of_slide`. Groups of imported
            tiles have no maximum by default.
        keep : callable
            Function that keeps the pixels of a candidate.
        quiet : bool
            True for no progress output.

        Returns
        -------
        list of Candidate
            Chosen windows in the order of the choice; fewer than `count` if there are no more.
        list of SlideRow
            Slides that could not be read, with the reason.

        Raises
        ------
        DetectorError
            The detector has no features to compare.
        InputError
            No slide with new candidates could be read.
        """
        found, vectors, failed = self.embedded(detector, keep, quiet=quiet)
        slides = len({one.slide for one in found if not one.known})
        if not slides:
            raise InputError(
                "no window of it could be read again",
                subject=f"{failed[0].slide}: {failed[0].reason}",
                remedy="Make the slides available where they were scored.",
            )
        share = share_of_slide(count, slides) if self.bounds else count
        chosen = representatives(
            vectors,
            count,
            weights=rank_weights(np.array([one.strength for one in found])),
            groups=[one.slide for one in found],
            most=per_slide or share,
            taken=np.array([one.known for one in found], bool),
        )
        return [found[index] for index in chosen.tolist()], failed

    def embedded(
        self, detector: Detector, keep: Keep, *, quiet: bool
    ) -> tuple[list[Candidate], npt.NDArray[np.float32], list[SlideRow]]:
        """Read the candidates, and compute the detector's features of each.

        A slide that cannot be read does not stop the others.

        Parameters
        ----------
        detector : Detector
            Fitted detector. Of windows larger than its input, the centre is used.
        keep : callable
            Function that keeps the pixels of a candidate.
        quiet : bool
            True for no progress output.

        Returns
        -------
        list of Candidate
            Candidates that could be read.
        ndarray of float32, (N, D)
            Features of these candidates.
        list of SlideRow
            Slides that could not be read, with the reason.

        Raises
        ------
        DetectorError
            The detector has no features to compare.
        """
        if not isinstance(detector, Embeds):
            raise DetectorError(
                "has no features by which windows could be compared",
                subject=type(detector).__name__,
                remedy="Train another detector to choose windows with, for example knn.",
            )
        size = detector.spec.size
        found: list[Candidate] = []
        vectors: list[npt.NDArray[np.float32]] = []
        failed: list[SlideRow] = []
        total = len(self.candidates)
        with Progress("candidates", total=total, unit="window", quiet=quiet) as progress:
            for name, part in itertools.groupby(self.candidates, key=lambda one: one.slide):
                mine, own = list(part), []
                try:
                    for batch in _batches(zip(mine, self.read(mine), strict=True)):
                        for candidate, pixels in batch:
                            keep(candidate, pixels)
                        own.append(detector.embed(np.stack([_centre(p, size) for _, p in batch])))
                except (WsiadError, OSError) as error:
                    raise_if_ended()
                    failed.append(SlideRow(name, FAILED, str(error).removeprefix(f"{name}: ")))
                else:
                    found += mine
                    vectors += own
                progress.update(len(mine), note=name)
        return found, np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32), failed


T = TypeVar("T")


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


def _centre(pixels: Tiles, size: int) -> Tiles:
    first = (len(pixels) - size) // 2
    return pixels[first : first + size, first : first + size]


def share_of_slide(count: int, slides: int) -> int:
    """Return how many of a number of windows one slide can have: a quarter, if there are four.

    Examples
    --------
    >>> share_of_slide(20, slides=30), share_of_slide(20, slides=2)
    (5, 10)
    """
    return -(-count // max(1, min(_FEWEST_SLIDES, slides)))


def strongest(ordered: Iterable[Candidate], most: int) -> list[Candidate]:
    """Choose candidates that do not overlap each other, the first ones first.

    Parameters
    ----------
    ordered : iterable of Candidate
        Candidates of one slide: the known ones, which all count, and then the strongest first. No
        more are taken than are needed.
    most : int
        Maximum number of new ones.
    """
    kept: list[Candidate] = []
    boxes: list[tuple[float, float, float, float]] = []
    new = 0
    for candidate in ordered:
        if new >= most:
            break
        if candidate.box is not None:
            if boxes and _overlaps(candidate.box, np.array(boxes)):
                continue
            boxes.append(candidate.box)
        kept.append(candidate)
        new += not candidate.known
    return kept


def _overlaps(box: tuple[float, float, float, float], boxes: npt.NDArray[np.float64]) -> bool:
    x, y, width, height = box
    left, top, across, down = boxes.T
    overlaps = (x < left + across) & (x + width > left)
    return bool((overlaps & (y < top + down) & (y + height > top)).any())


def strongest_of_all(by_slide: Sequence[Sequence[Candidate]], most: int) -> tuple[Candidate, ...]:
    """Choose the strongest new candidates of all slides; keep the known ones, and the order."""
    new = sorted(
        (-one.strength, place, rank)
        for place, candidates in enumerate(by_slide)
        for rank, one in enumerate(candidates)
        if not one.known
    )
    chosen = {(place, rank) for _, place, rank in new[:most]}
    return tuple(
        one
        for place, candidates in enumerate(by_slide)
        for rank, one in enumerate(candidates)
        if one.known or (place, rank) in chosen
    )


def candidate_windows(
    results: Results,
    *,
    run: Path,
    signal: Signal | None,
    most: int,
    per_slide: int | None,
    known: Known,
    spec: InputSpec,
    device: str,
) -> LabelCandidates:
    """Choose the candidates of a results folder.

    Slides whose label means healthy have none.

    Parameters
    ----------
    results : Results
        Results folder.
    run : Path
        Run that made the results.
    signal : str, optional
        Value by which windows are candidates; by default that of the map of neighbourhoods, if
        the results have it, else their score.
    most : int
        Maximum number of candidates.
    per_slide : int, optional
        Maximum number of candidates of a slide, see :func:`share_of_slide`.
    known : collection of tuple
        Windows that were suggested earlier.
    spec : InputSpec
        Input of the run's detector.
    device : str
        Name of the device.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged.
    InputError
        The results are damaged, were made by another run, have no scored slide to choose from, or
        have no map of neighbourhoods although it is requested.
    """
    neighbours = options_of(results.facts, results.path).scales_um != ALONE
    if signal == NEIGHBOURHOOD and not neighbours:
        raise InputError(
            "has no map of neighbourhoods",
            subject=str(results.path),
            remedy="Run wsiad export on it with --scales-um 100 200 400, or set --by score.",
        )
    by: Signal = signal or (NEIGHBOURHOOD if neighbours else SCORE)
    left_out: Counter[str] = Counter()
    slides = []
    for slide in results:
        if not slide.is_scored:
            left_out[f"status {slide.row.status}"] += 1
        elif slide.row.label and is_healthy(slide.row.label):
            left_out["labelled healthy"] += 1
        else:
            slides.append(slide)
    cap = per_slide or share_of_slide(most, len(slides))
    by_slide = [strongest(_windows(slide, by, known), cap) for slide in slides]
    chosen = strongest_of_all(by_slide, most)
    if not any(not one.known for one in chosen):
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
        raise InputError(
            "holds no window to suggest" + (f" ({reasons})" if reasons else ""),
            subject=str(results.path),
            remedy="Score slides that are not labelled yet with wsiad heatmap.",
        )
    names = list(dict.fromkeys(one.slide for one in chosen))
    tasks = reading_tasks(results, names, run=run, device=device)

    def read(mine: Sequence[Candidate]) -> Iterator[Tiles]:
        return _read(results.slide(mine[0].slide), tasks[mine[0].slide], mine, spec)

    return LabelCandidates(
        candidates=chosen,
        signal=by,
        mpp=spec.mpp,
        bounds={name: results.slide(name).heatmap().bounds for name in names},
        read=read,
        left_out=dict(left_out),
    )


def _windows(slide: SlideResults, signal: Signal, known: Known) -> Iterator[Candidate]:
    """Yield the scored windows of a slide: the known ones, then the strongest first."""
    table = slide.windows()
    columns = ("x", "y", "width", "height")
    boxes = np.stack([np.asarray(table[name], np.float64) for name in columns], axis=1)
    scores = np.asarray(table["score"], np.float64)
    strength = scores if signal == SCORE else _neighbourhoods(slide, boxes)
    was = np.zeros(len(boxes), bool)
    for place in known:
        if place[0] == slide.name and len(place) == 1 + len(columns):
            was |= (boxes == np.array(place[1:], np.float64)).all(axis=1)
    strength = np.where(np.isfinite(strength), strength, -np.inf)
    for at in np.lexsort((-strength, ~was)).tolist():
        if was[at] or np.isfinite(strength[at]):
            x, y, width, height = boxes[at].tolist()
            yield Candidate(
                slide=slide.name,
                number=at,
                box=(x, y, width, height),
                score=float(scores[at]),
                percentile=float(table["percentile"][at]),
                strength=float(strength[at]),
                known=bool(was[at]),
            )


def _neighbourhoods(slide: SlideResults, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the value of the map of neighbourhoods at the centre of each box."""
    path = slide.folder / SPATIAL
    values = read_scores(path, InputError, remedy=SCORE_AGAIN)
    heatmap = slide.heatmap()
    if values.shape != heatmap.scores.shape:
        raise InputError("is not as large as the heatmap", subject=str(path), remedy=SCORE_AGAIN)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    column, row = heatmap.placement.from_level0(centres[:, 0], centres[:, 1])
    rows, columns = values.shape
    at = (np.clip(row.astype(int), 0, rows - 1), np.clip(column.astype(int), 0, columns - 1))
    return values[at].astype(np.float64)


def _read(
    slide: SlideResults, task: SlideTask, mine: Sequence[Candidate], spec: InputSpec
) -> Iterator[Tiles]:
    """Yield the pixels of windows of a slide, if its file is still the one that was scored."""
    if not task.slide.path.exists():
        raise InputError(f"its file {task.slide.path} is not available", subject=slide.name)
    if identity_of(task)["fingerprint"] != slide.fingerprint():
        raise InputError("its file has changed since it was scored", subject=slide.name)
    boxes = np.array([one.box for one in mine], np.float64)
    with window_source(task, spec) as source:
        rows, columns = window_places(boxes, source)
        yield from source.again(rows, columns)
