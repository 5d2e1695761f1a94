"""``wsiad extend``: take the rejected regions of a review into a run, without training it anew."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from wsiad.core.config import Paths, QuietOptions, verb
from wsiad.core.terminal import counted
from wsiad.learning.devices import DeviceOptions

if TYPE_CHECKING:
    from wsiad.runs.fitting import MadeRun


class ExtendConfig(QuietOptions, DeviceOptions):
    """Take the rejected regions of a review into a run as healthy, without training it anew."""

    tries_out: ClassVar[bool] = False
    ORDER = ("run", "results", "out", "store", ..., "device", "quiet")

    run: Path
    """Run to extend, of `knn`, `patchcore` or `gaussian`; it stays as it is."""
    results: Annotated[Paths, Field(min_length=1)]
    """Results folders with a review; any run of the same preparation can have made them."""
    out: Path
    """Folder of the new run."""
    store: Path | None = None
    """Store of the run's healthy tiles, for the calibration; by default the one that it states."""


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """Result of extending a run.

    Parameters
    ----------
    run : Path
        Folder of the new run.
    summary : str
        Summary for the terminal.
    """

    run: Path
    summary: str


@verb(ExtendConfig)
def extend(config: ExtendConfig) -> ExtendResult:
    """Take the windows of rejected regions into a run, and calibrate it again.

    The calibration is on the run's held-out healthy slides, without those of the windows.

    Raises
    ------
    RunError
        The run is missing, damaged, cannot be extended, or the folder contains another run.
    DetectorError
        The method must be trained anew.
    InputError
        Nothing was rejected, or a review cannot be read.
    StoreError
        The store of the run does not exist or is damaged.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.learning.devices import choose_device
    from wsiad.results.reviewed_windows import check_windows_fit, reviewed_slides
    from wsiad.runs.claim import taken
    from wsiad.runs.compatibility import PREPARATION
    from wsiad.runs.extending import Extension, check_extends, same_training
    from wsiad.runs.fitting import make_run
    from wsiad.runs.healthy_tiles import HEALTHY_REGIONS
    from wsiad.runs.run import RUN, RunFolder

    start = time.monotonic()
    run = RunFolder.open(config.run)
    device = choose_device(config.device)
    first = run.load_detector(device)
    check_extends(run, first)
    training, chosen = same_training(
        run, out=config.out, store=config.store, device=config.device, quiet=config.quiet
    )
    slides = reviewed_slides(config.results, "rejected", device=config.device)
    check_windows_fit(slides, run.path, first.spec)
    with taken(config.out, config, record=RUN, what="run", beginnings=[PREPARATION]) as complete:
        if complete:
            return ExtendResult(config.out, f"{config.out}: this run is complete already")
        record = run.record()
        count = sum(len(one.boxes) for one in slides)
        note = {
            "run": str(config.run.absolute()),
            "finished": record.finished,
            "results": [str(path.absolute()) for path in config.results],
            "regions": sum(one.regions for one in slides),
            "windows": count,
        }
        earlier = record.slides.get(HEALTHY_REGIONS, {})
        made = make_run(
            training,
            chosen,
            anomalies=None,
            device=device,
            start=start,
            instead=Extension(
                first,
                batches=lambda: (batch for one in slides for batch in one.pixels()),
                count=count,
                slides={**earlier, **{one.name: one.fingerprint for one in slides}},
                note=note,
            ),
            only_fit=chosen.names_of(earlier.values()),
            apart=chosen.names_of(one.fingerprint for one in slides),
        )
    return ExtendResult(config.out, _summary(config, made, note, slides=len(slides)))


def _summary(config: ExtendConfig, made: MadeRun, note: dict[str, Any], *, slides: int) -> str:
    usual = made.calibration
    taken = (
        f"{config.out}: {config.run} with {counted(note['windows'], 'window')} of "
        f"{counted(note['regions'], 'rejected region')} of {counted(slides, 'slide')} as healthy, "
        f"{counted(made.report.notes['vectors_added'], 'vector')}"
    )
    healthy = (
        f"healthy score: median {usual.median:.4g}, 99 % below {usual.quantile(0.99):.4g} "
        f"({counted(usual.n_windows, 'window')} of {counted(usual.n_slides, 'slide')})"
    )
    return "\n".join([taken, healthy])
