"""Read and score a detector's windows, from a slide itself or from a store of its tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import StoreMismatchError
from wsiad.core.geometry import Box, Grid, Mpp, PixelMap, Size, Spacing, TilePx
from wsiad.heatmaps.heatmap_task import SlideTask, identity_of
from wsiad.heatmaps.window_batches import ScoredBatch, WindowBatch, score_windows
from wsiad.learning.detector import Detector, Embedding, Embeds, InputSpec, Scores
from wsiad.learning.feature_source import ReadsFeatures
from wsiad.pictures.overview import EXAMPLES
from wsiad.slides.slide import Slide
from wsiad.stain.profile import StainProfile
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_source import StoreTiles
from wsiad.store.tile_store import TileStore
from wsiad.tiling.plan import SlidePlan, plan_slide
from wsiad.tiling.stream import TileBlock, choose_examples, read_again, stream
from wsiad.tiling.verdict import colourless_note, why_left_out, why_unusable
from wsiad.tissue.quality import LeftOut, Reason
from wsiad.tissue.tissue_options import QualityThresholds

IntArray = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_READ_TILES = 256


@dataclass(frozen=True, slots=True)
class WholeTiles:
    """Windows that are complete tiles of a stored slide, whose features may be stored as well.

    Parameters
    ----------
    slide : StoredSlide
    indices : ndarray of int64, (N,)
        Sorted indices of the tiles.
    rows, columns : ndarray of int32, (N,)
        Positions of the tiles on the grid of the windows.
    left_out : LeftOut
        Windows that are not scored.
    """

    slide: StoredSlide
    indices: npt.NDArray[np.int64]
    rows: IntArray
    columns: IntArray
    left_out: LeftOut

    def scored(
        self, detector: Detector, *, batch: int
    ) -> Generator[ScoredBatch, None, None] | None:
        """Return the scores of all windows from stored features; ``None`` without those."""
        tiles = StoreTiles([(self.slide, self.indices)])
        if not len(tiles) or not isinstance(detector, ReadsFeatures) or not detector.reads(tiles):
            return None
        return self._scored(detector, detector.maps(tiles, batch=batch))

    def _scored(
        self, detector: Detector, maps: Iterator[Scores]
    ) -> Generator[ScoredBatch, None, None]:
        start, left_out = 0, self.left_out
        for places in maps:
            part = slice(start, start + len(places))
            yield ScoredBatch(
                rows=self.rows[part],
                columns=self.columns[part],
                scores=detector.pool(places),
                places=places,
                left_out=left_out,
            )
            start, left_out = part.stop, LeftOut()

    def embedded(self, detector: Embeds, rows: IntArray, columns: IntArray) -> Embedding | None:
        """Return the stored features of windows by their positions; ``None`` without those."""
        width = int(self.columns.max(initial=0)) + 1
        numbers = self.rows.astype(np.int64) * width + self.columns
        order = np.argsort(numbers)
        wanted = rows.astype(np.int64) * width + columns
        indices = self.indices[order[np.searchsorted(numbers, wanted, sorter=order)]]
        tiles = StoreTiles([(self.slide, indices)])
        if not len(tiles) or not isinstance(detector, ReadsFeatures) or not detector.reads(tiles):
            return None
        found = np.concatenate(list(detector.embeddings(tiles, batch=_READ_TILES)))
        return np.asarray(found[np.searchsorted(np.unique(indices), indices)], np.float32)


def from_plan(plan: SlidePlan, *, first: int = 0) -> Iterator[WindowBatch]:
    """Return an iterator over the windows of a planned slide that pass its quality thresholds.

    It begins with the window of number ``first``.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    examples = choose_examples(plan, count=EXAMPLES)
    # A loop would keep a block's pixels while the next one is read.
    return map(_windows_of, stream(plan, guard=plan.quality, examples=examples, first=first))


def _windows_of(block: TileBlock) -> WindowBatch:
    return WindowBatch(
        pixels=block.pixels,
        rows=block.rows,
        columns=block.columns,
        left_out=block.left_out,
        examples=block.examples,
    )


