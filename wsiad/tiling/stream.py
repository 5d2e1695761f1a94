"""The stream: a slide as blocks of normalised tiles with their positions.

Both the writer of a store and the scorer of a heatmap consume this stream, so reading, masking,
normalising and measuring exist only once.

Memory bound: one block of at most 1024 × 1024 target pixels (or one tile) and the source pixels
that it averages, at most 2048 × 2048 of them (or those of one tile), whatever the slide's size.
Working ahead holds less than 64 MiB more: larger blocks are made one after the other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsiad.core.ahead import read_ahead, usable_cores
from wsiad.core.errors import SlideReadError
from wsiad.core.geometry import IntArray, Size
from wsiad.slides.area_mean import area_mean, area_weights
from wsiad.slides.slide import Region
from wsiad.tiling.plan import SlidePlan
from wsiad.tissue.quality import LeftOut, Reason, judge, measure
from wsiad.tissue.tissue_options import QualityThresholds

_BLOCK_PX = 1024
_SOURCE_PX = 2048
_NONE = np.empty(0, np.int64)
_AHEAD_BYTES = 16 * 2**20
"""Pixels that wait for the next step of :func:`stream` ahead, about five blocks."""

EXAMPLE_PX = 144
"""Largest edge of the tiles that are kept as examples."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An example tile to look at, before and after stain normalisation.

    Parameters
    ----------
    index : int
        Index of the tile in the plan.
    before, after : ndarray of uint8, (E, E, 3)
        Pixels, at most `EXAMPLE_PX` wide; larger tiles are averaged down.
    """

    index: int
    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TileBlock:
    """Some tiles of a slide that are near each other.

    Parameters
    ----------
    pixels : ndarray of uint8, (N, tile, tile, 3)
        RGB pixels, stain-normalised.
    rows, columns : ndarray of int32, (N,)
        Positions in the plan's grid.
    coverage : ndarray of float32, (N,)
        Tissue coverage, 0 to 1.
    quality : dict of str to ndarray of float32, (N,)
        Columns of :func:`wsiad.tissue.quality.measure`, measured on the scanned pixels; empty
        if not requested.
    left_out : LeftOut
        Tiles that were left out of the block: the slide has no pixels for a part of them, or
        they fail the guard.
    examples : tuple of Example
        Requested examples among these tiles.
    """

    pixels: npt.NDArray[np.uint8]
    rows: IntArray
    columns: IntArray
    coverage: npt.NDArray[np.float32]
    quality: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def missing(self) -> int:
        """Number of tiles left out because the slide has no pixels for a part of them."""
        return self.left_out.count(Reason.MISSING)


def stream(
    plan: SlidePlan,
    *,
    quality: bool = False,
    guard: QualityThresholds | None = None,
    examples: npt.NDArray[np.int64] | None = None,
    first: int = 0,
    stop: int | None = None,
    ahead: bool = False,
) -> Generator[TileBlock, None, None]:
    """Read the tiles of a plan, or a part of them.

    The order is a function of the plan alone. Tiles with a missing pixel, and tiles that fail
    the guard, are left out and noted.

    Parameters
    ----------
    plan : SlidePlan
    quality : bool
        True to measure the quality columns too.
    guard : QualityThresholds, optional
        Thresholds that tiles must pass; none by default.
    examples : ndarray of int64, optional
        Tiles to keep as examples, as indices into the plan; see
        :func:`choose_examples`.
    first, stop : int, optional
        Range of the tiles in that order: the first one, and the end (excluded).
    ahead : bool
        True to let threads work ahead: one reads and decodes, another one measures and
        normalises. Where this process has a single core there are none. A caller that may stop
        early must then close the generator (``contextlib.closing``) before the slide.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    reads = _reads(plan, first, len(plan) if stop is None else stop)
    ahead = ahead and usable_cores() > 1
    if ahead:
        reads = read_ahead(reads, size=lambda read: read.nbytes, limit=_AHEAD_BYTES)

    def made() -> Generator[TileBlock, None, None]:
        with closing(reads):
            for read in reads:
                yield _finished(plan, read, quality=quality, guard=guard, examples=examples)

    done = made()
    if ahead:
        done = read_ahead(done, size=lambda block: block.pixels.nbytes, limit=_AHEAD_BYTES)
    with closing(done):
        yield from done


