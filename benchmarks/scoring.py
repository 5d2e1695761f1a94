"""What scoring a slide costs beside the bare forward pass of the detector's network.

    python benchmarks/scoring.py SLIDE RUN [RUN ...] [--rounds 5] [--batch 256] [--device cpu]
        [--threads 1] [--parts bare verb]

``RUN`` is a run of ``wsiad train`` by a method on frozen features (gaussian, knn, patchcore, ...)
or by dpa. The slide's windows are read once and kept, in the batches in which they are scored.
Then, in every round and in turn, by processor time (all threads) and by the clock:

``bare``: the network alone on these batches, already normalised; dpa's are the autoencoder, and
the perceptual network of the windows and of their reconstructions.
``alone``: the detector's scores of each batch by itself.
``score``: the detector's scores of the batches, of which it may take several together.
``bf16``: the same with features in bfloat16, as ``wsiad heatmap --precision bf16`` scores.
``plan``: tissue, grid and stains of the slide, before a window is read.
``read``: the blocks of windows, decoded and normalised, without a network.
``joined``: the same, joined into batches.
``scored``: reading, scoring and stitching, as ``wsiad heatmap`` does them after the plan.
``verb``: all of ``wsiad heatmap`` on this slide: also the detector's loading, pictures and report.

Ratios are ``bare`` to the others, in each round: median (range). Processor time stands on a busy
machine, the clock does not. The feed is windows a second that ``read`` gives on one core; 16 cores
are 16 processes, each with its own slide, that share nothing but memory and disk, so the model is
16 times that less what one process spends on joining batches. ``--parts`` measures some of them
alone, for large slides and networks.
"""

from __future__ import annotations

import argparse
import logging
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

import wsiad
from wsiad.compute.compute_options import ComputeOptions
from wsiad.detectors._features import FeatureDetector
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.heatmaps.heatmap_task import HeatmapOptions, ReadingOptions, SlideTask
from wsiad.heatmaps.stitch import stitch
from wsiad.heatmaps.window_batches import joined
from wsiad.learning.batches import on_device
from wsiad.learning.detector import Detector
from wsiad.learning.devices import choose_device, windows_at_once
from wsiad.learning.feature_source import batch_maps
from wsiad.networks.autoencoder import images_of
from wsiad.results.scoring import window_source
from wsiad.results.scoring_inputs import plan_scoring
from wsiad.runs.run import RunFolder

PARTS = ("bare", "alone", "score", "bf16", "plan", "read", "joined", "scored", "verb")
CORES = 16


class Clock:
    """Adds up processor time and time by the clock of blocks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.processor = self.wall = 0.0

    def __enter__(self) -> None:
        self._wait()
        self._from = time.process_time(), time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._wait()
        self.processor += time.process_time() - self._from[0]
        self.wall += time.perf_counter() - self._from[1]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def network_of(detector: Detector) -> tuple[Callable[..., torch.Tensor], Callable[..., object]]:
    """Return how tiles are prepared for a detector's network, and its forward pass."""
    if isinstance(detector, FeatureDetector):
        backbone = detector._backbone
        return (
            lambda tiles: backbone.normalised(tiles.permute(0, 3, 1, 2).float() / 255),
            backbone.maps,
        )
    if isinstance(detector, DeepPerceptualAutoencoder):
        autoencoder, distance, _ = detector.judged()
        return images_of, lambda x: (distance.network(x), distance.network(autoencoder(x)))
    raise SystemExit(f"{type(detector).__name__}: its bare network is not known here")


