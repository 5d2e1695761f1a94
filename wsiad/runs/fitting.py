"""Make a run for ``wsiad train``: fit in one process or in several, calibrate, and write it."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from wsiad.core.errors import ConfigError, RunError
from wsiad.core.files import write_json
from wsiad.core.geometry import TilePx
from wsiad.core.packages import versions
from wsiad.detectors import registry
from wsiad.learning.detector import (
    AnomalousTiles,
    Budget,
    Detector,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
)
from wsiad.learning.devices import Ranks, choose_device
from wsiad.learning.trimming import TRIMMING, Kept, TrimmedFit, fit_trimmed, trimming_note
from wsiad.runs.anomalies import AnomalySlides
from wsiad.runs.calibration import Calibration, held_out_scores
from wsiad.runs.chosen_tiles import Chosen, choose
from wsiad.runs.compatibility import PREPARATION, preparation_of
from wsiad.runs.examples import choose_examples
from wsiad.runs.experiment_log import ExperimentLog, figures_of
from wsiad.runs.healthy_maps import HealthyMaps
from wsiad.runs.healthy_tiles import HEALTHY_REGIONS, TrainingOptions, store_fingerprint
from wsiad.runs.run import RunFolder, RunRecord
from wsiad.runs.split import HealthySplit, SlideTiles, held_apart, slides_by_use
from wsiad.slides.slide_table import SLIDES_TABLE, slide_seconds
from wsiad.store.tile_store import TileStore

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10


def fit_context(
    options: TrainingOptions,
    ranks: Ranks,
    *,
    device: torch.device,
    anomalies: AnomalousTiles | None = None,
) -> FitContext:
    """Return the context of the fit in a process: seed, device, folder, budget and the like."""
    return FitContext(
        seed=options.seed,
        device=_device_of(ranks, device),
        folder=options.out,
        budget=Budget(options.max_steps, options.max_minutes),
        weights=options.weights,
        quiet=options.quiet or not ranks.first,
        anomalies=anomalies,
        ranks=ranks,
        accept_inverted=options.accept_inverted,
    )


class InsteadOfFit(Protocol):
    """Another way to a fitted detector than its fit on healthy tiles."""

    @property
    def slides(self) -> Mapping[str, str]:
        """Fingerprints of the slides that it learnt from, by name."""
        ...

    @property
    def note(self) -> Mapping[str, Any]:
        """Facts for the record of the run."""
        ...

    @property
    def key(self) -> str:
        """Name of slides and note in the record."""
        ...

    def fit(self, detector: Detector, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Make a new detector a fitted one."""
        ...

    def write(self, folder: Path) -> None:
        """Write files of its own into the run folder."""
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MadeRun:
    """Facts about a finished training, for its summary.

    Parameters
    ----------
    report : FitReport
        Report of the fit.
    calibration : Calibration
        Calibration of the detector.
    spec : InputSpec
        Input of the detector.
    notes : dict
        Notes in the run's record.
    """

    report: FitReport
    calibration: Calibration
    spec: InputSpec
    notes: dict[str, Any]


