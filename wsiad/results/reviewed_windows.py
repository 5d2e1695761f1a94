"""Windows of regions that reviewers accepted or rejected, as labelled tiles to learn from.

The windows are read from their slides again, with the same pixels as they were scored, and written
as a store, which every training takes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.core.errors import InputError, StoreMismatchError
from wsiad.core.files import scratch_folder
from wsiad.core.geometry import Mpp, TilePx
from wsiad.core.labels import is_healthy
from wsiad.core.terminal import by_number, counted, first_of
from wsiad.heatmaps.score_map import boxes_of
from wsiad.results import file_names as names
from wsiad.results.evidence import window_places
from wsiad.results.folder import Results
from wsiad.results.reviews import JudgedRegion, SlideReview
from wsiad.results.scoring_inputs import reading_tasks
from wsiad.runs.compatibility import run_preparation
from wsiad.slides.folder_kinds import RESULTS, what_is
from wsiad.slides.slide_table import SLIDES_TABLE, SlideTable
from wsiad.store.foreign_tiles import Tile, TileImages, write_tiles
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow
from wsiad.tiling.preparation import Preparation

if TYPE_CHECKING:
    from wsiad.heatmaps.heatmap_task import SlideTask
    from wsiad.learning.detector import InputSpec, Tiles

logger = logging.getLogger(__name__)

Judged = Literal["accepted", "rejected"]
"""Verdict on the regions whose windows are taken."""

MOST_WINDOWS = 20_000
"""Maximum number of windows that are taken; of more, they are spaced evenly over each slide."""

_AT_ONCE = 256
_LABELS: dict[str, str] = {"accepted": "anomaly", "rejected": "normal"}


@dataclass(frozen=True, slots=True, eq=False)
class ReviewedSlide:
    """Slide with windows of judged regions.

    Parameters
    ----------
    task : SlideTask
        Task that opens its windows again.
    fingerprint : str
        Fingerprint of the slide.
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height`` of the windows, level-0 pixels; at least one.
    spec : InputSpec
        Size and scale of the windows.
    regions : int
        Number of the regions.
    """

    task: SlideTask
    fingerprint: str
    boxes: npt.NDArray[np.float64]
    spec: InputSpec
    regions: int

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.task.slide.name

    def pixels(self) -> Iterator[Tiles]:
        """Yield the windows in order, in batches (N, S, S, 3)."""
        return read_windows(self.task, self.boxes, self.spec, fingerprint=self.fingerprint)


def reviewed_slides(paths: Sequence[Path], judged: Judged, *, device: str) -> list[ReviewedSlide]:
    """Choose the windows of regions with a verdict in results folders.

    A window belongs to a region if its centre is in it; a region without any has the window that
    covers most of it. Windows that lie in a region of another verdict too, and disputed regions,
    are left out, and logged with their number.

    Parameters
    ----------
    paths : sequence of Path
        Results folders.
    judged : {"accepted", "rejected"}
        Verdict on the regions.
    device : str
        Name of the device.

    Raises
    ------
    InputError
        There is no such region, a review cannot be read, a slide is in two of the results, or a
        region of a slide that is labelled healthy was accepted.
    RunError
        The run that made the results is missing or has changed.
    """
    found: list[ReviewedSlide] = []
    for path in paths:
        found += _of_results(Results(path), judged, device=device)
    seen: dict[str, str] = {}
    for one in found:
        if one.name in seen or one.fingerprint in seen.values():
            raise InputError(
                "has judged regions in two of the results",
                subject=one.name,
                remedy="Pass the results of each slide once.",
            )
        seen[one.name] = one.fingerprint
    if not found:
        raise InputError(
            f"holds no region that was {judged}",
            subject=", ".join(map(str, paths)),
            remedy="Judge regions with wsiad view.",
        )
    total = sum(len(one.boxes) for one in found)
    if total > MOST_WINDOWS:
        logger.warning("%d of %d windows are used, evenly spaced", MOST_WINDOWS, total)
        every = total / MOST_WINDOWS
        found = [replace(one, boxes=one.boxes[_spaced(len(one.boxes), every)]) for one in found]
    return found


def _spaced(count: int, every: float) -> npt.NDArray[np.int64]:
    return np.unique(np.arange(0, count, every).astype(np.int64))


def _of_results(results: Results, judged: Judged, *, device: str) -> list[ReviewedSlide]:
    from wsiad.learning.detector import InputSpec

    reviews = {slide.name: SlideReview(slide).regions() for slide in results if slide.is_scored}
    folder = results.path / names.REVIEWS
    there = {path.relative_to(folder).with_suffix("").as_posix() for path in _files(folder)}
    if stray := sorted(there - reviews.keys()):
        logger.warning(
            "%s: %s, of no scored slide of these results: %s",
            folder,
            counted(len(stray), "file"),
            first_of(stray),
        )
    wanted = {
        name: mine
        for name, every in reviews.items()
        if (mine := [one for one in every if one.verdict == judged])
    }
    disputed = sum(one.verdict == "disputed" for every in reviews.values() for one in every)
    if disputed:
        logger.warning(
            "%s: %s on which reviewers disagree %s left out",
            results.path,
            counted(disputed, "region"),
            by_number(disputed, "is", "are"),
        )
    if not wanted:
        return []
    tasks = reading_tasks(results, list(wanted), run=Path(str(results.facts["run"])), device=device)
    found, twice = [], 0
    for name, regions in wanted.items():
        slide, task = results.slide(name), tasks[name]
        if judged == "accepted" and is_healthy(slide.row.label):
            raise InputError(
                f"is labelled {slide.row.label!r}, but regions of it were accepted",
                subject=f"{name} of {results.path}",
                remedy="Correct the label, or the review.",
            )
        boxes = boxes_of(slide.windows())
        inside = np.zeros(len(boxes), bool)
        for region in regions:
            inside |= _windows_of(region, boxes)
        other = [one.area for one in reviews[name] if one.verdict not in ("", judged)]
        x, y = (boxes[:, :2] + boxes[:, 2:] / 2).T
        against = shapely.contains_xy(shapely.union_all(other), x, y) if other else ~np.isfinite(x)
        twice += int((inside & against).sum())
        inside &= ~against
        if not inside.any():
            continue
        mpp = task.preparation.mpp
        assert slide.row.mpp_x is not None  # it was scored
        size = round(float(boxes[0, 2]) * slide.row.mpp_x / mpp)
        found.append(
            ReviewedSlide(
                task=task,
                fingerprint=slide.fingerprint(),
                boxes=boxes[inside],
                spec=InputSpec(TilePx(size), Mpp(mpp)),
                regions=len(regions),
            )
        )
    if twice:
        logger.warning(
            "%s: %s in a region of another verdict too %s left out",
            results.path,
            counted(twice, "window"),
            by_number(twice, "is", "are"),
        )
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.geojson") if not path.name.startswith("."))


def _windows_of(region: JudgedRegion, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which windows (N, 4) belong to a region: at least one if any meets it."""
    area = region.area
    shapely.prepare(area)
    x, y = (boxes[:, :2] + boxes[:, 2:] / 2).T
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(area, x, y)
    if not inside.any():
        squares = np.asarray(shapely.box(*boxes[:, :2].T, *(boxes[:, :2] + boxes[:, 2:]).T))
        near = np.flatnonzero(shapely.intersects(area, squares))
        if len(near):
            common = shapely.area(shapely.intersection(area, squares[near]))
            inside[near[int(common.argmax())]] = True
    return inside


