"""``wsiad suggest``: choose windows for a reviewer to label."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from wsiad.core.config import CONFIG, Paths, QuietOptions, verb, write_config
from wsiad.core.errors import ConfigError
from wsiad.core.terminal import counted
from wsiad.learning.devices import DeviceOptions

if TYPE_CHECKING:
    from wsiad.exports.label_folder import Suggestion
    from wsiad.learning.detector import Detector
    from wsiad.results.label_candidates import Candidate, LabelCandidates
    from wsiad.slides.slide_table import SlideRow

_CANDIDATES = 10


class SuggestConfig(QuietOptions, DeviceOptions):
    """Choose windows to label: strange ones that stand for many others, as images to sort."""

    ORDER = ("source", "out", ..., "device", "quiet")

    source: Path
    """Results folder of `wsiad heatmap`, or tile store of unlabelled slides."""
    out: Path
    """New folder for the images, their table, and GeoJSON for QuPath."""
    run: Path | None = None
    """Run folder that `wsiad train` made; by default the one that made the results. A store needs
    it."""
    count: Annotated[int, Field(ge=1, le=1000)] = 20
    """Number of windows to choose."""
    per_slide: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of windows of a slide; by default a quarter of all, so that four slides or
    more are among them. Groups of imported tiles belong to no slide and have no default maximum."""
    candidates: Annotated[int, Field(ge=1, le=4000)] | None = None
    """Number of strangest windows to choose from, which are read again; by default ten times
    `count`."""
    by: Literal["neighbourhood", "score"] | None = None
    """Value by which windows are candidates: the map of neighbourhoods (see `--scales-um` of
    `wsiad heatmap`), or the score of each window alone; by default the map if there is one."""
    unsure: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the windows to choose among as many more candidates whose score is between usual
    and strange, the 90 and 99 % of healthy windows."""
    known: Paths = ()
    """Folders of earlier calls: their windows are not chosen again, nor many that look alike."""


@dataclass(frozen=True, slots=True)
class SuggestResult:
    """Result of choosing windows to label.

    Parameters
    ----------
    out : Path
        Folder of the windows.
    rows : tuple of Suggestion
        Chosen windows, in order of their ranks.
    failed : tuple of SlideRow
        Slides that could not be read again, with the reason; no window of them was chosen.
    summary : str
        Summary for the terminal.
    """

    out: Path
    rows: tuple[Suggestion, ...]
    failed: tuple[SlideRow, ...]
    summary: str


@verb(SuggestConfig)
def suggest(config: SuggestConfig) -> SuggestResult:
    """Choose windows to label, and write them as images that a reviewer sorts into classes.

    The same run, results and options give the same windows.

    Raises
    ------
    ConfigError
        A store is passed without a run.
    RunError
        The run is missing, not complete or damaged.
    InputError
        The folder is not empty, the results are damaged or were made by another run, or hold no
        window to choose.
    StoreError
        The store is damaged, or was prepared differently from that of the run.
    DetectorError
        The detector has no features by which windows could be compared.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.exports.label_folder import label_folder, read_suggestions

    known = {
        (row.slide, *(row.box or (row.number,)))
        for folder in config.known
        for row in read_suggestions(folder)
    }
    with label_folder(config.out) as folder:
        run, detector, found = _candidates(config, known)
        chosen, failed = found.choose(
            detector,
            config.count,
            per_slide=config.per_slide,
            unsure=config.unsure,
            keep=lambda one, pixels: folder.keep(one.key, pixels),
            quiet=config.quiet,
        )
        rows = [_row(one, rank, found) for rank, one in enumerate(chosen, 1)]
        write_config(folder.path / CONFIG, config)
        folder.finish(
            [(one.key, row) for one, row in zip(chosen, rows, strict=True)],
            bounds=found.bounds,
            record=_record(run, found, failed),
        )
    summary = _summary(config, run, rows, found)
    return SuggestResult(config.out, tuple(rows), tuple(failed), summary)


