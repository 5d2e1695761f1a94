"""Candidates for labels, and the choice among them by the detector's features.

:mod:`wsiad.results.candidate_windows` finds them in results, and
:mod:`wsiad.results.candidate_tiles` in a store.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DetectorError, InputError, WsiadError
from wsiad.core.geometry import Box, Mpp
from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import Progress
from wsiad.learning.detector import Detector, Embeds, Tiles
from wsiad.learning.representatives import rank_weights, representatives
from wsiad.slides.slide_table import FAILED, SlideRow, first_reasons

Signal = Literal["neighbourhood", "score"]
"""Value by which windows are candidates: that of the map of neighbourhoods, or their score."""

NEIGHBOURHOOD: Final = "neighbourhood"
SCORE: Final = "score"
UNSURE: Final = "unsure"

Why = Literal["neighbourhood", "score", "unsure"]
"""Reason why a window is a candidate."""

BAND = (90.0, 99.0)
"""Healthy percentiles of the score between which it is unsure whether a window is strange."""

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
    why : str
        Name of that value; ``"unsure"`` for a window whose score is between usual and strange.
    known : bool
        True where it was suggested earlier.
    """

    slide: str
    number: int
    box: tuple[float, float, float, float] | None
    score: float
    percentile: float
    strength: float
    why: Why
    known: bool = False

    @property
    def key(self) -> str:
        """Name of the candidate that is safe as that of a file."""
        return hashlib.sha256(f"{self.slide}/{self.number}".encode()).hexdigest()

    @property
    def place(self) -> tuple[object, ...]:
        """Value that is equal for the same window in other results of the same slide."""
        return (self.slide, *(self.box or (self.number,)))


def nothing_left(problem: str, left_out: Mapping[str, int], unseen: Mapping[str, str]) -> str:
    """Return a problem with the slides that have no candidates.

    Parameters
    ----------
    problem : str
        The problem, such as ``"holds no tile to suggest"``.
    left_out : mapping of str to int
        Number of slides by reason.
    unseen : mapping of str to str
        Slides that failed or are unusable, with status and reason; the first are told.
    """
    counts = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
    said = "; ".join(filter(None, [counts, first_reasons(unseen)]))
    return f"{problem} ({said})" if said else problem


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
        unsure: float,
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
        unsure : float
            Share of windows to choose among the unsure candidates, 0 to 1.
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
        most = per_slide or (share_of_slide(count, slides) if self.bounds else count)

        def chosen(number: int, *, unsure: bool, beside: Sequence[Candidate]) -> list[Candidate]:
            at = [i for i, one in enumerate(found) if (one.why == UNSURE) == unsure]
            mine = [found[i] for i in at]
            indices = representatives(
                vectors[at],
                number,
                weights=rank_weights(np.array([one.strength for one in mine])),
                groups=[one.slide for one in mine],
                most=most,
                taken=np.array([one.known for one in mine], bool),
                used=Counter(one.slide for one in beside),
            )
            return [mine[i] for i in indices.tolist()]

        strange = chosen(count - round(unsure * count), unsure=False, beside=())
        between = chosen(round(unsure * count), unsure=True, beside=strange)
        # Where there are fewer unsure ones, more strange ones follow those chosen already.
        strange = chosen(count - len(between), unsure=False, beside=between)
        return [*strange, *between], failed

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


def strongest(
    ordered: Iterable[Candidate], most: int, *, beside: Sequence[Candidate] = ()
) -> list[Candidate]:
    """Choose candidates that do not overlap each other, the first ones first.

    Parameters
    ----------
    ordered : iterable of Candidate
        Candidates of one slide: the known ones, which all count, and then the strongest first. No
        more are taken than are needed.
    most : int
        Maximum number of new ones.
    beside : sequence of Candidate
        Candidates that were chosen before, and that none may overlap or be.
    """
    kept: list[Candidate] = []
    boxes = [one.box for one in beside if one.box is not None]
    numbers = {one.number for one in beside}
    new = 0
    for candidate in ordered:
        if new >= most:
            break
        if candidate.number in numbers:
            continue
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


def is_unsure(percentiles: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Tell which windows have a score between usual and strange."""
    return (percentiles >= BAND[0]) & (percentiles < BAND[1])


def of_slide(
    strange: Iterable[Candidate], between: Iterable[Candidate], most: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Choose the strange and the unsure candidates of a slide; see :func:`strongest`."""
    first = strongest(strange, most)
    return first, strongest(between, most, beside=first)


def of_all(
    by_slide: Sequence[tuple[list[Candidate], list[Candidate]]], most: int
) -> tuple[Candidate, ...]:
    """Choose strange candidates of all slides, at most so many, and as many unsure ones."""
    parts = [strongest_of_all([slide[part] for slide in by_slide], most) for part in (0, 1)]
    # Stable: the strange ones of a slide stay before its unsure ones.
    return tuple(sorted((one for part in parts for one in part), key=lambda one: one.slide))