def read_windows(
    task: SlideTask,
    boxes: npt.NDArray[np.float64],
    spec: InputSpec,
    *,
    fingerprint: str,
) -> Iterator[Tiles]:
    """Yield the pixels of windows of a scored slide, in order, in batches (N, S, S, 3).

    Parameters
    ----------
    task : SlideTask
        Task that opens the slide as it was scored.
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height`` of the windows, level-0 pixels.
    spec : InputSpec
        Size and scale of the windows.
    fingerprint : str
        Fingerprint of the slide that was scored.

    Raises
    ------
    InputError
        The slide is not the one that was scored.
    """
    from wsiad.results.scoring import window_source

    with window_source(task, spec) as source:
        if source.identity["fingerprint"] != fingerprint:
            raise InputError(
                "has changed since it was scored",
                subject=str(task.slide.path),
                remedy="Score the cohort again with the first run.",
            )
        row, column = window_places(boxes, source)
        order = np.lexsort((column, row))
        back = np.argsort(order)
        found = np.stack(list(source.again(row[order], column[order])))[back]
        for start in range(0, len(found), _AT_ONCE):
            yield found[start : start + _AT_ONCE]


class _WindowTiles(TileImages):
    """Windows of a slide as tiles to import."""

    format = "windows"

    def __init__(self, slide: ReviewedSlide) -> None:
        super().__init__(slide.task.slide.path)
        self._slide = slide

    def count(self) -> int:
        return len(self._slide.boxes)

    def tiles(self, *, tile: int | None = None, every: int = 1) -> Iterator[tuple[str, Tile]]:
        del tile
        number = 0
        for batch in self._slide.pixels():
            for pixels in batch:
                if number % every == 0:
                    x, y = self._slide.boxes[number, :2].tolist()
                    yield f"{x:g}_{y:g}", pixels
                number += 1


