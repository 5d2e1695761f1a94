"""``wsiad tune``: choose a detector's options with a few labelled anomalous tiles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wsiad.compute.compute_options import WorkerOptions
from wsiad.core.config import (
    CONFIG,
    RECORD,
    QuietOptions,
    build,
    differences,
    resolve,
    verb,
    write_config,
)
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.core.files import write_json
from wsiad.core.ownership import claimed, refuse_foreign
from wsiad.core.packages import versions
from wsiad.core.terminal import Progress
from wsiad.tuning.space import SearchOptions, check_space, with_scales
from wsiad.tuning.trials import FAILED, Trial, best
from wsiad.tuning.tuning_report import search_record, search_summary, write_train_configs

FOLDS = "folds.json"

_MAY_CHANGE = frozenset(
    {"trials", "max_minutes", "workers", "cluster", "scheduler", "retries", "at_once"}
    | {"retry_failed", "quiet", "about"}
)
"""Options that may differ when a search continues, because they do not change any trial."""


class TuneConfig(QuietOptions, WorkerOptions, SearchOptions):
    """Choose a detector's options with a few anomalous tiles, by cross-validation."""

    ORDER = (..., "at_once", "retry_failed", "quiet", "about")

    at_once: Annotated[int, Field(ge=1)] | None = None
    """Number of trials that run at the same time; by default the number of workers. Required with
    `scheduler`."""


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """Failed trial, as the command line lists it.

    Parameters
    ----------
    slide : str
        Name of the trial, in place of a slide.
    reason : str
        Reason of the failure.
    """

    slide: str
    reason: str


@dataclass(frozen=True, slots=True)
class TuneResult:
    """Result of a search.

    Parameters
    ----------
    out : Path
        Folder of the search.
    trials : tuple of Trial
        All trials, including those of earlier calls.
    best : Trial or None
        Best of the complete trials; ``best.yaml`` is its configuration for ``wsiad train``.
    warnings : tuple of str
        Reasons why the figures are worth less.
    summary : str
        Summary for the terminal.
    """

    out: Path
    trials: tuple[Trial, ...]
    best: Trial | None
    warnings: tuple[str, ...]
    summary: str

    @property
    def failed(self) -> tuple[FailedTrial, ...]:
        """Failed trials, for the command line."""
        failed = (trial for trial in self.trials if trial.state == FAILED)
        return tuple(FailedTrial(f"trial {trial.number}", trial.reason) for trial in failed)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if no trial is complete, else 0."""
        return int(self.best is None)


@verb(TuneConfig)
def tune(config: TuneConfig) -> TuneResult:
    """Try settings of a detector, each by cross-validation, and keep the best.

    In each fold, a detector is fitted on the healthy tiles of the other folds and tested on the
    healthy and anomalous tiles of this fold. No slide is in two folds (Shvetsova et al. 2021,
    section IV-C, without the overlap of the folds that they released).

    Raises
    ------
    ConfigError
        An option of the space is unknown or cannot have a value.
    DetectorError
        The method is unknown, needs larger tiles, or learns from labels of slides.
    StoreError
        A store does not exist or is damaged.
    StoreMismatchError
        The anomalous tiles were prepared differently from the healthy ones, or a store of another
        scale holds other slides, has the same scale, or another stain normalisation.
    InputError
        There are no healthy or no anomalous tiles, or fewer slides than folds; or another
        process searches in the folder.
    RunError
        The folder contains something else, or a search of another configuration or other tiles.
    SearchError
        Optuna is not installed.
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.detectors import registry
    from wsiad.learning.devices import choose_device
    from wsiad.tuning.course import run_search
    from wsiad.tuning.search import optuna
    from wsiad.tuning.search_tiles import search_tiles
    from wsiad.tuning.trials import write_trials

    start = time.monotonic()
    package = optuna()
    at_once = _at_once(config)
    if config.in_turn:
        choose_device(config.device)  # rather refused now than by each trial
    cls = registry.load(config.detector)
    options = build(cls.Options, config.options, source=f"options of {config.detector}")
    if cls.labels_of == "slides":
        raise DetectorError(
            "learns from labels of slides, and a search compares options by labelled tiles",
            subject=config.detector,
            remedy="Train with a few settings, and compare them by wsiad evaluate.",
        )
    learns = bool(cls.learns_from_anomalies(options))
    check_space(config.space, config.options, cls.Options)
    with _with_review(config) as given:
        tiles = search_tiles(given, cls, learns=learns)
        with _search_folder(config):
            tiles.write_folds(config.out / FOLDS, config)
            space = {"space": with_scales(config.space, tiles.scales())}
            config, given = config.model_copy(update=space), given.model_copy(update=space)
            with Progress(
                "tune", total=config.trials, unit="trial", quiet=config.quiet
            ) as progress:
                trials = run_search(
                    given, tiles, compute=config, at_once=at_once, progress=progress
                )
            if given.anomalies != config.anomalies:  # its store is gone afterwards
                tiles = replace(tiles, anomalous=config.anomalies)
            write_trials(config.out, trials, config.space, folds=config.folds)
            found = best(trials)
            write_train_configs(config, trials, found, tiles=tiles)
            record = search_record(config, trials, tiles) | {
                "seconds": round(time.monotonic() - start, 3),
                "versions": versions() | {"optuna": package.__version__},
            }
            write_json(config.out / RECORD, record)
    summary = search_summary(config, trials, tiles)
    return TuneResult(
        out=config.out, trials=tuple(trials), best=found, warnings=tiles.warnings, summary=summary
    )


@contextlib.contextmanager
def _with_review(config: TuneConfig) -> Iterator[TuneConfig]:
    """Yield the config with a store of the windows in place of results with a review."""
    from wsiad.results.reviewed_windows import is_results, reviewed_store

    if not is_results(config.anomalies):
        yield config
        return
    windows = reviewed_store(
        [config.anomalies], "accepted", device=config.device, beside=config.out
    )
    with windows as store:
        yield config.model_copy(update={"anomalies": store})


def _at_once(config: TuneConfig) -> int:
    """Return the number of trials that run at the same time."""
    from wsiad.compute.jobs import read_jobs

    if config.at_once is not None:
        return config.at_once
    if config.cluster is not None:
        jobs = read_jobs(config.cluster)
        return jobs.jobs * jobs.cores
    if config.scheduler is not None:
        raise ConfigError(
            "the number of trials that run at the same time is not known",
            subject="scheduler",
            remedy="Set --at-once to the number of its workers.",
        )
    return config.workers


@contextlib.contextmanager
def _search_folder(config: TuneConfig) -> Iterator[None]:
    """Claim the folder for this process, to begin or to resume a search.

    Raises
    ------
    RunError
        The folder contains something else, or a search of another configuration.
    InputError
        Another process searches in the folder.
    """
    path = config.out / CONFIG
    with claimed(config.out):
        refuse_foreign(config.out, RunError, what="a search", marks=[CONFIG])
        if path.exists() and (changed := _changed(path, config)):
            raise RunError(
                f"holds a search of another configuration: {', '.join(changed)}",
                subject=str(config.out),
                remedy="Choose another folder, or use the earlier configuration.",
            )
        write_config(path, config)
        yield


def _changed(path: Path, config: TuneConfig) -> list[str]:
    """Return the fields that differ from a stored config although they must not."""
    left_out = set(_MAY_CHANGE)
    try:
        earlier = resolve(TuneConfig, file=path, flags={})
    except ConfigError:
        return [f"its {CONFIG} cannot be read"]
    was, now = (one.model_dump(mode="json", exclude=left_out) for one in (earlier, config))
    return differences(was, now)