def make_run(
    options: TrainingOptions,
    chosen: Chosen,
    *,
    anomalies: AnomalySlides | None,
    device: torch.device,
    start: float,
    instead: InsteadOfFit | None = None,
    only_fit: Sequence[str] = (),
    apart: Sequence[str] = (),
    log: ExperimentLog | None = None,
) -> MadeRun:
    """Fit, calibrate, choose healthy examples, and write the run, with its record last.

    Parameters
    ----------
    options : TrainingOptions
        Options of the training.
    chosen : Chosen
        Method, slides and tiles.
    anomalies : AnomalySlides, optional
        Labelled anomalous tiles.
    device : torch.device
        Device of the fit.
    start : float
        Start of the training, seconds of the monotonic clock.
    instead : InsteadOfFit, optional
        Lessons from a cohort, or a detector to extend, in place of the fit.
    only_fit : sequence of str
        Further slides that are neither to stop by nor to calibrate with.
    apart : sequence of str
        Slides that are left out of the calibration after the split.
    log : ExperimentLog, optional
        Log elsewhere that repeats the metrics, and is told how the run ended.

    Raises
    ------
    WsiadError
        The fit or the calibration failed.
    """
    store, usable = chosen.store, chosen.usable
    tile_seconds = slide_seconds(options.store / SLIDES_TABLE)
    folder = RunFolder.at(options.out)
    write_json(folder.path / PREPARATION, preparation_of(store, chosen.thresholds))
    tied_slides = [slide.name for slide in anomalies.slides] if anomalies else []
    parts, detector, tiles = chosen.begin(options.seed, only_fit=[*tied_slides, *only_fit])
    if apart:
        parts = held_apart(parts, apart)
    if not parts.by_slide:
        logger.warning("%s", parts.note)
    trimming: dict[str, Any] = {}
    with together(options, device) as ranks:
        anomalous = anomalies.tiles() if anomalies else None
        context = fit_context(options, ranks, device=device, anomalies=anomalous)
        context = replace(context, follower=log)
        if instead:
            report = instead.fit(detector, tiles, context)
        elif options.trimming.share:
            trimmed, parts, trimming = _trimmed(options, chosen, parts, context)
            detector, report = trimmed.detector, trimmed.report
        else:
            report = detector.fit(tiles, context)
    held_out = chosen.source(parts.calibration)
    scores = held_out_scores(detector, held_out, quiet=options.quiet)
    calibration = Calibration.of(scores, n_slides=len(parts.calibration))
    if calibration.constant:
        logger.warning(
            "all %d healthy windows of the calibration have one score, %g: the method tells none "
            "of them from another, and percentiles say nothing. Check its weights, or choose "
            "another method",
            calibration.n_windows,
            calibration.median,
        )
    by_name = chosen.by_name()
    maps = HealthyMaps.of(
        parts, by_name, scores, size=detector.spec.size, mpp=float(detector.spec.mpp)
    )
    examples = choose_examples(
        detector,
        parts.fit,
        by_name,
        held_out=held_out,
        count=options.healthy_examples,
        seed=options.seed,
        quiet=options.quiet,
    )
    folder.save_detector(detector, name=options.detector)
    folder.write_calibration(calibration)
    folder.write_healthy_maps(maps)
    folder.write_examples(examples)
    notes = report.notes | ({"slides_not_used": chosen.skipped} if chosen.skipped else {})
    if trimming:
        notes |= {TRIMMING: trimming}
    if examples:
        notes |= {"healthy_examples": len(examples)}
    if maps:
        notes |= {"healthy_maps": len(maps)}
    if options.about:
        about = options.about.of_run(held_out=options.calibration is None)
        notes |= {"about": about.model_dump(mode="json")}
    if inverted := chosen.options.known_inverted():
        notes |= {"inverted": inverted}
    if options.devices > 1:
        notes |= {"devices": options.devices}
    if chosen.thresholds.given:
        notes |= {"thresholds": chosen.thresholds.given, "tiles_not_used": chosen.unusable}
    if anomalies:
        shared = sorted(set(usable) & {slide.name for slide in anomalies.slides})
        tied = {"slides_fitted_on_whole": shared} if shared else {}
        notes |= {"anomalies": anomalies.note() | tied}
    used = slides_by_use(parts, chosen.all_slides, anomalies.slides if anomalies else [])
    if chosen.further:
        slides = [slide for slide, _ in chosen.further]
        used[HEALTHY_REGIONS] = {slide.name: slide.fingerprint for slide in slides}
        further = TileStore(slides[0].store)
        notes[HEALTHY_REGIONS] = {
            "tiles": sum(len(tiles) for _, tiles in chosen.further),
            "store": further.path.name,
            "fingerprint": store_fingerprint(further, slides),
        }
    if instead:
        instead.write(folder.path)
        notes |= {instead.key: dict(instead.note)}
        used[instead.key] = dict(instead.slides)
    if log:
        log.finish(figures_of(report, calibration), ended_by=report.ended_by)
    maker = registry.maker(options.detector)
    folder.finish(
        RunRecord(
            detector=options.detector,
            seed=options.seed,
            device=str(device),
            ended_by=report.ended_by,
            steps=report.steps,
            seconds=round(time.monotonic() - start, 3),
            tile_seconds=tile_seconds,
            stores=chosen.fingerprints(),
            split=parts.note,
            slides=used,
            notes=notes,
            versions=versions() | ({maker.name: maker.version} if maker else {}),
        )
    )
    return MadeRun(report=report, calibration=calibration, spec=detector.spec, notes=notes)