def read_again(plan: SlidePlan, tiles: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
    """Read single tiles again, to the same pixels that :func:`stream` yielded.

    Each is cut from its complete block, because resampling may round a smaller part differently.

    Parameters
    ----------
    plan : SlidePlan
    tiles : ndarray of int64, (N,)
        Indices of the tiles in the plan.

    Yields
    ------
    ndarray of uint8, (tile, tile, 3)
        RGB pixels, stain-normalised, in the order of ``tiles``.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded, or has no pixels for a part of the tile.
    """
    parts = blocks(plan)
    ends = np.cumsum([len(part) for part in parts])
    place = np.empty(len(plan), np.int64)
    place[np.concatenate(parts)] = np.arange(len(plan))
    for at in place[tiles].tolist():
        number = int(np.searchsorted(ends, at, side="right"))
        chosen = parts[number]
        at -= int(ends[number]) - len(chosen)
        block = _finished(plan, _read_block(plan, chosen, slice(at, at + 1)))
        if not len(block.pixels):
            raise SlideReadError(
                "has lost pixels since they were scored", subject=plan.scaled.slide.name
            )
        yield block.pixels[0]


def choose_examples(plan: SlidePlan, *, count: int) -> npt.NDArray[np.int64]:
    """Choose example tiles, spread over the half of the tiles with more tissue.

    The choice is a function of the plan alone, and does not depend on who reads it or in how
    many parts.
    """
    if not len(plan):
        return np.empty(0, np.int64)
    better = np.flatnonzero(plan.coverage >= np.median(plan.coverage))
    spread = np.linspace(0, len(better) - 1, min(count, len(better)) + 2)[1:-1]
    return np.unique(better[spread.round().astype(np.int64)])


def blocks(plan: SlidePlan) -> list[npt.NDArray[np.int64]]:
    """Group a plan's tiles into blocks that are read at a time; returns indices into the plan."""
    grid, scaled = plan.grid, plan.scaled
    level = scaled.slide.levels[scaled.level]
    step = max(1.0, plan.scaled.pixels.scale_x / level.downsample_x)
    edge = min(_BLOCK_PX, int(_SOURCE_PX / step))
    per_side = max(1, (edge - grid.tile) // grid.stride + 1)
    block_row, block_column = plan.rows // per_side, plan.columns // per_side
    order = np.lexsort((plan.columns, plan.rows, block_column, block_row))
    if not len(order):
        return []
    key = block_row[order].astype(np.int64) * (grid.columns + 1) + block_column[order]
    return np.split(order, np.flatnonzero(np.diff(key)) + 1)


class _Read(NamedTuple):
    """A part of a block as it was read: complete tiles, and the places of those that are not."""

    pixels: npt.NDArray[np.uint8]
    chosen: npt.NDArray[np.int64]
    left_out: LeftOut
    region: npt.NDArray[np.uint8] | None = None
    corner: tuple[int, int] = (0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes + (0 if self.region is None else self.region.nbytes)


def _reads(plan: SlidePlan, first: int, stop: int) -> Generator[_Read, None, None]:
    """Read a range of a plan's tiles, block by block."""
    at = 0
    for chosen in blocks(plan):
        part = slice(max(0, first - at), max(0, stop - at))
        if len(chosen[part]):
            yield _read_block(plan, chosen, part, once=True)
        at += len(chosen)


def _read_block(
    plan: SlidePlan, chosen: npt.NDArray[np.int64], part: slice, *, once: bool = False
) -> _Read:
    """Read a part of a block, whose pixels do not depend on the choice of the part.

    Pixels that are read ``once`` are of no other block of the plan, if its tiles do not overlap.
    """
    grid = plan.grid
    rows, columns, region = plan.rows[chosen], plan.columns[chosen], None
    top = left = 0
    if plan.scaled.reads_tiles and grid.stride >= grid.tile:
        rows, columns, chosen = rows[part], columns[part], chosen[part]
        pixels, whole = _read_tiles(plan, rows, columns)
    else:
        top, left = int(rows.min()), int(columns.min())
        size = Size(
            int(columns.max() - left) * grid.stride + grid.tile,
            int(rows.max() - top) * grid.stride + grid.tile,
        )
        alone = once and grid.stride >= grid.tile
        corner = (left * grid.stride, top * grid.stride)
        rows, columns, chosen = rows[part], columns[part], chosen[part]
        y, x = (rows - top) * grid.stride, (columns - left) * grid.stride
        with plan.scaled.slide.reading_once() if alone else nullcontext():
            if plan.scaled.resampled and grid.stride >= grid.tile:
                corners = np.stack([x, y], axis=1)
                pixels, whole = plan.scaled.read_squares(
                    *corner, size, corners=corners, edge=grid.tile
                )
            else:
                region = plan.scaled.read(*corner, size)
                whole = _whole(region, y, x, grid.tile)
                pixels = _cut(region.rgb, y[whole], x[whole], grid.tile)
    return _Read(
        pixels=pixels,
        chosen=chosen[whole],
        left_out=_without_pixels(plan, rows[~whole], columns[~whole]),
        region=None if region is None else region.rgb,
        corner=(top, left),
    )


def _finished(
    plan: SlidePlan,
    read: _Read,
    *,
    quality: bool = False,
    guard: QualityThresholds | None = None,
    examples: npt.NDArray[np.int64] | None = None,
) -> TileBlock:
    """Measure, judge and normalise the tiles of a block."""
    pixels, chosen, left_out = read.pixels, read.chosen, read.left_out
    guard = guard if guard is not None and guard.given else None
    wanted = _NONE if examples is None else examples
    measured = measure(pixels) if quality or guard is not None else {}
    if guard is not None and (reasons := judge(measured, guard)).any():
        good, bad = reasons == Reason.USABLE, chosen[reasons != Reason.USABLE]
        unusable = LeftOut(plan.rows[bad], plan.columns[bad], reasons[~good])
        left_out = LeftOut.join([left_out, unusable])
        pixels, chosen = pixels[good], chosen[good]
        measured = {name: values[good] for name, values in measured.items()}
    block = TileBlock(
        pixels=pixels,
        rows=plan.rows[chosen],
        columns=plan.columns[chosen],
        coverage=plan.coverage[chosen],
        quality=measured if quality else {},
        left_out=left_out,
    )
    return _normalised(plan, block, chosen, wanted, region=read.region, corner=read.corner)


def _without_pixels(plan: SlidePlan, rows: IntArray, columns: IntArray) -> LeftOut:
    """Return tiles that lack pixels in a part, with the reason for each."""
    stride = plan.grid.stride
    damaged = plan.scaled.damaged(columns * stride, rows * stride, plan.grid.tile)
    return LeftOut.without_pixels(rows, columns, damaged)


def _read_tiles(
    plan: SlidePlan, rows: IntArray, columns: IntArray
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Read tiles into their final memory; return the complete ones, and which tiles these are."""
    grid = plan.grid
    pixels = np.empty((len(rows), grid.tile, grid.tile, 3), np.uint8)
    whole = plan.scaled.read_tiles(columns * grid.stride, rows * grid.stride, pixels)
    return (pixels if whole.all() else pixels[whole]), whole


def _normalised(
    plan: SlidePlan,
    block: TileBlock,
    chosen: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
    *,
    region: npt.NDArray[np.uint8] | None = None,
    corner: tuple[int, int] = (0, 0),
) -> TileBlock:
    """Normalise a block's tiles to the target's stains, in place; keep the requested examples.

    Overlapping tiles are cut again from their normalised region: cutting a pixel costs a third
    of looking it up.
    """
    shown = np.flatnonzero((chosen[:, None] == wanted).any(axis=1))
    before = [_reduced(block.pixels[at]) for at in shown]
    if not plan.table.is_identity:
        if region is not None and block.pixels.size > region.size:
            grid, (top, left) = plan.grid, corner
            y, x = (block.rows - top) * grid.stride, (block.columns - left) * grid.stride
            _cut(plan.table.apply(region), y, x, grid.tile, out=block.pixels)
        else:
            plan.table.apply(block.pixels, out=block.pixels)
    examples = [
        Example(int(chosen[at]), raw, _reduced(block.pixels[at]))
        for at, raw in zip(shown, before, strict=True)
    ]
    return replace(block, examples=tuple(examples))


def _cut(
    rgb: npt.NDArray[np.uint8],
    y: IntArray,
    x: IntArray,
    edge: int,
    *,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Cut tiles out of a region at their top-left corners."""
    tiles = np.empty((len(y), edge, edge, 3), np.uint8) if out is None else out
    for tile, r, c in zip(tiles, y, x, strict=True):
        tile[:] = rgb[r : r + edge, c : c + edge]
    return tiles


def _reduced(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Copy a tile, at most `EXAMPLE_PX` wide."""
    if len(tile) <= EXAMPLE_PX:
        return tile.copy()
    edge = len(tile)
    weights = area_weights(0, edge / EXAMPLE_PX, EXAMPLE_PX, edge)
    return area_mean(tile, weights, weights)


def _whole(region: Region, y: IntArray, x: IntArray, tile: int) -> npt.NDArray[np.bool_]:
    if region.valid is None:
        return np.ones(len(y), bool)
    return np.array(
        [region.valid[r : r + tile, c : c + tile].all() for r, c in zip(y, x, strict=True)], bool
    )
