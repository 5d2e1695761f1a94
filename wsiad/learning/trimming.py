"""Contaminated training: fit, score the fit's own tiles, drop the strangest of each slide, repeat.

A cohort that counts as healthy may hold lesions that nobody noted. A detector that is fitted on
them takes them for healthy. With trimming it is fitted several times: each time the stated share
of each slide's tiles that the fit before found strangest is left out. Every round judges all
tiles anew, so that a tile that was dropped wrongly can come back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DetectorError
from wsiad.core.files import atomic_file
from wsiad.learning.batches import windows
from wsiad.learning.detector import (
    Budget,
    Detector,
    Embeds,
    FitContext,
    FitReport,
    HealthyTiles,
    TileSource,
)
from wsiad.learning.feature_source import embeddings, score_maps
from wsiad.learning.metrics import METRICS
from wsiad.learning.training_options import TrimmingOptions

TRIMMING: Final = "trimming"
"""Folder, within that of a run, of the fits of a trimming; and its entry in the run's notes."""

Bools = npt.NDArray[np.bool_]
Kept = dict[str, Bools]
"""Masks by slide, (N,) for a slide of N tiles: true for those that are kept."""

Floats = npt.NDArray[np.float64]

_BATCH = 256
_FOLDS = 0x5EED_F01D  # keeps the draw of the folds apart from others
_SVM_TILES = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class TrimmedFit:
    """The result of a trimming.

    Parameters
    ----------
    detector : Detector
        Detector that was fitted on the kept tiles.
    report : FitReport
        Report of its fit.
    kept : dict of str to ndarray of bool
        For each slide, whether each of its tiles was kept.
    rounds : int
        Number of times that tiles were dropped.
    stable : bool
        True if the next round would have dropped the same tiles.
    folds : int
        Number of parts, each scored by a fit on the others; 1 if the fit scored its own tiles.
    """

    detector: Detector
    report: FitReport
    kept: Kept
    rounds: int
    stable: bool
    folds: int


def fit_trimmed(
    make: Callable[[], Detector],
    counts: Mapping[str, int],
    source: Callable[[Kept], TileSource],
    *,
    stop: TileSource,
    context: FitContext,
    options: TrimmingOptions,
) -> TrimmedFit:
    """Fit a detector on the tiles that are left when the strangest of each slide are dropped.

    Each fit has a folder of its own, so that an interrupted training resumes. ``max_steps`` of
    the budget bounds each fit, ``max_minutes`` is divided among all.

    Parameters
    ----------
    make : callable
        Function that makes an unfitted detector.
    counts : mapping of str to int
        Number of tiles of each slide, in the order of the source.
    source : callable
        Function that returns the tiles that are kept, slide by slide in that order.
    stop : TileSource
        Held-out tiles, of which none is dropped.
    context : FitContext
        Circumstances of the fit.
    options : TrimmingOptions
        Share, rounds and measure.

    Raises
    ------
    DetectorError
        Nothing would be dropped, the method has no features to judge by, or a fit failed.
    """
    unfitted = make()
    _check(unfitted, counts, options)
    folds = options.folds or (2 if unfitted.remembers_tiles and options.by == "score" else 1)
    number = _folds(counts, folds, seed=context.seed)
    every: Kept = {name: np.ones(count, np.bool_) for name, count in counts.items()}
    minutes = context.budget.max_minutes
    fits = options.rounds * folds + 1
    budget = Budget(context.budget.max_steps, minutes and minutes / fits)

    def fit(kept: Kept, name: str) -> tuple[Detector, FitReport]:
        folder = context.folder / TRIMMING / name
        folder.mkdir(parents=True, exist_ok=True)
        detector = make()
        tiles = HealthyTiles(source(kept), stop)
        return detector, detector.fit(tiles, replace(context, folder=folder, budget=budget))

    def judged(kept: Kept, round_: int) -> tuple[Floats, tuple[Detector, FitReport] | None]:
        if folds == 1:
            fitted = fit(kept, f"fit-{round_}")
            return strangeness(fitted[0], source(every), options, seed=context.seed), fitted
        found = np.zeros(sum(counts.values()))
        for fold in range(folds):
            others = {name: kept[name] & (number[name] != fold) for name in kept}
            own = {name: number[name] == fold for name in kept}
            detector, _ = fit(others, f"fit-{round_}-fold-{fold}")
            inside = np.concatenate(list(own.values()))
            found[inside] = strangeness(detector, source(own), options, seed=context.seed)
        return found, None

    kept, last, rounds, stable = every, None, 0, False
    for round_ in range(options.rounds):
        scores, last = judged(kept, round_)
        chosen = least_strange(scores, counts, options.share)
        stable = all(np.array_equal(chosen[name], kept[name]) for name in kept)
        if stable:
            break
        kept, last, rounds = chosen, None, rounds + 1
    name = f"fit-{rounds}"
    detector, report = last or fit(kept, name)
    _copy_metrics(context, name)
    return TrimmedFit(
        detector=detector, report=report, kept=kept, rounds=rounds, stable=stable, folds=folds
    )