def store_grid(slide: StoredSlide, spec: InputSpec, stride: int | None) -> Grid:
    """Return the lattice of windows within stored tiles.

    Windows are on one lattice over the slide and completely inside a tile. The stride must
    therefore divide the step of the tiles. The default is the largest stride that does.

    Raises
    ------
    StoreMismatchError
        Tiles are smaller than the windows, were cut at coordinates instead of on a lattice, or
        have a step that the stride does not divide.
    """
    grid = slide.grid
    if "coordinates" in slide.facts:
        raise StoreMismatchError(
            "its tiles are at given coordinates, not on a lattice",
            subject=slide.name,
            remedy="Pass the slides themselves, or score the tiles with `wsiad score-tiles`.",
        )
    if spec.size > grid.tile:
        raise StoreMismatchError(
            f"its tiles of {grid.tile} px are smaller than the detector's {spec.size} px",
            subject=slide.name,
            remedy="Pass the slides themselves, or a store with larger tiles.",
        )
    step = stride or math.gcd(grid.stride, spec.size)
    if grid.stride % step or step > spec.size:
        raise StoreMismatchError(
            f"a stride of {step} px does not divide the {grid.stride} px from tile to tile",
            subject=slide.name,
            remedy=f"Set a divisor of {grid.stride} up to {spec.size}, or pass the slides.",
        )
    per_tile, within = grid.stride // step, (grid.tile - spec.size) // step
    pixels = PixelMap(grid.pixels.x, grid.pixels.y, grid.pixels.scale_x, grid.pixels.scale_y)
    return Grid(
        tile=spec.size,
        stride=TilePx(step),
        columns=(grid.columns - 1) * per_tile + within + 1 if grid.columns else 0,
        rows=(grid.rows - 1) * per_tile + within + 1 if grid.rows else 0,
        pixels=pixels,
    )


def from_store(
    slide: StoredSlide, windows: Grid, *, thresholds: QualityThresholds
) -> Iterator[WindowBatch]:
    """Yield the windows inside the stored tiles of a slide that pass the thresholds.

    A window inside two overlapping tiles is yielded once. A store knows only the quality of
    tiles: a window is left out if every tile that contains it is missing from the store or fails.
    """
    reasons = slide.judged(thresholds)
    usable = np.flatnonzero(reasons == Reason.USABLE)
    seen = np.zeros((windows.rows, windows.columns), bool)
    start, tiles = -1, np.empty((0, slide.tile, slide.tile, 3), np.uint8)
    for chosen, y, x, rows, columns in _cuts(slide, windows, usable):
        if (first := int(chosen[0]) // _READ_TILES * _READ_TILES) != start:
            start, tiles = first, slide.tiles(first, first + _READ_TILES)
        seen[rows, columns] = True
        inside = tiles[:, y : y + windows.tile, x : x + windows.tile]
        yield WindowBatch(inside[chosen - start], rows, columns)
    none = np.empty((0, windows.tile, windows.tile, 3), np.uint8)
    empty = np.empty(0, np.int32)
    yield WindowBatch(none, empty, empty, _left_out(slide, windows, reasons, seen))


def _left_out(slide: StoredSlide, windows: Grid, reasons: Pixels, seen: Bools) -> LeftOut:
    """Return the windows in tiles that fail or are not stored, and in no other tile."""
    lattice, bad, gone = slide.column("lattice"), reasons != Reason.USABLE, slide.left_out
    places = np.concatenate([lattice[bad], np.stack([gone.rows, gone.columns], axis=1)])
    why = np.concatenate([reasons[bad], gone.reasons])
    parts = []
    for _, _, rows, columns in _windows_within(slide, windows, places):
        new = ~seen[rows, columns]
        seen[rows, columns] = True
        parts.append(LeftOut(rows[new], columns[new], why[new]))
    return LeftOut.join(parts)


def whole_tiles(
    slide: StoredSlide, windows: Grid, *, thresholds: QualityThresholds
) -> WholeTiles | None:
    """Return the windows of a stored slide that are complete tiles; ``None`` if they are smaller.

    The windows are those of :func:`from_store`.
    """
    if windows.tile != slide.tile:
        return None
    reasons = slide.judged(thresholds)
    usable = np.flatnonzero(reasons == Reason.USABLE)
    lattice = slide.column("lattice")[usable]
    _, _, rows, columns = next(_windows_within(slide, windows, lattice))
    seen = np.zeros((windows.rows, windows.columns), bool)
    seen[rows, columns] = True
    left_out = _left_out(slide, windows, reasons, seen)
    return WholeTiles(
        slide=slide,
        indices=usable.astype(np.int64),
        rows=rows,
        columns=columns,
        left_out=left_out,
    )


def _cuts(
    slide: StoredSlide, windows: Grid, usable: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], int, int, IntArray, IntArray]]:
    """Yield tiles, a position inside them, and the windows that are cut there.

    Each window comes once. The indices of the tiles of one item are within `_READ_TILES` of each
    other.
    """
    lattice = slide.column("lattice")
    seen = np.zeros((windows.rows, windows.columns), bool)
    for start in range(0, len(slide), _READ_TILES):
        chosen = usable[(usable >= start) & (usable < start + _READ_TILES)]
        for y, x, rows, columns in _windows_within(slide, windows, lattice[chosen]):
            new = ~seen[rows, columns]
            seen[rows, columns] = True
            if new.any():
                yield chosen[new], y, x, rows[new], columns[new]


