"""What others take for the same tiles: OpenSlide with StainTools, and cuCIM, where installed.

Rows for ``benchmarks/tile.py --peers``. Each tile is read by itself, as their users do, at
the nearest finer level, and brought to the asked scale by OpenCV's area averaging.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import openslide

from wsiad.tiling.plan import SlidePlan

STAINTOOLS_TILES = 8
"""Of the slide's tiles, evenly spread: StainTools fits the stains of each, for about a second."""

ReadRegion = Callable[[tuple[int, int], int, tuple[int, int]], np.ndarray]
"""Takes a level-0 position, a level and a size; gives RGB or RGBA."""


def peer_seconds(path: Path, plan: SlidePlan) -> dict[str, float]:
    """Return the seconds that each peer at hand takes for all tiles of a plan."""
    seconds = {}
    if importlib.util.find_spec("cucim"):
        seconds["read, cuCIM"] = cucim_seconds(path, plan)
    if importlib.util.find_spec("staintools") and importlib.util.find_spec("spams"):
        seconds["OpenSlide, StainTools *"] = staintools_seconds(path, plan)
    return seconds


def cucim_seconds(path: Path, plan: SlidePlan) -> float:
    """Read all tiles by cuCIM, with a cache in the process, on the CPU."""
    from cucim import CuImage

    CuImage.cache("per_process", memory_capacity=64)
    image = CuImage(str(path))
    start = time.perf_counter()
    for _ in read_tiles(
        plan,
        range(len(plan)),
        lambda at, level, size: np.asarray(image.read_region(at, size, level)),
    ):
        pass
    return time.perf_counter() - start


def staintools_seconds(path: Path, plan: SlidePlan) -> float:
    """Read and normalise a few tiles by OpenSlide and StainTools' Vahadane; extrapolated to all."""
    import staintools

    chosen = np.unique(np.linspace(0, len(plan) - 1, STAINTOOLS_TILES).astype(int))
    with openslide.OpenSlide(path) as slide:

        def read(at: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
            return np.asarray(slide.read_region(at, level, size))

        (target,) = read_tiles(plan, chosen[:1], read)
        normalizer = staintools.StainNormalizer(method="vahadane")
        normalizer.fit(target)
        start = time.perf_counter()
        for tile in read_tiles(plan, chosen, read):
            normalizer.transform(tile)
        return (time.perf_counter() - start) / len(chosen) * len(plan)


def read_tiles(
    plan: SlidePlan, chosen: np.ndarray | range, read: ReadRegion
) -> Iterator[np.ndarray]:
    """Yield tiles of a plan one by one, uint8 (tile, tile, 3)."""
    scaled, tile = plan.scaled, plan.grid.tile
    downsample = scaled.slide.levels[scaled.level].downsample_x
    edge = round(tile * scaled.pixels.scale_x / downsample)
    rows, columns = plan.rows[list(chosen)], plan.columns[list(chosen)]
    for x, y, _, _ in plan.grid.boxes(rows, columns):
        rgb = np.ascontiguousarray(read((round(x), round(y)), scaled.level, (edge, edge))[..., :3])
        if edge != tile:
            rgb = cv2.resize(rgb, (tile, tile), interpolation=cv2.INTER_AREA)
        yield rgb
