"""``wsiad tune``: a detector's options, chosen with a few labelled anomalous tiles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from wsiad.compute.compute_options import ComputeOptions
from wsiad.core.config import Config, build, differences, resolve, verb, write_config
from wsiad.core.errors import ConfigError, RunError
from wsiad.core.files import write_json
from wsiad.core.ownership import CLAIM, claimed
from wsiad.core.progress import Progress
from wsiad.core.provenance import versions
from wsiad.runs.anomalies import Names
from wsiad.tissue.tissue_options import QualityThresholds
from wsiad.tuning.space import Parameter, check_space
from wsiad.tuning.trials import FAILED, Trial, best
from wsiad.tuning.tuning_report import search_record, search_summary, write_train_configs

CONFIG, FOLDS = "config.yaml", "folds.json"

_MAY_CHANGE = frozenset(
    {"trials", "max_minutes", "workers", "cluster", "scheduler", "retries", "at_once"}
    | {"retry_failed", "quiet"}
)
"""What may differ when a search goes on: none of it changes what a trial gives."""


class TuneConfig(Config):
    """Choose a detector's options with a few anomalous tiles, by cross-validation."""

    store: Path
    """Tile store of healthy slides."""
    anomalies: Path
    """Tile store of labelled anomalous tiles; the label of a slide is its anomaly type."""
    out: Path
    """Folder of the search; an interrupted search in it goes on."""
    detector: str = "dpa"
    """Method, wsiad's own or of a plug-in; an unknown name is answered with the list of all."""
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """What is searched: option and a list of values, or a range such as `{low: 1, high: 9}`; see
    docs/tune.md. May be given several times."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Option of the method that is the same in all trials; may be given several times."""
    trials: Annotated[int, Field(ge=1)] = 30
    """The most settings to try, those of earlier calls included."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Begin no further fit after so many minutes of this call."""
    random_trials: Annotated[int, Field(ge=1)] = 10
    """So many trials are drawn at random before what they gave decides."""
    prune: bool = True
    """Give a trial up whose mean after a fold is below the median of the complete ones."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Parts of the slides; a trial is fitted and tested once for each."""
    healthy_folds_by: Literal["slide", "tile"] = "slide"
    """`tile` for healthy tiles of fewer slides than folds: figures are then too good."""
    anomaly_folds_by: Literal["slide", "label", "tile"] = "slide"
    """`label` tests on types of anomaly that no other fold has; `tile` is for anomalous tiles of
    fewer slides than folds."""
    healthy_tiles: Annotated[int, Field(ge=1)] | None = None
    """Use only so many tiles of `store`, drawn by the seed evenly over their slides."""
    anomaly_types: Names = ()
    """Use only these labels of `anomalies`; by default all that do not mean healthy."""
    anomaly_tiles: Annotated[int, Field(ge=1)] | None = None
    """Use only so many tiles of `anomalies`, drawn by the seed evenly over their slides."""
    split: str | None = None
    """Use only slides with this value in the manifest's `split` column."""
    quality: QualityThresholds = QualityThresholds()
    """Which tiles are too bad to be used; in place of the thresholds that the store has."""
    weights: str | None = None
    """Pretrained weights: a file (safetensors or a plain state dict), `imagenet`, `wsiad` (the
    network that comes with wsiad) or `random`; by default ImageNet's where they are at hand or
    can be downloaded, else `wsiad`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Same seed, same result, where trials follow each other."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    fit_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop each fit after so many optimiser steps."""
    fit_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop each fit after so many minutes; results then depend on the machine."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Fits at once, each by a process of its own on this machine."""
    cluster: Path | None = None
    """YAML file of a batch cluster (SLURM, PBS, LSF, SGE) whose jobs fit; see
    configs/slurm.yaml."""
    scheduler: str | None = None
    """Address of a running dask scheduler whose workers fit."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a fit is tried again whose worker was lost; a fit's own error is not."""
    at_once: Annotated[int, Field(ge=1)] | None = None
    """Trials in work at once; by default as many as there are workers. Has to be given with
    `scheduler`."""
    retry_failed: bool = False
    """Try again what failed in an earlier call."""
    quiet: bool = False
    """No progress output."""


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial that failed, as the command line lists it.

    Parameters
    ----------
    slide : str
        Which one.
    reason : str
    """

    slide: str
    reason: str


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a search found.

    Parameters
    ----------
    out : Path
        Folder of the search.
    trials : tuple of Trial
        All, of earlier calls too.
    best : Trial or None
        Of the complete ones the best; its ``best.yaml`` is ready for ``wsiad train``.
    warnings : tuple of str
        What takes away from the figures.
    summary : str
        For people.
    """

    out: Path
    trials: tuple[Trial, ...]
    best: Trial | None
    warnings: tuple[str, ...]
    summary: str

    @property
    def failed(self) -> tuple[FailedTrial, ...]:
        """Trials that failed."""
        failed = (trial for trial in self.trials if trial.state == FAILED)
        return tuple(FailedTrial(f"trial {trial.number}", trial.reason) for trial in failed)

    @property
    def exit_code(self) -> int:
        """1 if no trial is complete, else 0."""
        return int(self.best is None)