def _windows_within(
    slide: StoredSlide, windows: Grid, lattice: IntArray
) -> Iterator[tuple[int, int, IntArray, IntArray]]:
    """Yield each position inside a tile (y, x, pixels), and the windows there, by tile."""
    per_tile = slide.grid.stride // windows.stride
    corner = lattice * per_tile
    offsets = range((slide.grid.tile - windows.tile) // windows.stride + 1)
    for down in offsets:
        for right in offsets:
            y, x = down * windows.stride, right * windows.stride
            yield y, x, corner[:, 0] + down, corner[:, 1] + right


def count_stored(slide: StoredSlide, windows: Grid, *, thresholds: QualityThresholds) -> int:
    """Return the number of windows of :func:`from_store`."""
    usable = np.flatnonzero(slide.judged(thresholds) == Reason.USABLE)
    seen = np.zeros((windows.rows, windows.columns), bool)
    for _, _, rows, columns in _windows_within(slide, windows, slide.column("lattice")[usable]):
        seen[rows, columns] = True
    return int(seen.sum())


def read_planned(plan: SlidePlan, rows: IntArray, columns: IntArray) -> Iterator[Pixels]:
    """Read windows of a planned slide again, with the same pixels as from :func:`from_plan`.

    Parameters
    ----------
    plan : SlidePlan
        Plan of the slide.
    rows, columns : ndarray of int32, (N,)
        Positions on the plan's grid of windows of the plan.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    # The plan's tiles are in reading order.
    numbers = plan.rows.astype(np.int64) * plan.grid.columns + plan.columns
    wanted = rows.astype(np.int64) * plan.grid.columns + columns
    return read_again(plan, np.searchsorted(numbers, wanted).astype(np.int64))


def read_stored(
    slide: StoredSlide,
    windows: Grid,
    rows: IntArray,
    columns: IntArray,
    *,
    thresholds: QualityThresholds,
) -> Iterator[Pixels]:
    """Read windows of a stored slide again, with the same pixels as from :func:`from_store`.

    They are cut from the same tiles, because lossy tiles differ where they overlap.

    Raises
    ------
    StoreError
        A chunk is damaged or missing.
    """
    usable = np.flatnonzero(slide.judged(thresholds) == Reason.USABLE)
    wanted = rows.astype(np.int64) * windows.columns + columns
    found: dict[int, tuple[int, int, int]] = {}
    for tiles, y, x, at_rows, at_columns in _cuts(slide, windows, usable):
        numbers = at_rows.astype(np.int64) * windows.columns + at_columns
        for here in np.flatnonzero(np.isin(numbers, wanted)).tolist():
            found[int(numbers[here])] = (int(tiles[here]), y, x)
    for window in wanted.tolist():
        tile, y, x = found[window]
        yield slide.tiles(tile, tile + 1)[0, y : y + windows.tile, x : x + windows.tile]


@dataclass(frozen=True, slots=True)
class WindowSource:
    """Windows of a slide, from the slide or from a store, with everything known about the slide.

    `identity` is what the results depend on, as it was before anything was read. `again` reads
    windows a second time, by their rows and columns on the grid, with exactly the same pixels.
    If no window is scored, `why_unusable` states, from the windows that are left out, why the slide
    could not be looked at; the text is empty if there is no tissue. `slide` is ``None`` where
    windows come from a store, which does not change. `whole` states the windows that are complete
    tiles of a store, with their features if those are stored.
    """

    batches: Iterator[WindowBatch]
    grid: Grid
    size: Size
    bounds: Box
    spacing: Spacing
    thumbnail: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    pen: npt.NDArray[np.bool_] | None
    placement: PixelMap
    mpp: Mpp
    stain: str
    stain_fallback: str | None
    backend: str
    identity: dict[str, Any]
    again: Callable[[IntArray, IntArray], Iterator[Pixels]]
    why_unusable: Callable[[LeftOut], str]
    slide: Slide | None = None
    damaged: npt.NDArray[np.bool_] | None = None
    scale_note: str = ""
    missing_share: float = 0.0
    mask_note: str = ""
    whole: WholeTiles | None = None

    def scored(
        self, detector: Detector, *, batch: int, pinned: bool = False
    ) -> Generator[ScoredBatch, None, None]:
        """Score the windows in batches, from stored features if there are any.

        See :func:`wsiad.heatmaps.window_batches.score_windows`.
        """
        stored = self.whole.scored(detector, batch=batch) if self.whole else None
        if stored is not None:
            return stored
        return score_windows(detector, self.batches, batch=batch, pinned=pinned)


def slide_windows(task: SlideTask, slide: Slide, spec: InputSpec) -> WindowSource:
    """Plan the windows of an open slide.

    Raises
    ------
    SlideError
        The slide cannot be decoded, or its µm/px do not fit the run.
    """
    identity = identity_of(task)
    plan = plan_slide(
        slide,
        task.preparation,
        target=StainProfile.from_dict(task.target),
        tile=spec.size,
        stride=task.options.stride or spec.size,
    )
    return WindowSource(
        batches=from_plan(plan),
        grid=plan.grid,
        size=slide.size,
        bounds=slide.bounds,
        spacing=slide.spacing,
        thumbnail=plan.tissue.thumbnail,
        mask=plan.tissue.mask,
        pen=plan.tissue.pen,
        placement=plan.tissue.placement,
        mpp=plan.scaled.mpp,
        stain=plan.stain.method,
        stain_fallback=plan.stain.fallback,
        backend=slide.read_by,
        identity=identity,
        again=functools.partial(read_planned, plan),
        why_unusable=functools.partial(why_unusable, plan, noun="window"),
        slide=slide,
        damaged=plan.tissue.damaged,
        scale_note=slide.scale_note,
        missing_share=plan.tissue.missing_share,
        mask_note=colourless_note(plan.tissue.colourless_share, task.preparation.tissue),
    )


def stored_windows(task: SlideTask, spec: InputSpec) -> WindowSource:
    """Cut the windows of a slide from the tiles of a store.

    Raises
    ------
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    store = TileStore(task.slide.path)
    slide = store.slide(task.slide.name)
    grid = store_grid(slide, spec, task.options.stride)
    thresholds = task.preparation.quality
    mask = slide.column("mask")
    # A store keeps no thumbnail: tissue is drawn in grey instead.
    thumbnail = np.where(mask[..., None], np.uint8(200), np.uint8(244)).repeat(3, axis=2)
    return WindowSource(
        batches=from_store(slide, grid, thresholds=thresholds),
        grid=grid,
        size=slide.size,
        bounds=slide.bounds,
        spacing=slide.spacing,
        thumbnail=thumbnail,
        mask=mask,
        pen=slide.column("pen_mask") if slide.has("pen_mask") else None,
        placement=PixelMap(*slide.facts["tissue"]["placement"]),
        mpp=spec.mpp,
        stain=slide.facts["stain"]["method"],
        stain_fallback=slide.facts["stain"].get("fallback"),
        backend="store",
        identity=identity_of(task),
        again=functools.partial(read_stored, slide, grid, thresholds=thresholds),
        why_unusable=functools.partial(_why_stored, slide),
        damaged=slide.column("damaged_mask") if "damaged_mask" in slide.group else None,
        scale_note=slide.facts["slide"].get("spacing_note", ""),
        missing_share=slide.facts["tissue"].get("missing_share", 0.0),
        mask_note=colourless_note(
            slide.facts["tissue"].get("colourless_share", 0.0), store.preparation.tissue
        ),
        whole=whole_tiles(slide, grid, thresholds=thresholds),
    )


def _why_stored(slide: StoredSlide, left_out: LeftOut) -> str:
    """Return why no window of a stored slide is scored; empty if the slide has no tissue."""
    return slide.reason or (why_left_out(left_out, noun="window") if len(left_out) else "")
