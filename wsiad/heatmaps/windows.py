"""A detector's windows over a slide, read from the slide itself or cut from stored tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiad.detector import Detector, InputSpec
from wsiad.errors import StoreMismatchError
from wsiad.geometry import PixelMap
from wsiad.tiles.plan import SlidePlan
from wsiad.tiles.stored_slide import StoredSlide
from wsiad.tiles.stream import stream
from wsiad.tiling import Grid
from wsiad.units import TilePx

IntArray = npt.NDArray[np.int32]

_READ_TILES = 256


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Some windows with their places on the lattice.

    Parameters
    ----------
    pixels : ndarray of uint8, (N, size, size, 3)
        RGB, stain-normalised.
    rows, columns : ndarray of int32, (N,)
        On the grid of the windows.
    missing : int
        Windows left out because the slide has no pixels for a part of them.
    """

    pixels: npt.NDArray[np.uint8]
    rows: IntArray
    columns: IntArray
    missing: int = 0


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Scores of a :class:`WindowBatch`: per window (N,), and per place (N, m, m)."""

    rows: IntArray
    columns: IntArray
    scores: npt.NDArray[np.float32]
    places: npt.NDArray[np.float32]
    missing: int = 0


def from_plan(plan: SlidePlan) -> Iterator[WindowBatch]:
    """Yield the windows of a planned slide.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    for block in stream(plan):
        yield WindowBatch(block.pixels, block.rows, block.columns, block.missing)


def store_grid(slide: StoredSlide, spec: InputSpec, stride: int | None) -> Grid:
    """Return the lattice of windows within stored tiles.

    Windows lie on one lattice over the slide and wholly within a tile, so the stride
    must divide the step of the tiles. The default is the largest that does.

    Raises
    ------
    StoreMismatchError
        Tiles are smaller than the windows, or the stride does not divide their step.
    """
    grid = slide.grid
    if "coordinates" in slide.facts:
        raise StoreMismatchError(
            "its tiles lie where coordinates were given, not on a lattice",
            subject=slide.name,
            remedy="Give the slides themselves, or score the tiles by `wsiad score-tiles`.",
        )
    if spec.size > grid.tile:
        raise StoreMismatchError(
            f"its tiles of {grid.tile} px are smaller than the detector's {spec.size} px",
            subject=slide.name,
            remedy="Give the slides themselves, or a store with larger tiles.",
        )
    step = stride or math.gcd(grid.stride, spec.size)
    if grid.stride % step or step > spec.size:
        raise StoreMismatchError(
            f"a stride of {step} px does not divide the {grid.stride} px from tile to tile",
            subject=slide.name,
            remedy=f"Give a divisor of {grid.stride} up to {spec.size}, or the slides themselves.",
        )
    per_tile, within = grid.stride // step, (grid.tile - spec.size) // step
    pixels = PixelMap(grid.pixels.x, grid.pixels.y, grid.pixels.scale_x, grid.pixels.scale_y)
    return Grid(
        spec.size,
        TilePx(step),
        (grid.columns - 1) * per_tile + within + 1,
        (grid.rows - 1) * per_tile + within + 1,
        pixels,
    )


def from_store(slide: StoredSlide, windows: Grid) -> Iterator[WindowBatch]:
    """Yield the windows within the stored tiles of a slide.

    A window that lies within two overlapping tiles comes once.
    """
    step = windows.stride
    per_tile = slide.grid.stride // step
    offsets = range((slide.grid.tile - windows.tile) // step + 1)
    lattice = slide.column("lattice")
    seen = np.zeros((windows.rows, windows.columns), bool)
    for start in range(0, len(slide), _READ_TILES):
        tiles = slide.tiles(start, min(start + _READ_TILES, len(slide)))
        corner = lattice[start : start + len(tiles)] * per_tile
        for down in offsets:
            for right in offsets:
                rows, columns = corner[:, 0] + down, corner[:, 1] + right
                new = ~seen[rows, columns]
                seen[rows, columns] = True
                y, x = down * step, right * step
                pixels = tiles[new, y : y + windows.tile, x : x + windows.tile]
                if new.any():
                    yield WindowBatch(np.ascontiguousarray(pixels), rows[new], columns[new])


def score_windows(
    detector: Detector, batches: Iterator[WindowBatch], *, batch: int
) -> Iterator[ScoredBatch]:
    """Score windows in batches of at most ``batch``."""
    for windows in batches:
        # A block without a whole window still counts what is missing.
        for start in range(0, max(1, len(windows.pixels)), batch):
            part = slice(start, start + batch)
            if not len(windows.pixels):
                empty = np.empty(0, np.float32)
                places = empty.reshape(0, 1, 1)
                yield ScoredBatch(windows.rows, windows.columns, empty, places, windows.missing)
                continue
            places = detector.score_places(windows.pixels[part])
            yield ScoredBatch(
                windows.rows[part],
                windows.columns[part],
                detector.pool(places),
                places,
                windows.missing if start == 0 else 0,
            )