@verb(TuneConfig)
def tune(config: TuneConfig) -> TuneResult:
    """Try settings of a detector, each by cross-validation, and keep the best.

    In each fold a detector is fitted on the healthy tiles of the other folds and tested on the
    healthy and anomalous tiles of this one; no slide is in two folds (Shvetsova et al. 2021,
    section IV-C, without the overlap of the folds that they released).

    Raises
    ------
    ConfigError
        An option of the space is unknown or cannot have a value.
    DetectorError
        The method is unknown, or needs larger tiles.
    StoreError
        There is no store, or it is damaged.
    StoreMismatchError
        The anomalous tiles were prepared otherwise than the healthy ones.
    InputError
        There are no healthy or anomalous tiles, or fewer slides than folds; or another
        process searches in the folder.
    RunError
        The folder holds something else, or a search of another configuration.
    SearchError
        Optuna is not installed.
    ClusterError
        There is no such cluster or scheduler, or it takes no jobs.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.detectors import registry
    from wsiad.learning.device import choose_device
    from wsiad.tuning.course import run_search
    from wsiad.tuning.folds import search_tiles
    from wsiad.tuning.search import optuna
    from wsiad.tuning.trials import write_trials

    start = time.monotonic()
    package = optuna()
    compute, at_once = _compute(config)
    if compute.in_turn:
        choose_device(config.device)  # rather refused now than by each trial
    cls = registry.load(config.detector)
    options = build(cls.Options, config.options, source=f"options of {config.detector}")
    learns = bool(cls.learns_from_anomalies(options))
    check_space(config.space, config.options, cls.Options)
    tiles = search_tiles(config, cls, learns=learns)
    with _search_folder(config):
        write_json(config.out / FOLDS, tiles.membership(config))
        with Progress("tune", total=config.trials, unit="trial", quiet=config.quiet) as progress:
            trials = run_search(config, tiles, compute=compute, at_once=at_once, progress=progress)
        write_trials(config.out, trials, config.space, folds=config.folds)
        found = best(trials)
        write_train_configs(config, trials, found, learns=learns)
        record = search_record(config, trials, tiles) | {
            "seconds": round(time.monotonic() - start, 3),
            "versions": versions() | {"optuna": package.__version__},
        }
        write_json(config.out / "run.json", record)
    summary = search_summary(config, trials, tiles)
    return TuneResult(config.out, tuple(trials), found, tiles.warnings, summary)


def _compute(config: TuneConfig) -> tuple[ComputeOptions, int]:
    """Where fits are made, and how many trials are in work at once."""
    from wsiad.compute.jobs import read_jobs

    names = ("workers", "cluster", "scheduler", "retries")
    given = {name: getattr(config, name) for name in names}
    compute = build(ComputeOptions, given, source="wsiad tune")
    if config.at_once is not None:
        return compute, config.at_once
    if config.cluster is not None:
        jobs = read_jobs(config.cluster)
        return compute, jobs.jobs * jobs.cores
    if config.scheduler is not None:
        raise ConfigError(
            "how many trials are in work at once is not known",
            subject="scheduler",
            remedy="Give --at-once, the number of its workers.",
        )
    return compute, config.workers


@contextlib.contextmanager
def _search_folder(config: TuneConfig) -> Iterator[None]:
    """Take the folder for this process, or take up the search in it.

    Raises
    ------
    RunError
        It holds something else, or a search of another configuration.
    InputError
        Another process searches in it.
    """
    path = config.out / CONFIG
    if config.out.exists() and not config.out.is_dir():
        raise RunError("is a file", subject=str(config.out), remedy="Give a folder as --out.")
    with claimed(config.out):
        if path.exists():
            if changed := _changed(path, config):
                raise RunError(
                    f"holds a search of another configuration: {', '.join(changed)}",
                    subject=str(config.out),
                    remedy="Choose another folder, or give what was given then.",
                )
        elif any(entry.name != CLAIM for entry in config.out.iterdir()):
            raise RunError(
                "holds something that is not a search",
                subject=str(config.out),
                remedy="Give an empty or a new folder as --out.",
            )
        write_config(path, config)
        yield


def _changed(path: Path, config: TuneConfig) -> list[str]:
    """Say which fields differ in a stored config that must not."""
    left_out = set(_MAY_CHANGE)
    try:
        earlier = resolve(TuneConfig, file=path, flags={})
    except ConfigError:
        return [f"its {CONFIG} cannot be read"]
    was, now = (one.model_dump(mode="json", exclude=left_out) for one in (earlier, config))
    return differences(was, now)
