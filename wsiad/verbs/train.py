"""``wsiad train``: a detector, fitted on the healthy tiles of a store."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.config import build, verb
from wsiad.core.files import write_json
from wsiad.core.provenance import versions
from wsiad.detectors import registry
from wsiad.learning.training_options import END_WORDS
from wsiad.runs.anomalies import AnomalySlides, check_use
from wsiad.runs.claim import taken
from wsiad.runs.healthy_tiles import TrainingOptions, store_fingerprint
from wsiad.runs.preparation import PREPARATION, preparation_of
from wsiad.slides.slide_table import SLIDES_TABLE, slide_seconds
from wsiad.store.tile_task import unseen_lines, unseen_slides

if TYPE_CHECKING:
    import torch

    from wsiad.learning.detector import Detector, FitReport
    from wsiad.runs.calibration import Calibration
    from wsiad.runs.fitting import Chosen

logger = logging.getLogger(__name__)


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
    from wsiad.learning.device import choose_device
    from wsiad.runs.fitting import anomalies_of, check_devices, choose
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
        return _made(config, chosen, anomalies=anomalies, device=device, start=start)


def _made(
    config: TrainConfig,
    chosen: Chosen,
    anomalies: AnomalySlides | None,
    device: torch.device,
    start: float,
) -> TrainResult:
    """Fit, calibrate, choose healthy examples, and write the run; its record last."""
    from wsiad.runs.calibration import calibrate
    from wsiad.runs.examples import choose_examples
    from wsiad.runs.fitting import fit_context, together
    from wsiad.runs.run import RunFolder, RunRecord
    from wsiad.runs.split import slides_by_use

    store, slides, usable = chosen.store, chosen.slides, chosen.usable
    tile_seconds = slide_seconds(config.store / SLIDES_TABLE)
    folder = RunFolder(config.out)
    write_json(folder.path / PREPARATION, preparation_of(store, chosen.thresholds))
    parts, detector, tiles = chosen.begin(
        config.seed, only_fit=[slide.name for slide in anomalies.slides] if anomalies else ()
    )
    if not parts.by_slide:
        logger.warning("%s", parts.note)
    with together(config, device) as ranks:
        report = detector.fit(
            tiles,
            fit_context(
                config, ranks, device=device, anomalies=anomalies.tiles() if anomalies else None
            ),
        )
    held_out = chosen.source(parts.calibration)
    calibration = calibrate(
        detector,
        held_out,
        n_slides=len(parts.calibration),
        seed=config.seed,
        quiet=config.quiet,
    )
    examples = choose_examples(
        detector,
        parts.fit,
        {slide.name: (slide, usable[slide.name]) for slide in slides},
        held_out=held_out,
        count=config.healthy_examples,
        seed=config.seed,
        quiet=config.quiet,
    )
    folder.save_detector(detector, name=config.detector)
    folder.write_calibration(calibration)
    folder.write_examples(examples)
    notes = report.notes | ({"slides_not_used": chosen.skipped} if chosen.skipped else {})
    if examples:
        notes |= {"healthy_examples": len(examples)}
    if config.devices > 1:
        notes |= {"devices": config.devices}
    if chosen.thresholds.given:
        notes |= {"thresholds": chosen.thresholds.given, "tiles_not_used": chosen.unusable}
    if anomalies:
        shared = sorted(set(usable) & {slide.name for slide in anomalies.slides})
        tied = {"slides_fitted_on_whole": shared} if shared else {}
        notes |= {"anomalies": anomalies.note() | tied}
    maker = registry.maker(config.detector)
    folder.finish(
        RunRecord(
            detector=config.detector,
            seed=config.seed,
            device=str(device),
            ended_by=report.ended_by,
            steps=report.steps,
            seconds=round(time.monotonic() - start, 3),
            tile_seconds=tile_seconds,
            stores={config.store.name: store_fingerprint(store, slides)},
            split=parts.note,
            slides=slides_by_use(parts, slides, anomalies.slides if anomalies else []),
            notes=notes,
            versions=versions() | ({maker.name: maker.version} if maker else {}),
        )
    )
    summary = "\n".join(
        [
            *unseen_lines(unseen_slides(store), str(config.store)),
            _summary(
                config,
                detector,
                report=report,
                calibration=calibration,
                anomalies=notes.get("anomalies"),
            ),
        ]
    )
    return TrainResult(config.out, report.ended_by, report.steps, summary)


def _already_done(config: TrainConfig) -> TrainResult:
    from wsiad.runs.run import RunFolder

    record = RunFolder.open(config.out).record()
    summary = f"{config.out}: this run is complete already ({record.ended_by})"
    return TrainResult(config.out, record.ended_by, record.steps, summary)


def _summary(
    config: TrainConfig,
    detector: Detector,
    report: FitReport,
    calibration: Calibration,
    anomalies: dict[str, Any] | None,
) -> str:
    steps = f" after {report.steps} steps" if report.steps else ""
    what = f"{config.detector} on {detector.spec.size} px at {detector.spec.mpp:g} µm/px"
    usual = f"median {calibration.median:.4g}, 99 % below {calibration.quantile(0.99):.4g}"
    number = f"{calibration.n_slides} slide{'s' if calibration.n_slides != 1 else ''}"
    source = f"{calibration.n_windows} windows of {number}"
    lines = [
        f"{config.out}: {what}, {END_WORDS.get(report.ended_by, report.ended_by)}{steps}",
        f"healthy score: {usual} ({source})",
    ]
    if anomalies:
        lines.append(
            f"learnt from {anomalies['tiles']} anomalous tiles of {len(anomalies['slides'])} "
            f"slides: {', '.join(anomalies['types'])}; other types of anomaly were not seen"
        )
    weights = report.notes.get("weights")
    if isinstance(weights, dict) and weights.get("warning"):
        lines.append(f"WARNING: {weights['warning']}")
    return "\n".join(lines)