def check_windows_fit(slides: Sequence[ReviewedSlide], run: Path, spec: InputSpec) -> None:
    """Check that a run can take windows: their size, scale and stains are those of its tiles.

    Raises
    ------
    StoreMismatchError
        They were prepared differently.
    """
    preparation, target = run_preparation(run)
    for one in slides:
        there = one.task.preparation
        made = (one.spec, there.stain.method, one.task.target)
        if made != (spec, preparation.stain.method, target):
            raise StoreMismatchError(
                f"its windows have another size, scale or stain than those of {run}",
                subject=str(one.task.results),
                remedy="Pass results of a run that was prepared alike.",
            )


def is_results(path: Path) -> bool:
    """Tell whether a path is a results folder, whose review is meant."""
    return what_is(path) == RESULTS


@contextlib.contextmanager
def reviewed_store(
    paths: Sequence[Path], judged: Judged, *, device: str, beside: Path
) -> Iterator[Path]:
    """Yield a store of the windows of judged regions, a group for each slide.

    A group has the slide's name and fingerprint, and its label if it says what is anomalous.

    Parameters
    ----------
    paths : sequence of Path
        Results folders; see :func:`reviewed_slides`.
    judged : {"accepted", "rejected"}
        Verdict on the regions.
    device : str
        Name of the device.
    beside : Path
        Folder next to which the store is; it is removed afterwards.

    Raises
    ------
    InputError
        See :func:`reviewed_slides`; or the results have windows of different sizes.
    RunError
        The run that made the results is missing or has changed.
    SlideError
        A slide cannot be read.
    """
    slides = reviewed_slides(paths, judged, device=device)
    first = slides[0]
    like, target = first.task.preparation, first.task.target
    for one in slides:
        if one.spec != first.spec or one.task.target != target:
            raise InputError(
                "has windows of another size, scale or stain than the others",
                subject=str(one.task.results),
                remedy="Pass results of runs that were prepared alike.",
            )
    preparation = Preparation(
        mpp=like.mpp, tile=int(first.spec.size), stain=like.stain, pictures=like.pictures
    )
    with scratch_folder(beside) as scratch:
        # A name that says what it is, as records of trainings state it.
        path = scratch / f"{paths[0].resolve().name} ({judged})"
        store = TileStore.create(path, preparation, target)
        table = SlideTable(path / SLIDES_TABLE, TileRow)
        for one in slides:
            count = write_tiles(
                store,
                one.name,
                _WindowTiles(one),
                tile=int(first.spec.size),
                fingerprint=one.fingerprint,
                normalised=True,
            )
            label = one.task.slide.label if judged == "accepted" else ""
            table.put(
                TileRow(
                    one.name,
                    "ok",
                    tiles=count,
                    label=label or _LABELS[judged],
                    file=str(one.task.slide.path),
                )
            )
        yield path
