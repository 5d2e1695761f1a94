"""``wsiad train``: fit a detector on the healthy tiles of a store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wsiad.core.config import build, verb
from wsiad.core.terminal import counted
from wsiad.detectors import registry
from wsiad.learning.training_options import END_WORDS, LogOptions, check_inverted
from wsiad.runs.anomalies import check_use
from wsiad.runs.claim import taken
from wsiad.runs.compatibility import PREPARATION
from wsiad.runs.healthy_tiles import HEALTHY_REGIONS, TrainingOptions
from wsiad.store.tile_task import unseen_lines, unseen_slides

if TYPE_CHECKING:
    from wsiad.runs.fitting import MadeRun


class TrainConfig(LogOptions, TrainingOptions):
    """Fit a detector on the healthy tiles of a store."""

    tries_out: ClassVar[bool] = False


_FREE = frozenset(
    {
        "store",
        "anomalies",
        "healthy_regions",
        "weights",
        "device",
        "devices",
        "max_steps",
        "max_minutes",
        "log",
    }
    | {"healthy_examples", "about", "calibration"}
)
"""Options that may differ when a run is resumed: paths, devices, limits and words. The checkpoint
itself checks the training data, and whether a limit may change."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of a training.

    Parameters
    ----------
    run : Path
        Run folder.
    ended_by : str
        Reason why the fit ended.
    steps : int
        Number of optimiser steps.
    summary : str
        Summary for the terminal.
    """

    run: Path
    ended_by: str
    steps: int
    summary: str


@verb(TrainConfig)
def train(config: TrainConfig) -> TrainResult:
    """Fit a detector, and calibrate it on healthy tiles of held-out slides.

    Raises
    ------
    StoreError
        The store does not exist or is damaged.
    InputError
        The store has no healthy tiles to use, the store of anomalies has no anomalous tiles, or
        another process works in the folder.
    StoreMismatchError
        The anomalous tiles were prepared differently from the healthy ones.
    DetectorError
        The method is unknown, cannot be fitted on these tiles, or got anomalous tiles
        that it cannot use, or none although it needs them; or it is known to be inverted, which
        was not accepted.
    WeightsError
        Pretrained weights are not available.
    RunError
        The folder contains a complete run of another configuration, or parts of one.
    ConfigError
        The log cannot be written: a package is missing, or there are no steps to log.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.learning.devices import choose_device
    from wsiad.runs.chosen_tiles import anomalies_of, choose
    from wsiad.runs.experiment_log import check_log, experiment_log, parameters_of
    from wsiad.runs.fitting import check_devices, make_run
    from wsiad.runs.run import RUN

    start = time.monotonic()
    cls = registry.load(config.detector)
    options = build(cls.Options, config.options, source=f"options of {config.detector}")
    check_use(
        config.detector,
        cls.learns_from_anomalies(options),
        config.anomalies,
        labels_of=cls.labels_of,
    )
    if config.log:
        check_log(config.log, config.detector, options)
    device = choose_device(config.device)
    check_devices(config.devices, device, config.detector, cls)
    with _with_reviews(config) as given:
        chosen = choose(given)
        check_inverted(
            chosen.options.known_inverted(),
            accepted=config.accept_inverted,
            instead="Use --detector knn, or choose options by labels with `wsiad tune`",
        )
        anomalies = anomalies_of(given, chosen)
        with taken(
            config.out, config, record=RUN, what="run", free=_FREE, beginnings=[PREPARATION]
        ) as complete:
            if complete:
                return _already_done(config)
            parameters = parameters_of(given, chosen.options)
            with experiment_log(config.log, config.out, parameters) as log:
                run = make_run(
                    given, chosen, anomalies=anomalies, device=device, start=start, log=log
                )
    report = run.report
    summary = "\n".join([*_unseen(config), _summary(config, run)])
    return TrainResult(config.out, report.ended_by, report.steps, summary)


