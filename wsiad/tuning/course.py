"""Run a search fold by fold and trial by trial, in this process or with workers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsiad.compute.compute_options import WorkerOptions
from wsiad.compute.tasks import run_tasks
from wsiad.core.config import build, idle_options_allowed
from wsiad.core.errors import DetectorError, WsiadError
from wsiad.core.files import DISK_FULL
from wsiad.core.geometry import Mpp, TilePx
from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import Progress
from wsiad.detectors import registry
from wsiad.evaluation.auc import delong
from wsiad.learning.checkpoint import delete_checkpoints
from wsiad.learning.detector import Budget, Detector, FitContext, InputSpec, TileSource
from wsiad.learning.devices import choose_device, windows_at_once
from wsiad.learning.feature_source import score_maps
from wsiad.runs.healthy_tiles import method_values
from wsiad.store.tile_store import TileStore
from wsiad.tuning.search import falls_behind, suggest
from wsiad.tuning.search_tiles import SearchTiles
from wsiad.tuning.space import Params, SearchOptions, options_of
from wsiad.tuning.trials import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    FoldScore,
    Trial,
    best,
    read_trials,
    trial_folder,
    write_fold,
    write_table,
    write_trial,
)

logger = logging.getLogger(__name__)

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldTask:
    """Task of fitting a trial on one fold and testing it there.

    Parameters
    ----------
    config : SearchOptions
        Options of the search.
    tiles : SearchTiles
        Tiles of the search.
    number, fold : int
        Number of the trial and of the fold, counted from 1.
    params : dict
        Parameter values that the trial tries.
    """

    config: SearchOptions
    tiles: SearchTiles
    number: int
    fold: int
    params: Params


@dataclass(frozen=True, slots=True)
class FoldFailed:
    """Failure of a fold that could not be fitted or tested, with its reason."""

    reason: str


def run_search(
    config: SearchOptions,
    tiles: SearchTiles,
    *,
    compute: WorkerOptions,
    at_once: int,
    progress: Progress,
) -> list[Trial]:
    """Try settings until there are enough, and return all trials, including earlier calls' ones.

    Parameters
    ----------
    config : SearchOptions
        Options of the search.
    tiles : SearchTiles
        Tiles of the search.
    compute : WorkerOptions
        Options of the workers that fit.
    at_once : int
        Number of trials that run at the same time.
    progress : Progress
        Progress display; it counts trials.

    Raises
    ------
    RunError
        A file of an earlier call is damaged, or no store has its scale any more.
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs.
    """
    search = _Search(config, tiles, progress)
    results = run_tasks(
        _guarded,
        search.begin(at_once),
        options=compute,
        failed=lambda task, reason: FoldFailed(reason),
        notice=progress.message,
        more=search.more,
    )
    with contextlib.closing(results):
        for _ in results:
            pass
    return search.trials


class _Search:
    """Decides on the next work of a search; its trials always equal the stored ones."""

    def __init__(self, config: SearchOptions, tiles: SearchTiles, progress: Progress) -> None:
        self._config, self._tiles, self._progress = config, tiles, progress
        self._start = time.monotonic()
        self._by_number = {trial.number: trial for trial in read_trials(config.out)}
        for trial in self.trials:
            tiles.at(trial.params)  # rather refused now than by a fold
            if trial.state == FAILED and config.retry_failed:
                self._keep(trial.model_copy(update={"state": RUNNING, "reason": ""}))
        waiting = [trial for trial in self.trials if trial.state == RUNNING]
        progress.begin_at(len(self.trials) - len(waiting))
        self._waiting = [trial.number for trial in waiting]

    @property
    def trials(self) -> list[Trial]:
        """All trials in order of their numbers."""
        return [trial for _, trial in sorted(self._by_number.items())]

    def begin(self, count: int) -> list[FoldTask]:
        """Return the next fold of up to `count` trials: interrupted ones first, then new ones."""
        tasks: list[FoldTask] = []
        while len(tasks) < count and (number := self._next()) is not None:
            tasks += self._go_on(number)
        return tasks

    def more(self, task: FoldTask, result: FoldScore | FoldFailed) -> Sequence[FoldTask]:
        """Record the result of a fold, and return the tasks that follow from it."""
        trial = self._by_number[task.number]
        if isinstance(result, FoldFailed):
            reason = f"fold {task.fold}: {result.reason}"
            self._end(trial.model_copy(update={"state": FAILED, "reason": reason}))
        else:
            self._by_number[task.number] = trial.model_copy(
                update={"folds": (*trial.folds, result)}
            )
            if tasks := self._go_on(task.number):
                return tasks
        return self.begin(1)

    def _next(self) -> int | None:
        """Return the number of the next trial, or ``None`` if there is none."""
        if self._is_late():
            return None
        if self._waiting:
            return self._waiting.pop(0)
        trials, config = self.trials, self._config
        if len(trials) >= config.trials:
            return None
        params = suggest(config.space, trials, seed=config.seed, random_trials=config.random_trials)
        if params is None:
            return None
        trial = Trial(number=len(trials) + 1, params=params)
        self._keep(trial)
        return trial.number

    def _go_on(self, number: int) -> list[FoldTask]:
        """Return the next fold of a trial; empty where the trial ends or time is up."""
        trial, config = self._by_number[number], self._config
        done = len(trial.folds)
        if done == config.folds:
            self._end(trial.model_copy(update={"state": COMPLETE}))
        elif done and config.prune and falls_behind(trial, self._others(trial)):
            reason = f"below the median of complete trials after {done} of {config.folds} folds"
            self._end(trial.model_copy(update={"state": PRUNED, "reason": reason}))
        elif not (done and self._is_late()):
            return [
                FoldTask(
                    config=config,
                    tiles=self._tiles,
                    number=number,
                    fold=done + 1,
                    params=trial.params,
                )
            ]
        return []

    def _others(self, trial: Trial) -> list[Trial]:
        return [other for other in self.trials if other.number != trial.number]

    def _is_late(self) -> bool:
        minutes = self._config.max_minutes
        return minutes is not None and time.monotonic() - self._start >= 60 * minutes

    def _keep(self, trial: Trial) -> None:
        self._by_number[trial.number] = trial
        write_trial(self._config.out, trial)

    def _end(self, trial: Trial) -> None:
        self._keep(trial)
        write_table(self._config.out, self.trials, self._config.space, folds=self._config.folds)
        if trial.state == FAILED:
            self._progress.message(f"FAILED trial {trial.number}: {trial.reason}")
        leader = best(self.trials)
        note = f"best {leader.auroc:.3f} (trial {leader.number})" if leader else ""
        self._progress.update(note=note)


def _guarded(task: FoldTask) -> FoldScore | FoldFailed:
    try:
        return _evaluated(task)
    except WsiadError as error:
        raise_if_ended()
        return FoldFailed(str(error))
    except Exception as error:
        raise_if_ended()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return FoldFailed("the disk is full. Make room and run with --retry-failed.")
        logger.exception("trial %d, fold %d: unexpected error", task.number, task.fold)
        return FoldFailed(f"unexpected {type(error).__name__}: {error}")


def _evaluated(task: FoldTask) -> FoldScore:
    """Fit on the other folds, test on this one, and store the score."""
    start = time.monotonic()
    config, tiles = task.config, task.tiles.at(task.params)
    detector = _detector(task)
    healthy, anomalies = tiles.fit_sources(task.fold, seed=config.seed)
    folder = trial_folder(config.out, task.number) / f"fold-{task.fold}"
    folder.mkdir(parents=True, exist_ok=True)
    device = choose_device(config.device)
    try:
        report = detector.fit(
            healthy,
            FitContext(
                seed=config.seed,
                device=device,
                folder=folder,
                budget=Budget(config.fit_steps, config.fit_minutes),
                weights=config.weights,
                quiet=True,
                anomalies=anomalies,
                accept_inverted=True,  # the trial's AUROC says what it is
            ),
        )
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    batch = windows_at_once(_BATCH, device, edge=detector.spec.size)
    negative, positive = (
        _scores(detector, source, batch=batch) for source in tiles.test_sources(task.fold)
    )
    score = FoldScore(
        fold=task.fold,
        auroc=delong(positive, negative)[0],
        healthy_loss=_healthy_loss(report.notes),
        healthy_tiles=len(negative),
        anomalous_tiles=len(positive),
        ended_by=report.ended_by,
        steps=report.steps,
        seconds=round(time.monotonic() - start, 3),
    )
    write_fold(config.out, task.number, score)
    # What a fit needs to go on; its metrics stay.
    delete_checkpoints(folder)
    return score


def _detector(task: FoldTask) -> Detector:
    """Return the unfitted detector of a trial."""
    config, tiles = task.config, task.tiles.at(task.params)
    cls = registry.load(config.detector)
    values = {**config.options, **options_of(config.space, task.params)}
    values = method_values(values, cls, TileStore(tiles.healthy))
    with idle_options_allowed():  # an option may do something only with others of the space
        options = build(cls.Options, values, source=f"options of {config.detector}")
    size = cls.input_size(options, tile_px=tiles.tile, mpp=tiles.mpp)
    return cls(options, InputSpec(TilePx(size), Mpp(tiles.mpp)))


def _scores(detector: Detector, source: TileSource, *, batch: int) -> Any:
    """Score the centre of each tile, float64 (N,)."""
    first = (source.tile - detector.spec.size) // 2
    centre = slice(first, first + detector.spec.size)
    maps = score_maps(
        detector,
        source,
        batch=batch,
        cut=lambda tiles: np.ascontiguousarray(tiles[:, centre, centre]),
    )
    parts = [detector.pool(places) for places in maps]
    scores = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(scores).all():
        raise DetectorError("the detector returned scores that are not finite")
    return scores


def _healthy_loss(notes: dict[str, Any]) -> float | None:
    """Return the lowest loss on held-out healthy tiles, or ``None`` if the method has no loss."""
    loss = notes.get("best_stop_loss")
    return float(loss) if loss is not None and np.isfinite(loss) else None