def _trimmed(
    options: TrainingOptions, chosen: Chosen, parts: HealthySplit, context: FitContext
) -> tuple[TrimmedFit, HealthySplit, dict[str, Any]]:
    """Fit without the strangest tiles; return also the parts that are left, and the run's entry."""

    def left(kept: Kept) -> list[SlideTiles]:
        some = (SlideTiles(part.slide, part.indices[kept[part.slide]]) for part in parts.fit)
        return [part for part in some if len(part.indices)]

    trimmed = fit_trimmed(
        lambda: chosen.cls(chosen.options, InputSpec(TilePx(chosen.size), chosen.mpp)),
        {part.slide: len(part.indices) for part in parts.fit},
        lambda kept: chosen.source(left(kept)),
        stop=chosen.source(parts.stop),
        context=context,
        options=options.trimming,
    )
    stored = {part.slide: chosen.usable[part.slide][part.indices] for part in parts.fit}
    note = trimming_note(trimmed, stored, options.trimming)
    return trimmed, replace(parts, fit=tuple(left(trimmed.kept))), note


def check_devices(count: int, device: torch.device, name: str, cls: type[Detector]) -> None:
    """Check that a number of devices can be used.

    Raises
    ------
    ConfigError
        The method is not trained step by step, or the machine has fewer devices.
    """
    if count == 1:
        return
    if not cls.uses_ranks:
        raise ConfigError(
            f"{name} is fitted by one process", subject="devices", remedy="Leave out --devices."
        )
    if device.type == "cuda" and (str(device) != "cuda" or count > torch.cuda.device_count()):
        raise ConfigError(
            f"--device {device} was requested with --devices {count}, but GPUs of this machine: "
            f"{torch.cuda.device_count()}",
            subject="devices",
            remedy="Set --device cuda, and no more devices than there are.",
        )


@contextmanager
def together(options: TrainingOptions, device: torch.device) -> Iterator[Ranks]:
    """Start the other processes that a fit needs; this process is the first of them.

    Raises
    ------
    RunError
        One of the other processes exited early; it has printed the reason itself.
    """
    count = options.devices
    if count == 1:
        yield Ranks()
        return
    threads = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            context.Process(target=fit_along, args=(options, rank, meeting), daemon=True)
            for rank in range(1, count)
        ]
        for process in others:
            process.start()
        try:
            _join(Ranks(0, count), device, meeting)
            yield Ranks(0, count)
            for process in others:
                process.join()
        except RuntimeError as error:
            # The connection breaks before a process has ended.
            others[0].join(timeout=_PATIENCE_SECONDS)
            if any(process.exitcode for process in others):
                raise RunError(
                    "another process of this training exited early",
                    subject=str(options.out),
                    remedy="See what it printed. Run the same command again to resume from the "
                    "last checkpoint.",
                ) from error
            raise
        finally:
            for process in others:
                process.terminate()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            torch.set_num_threads(threads)


def fit_along(options: TrainingOptions, rank: int, meeting: Path) -> None:
    """Fit in one of the other processes, which write no files."""
    ranks, device = Ranks(rank, options.devices), choose_device(options.device)
    _join(ranks, device, meeting)
    _, detector, tiles = choose(options).begin(options.seed, only_fit=())
    detector.fit(tiles, fit_context(options, ranks, device=device))
    torch.distributed.destroy_process_group()


def _join(ranks: Ranks, device: torch.device, meeting: Path) -> None:
    """Join the group of the processes that fit together."""
    own = _device_of(ranks, device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.count))
    torch.distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=ranks.rank,
        world_size=ranks.count,
    )


def _device_of(ranks: Ranks, device: torch.device) -> torch.device:
    return torch.device("cuda", ranks.rank) if ranks.count > 1 and device.type == "cuda" else device