@contextlib.contextmanager
def _with_reviews(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield the config with stores of the windows in place of results with a review."""
    from wsiad.results.reviewed_windows import Judged, is_results, reviewed_store

    judged: dict[str, Judged] = {"anomalies": "accepted", HEALTHY_REGIONS: "rejected"}
    with contextlib.ExitStack() as stack:
        stores = {
            name: stack.enter_context(
                reviewed_store([path], verdict, device=config.device, beside=config.out)
            )
            for name, verdict in judged.items()
            if (path := getattr(config, name)) is not None and is_results(path)
        }
        yield config.model_copy(update=stores)


def _unseen(config: TrainConfig) -> list[str]:
    """Return lines on the slides that failed or could not be looked at, of every store given."""
    from wsiad.store.tile_store import TileStore, is_store

    given = [config.store, config.calibration, config.anomalies, config.healthy_regions]
    stores = [path for path in dict.fromkeys(given) if path is not None and is_store(path)]
    return [
        line for path in stores for line in unseen_lines(unseen_slides(TileStore(path)), str(path))
    ]


def _already_done(config: TrainConfig) -> TrainResult:
    from wsiad.runs.run import RunFolder

    record = RunFolder.open(config.out).record()
    summary = f"{config.out}: this run is complete already ({record.ended_by})"
    return TrainResult(config.out, record.ended_by, record.steps, summary)


def _summary(config: TrainConfig, run: MadeRun) -> str:
    report, calibration, spec = run.report, run.calibration, run.spec
    steps = f" after {counted(report.steps, 'step')}" if report.steps else ""
    what = f"{config.detector} on {spec.size} px at {spec.mpp:g} µm/px"
    usual = f"median {calibration.median:.4g}, 99 % below {calibration.quantile(0.99):.4g}"
    source = (
        f"{counted(calibration.n_windows, 'window')} of {counted(calibration.n_slides, 'slide')}"
    )
    lines = [
        f"{config.out}: {what}, {END_WORDS.get(report.ended_by, report.ended_by)}{steps}",
        f"healthy score: {usual} ({source})",
    ]
    if trimming := run.notes.get("trimming"):
        dropped = sum(trimming["dropped"].values())
        again = "" if trimming["stable"] else "; another round would have chosen others"
        lines.append(
            f"{dropped} of {trimming['tiles']} tiles of the fit were left out as the strangest of "
            f"their slides (run.json names them), in {counted(trimming['rounds'], 'round')}{again}"
        )
    if config.about and config.about.preset:
        about = config.about.of_run(held_out=config.calibration is None)
        changed = f"; replaced: {', '.join(about.replaced)}" if about.replaced else ""
        lines.append(f"preset {about.preset}: {about.system}, {about.as_published}{changed}")
        if about.adapted != config.about.adapted:
            lines.append(f"adapted: {about.adapted[-1]}")
    if anomalies := run.notes.get("anomalies"):
        lines.append(_seen(anomalies))
    if further := run.notes.get(HEALTHY_REGIONS):
        lines.append(f"fitted on as healthy, too: {counted(further['tiles'], 'further tile')}")
    weights = run.notes.get("weights")
    if isinstance(weights, dict) and weights.get("warning"):
        lines.append(f"WARNING: {weights['warning']}")
    if run.notes.get("inverted"):
        lines.append(f"WARNING: {run.notes['inverted']}")
    return "\n".join(lines)


def _seen(anomalies: Mapping[str, Any]) -> str:
    """Return a sentence on the labelled tiles of a run, of which its notes have an entry."""
    tiles, slides = anomalies["tiles"], len(anomalies["slides"])
    types, of = ", ".join(anomalies["types"]), counted(slides, "slide")
    others = "other types of anomaly were not seen"
    match anomalies.get("labels_of"):
        case "slides":
            labels = f"the labels of {counted(slides, 'anomalous slide')}"
            with_tiles = f"with {counted(tiles, 'tile')}, healthy or not"
            return f"trained on {labels} {with_tiles}: {types}; {others}"
        case "reference":
            what = f"{counted(tiles, 'reference tile')} of {of}"
            return f"trained on {what}, too: {types}; none of them counts as anomalous"
        case _:
            return f"trained on {counted(tiles, 'anomalous tile')} of {of}: {types}; {others}"
