"""The stream: a slide as blocks of normalised tiles with their positions.

Both the writer of a store and the scorer of a heatmap consume this stream, so reading,
masking, normalising and measuring exist once.

Memory bound: one block of at most 1024 × 1024 target pixels (or one tile) and the
source pixels that it averages, at most 2048 × 2048 of them (or those of one tile),
whatever the slide's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wsiad.geometry import Size
from wsiad.slides.slide import Region
from wsiad.tiles.plan import SlidePlan
from wsiad.tiling import IntArray
from wsiad.tissue.quality import measure

_BLOCK_PX = 1024
_SOURCE_PX = 2048


@dataclass(frozen=True, slots=True)
class TileBlock:
    """Some tiles of a slide that lie near each other.

    Parameters
    ----------
    pixels : ndarray of uint8, (N, tile, tile, 3)
        RGB, stain-normalised.
    rows, columns : ndarray of int32, (N,)
        Positions in the plan's grid.
    coverage : ndarray of float32, (N,)
        Tissue coverage, 0 to 1.
    quality : dict of str to ndarray of float32, (N,)
        Columns of :func:`wsiad.tissue.quality.measure`, of the scanned pixels; empty
        if not asked for.
    missing : int
        Tiles left out because the slide has no pixels for a part of them.
    """

    pixels: npt.NDArray[np.uint8]
    rows: IntArray
    columns: IntArray
    coverage: npt.NDArray[np.float32]
    quality: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    missing: int = 0

    def __len__(self) -> int:
        return len(self.pixels)


def stream(plan: SlidePlan, *, quality: bool = False) -> Iterator[TileBlock]:
    """Read the tiles of a plan.

    The order is a function of the plan alone. Tiles with a missing pixel are left out
    and counted.

    Parameters
    ----------
    plan : SlidePlan
    quality : bool
        Measure the quality columns too.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    for chosen in blocks(plan):
        yield _read_block(plan, chosen, quality)


def blocks(plan: SlidePlan) -> list[npt.NDArray[np.int64]]:
    """Group a plan's tiles into blocks that are read at once; indices into the plan."""
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


def _read_block(plan: SlidePlan, chosen: npt.NDArray[np.int64], quality: bool) -> TileBlock:
    grid = plan.grid
    rows, columns = plan.rows[chosen], plan.columns[chosen]
    top, left = int(rows.min()), int(columns.min())
    size = Size(
        int(columns.max() - left) * grid.stride + grid.tile,
        int(rows.max() - top) * grid.stride + grid.tile,
    )
    region = plan.scaled.read(left * grid.stride, top * grid.stride, size)
    y, x = (rows - top) * grid.stride, (columns - left) * grid.stride
    whole = _whole(region, y, x, grid.tile)
    pixels = np.empty((int(whole.sum()), grid.tile, grid.tile, 3), np.uint8)
    for tile, r, c in zip(pixels, y[whole], x[whole], strict=True):
        tile[:] = region.rgb[r : r + grid.tile, c : c + grid.tile]
    measured = measure(pixels) if quality else {}
    return TileBlock(
        pixels if plan.table.is_identity else plan.table.apply(pixels, out=pixels),
        rows[whole],
        columns[whole],
        plan.coverage[chosen][whole],
        measured,
        missing=int((~whole).sum()),
    )


def _whole(region: Region, y: IntArray, x: IntArray, tile: int) -> npt.NDArray[np.bool_]:
    if region.valid is None:
        return np.ones(len(y), bool)
    return np.array(
        [region.valid[r : r + tile, c : c + tile].all() for r, c in zip(y, x, strict=True)], bool
    )
