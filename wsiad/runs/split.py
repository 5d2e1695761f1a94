"""Split healthy slides into parts for fitting, for early stopping and for calibration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsiad.core import terminal
from wsiad.core.errors import InputError

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide

_CANDIDATES = 64  # assignments of slides that are compared
_LEAST_SLIDES = 3  # one for each part


@dataclass(frozen=True, slots=True)
class SlideTiles:
    """Some tiles of one slide; ``indices`` are sorted int64, (N,), counted from 0 in the slide."""

    slide: str
    indices: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HealthySplit:
    """Parts of the healthy tiles, by use.

    Parameters
    ----------
    fit, stop, calibration : tuple of SlideTiles
        Tiles to fit on, to decide when to stop, and to calibrate the score with.
    by_slide : bool
        True where the parts share no slide. If they do, neighbouring tiles may be in different
        parts, and the held-out loss and the calibration are too good.
    """

    fit: tuple[SlideTiles, ...]
    stop: tuple[SlideTiles, ...]
    calibration: tuple[SlideTiles, ...]
    by_slide: bool

    @property
    def note(self) -> str:
        """Description of the split, one sentence for the run's record."""
        parts = ((self.fit, "fit"), (self.stop, "stop"), (self.calibration, "calibrate"))
        if self.by_slide and self.stop is self.calibration:
            every = terminal.by_number(len(self.fit), "", "all ")
            return (
                f"{every}{terminal.counted(len(self.fit), 'slide')} to fit; "
                f"{terminal.counted(len(self.calibration), 'slide')} of another "
                "store to calibrate, whose loss stops nothing"
            )
        if self.by_slide:
            counts = ", ".join(f"{len(part)} to {name}" for part, name in parts)
            return f"split by slide: {counts}"
        counts = ", ".join(f"{sum(len(s.indices) for s in part)} to {name}" for part, name in parts)
        return (
            f"split by tile ({counts}) as there are fewer than {_LEAST_SLIDES} healthy slides: the "
            "held-out loss and the calibration come from slides that were fitted on"
        )


def split_slides(
    slides: Sequence[tuple[str, int]],
    *,
    seed: int,
    stop: float = 0.1,
    calibration: float = 0.2,
    only_fit: Collection[str] = (),
) -> HealthySplit:
    """Split healthy tiles by slide, or by tile if there are fewer than three slides.

    Every part gets at least one slide. Of 64 random assignments with the right numbers of slides,
    the one whose shares of the *tiles* are closest to the requested shares is chosen. A few
    unequal slides then do not leave a part with too few tiles.

    Parameters
    ----------
    slides : sequence of (str, int)
        Name and number of tiles of each slide; slides without tiles are left out.
    seed : int
        Seed; the same seed and slides (in any order) give the same split.
    stop, calibration : float
        Shares to hold out for early stopping and for calibration.
    only_fit : collection of str
        Slides that must not be held out, because their anomalous tiles are learnt from. All their
        tiles are fitted on, and the other slides are split as if these did not exist.

    Raises
    ------
    InputError
        Names are not unique, or fewer than three tiles can be held out.
    """
    counted = sorted((name, count) for name, count in slides if count > 0)
    if len({name for name, _ in counted}) != len(counted):
        raise InputError("two healthy slides have the same name", remedy="Rename one of them.")
    if sum(count for _, count in counted) < _LEAST_SLIDES:
        raise InputError(
            "there are fewer than three healthy tiles",
            remedy="Add healthy slides, or lower the tissue coverage that a tile needs.",
        )
    tied = [(name, count) for name, count in counted if name in only_fit]
    free = [(name, count) for name, count in counted if name not in only_fit]
    if sum(count for _, count in free) < _LEAST_SLIDES:
        raise InputError(
            f"{len(tied)} of {terminal.counted(len(counted), 'healthy slide')} also "
            f"{terminal.by_number(len(tied), 'holds', 'hold')} anomalous tiles, which "
            "leaves fewer than three healthy tiles to hold out",
            remedy="Add healthy slides without anomalous tiles.",
        )
    rng = np.random.default_rng(seed)
    shares = (1 - stop - calibration, stop, calibration)
    split = _by_tile if len(free) < _LEAST_SLIDES else _by_slide
    found = split(free, shares, rng)
    whole = tuple(SlideTiles(name, np.arange(count, dtype=np.int64)) for name, count in tied)
    return replace(found, fit=tuple(sorted((*found.fit, *whole), key=lambda part: part.slide)))


