"""``wsiad train``: a detector, fitted on the healthy tiles of a store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.config import build, verb
from wsiad.detectors import registry
from wsiad.learning.training_options import END_WORDS
from wsiad.runs.anomalies import check_use
from wsiad.runs.claim import taken
from wsiad.runs.compatibility import PREPARATION
from wsiad.runs.healthy_tiles import TrainingOptions
from wsiad.store.tile_task import unseen_lines, unseen_slides

if TYPE_CHECKING:
    from wsiad.runs.fitting import MadeRun


class TrainConfig(TrainingOptions):
    """Fit a detector on the healthy tiles of a store."""


_FREE = frozenset(
    {"store", "anomalies", "weights", "device", "devices", "max_steps", "max_minutes"}
    | {"healthy_examples"}
)
"""Options that may change while a run is made: where things are, and when to stop. A checkpoint
knows better what was learnt from, and whether a limit may change."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a training.

    Parameters
    ----------
    run : Path
        The run folder.
    ended_by : str
        What ended the fit.
    steps : int
        Optimiser steps taken.
    summary : str
        For people.
    """

    run: Path
    ended_by: str
    steps: int
    summary: str


@verb(TrainConfig)
def train(config: TrainConfig) -> TrainResult:
    """Fit a detector and calibrate it on healthy tiles held out by slide.

    Raises
    ------
    StoreError
        There is no store, or it is damaged.
    InputError
        The store has no healthy tiles to use, or that of anomalies no anomalous ones, or
        another process works in the folder.
    StoreMismatchError
        The anomalous tiles were prepared otherwise than the healthy ones.
    DetectorError
        The method is unknown, cannot be fitted on these tiles, or was given anomalous tiles
        that it cannot use, or none although it needs them.
    WeightsError
        Pretrained weights are not at hand.
    RunError
        The folder holds a complete run, or one of another configuration.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.learning.devices import choose_device
    from wsiad.runs.fitting import anomalies_of, check_devices, choose, make_run
    from wsiad.runs.run import RUN

    start = time.monotonic()
    cls = registry.load(config.detector)
    options = build(cls.Options, config.options, source=f"options of {config.detector}")
    check_use(config.detector, cls.learns_from_anomalies(options), config.anomalies)
    device = choose_device(config.device)
    check_devices(config.devices, device, config.detector, cls)
    chosen = choose(config)
    anomalies = anomalies_of(config, chosen)
    with taken(
        config.out, config, record=RUN, what="run", free=_FREE, beginnings=[PREPARATION]
    ) as complete:
        if complete:
            return _already_done(config)
        run = make_run(config, chosen, anomalies=anomalies, device=device, start=start)
    report = run.report
    unseen = unseen_lines(unseen_slides(chosen.store), str(config.store))
    summary = "\n".join([*unseen, _summary(config, run)])
    return TrainResult(config.out, report.ended_by, report.steps, summary)


def _already_done(config: TrainConfig) -> TrainResult:
    from wsiad.runs.run import RunFolder

    record = RunFolder.open(config.out).record()
    summary = f"{config.out}: this run is complete already ({record.ended_by})"
    return TrainResult(config.out, record.ended_by, record.steps, summary)


def _summary(config: TrainConfig, run: MadeRun) -> str:
    report, calibration, spec = run.report, run.calibration, run.spec
    steps = f" after {report.steps} steps" if report.steps else ""
    what = f"{config.detector} on {spec.size} px at {spec.mpp:g} µm/px"
    usual = f"median {calibration.median:.4g}, 99 % below {calibration.quantile(0.99):.4g}"
    number = f"{calibration.n_slides} slide{'s' if calibration.n_slides != 1 else ''}"
    source = f"{calibration.n_windows} windows of {number}"
    lines = [
        f"{config.out}: {what}, {END_WORDS.get(report.ended_by, report.ended_by)}{steps}",
        f"healthy score: {usual} ({source})",
    ]
    if anomalies := run.notes.get("anomalies"):
        lines.append(
            f"learnt from {anomalies['tiles']} anomalous tiles of {len(anomalies['slides'])} "
            f"slides: {', '.join(anomalies['types'])}; other types of anomaly were not seen"
        )
    weights = run.notes.get("weights")
    if isinstance(weights, dict) and weights.get("warning"):
        lines.append(f"WARNING: {weights['warning']}")
    return "\n".join(lines)
