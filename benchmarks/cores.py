"""How much faster one slide is tiled on more cores, by the clock, without the start of a command.

    python benchmarks/cores.py slide.tif [--mpp 0.243] [--tile 256] [--cores 2] [--turns 5]

Each turn plans the slide and writes its store on one core of this process, and then on several.
What is written is not flushed. A first turn, which compiles and fills caches, is not shown. Other
work on the machine takes cores away: start it alone, or ahead of others (``chrt --fifo 10``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
from machine import print_machine

from wsiad.core.files import fingerprint
from wsiad.slides.opening import open_slide
from wsiad.stain.profile import reference_profile
from wsiad.store.tile_store import TileStore
from wsiad.store.writer import write_slide
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.preparation import Preparation

STEPS = ("plan", "write", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float, default=0.243)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: asked.cores]
    if len(cores) < asked.cores:
        parser.error(f"{asked.cores} cores were asked for, and {len(cores)} can be used")
    cv2.setNumThreads(1)
    print_machine()
    options = Preparation(mpp=asked.mpp, tile=asked.tile)
    found: dict[int, list[list[float]]] = {1: [], asked.cores: []}
    for turn in range(asked.turns + 1):
        for count, taken in found.items():
            os.sched_setaffinity(0, cores[:count])
            tiles, seconds = tiled(asked.slide, options)
            if turn:
                taken.append(seconds)
    print(f"{asked.slide.name}: {tiles:,} tiles, medians of {asked.turns} turns (range)")
    for number, step in enumerate(STEPS):
        one, more = ([turn[number] for turn in taken] for taken in found.values())
        ratios = [a / b for a, b in zip(one, more, strict=True)]
        print(
            f"{step:6}{statistics.median(one):8.2f} s{statistics.median(more):8.2f} s"
            f"{statistics.median(ratios):7.2f} × ({min(ratios):.2f}–{max(ratios):.2f})"
        )


def tiled(path: Path, options: Preparation) -> tuple[int, list[float]]:
    """Return the number of tiles, and seconds of plan, writing and both."""
    target = reference_profile(options.stain.method)
    with tempfile.TemporaryDirectory() as temporary:
        store = TileStore.create(Path(temporary) / "store", options, target.to_dict())
        with open_slide(path) as slide:
            start = time.perf_counter()
            plan = plan_slide(slide, options, target=target)
            planned = time.perf_counter()
            write_slide(store, plan, fingerprint=fingerprint(path))
            end = time.perf_counter()
    return len(plan), [planned - start, end - planned, end - start]


if __name__ == "__main__":
    main()