def held_apart(parts: HealthySplit, slides: Collection[str]) -> HealthySplit:
    """Return a split of which some slides are no longer held out, for they were learnt from.

    Raises
    ------
    InputError
        No slide is left to calibrate with.
    """
    stop, calibration = (
        tuple(item for item in part if item.slide not in slides)
        for part in (parts.stop, parts.calibration)
    )
    if not calibration:
        raise InputError(
            "all slides of the calibration have regions that were learnt from",
            subject=", ".join(item.slide for item in parts.calibration[:3]),
            remedy="Train again, on more healthy slides.",
        )
    return replace(parts, stop=stop, calibration=calibration)


def split_all_to_fit(
    slides: Sequence[tuple[str, int]], calibration: Sequence[tuple[str, int]]
) -> HealthySplit:
    """Return a split in which all tiles are fitted on, and others serve for the calibration.

    The tiles of the calibration also give the held-out loss, which must not stop the training.

    Parameters
    ----------
    slides, calibration : sequence of (str, int)
        Name and number of tiles of each slide; slides without tiles are left out.

    Raises
    ------
    InputError
        A slide is in both, or there are no tiles in one of them.
    """
    parts = [
        tuple(
            SlideTiles(name, np.arange(count, dtype=np.int64))
            for name, count in sorted(counted)
            if count > 0
        )
        for counted in (slides, calibration)
    ]
    if shared := sorted({item.slide for item in parts[0]} & {item.slide for item in parts[1]}):
        raise InputError(
            f"the slide {shared[0]} is both to fit on and to calibrate with",
            remedy="Calibrate with slides that are not fitted on, under other names.",
        )
    if not all(parts):
        raise InputError("there are no healthy tiles to fit on, or none to calibrate with")
    fit, held_out = parts
    return HealthySplit(fit, held_out, held_out, by_slide=True)


def _part_sizes(total: int, shares: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the numbers for fit, stop and calibration, at least one each and ``total`` in all."""
    stop = max(1, round(total * shares[1]))
    calibration = max(1, round(total * shares[2]))
    while stop + calibration >= total:
        stop, calibration = max(1, stop - 1), max(1, calibration - 1)
    return total - stop - calibration, stop, calibration


def _by_slide(
    slides: list[tuple[str, int]],
    shares: tuple[float, float, float],
    rng: np.random.Generator,
) -> HealthySplit:
    counts = np.array([count for _, count in slides], dtype=np.float64)
    borders = np.cumsum(_part_sizes(len(slides), shares))[:2]

    def unfairness(order: npt.NDArray[np.int64]) -> float:
        got = [counts[part].sum() / counts.sum() for part in np.split(order, borders)]
        return float(np.abs(np.subtract(got, shares)).sum())

    orders = [rng.permutation(len(slides)) for _ in range(_CANDIDATES)]
    best = min(orders, key=unfairness)
    fit, stop, calibration = (
        tuple(
            SlideTiles(slides[i][0], np.arange(slides[i][1], dtype=np.int64)) for i in sorted(part)
        )
        for part in np.split(best, borders)
    )
    return HealthySplit(fit, stop, calibration, by_slide=True)


def _by_tile(
    slides: list[tuple[str, int]],
    shares: tuple[float, float, float],
    rng: np.random.Generator,
) -> HealthySplit:
    owner = np.repeat(np.arange(len(slides)), [count for _, count in slides])
    index = np.concatenate([np.arange(count, dtype=np.int64) for _, count in slides])
    order = rng.permutation(len(owner))
    fit, stop, calibration = (
        tuple(
            SlideTiles(slides[i][0], np.sort(index[part][owner[part] == i]))
            for i in np.unique(owner[part])
        )
        for part in np.split(order, np.cumsum(_part_sizes(len(owner), shares))[:2])
    )
    return HealthySplit(fit, stop, calibration, by_slide=False)


def slides_by_use(
    parts: HealthySplit, healthy: list[StoredSlide], anomalous: list[StoredSlide]
) -> dict[str, dict[str, str]]:
    """Return the fingerprints of the slides by their use; other slides are unknown to the run."""
    marks = {slide.name: slide.fingerprint for slide in healthy}
    uses = {"fit": parts.fit, "stop": parts.stop, "calibration": parts.calibration}
    found = {use: {item.slide: marks[item.slide] for item in part} for use, part in uses.items()}
    if anomalous:
        found["anomalies"] = {slide.name: slide.fingerprint for slide in anomalous}
    return found
