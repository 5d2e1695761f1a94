"""What others take for the same tiles, where installed: reading, and reading with normalising.

Rows for ``benchmarks/tile.py --peers``. Each tile is read by itself, as their users do, at
the nearest finer level, and brought to the asked scale by OpenCV's area averaging. A peer that
cannot be imported is left out, and why is printed; all are optional
(``pip install fastslide torchstain cucim-cu12``; StainTools has not changed since 2019).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
from machine import processor_seconds

from wsiad.tiling.plan import SlidePlan

OfTile = Callable[[np.ndarray], object]

ReadRegion = Callable[[tuple[int, int], int, tuple[int, int]], np.ndarray]
"""Takes a level-0 position, a level and a size; gives RGB or RGBA."""


def peer_seconds(path: Path, plan: SlidePlan) -> dict[str, float]:
    """Return the processor seconds that each peer at hand takes for all tiles of a plan."""
    seconds = {}
    for name, measure in (("cucim", cucim_seconds), ("fastslide", fastslide_seconds)):
        if peer := imported(name, name):
            seconds[f"read, {name}"] = measure(peer, path, plan)
    for name, (fit, transform, most) in normalisers().items():
        seconds[name] = normalised_seconds(path, plan, most, fit=fit, transform=transform)
    return seconds


def normalisers() -> dict[str, tuple[OfTile, OfTile, int]]:
    """Return the normalisers at hand: functions that fit to a tile and normalise one."""
    found = {}
    for name, (module, functions, most) in NORMALISERS.items():
        if peer := imported(name, module):
            found[name] = (*functions(peer), most)
    return found


def imported(name: str, module: str) -> Any:
    """Return a module, or ``None`` after printing why the peer is left out."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        print(f"{name}: left out ({' '.join(str(error).split())[:100]})")
        return None


def timed(tiles: Iterator[object]) -> float:
    """Return the processor seconds that all tiles take."""
    start = processor_seconds()
    for _ in tiles:
        pass
    return processor_seconds() - start


def cucim_seconds(cucim: Any, path: Path, plan: SlidePlan) -> float:
    """Read all tiles by cuCIM, with a cache in the process, on the CPU."""
    cucim.CuImage.cache("per_process", memory_capacity=64)
    image = cucim.CuImage(str(path))

    def read(at: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(image.read_region(at, size, level))

    return timed(read_tiles(plan, range(len(plan)), read))


def fastslide_seconds(fastslide: Any, path: Path, plan: SlidePlan) -> float:
    """Read all tiles by fastslide with its own cache; positions are pixels of the level."""
    slide = fastslide.FastSlide.from_file_path(str(path))

    def read(at: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        place = slide.convert_level0_to_level_native(*at, level)
        return np.asarray(slide.read_region(tuple(map(int, place)), level, size).numpy())

    return timed(read_tiles(plan, range(len(plan)), read))


def torchstain_torch(torchstain: Any) -> tuple[OfTile, OfTile]:
    """Return functions that fit to a tile, and normalise one, by torchstain's Macenko on torch."""
    import torch

    torch.set_num_threads(1)
    normalizer = torchstain.TorchMacenkoNormalizer()

    def tensor(tile: np.ndarray) -> Any:
        return torch.from_numpy(tile).permute(2, 0, 1).float()

    return (
        lambda tile: normalizer.fit(tensor(tile)),
        lambda tile: normalizer.normalize(tensor(tile), stains=False),
    )


def torchstain_numpy(torchstain: Any) -> tuple[OfTile, OfTile]:
    """Return functions that fit to a tile, and normalise one, by torchstain's Macenko on NumPy."""
    normalizer = torchstain.NumpyMacenkoNormalizer()
    return normalizer.fit, lambda tile: normalizer.normalize(tile, stains=False)


def staintools(module: Any) -> tuple[OfTile, OfTile]:
    """Return functions that fit to a tile, and normalise one, by StainTools' Vahadane."""
    normalizer = module.StainNormalizer(method="vahadane")
    return normalizer.fit, normalizer.transform


NORMALISERS = {
    "torchstain torch": ("torchstain.torch.normalizers", torchstain_torch, 200),
    "torchstain numpy": ("torchstain.numpy.normalizers", torchstain_numpy, 200),
    "StainTools": ("staintools", staintools, 8),
}
"""Module and functions of each, and the number of tiles, evenly spread, from which the time of all
is extrapolated: they fit the stains of each tile, StainTools for about a second."""


def normalised_seconds(
    path: Path,
    plan: SlidePlan,
    most: int,
    *,
    fit: OfTile,
    transform: OfTile,
) -> float:
    """Read and normalise tiles that are evenly spread, and extrapolate to all of the plan."""
    chosen = np.unique(np.linspace(0, len(plan) - 1, most).astype(int))
    with openslide.OpenSlide(path) as slide:

        def read(at: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
            return np.asarray(slide.read_region(at, level, size))

        (target,) = read_tiles(plan, chosen[len(chosen) // 2 :][:1], read)
        fit(target)
        transform(target)  # the first call loads what later ones find loaded
        seconds = timed(transform(tile) for tile in read_tiles(plan, chosen, read))
    return seconds / len(chosen) * len(plan)


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