class Scoring:
    """A slide, and a run that scores it."""

    def __init__(self, args: argparse.Namespace, run: Path) -> None:
        self.args, self.run, self.device = args, run, choose_device(args.device)
        self.task = self._task()
        folder = RunFolder.open(run)
        self.name = folder.record().detector
        self.detector, self.calibration = folder.load_detector(self.device), folder.calibration()
        self.batch = windows_at_once(args.batch, self.device, edge=self.detector.spec.size)
        with window_source(self.task, self.detector.spec) as source:
            self.batches = [part.pixels for part in joined(source.batches, self.batch)]
        self.windows = sum(map(len, self.batches))

    def _task(self) -> SlideTask:
        scoring = plan_scoring(
            [self.args.slide],
            run=self.run,
            results=Path(tempfile.gettempdir()) / "wsiad-scoring",
            options=HeatmapOptions(viewers=()),
            reading=ReadingOptions(),
            damaged_tiles="fail",
            healthy=None,
            batch=self.args.batch,
            device=self.args.device,
            compute=ComputeOptions(),
        )
        return scoring.tasks[0]

    def round(self) -> dict[str, Clock]:
        """Measure every part once."""
        clocks = {part: Clock(self.device) for part in PARTS}
        for part in self.args.parts:
            getattr(self, f"_{part}")(clocks[part])
        return clocks

    def _bare(self, clock: Clock) -> None:
        prepared, forward = network_of(self.detector)
        with torch.inference_mode():
            for tiles in self.batches:
                images = prepared(on_device(tiles, self.device))
                with clock:
                    forward(images)

    def _alone(self, clock: Clock) -> None:
        with clock:
            for tiles in self.batches:
                self.detector.score(tiles)

    def _score(self, clock: Clock) -> None:
        with clock:
            for places in batch_maps(self.detector, self.batches):
                self.detector.pool(places)

    def _bf16(self, clock: Clock) -> None:
        if isinstance(self.detector, FeatureDetector):
            own = self.detector.options.precision_on(self.device)
            self.detector.compute_in("bf16")
            self._score(clock)
            self.detector.compute_in(own)

    def _plan(self, clock: Clock) -> None:
        with clock, window_source(self.task, self.detector.spec):
            pass

    def _read(self, clock: Clock) -> None:
        with window_source(self.task, self.detector.spec) as source, clock:
            for _ in source.batches:
                pass

    def _joined(self, clock: Clock) -> None:
        with window_source(self.task, self.detector.spec) as source, clock:
            for _ in joined(source.batches, self.batch):
                pass

    def _scored(self, clock: Clock) -> None:
        with window_source(self.task, self.detector.spec) as source, clock:
            pinned = self.device.type == "cuda"
            with closing(source.scored(self.detector, batch=self.batch, pinned=pinned)) as scored:
                stitch(self.task, self.calibration, source, scored)

    def _verb(self, clock: Clock) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            with clock:
                wsiad.heatmap(
                    run=self.run,
                    slides=[self.args.slide],
                    out=folder / "out",
                    batch=self.args.batch,
                    device=self.args.device,
                    viewers=[],
                    quiet=True,
                )
        finally:
            shutil.rmtree(folder)


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def show(scoring: Scoring, rounds: list[dict[str, Clock]]) -> None:
    """Print the times and ratios of a run."""
    edge = scoring.detector.spec.size
    print(
        f"\n{scoring.name}: {scoring.windows} windows of {edge} px in batches of {scoring.batch}, "
        f"{len(rounds)} rounds"
    )
    for part in PARTS:
        took = [clocks[part] for clocks in rounds]
        if not took[0].wall:
            continue
        each = statistics.median(clock.processor for clock in took) / scoring.windows * 1e6
        line = f"  {part:7s} {each:8.0f} µs of processor a window"
        if part != "bare" and rounds[0]["bare"].wall:
            ratios = [c["bare"].processor / c[part].processor for c in rounds]
            walls = [c["bare"].wall / c[part].wall for c in rounds]
            line += f"; bare / {part}: {spread(ratios)}, by the clock {spread(walls)}"
        print(line)
    if not rounds[0]["read"].wall or not rounds[0]["joined"].wall:
        return
    feed = scoring.windows / statistics.median(clocks["read"].processor for clocks in rounds)
    full = scoring.windows / statistics.median(clocks["joined"].processor for clocks in rounds)
    print(
        f"  feed: {feed:.0f} windows/s on one core, {full:.0f} joined to batches; "
        f"{CORES} cores by the model: {CORES * full:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    print(f"{processor()}, {args.threads} thread, {args.device}")
    for run in args.runs:
        scoring = Scoring(args, run)
        scoring.round()  # caches, imports and compiled code
        show(scoring, [scoring.round() for _ in range(args.rounds)])


if __name__ == "__main__":
    main()