def _candidates(
    config: SuggestConfig, known: set[tuple[object, ...]]
) -> tuple[Path, Detector, LabelCandidates]:
    """Return the run, its detector, and the candidates of the results or the store."""
    from wsiad.learning.devices import choose_device
    from wsiad.results.candidate_tiles import candidate_tiles
    from wsiad.results.candidate_windows import candidate_windows
    from wsiad.results.folder import Results
    from wsiad.runs.run import RunFolder
    from wsiad.store.tile_store import TileStore, is_store

    most = min(config.candidates or _CANDIDATES * config.count, 4000)
    cap = config.per_slide and -(-most * config.per_slide // config.count)
    device = choose_device(config.device)
    if is_store(config.source):
        if config.run is None:
            raise ConfigError("a store needs `run`", remedy="Pass the run as --run.")
        if config.by == "neighbourhood":
            raise ConfigError(
                "the tiles of a store are chosen by their score",
                remedy="Leave out --by, or pass results of `wsiad heatmap`.",
            )
        folder = RunFolder.open(config.run)
        detector = folder.load_detector(device)
        found = candidate_tiles(
            TileStore(config.source),
            run=config.run,
            detector=detector,
            calibration=folder.calibration(),
            device=device,
            most=most,
            per_slide=cap,
            also_unsure=config.unsure > 0,
            known=known,
            quiet=config.quiet,
        )
        return config.run, detector, found
    results = Results(config.source)
    run = config.run or Path(results.facts["run"])
    detector = RunFolder.open(run).load_detector(device)
    found = candidate_windows(
        results,
        run=run,
        signal=config.by,
        most=most,
        per_slide=cap,
        also_unsure=config.unsure > 0,
        known=known,
        spec=detector.spec,
        device=config.device,
    )
    return run, detector, found


def _row(one: Candidate, rank: int, found: LabelCandidates) -> Suggestion:
    from wsiad.exports.label_folder import Suggestion, image_name

    x, y, width, height = one.box or (None,) * 4
    return Suggestion(
        rank=rank,
        slide=one.slide,
        file=image_name(rank, one.slide, one.box[:2] if one.box else one.number),
        number=one.number,
        x=x,
        y=y,
        width=width,
        height=height,
        mpp=float(found.mpp),
        score=one.score,
        percentile=one.percentile,
        strength=one.strength,
        why=one.why,
    )


def _record(run: Path, found: LabelCandidates, failed: list[SlideRow]) -> dict[str, Any]:
    """Return what made the choice, as JSON values."""
    from wsiad.core.packages import versions
    from wsiad.runs.run import RunFolder

    return {
        "run": str(run.absolute()),
        "detector": RunFolder.open(run).record().detector,
        "by": found.signal,
        "candidates": Counter(one.why for one in found.candidates if not one.known),
        "slides_without_candidates": found.left_out,
        "failed": {row.slide: row.reason for row in failed},
        "versions": versions(),
    }


def _summary(
    config: SuggestConfig, run: Path, rows: list[Suggestion], found: LabelCandidates
) -> str:
    from wsiad.exports.label_folder import UNSURE

    slides = len({row.slide for row in rows})
    fewer = f"{len(rows)} of " if len(rows) < config.count else ""
    number = config.count if fewer else len(rows)
    tumour, like = (shlex.quote(str(path)) for path in (config.out / "tumor", run))
    back = f"wsiad import-tiles {tumour} --out labelled_store --mpp {found.mpp:g}"
    lines = [
        (
            f"{config.out}: {fewer}{counted(number, 'window')} of {counted(slides, 'slide')} to "
            f"label, by {found.signal}"
        ),
        f"sort the images of {config.out / UNSURE} into {tumour} and other folders, then run",
        f"  {back} --label tumor --prepared-like {like}",
    ]
    return "\n".join(lines)