def strangeness(
    detector: Detector, tiles: TileSource, options: TrimmingOptions, *, seed: int
) -> Floats:
    """Return how strange a detector finds tiles, (N,): the mean over their windows.

    By ``latent``, it is the negative decision value of a one-class SVM (radial kernel, ν = the
    assumed share) on the standardised features of these same tiles.
    """
    size = detector.spec.size
    per_tile = (tiles.tile // size) ** 2 or 1

    def cut(part: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return windows(part, size)

    if options.by == "score":
        maps = score_maps(detector, tiles, batch=_BATCH, cut=cut)
        scores = np.concatenate([detector.pool(part) for part in maps])
        return np.asarray(scores.reshape(-1, per_tile).mean(axis=1, dtype=np.float64))
    assert isinstance(detector, Embeds)
    if per_tile == 1 and tiles.tile == size:
        parts = list(embeddings(detector, tiles, batch=_BATCH))
    else:
        parts = [detector.embed(cut(part)) for part in tiles.ordered(_BATCH)]
    vectors = np.concatenate(parts).astype(np.float64)
    vectors = vectors.reshape(-1, per_tile, vectors.shape[1]).mean(axis=1)
    deviation = vectors.std(axis=0)
    vectors = (vectors - vectors.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    rng = np.random.default_rng([seed, len(vectors)])
    drawn = np.sort(rng.permutation(len(vectors))[:_SVM_TILES])
    from sklearn.svm import OneClassSVM

    machine = OneClassSVM(nu=options.share, gamma="scale").fit(vectors[drawn])
    return -np.asarray(machine.decision_function(vectors), np.float64)


def least_strange(scores: Floats, counts: Mapping[str, int], share: float) -> Kept:
    """Return the tiles of each slide that are kept: all but the share with the highest scores.

    Parameters
    ----------
    scores : ndarray of float64, (N,)
        Scores of the tiles, slide by slide.
    counts : mapping of str to int
        Number of tiles of each slide.
    share : float
        Share of each slide's tiles to drop, rounded down to whole tiles. Of equal scores, the
        later tiles are dropped first.

    Raises
    ------
    DetectorError
        A score is not finite.
    """
    if not np.isfinite(scores).all():
        raise DetectorError("scores of tiles of the fit are not finite: nothing can be dropped")
    kept: Kept = {}
    start = 0
    for name, count in counts.items():
        order = np.argsort(scores[start : start + count], kind="stable")
        mask = np.ones(count, np.bool_)
        mask[order[count - dropped(count, share) :]] = False
        kept[name] = mask
        start += count
    return kept


def dropped(count: int, share: float) -> int:
    """Return the number of tiles that are dropped of a slide with ``count`` tiles."""
    return math.floor(share * count + 1e-9)


def _check(detector: Detector, counts: Mapping[str, int], options: TrimmingOptions) -> None:
    if not any(dropped(count, options.share) for count in counts.values()):
        most = max(counts.values(), default=0)
        raise DetectorError(
            f"trimming drops nothing: a share of {options.share:g} of {most} tiles, the most "
            "that a slide has, is less than one tile",
            remedy="Set a larger trimming.share, or leave trimming out.",
        )
    if options.by == "latent" and (options.folds or 1) > 1:
        raise DetectorError(
            "trimming by latent judges all tiles by one fit",
            remedy="Leave out trimming.folds.",
        )
    if options.by == "latent" and not isinstance(detector, Embeds):
        raise DetectorError(
            "trimming by latent needs a method that has features of a tile, and this one has none",
            remedy="Set trimming.by to score.",
        )


def _folds(counts: Mapping[str, int], folds: int, *, seed: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return the fold of each tile: that of its slide, if there are enough slides."""
    rng = np.random.default_rng([seed, _FOLDS])
    if len(counts) >= folds:
        fold_of = rng.permutation(len(counts)) % folds
        return {
            name: np.full(count, fold, np.int64)
            for (name, count), fold in zip(counts.items(), fold_of, strict=True)
        }
    return {name: rng.permutation(count) % folds for name, count in counts.items()}


def _copy_metrics(context: FitContext, name: str) -> None:
    """Copy the metrics of the last fit to where a run has them."""
    path = context.folder / TRIMMING / name / METRICS
    if path.is_file():
        with atomic_file(context.folder / METRICS) as partial:
            partial.write_bytes(path.read_bytes())


def trimming_note(
    trimmed: TrimmedFit, stored: Mapping[str, npt.NDArray[np.int64]], options: TrimmingOptions
) -> dict[str, Any]:
    """Return the run's entry on a trimming, as JSON values.

    Parameters
    ----------
    trimmed : TrimmedFit
        Result of the trimming.
    stored : mapping of str to ndarray of int64
        For each slide, the numbers of its tiles in the store.
    options : TrimmingOptions
        Options of the trimming.
    """
    tiles = {name: stored[name][~mask].tolist() for name, mask in trimmed.kept.items()}
    return {
        "share": options.share,
        "by": options.by,
        "folds": trimmed.folds,
        "rounds": trimmed.rounds,
        "stable": trimmed.stable,
        "tiles": sum(len(mask) for mask in trimmed.kept.values()),
        "dropped": {name: len(some) for name, some in tiles.items()},
        "dropped_tiles": tiles,
    }
