"""``wsiad demo``: the verbs in turn, on slides that it draws itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from wsiad.core.config import QuietOptions, verb
from wsiad.core.errors import InputError
from wsiad.core.ownership import holds_other
from wsiad.core.terminal import Progress
from wsiad.results.file_names import REPORT
from wsiad.verbs import function_of

_MPP, _TILE = 0.972, 96


class DemoConfig(QuietOptions):
    """Run all steps on slides that the demo draws itself, without data or downloads.

    The slides are drawn, not scanned. The figures show that everything runs, not how well it
    works on tissue. The network is the one that comes with wsiad.
    """

    ORDER = (..., "quiet")

    out: Path = Path("demo")
    """New or empty folder for slides, store, run, results and the report."""
    detector: str = "gaussian"
    """Method; `dpa` also shows a training, and takes minutes."""
    weights: str = "wsiad"
    """Pretrained weights, as for `wsiad train`."""
    healthy: Annotated[int, Field(ge=3)] = 4
    """Number of healthy slides to train on."""
    max_minutes: Annotated[float, Field(gt=0)] = 2.0
    """Maximum minutes of training."""
    fast: bool = False
    """Use smaller slides and a few steps of training, to check quickly that everything runs."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of slides to process at a time."""
    seed: int = 0
    """Seed of the slides and of the training; the same seed gives the same slides."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of the demo.

    Parameters
    ----------
    report : Path
        Path of the report.
    summary : str
        Summary for the terminal.
    """

    report: Path
    summary: str


@verb(DemoConfig)
def demo(config: DemoConfig) -> DemoResult:
    """Draw slides, tile, train, score, evaluate and report.

    Raises
    ------
    InputError
        The folder is not empty, or a slide failed or could not be looked at.
    WsiadError
        A step failed.
    """
    from wsiad.report.report import write_results_report
    from wsiad.synthetic.slides import SYNTHETIC, make_slides

    start = time.monotonic()
    if holds_other(config.out):
        raise InputError(
            "is not empty",
            subject=str(config.out),
            remedy="Set another --out, or delete this one, to run the demo again.",
        )
    say = Progress("demo", quiet=config.quiet).message
    quiet, workers = config.quiet, config.workers
    size: dict[str, Any] = {"size_px": (2304, 1728)} if config.fast else {}
    out = config.out
    common = {"quiet": quiet, **size}

    say("1/5 drawing slides: synthetic, not real tissue")
    make_slides(
        out / "slides/train", healthy=config.healthy, tumorous=0, seed=config.seed, **common
    )
    make_slides(out / "slides/test", healthy=2, tumorous=3, seed=config.seed + 1, **common)
    seconds = {"draw slides": time.monotonic() - start}

    def timed(stage: str, since: float) -> float:
        seconds[stage] = time.monotonic() - since
        return time.monotonic()

    say(f"2/5 wsiad tile {out}/slides/train --out {out}/store --mpp {_MPP} --tile {_TILE}")
    mark = time.monotonic()
    tiled = function_of("tile")(
        slides=out / "slides/train",
        out=out / "store",
        mpp=_MPP,
        tile=_TILE,
        workers=workers,
        quiet=quiet,
    )
    mark = timed("tile", mark)
    say(
        f"3/5 wsiad train {out}/store --out {out}/run --detector {config.detector} "
        f"--weights {config.weights}"
    )
    trained = function_of("train")(
        store=out / "store",
        out=out / "run",
        detector=config.detector,
        options=_options(config),
        weights=config.weights,
        seed=config.seed,
        max_minutes=config.max_minutes,
        accept_inverted=True,  # drawn slides are no tissue, and the report says so
        quiet=quiet,
    )
    mark = timed("train", mark)
    say(f"4/5 wsiad heatmap {out}/run {out}/slides/test --out {out}/results")
    scored = function_of("heatmap")(
        run=out / "run",
        slides=out / "slides/test",
        out=out / "results",
        workers=workers,
        quiet=quiet,
    )
    mark = timed("heatmap", mark)
    failed = [*tiled.failed, *tiled.unusable, *scored.failed, *scored.unusable]
    if failed:
        raise InputError(f"{failed[0].slide}: {failed[0].reason}", subject="demo")
    say(
        f"5/5 wsiad evaluate {out}/results --reference {out}/slides/test/reference.csv "
        f"--annotations {out}/slides/test --out {out}/results"
    )
    evaluated = function_of("evaluate")(
        results=out / "results",
        reference=out / "slides/test/reference.csv",
        annotations=out / "slides/test",
        out=out / "results",
        seed=config.seed,
        quiet=quiet,
    )
    timed("evaluate", mark)
    report = write_results_report(
        out / "results", seconds=seconds, warnings=[SYNTHETIC], to=out / REPORT
    )
    # The one in the results, which `wsiad view` and the contact sheet link, says it too.
    write_results_report(out / "results", warnings=[SYNTHETIC])
    total = time.monotonic() - start
    lines = [trained.summary, evaluated.summary, f"{total:.0f} s in all; see {report}"]
    return DemoResult(report, "\n".join(lines))


def _options(config: DemoConfig) -> dict[str, Any]:
    """Return options for a fit of minutes on two cores; see docs/families/dpa.md for real ones."""
    if config.detector != "dpa":
        return {}
    steps = 30 if config.fast else 400
    return {
        # Up to relu2_2 the network is cheap enough for a full-width VGG19 without a GPU.
        "layers": {"relu2_2": 1.0},
        "batch": 16,
        "max_steps": steps,
        "val_interval": steps // 4,
        "val_tiles": 128,
        "statistics_tiles": 256,
    }
