"""Stitch the scores of a slide's overlapping windows to one heatmap.

Windows are on a lattice. A heatmap pixel is ``1 / p`` of a step of the lattice, with the whole
number ``p`` for which its size is closest to that of the parts that a window's scores represent.
Every window then covers the same pattern of heatmap pixels, wherever it is. The score of a pixel
is the mean of all parts over it, weighted by the area that they share with it. Nothing is smoothed
and nothing is rounded to the pixels of the slide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DetectorError, InputError
from wsiad.core.geometry import Box, PixelMap, Size, Spacing, TilePx
from wsiad.core.terminal import counted
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.heatmaps.score_map import Heatmap, WindowScores
from wsiad.heatmaps.window_batches import ScoredBatch
from wsiad.heatmaps.windows import WindowSource
from wsiad.runs.calibration import Calibration
from wsiad.slides.slide_table import NO_TISSUE, OK, UNUSABLE
from wsiad.tiling.stream import Example
from wsiad.tiling.verdict import damage_note, missing_note
from wsiad.tissue.quality import LeftOut, Reason, in_words

MAX_PIXELS = 100_000_000
"""Maximum pixels of a heatmap: 1.2 GB while it is stitched, 0.4 GB when it is done."""

_CHUNK_VALUES = 1 << 20
_LARGER_STRIDE = "Choose a larger --stride."

IntArray = npt.NDArray[np.int64]


def pixels_per_stride(stride: int, window: int, *, places: int) -> int:
    """Return the heatmap pixels per step of the lattice: closest in size to a window's parts."""
    return max(1, round(stride * places / window))


def overlap_lengths(stride: int, window: int, *, places: int) -> IntArray:
    """Return the overlap of the heatmap pixels under a window with the window's parts, in 1-D.

    Parameters
    ----------
    stride, window : int
        Step of the lattice and edge of a window, target pixels.
    places : int
        Number of equal parts along the window's edge.

    Returns
    -------
    ndarray of int64, (cells, places)
        Length that pixel ``c`` (from the window's left edge) shares with part ``i``,
        in the largest unit in which all lengths are whole numbers. Whole numbers keep the
        weighted sums exact.

    Examples
    --------
    >>> overlap_lengths(64, 96, places=1).tolist()  # a pixel of 64 and a half of one
    [[2], [1]]
    """
    per_stride = pixels_per_stride(stride, window, places=places)
    cells = -(-window * per_stride // stride)
    cell, part = stride * places, window * per_stride
    lower, upper = np.arange(cells)[:, None], np.arange(places)[None, :]
    lengths: IntArray = np.maximum(
        0,
        np.minimum((lower + 1) * cell, (upper + 1) * part) - np.maximum(lower * cell, upper * part),
    )
    return lengths // np.gcd.reduce(lengths, axis=None)


class Stitcher:
    """Collects the scores of windows, in any order, and averages them into a heatmap.

    Parameters
    ----------
    rows, columns : int
        Size of the lattice: window ``(r, c)`` covers the target pixels from
        ``(c * stride, r * stride)`` to ``(c * stride + window, r * stride + window)``.
    stride, window : TilePx
        Step of the lattice and edge of the windows, target pixels.
    grid : PixelMap
        Map from target pixel edges to level-0 pixels; its origin is that of the lattice.
    places : int
        Number of parts along a window's edge: each window has ``places`` × ``places`` scores.

    Raises
    ------
    InputError
        A number is not positive, or the heatmap would have more than `MAX_PIXELS` pixels.

    Notes
    -----
    **Memory bound.** The canvas holds one float64 sum for each heatmap pixel and one
    byte for each place of the lattice: at most 0.9 GB at `MAX_PIXELS`, and 0.4 GB more
    for the result while :meth:`finish` runs. Areas are not stored; they follow from
    which windows were seen. A batch is processed in chunks of about a million
    contributions, so its size does not matter. Only a stride so small that the lattice itself
    is too large would break the bound, and it is refused immediately.

    **Order.** Contributions are float32 scores times whole numbers, summed in float64.
    The division into batches does not change the result. The order of the windows does not
    change it either while those sums are exact. They are exact if the scores around a
    pixel are within a factor of about 2**12 of each other. Beyond that, the order changes at
    most the last bit of a float32.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        stride: TilePx,
        window: TilePx,
        grid: PixelMap,
        places: int = 1,
    ) -> None:
        if min(rows, columns, stride, window, places) < 1:
            raise InputError(
                f"a lattice of {rows} × {columns} windows of {window} px with {places} places "
                f"at a stride of {stride} px is empty"
            )
        self.rows, self.columns, self.places = rows, columns, places
        self._per_stride = pixels_per_stride(stride, window, places=places)
        self._lengths = overlap_lengths(stride, window, places=places)
        self._cover: IntArray = self._lengths.sum(axis=1)
        cells = len(self._cover)
        self.size = Size(
            (columns - 1) * self._per_stride + cells, (rows - 1) * self._per_stride + cells
        )
        if self.size.width * self.size.height > MAX_PIXELS:
            raise InputError(
                f"the heatmap would have {self.size.width} × {self.size.height} pixels, "
                f"more than the maximum of {MAX_PIXELS:,}",
                remedy=_LARGER_STRIDE,
            )
        self.placement = PixelMap(
            x=grid.x,
            y=grid.y,
            scale_x=grid.scale_x * stride / self._per_stride,
            scale_y=grid.scale_y * stride / self._per_stride,
        )
        self._sums = np.zeros(self.size.width * self.size.height, np.float64)
        self._seen = np.zeros(rows * columns, np.bool_)

    def add(
        self,
        rows: npt.NDArray[np.signedinteger],
        columns: npt.NDArray[np.signedinteger],
        maps: npt.NDArray[np.float32],
    ) -> None:
        """Add the scores of windows.

        Parameters
        ----------
        rows, columns : ndarray of int, (N,)
            Positions of the windows on the lattice.
        maps : ndarray of float32, (N, places, places)
            Scores of the windows' parts, row by row.

        Raises
        ------
        InputError
            Shapes do not fit, or a window is outside the lattice or was added before. Nothing
            is added then.
        DetectorError
            A score is not a finite number. Nothing is added then.
        """
        row, column = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        maps = np.asarray(maps, np.float32)
        self._check(row, column, maps)
        self._seen[row * self.columns + column] = True
        cells = len(self._cover)
        chunk = max(1, _CHUNK_VALUES // cells**2)
        steps = np.arange(cells)
        pattern = (steps[:, None] * self.size.width + steps).ravel()
        for start in range(0, len(row), chunk):
            part = slice(start, start + chunk)
            corner = (row[part] * self.size.width + column[part]) * self._per_stride
            places = corner[:, None] + pattern
            np.add.at(self._sums, places.ravel(), self._contributions(maps[part]).ravel())

    def finish(self, slide: str, *, slide_size: Size, bounds: Box, spacing: Spacing) -> Heatmap:
        """Return the heatmap of the windows added so far.

        Parameters
        ----------
        slide : str
            Name of the slide.
        slide_size : Size
            Size of level 0, pixels.
        bounds : Box
            Non-empty part of the slide, level-0 pixels.
        spacing : Spacing
            µm per level-0 pixel.

        Returns
        -------
        Heatmap
            Heatmap of the complete lattice. Pixels that no window covers are NaN. Pixels at
            the right and at the bottom may reach beyond the slide, as windows do. Nothing
            is cropped, so the placement stays exact.
        """
        scores = np.full((self.size.height, self.size.width), np.nan, np.float32)
        sums = self._sums.reshape(scores.shape)
        seen = self._seen.reshape(self.rows, self.columns)
        for y, line in enumerate(scores):
            areas = self._areas(y, seen)
            covered = areas > 0
            line[covered] = sums[y, covered] / areas[covered]
        return Heatmap(
            slide=slide,
            scores=scores,
            placement=self.placement,
            slide_size=slide_size,
            bounds=bounds,
            spacing=spacing,
        )

    def _contributions(self, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return score times shared area, (N, cells, cells)."""
        lengths = self._lengths.astype(np.float64)
        if self.places == 1:  # many times faster than a product of 1 × 1 matrices
            return maps.astype(np.float64) * (lengths @ lengths.T)
        product: npt.NDArray[np.float64] = lengths @ maps.astype(np.float64) @ lengths.T
        return product

    def _areas(self, y: int, seen: npt.NDArray[np.bool_]) -> IntArray:
        """Return the area of the seen windows over each pixel of line ``y``, (width,)."""
        step, cells = self._per_stride, len(self._cover)
        first = max(0, -(-(y - cells + 1) // step))
        last = min(self.rows - 1, y // step)
        areas = np.zeros(self.size.width, np.int64)
        windows = np.arange(first, last + 1)
        lengths = (self._cover[y - windows * step, None] * seen[windows]).sum(axis=0)
        for cell, cover in enumerate(self._cover):
            areas[cell : cell + (self.columns - 1) * step + 1 : step] += cover * lengths
        return areas

    def _check(self, rows: IntArray, columns: IntArray, maps: npt.NDArray[np.float32]) -> None:
        expected = (len(rows), self.places, self.places)
        if rows.ndim != 1 or rows.shape != columns.shape or maps.shape != expected:
            raise InputError(
                f"{rows.shape} rows, {columns.shape} columns and {maps.shape} scores "
                f"do not fit together; the scores should be {expected}"
            )
        if not len(rows):
            return
        outside = (rows < 0) | (rows >= self.rows) | (columns < 0) | (columns >= self.columns)
        if outside.any():
            worst = int(outside.argmax())
            raise InputError(
                f"window ({rows[worst]}, {columns[worst]}) lies outside the lattice "
                f"of {self.rows} × {self.columns}"
            )
        places, counts = np.unique(rows * self.columns + columns, return_counts=True)
        again = (counts > 1) | self._seen[places]
        if again.any():
            row, column = divmod(int(places[again.argmax()]), self.columns)
            raise InputError(f"window ({row}, {column}) was added twice")
        if not math.isfinite(float(maps.sum(dtype=np.float64))):
            raise DetectorError(
                "a score is not a finite number",
                remedy="Check the run's weights and the slide's normalised tiles.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of a slide's windows, with the heatmap that was stitched from them.

    A slide without scored windows has no heatmap. ``unusable`` then states why the slide could not
    be looked at; it is empty for a slide without tissue.
    """

    heatmap: Heatmap | None
    windows: WindowScores
    left_out: LeftOut
    examples: tuple[Example, ...]
    unusable: str = ""

    @property
    def status(self) -> str:
        """Status of the slide, for its row in the table."""
        if self.heatmap:
            return OK
        # Not to be taken for a slide without tissue, of which there is nothing to fear.
        return UNUSABLE if self.unusable else NO_TISSUE


def stitch(
    task: SlideTask, calibration: Calibration, source: WindowSource, scored: Iterator[ScoredBatch]
) -> Scored:
    """Stitch the scores of all windows of a slide."""
    stitcher: Stitcher | None = None
    rows, columns, scores = [], [], []
    parts: list[LeftOut] = []
    examples: tuple[Example, ...] = ()
    for batch in scored:
        parts.append(batch.left_out)
        examples += batch.examples
        if not len(batch.scores):
            continue
        maps = batch.places if task.options.detail == "place" else batch.scores[:, None, None]
        if stitcher is None:
            stitcher = Stitcher(
                source.grid.rows,
                source.grid.columns,
                stride=source.grid.stride,
                window=source.grid.tile,
                grid=source.grid.pixels,
                places=maps.shape[1],
            )
        stitcher.add(batch.rows.astype(np.int64), batch.columns.astype(np.int64), maps)
        rows.append(batch.rows)
        columns.append(batch.columns)
        scores.append(batch.scores)
    left_out = LeftOut.join(parts)
    if stitcher is None:
        none = np.empty(0, np.float32)
        windows = WindowScores(np.empty((0, 4)), none, none)
        return Scored(
            heatmap=None,
            windows=windows,
            left_out=left_out,
            examples=examples,
            unusable=source.why_unusable(left_out),
        )
    flat = np.concatenate(scores)
    windows = WindowScores(
        source.grid.boxes(np.concatenate(rows), np.concatenate(columns)),
        flat,
        calibration.percentile(flat),
    )
    heatmap = stitcher.finish(
        task.slide.name, slide_size=source.size, bounds=source.bounds, spacing=source.spacing
    )
    return Scored(heatmap, windows, left_out, examples)


def notes(source: WindowSource, scored: Scored) -> Iterator[str]:
    """Yield notes on the scoring of a slide that the reader of its row must know."""
    if scored.unusable:
        yield scored.unusable
    elif source.stain_fallback:
        yield f"stains of the reference were used: {source.stain_fallback}"
    if source.scale_note:
        yield source.scale_note
    if scored.heatmap and (missing := scored.left_out.count(Reason.MISSING)):
        yield f"{counted(missing, 'window')} left out: the slide has no pixels there"
    if scored.heatmap and (why := missing_note(source.missing_share)):
        yield why
    if source.mask_note:
        yield source.mask_note
    share = float(source.damaged.mean()) if source.damaged is not None else 0.0
    if why := damage_note(scored.left_out.count(Reason.DAMAGED), share, noun="windows"):
        yield why
    if why := in_words(scored.left_out.by_quality()):
        yield f"windows not assessed because they fail the quality thresholds: {why}"
    if source.pen is not None:
        pixel = source.placement.scale_x * source.spacing.x
        area = source.pen.sum() * pixel * source.placement.scale_y * source.spacing.y / 1e6
        yield f"pen marks hide {area:.2g} mm², which is not assessed"
