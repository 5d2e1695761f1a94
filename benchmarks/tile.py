"""How fast tiles are made of a slide, as shares of what the JPEG decoder alone takes.

    python benchmarks/tile.py [slide.tif] [--mpp 0.243] [--tile 256] [--runs 5]

All figures are processor time of one core, OpenSlide's process included; what is written is not
flushed. The limit, ``raw decode``, decodes those tiles of the file
that the tiles with tissue touch, each once, and does nothing else. Each run measures all
steps one after the other and relates them to the raw decoding of the same run, so that a
busy machine slows both; the table shows medians. The stain table looks up raw pixels whose colours
it has had before, as it does in a slide. ``stage, again`` writes the store a second time, after the
first was removed: virtual machines get memory from their host when it is first used, and that of
the page cache then weighs more than the work. Without a slide, one is drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from machine import print_machine, processor_seconds
from peers import NORMALISERS, peer_seconds

from wsiad.core.files import fingerprint
from wsiad.core.geometry import Mpp
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.slide import Slide
from wsiad.slides.tiff_tiles import TiledLevel, read_layout
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.profile import reference_profile
from wsiad.store.shards import encode
from wsiad.store.tile_store import TileStore
from wsiad.store.writer import write_slide
from wsiad.tiling.plan import SlidePlan, plan_slide
from wsiad.tiling.preparation import CompressionOptions, Preparation
from wsiad.tiling.stream import _reads, stream
from wsiad.tissue import quality

_CHUNK_TILES = 16  # of a store, at 256 px


def drawn_slide(folder: Path, *, edge: int = 8192, mpp: float = 0.25) -> Path:
    """Write a pyramid of smooth, stained structure without sensor noise."""
    rng = np.random.default_rng(0)
    amounts = np.zeros((edge, edge, 2), np.float32)
    for size in (8, 64, 512):
        part = rng.gamma(1.5, 0.25, (edge // size, edge // size, 2)).astype(np.float32)
        amounts += cv2.resize(part, (edge, edge), interpolation=cv2.INTER_CUBIC)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
    image = np.rint(255 * np.exp(-amounts.clip(0) @ stains)).astype(np.uint8)
    path = folder / "drawn.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(5):
            tiff.write(
                image,
                tile=(512, 512),
                photometric="rgb",  # of the pixels given; they are stored as YCbCr
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": 80},
                subfiletype=int(level > 0),
                resolution=(1e4 / mpp / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return path


def touched(level: TiledLevel, plan: SlidePlan, downsample: float) -> list[int]:
    """Tiles of the file that the plan's tiles touch, in the file's order."""
    chosen = set()
    for x, y, w, h in plan.grid.boxes(plan.rows, plan.columns) / downsample:
        rows = range(int(y // level.tile.height), int(np.ceil((y + h) / level.tile.height)))
        columns = range(int(x // level.tile.width), int(np.ceil((x + w) / level.tile.width)))
        chosen |= {
            row * level.columns + column
            for row in rows
            for column in columns
            if row < level.rows and column < level.columns
        }
    return sorted(index for index in chosen if level.counts[index])


def raw_decode(path: Path, level: TiledLevel, tiles: list[int]) -> None:
    """Read and decode tiles, and do nothing with them."""
    with path.open("rb", buffering=0) as file:
        for index in tiles:
            data = os.pread(file.fileno(), int(level.counts[index]), int(level.offsets[index]))
            imagecodecs.jpeg8_decode(
                data, tables=level.tables, colorspace=level.colour_space, outcolorspace="RGB"
            )


def read_tiles(slide: Slide, plan: SlidePlan) -> None:
    """Read the plan's tiles at its scale as a stream does, and do nothing with them."""
    exhaust(_reads(again(plan, slide), 0, len(plan)))


def again(plan: SlidePlan, slide: Slide) -> SlidePlan:
    """Return a plan of a slide that was opened again."""
    return dataclasses.replace(plan, scaled=ScaledSlide(slide, Mpp(plan.scaled.mpp)))


def whole_stream(slide: Slide, options: Preparation) -> None:
    """Mask, stains, reading and normalising: all but the writing."""
    exhaust(stream(plan_slide(slide, options, target=reference_profile(options.stain.method))))


def whole_stage(path: Path, options: Preparation, folder: Path) -> None:
    """Open, plan, stream, measure and write a store."""
    target = reference_profile(options.stain.method)
    store = TileStore.create(folder, options, target.to_dict())
    with open_slide(path) as slide:
        plan = plan_slide(slide, options, target=target)
        write_slide(store, plan, fingerprint=fingerprint(plan.scaled.slide.path))


def first_pixels(plan: SlidePlan) -> np.ndarray:
    """Return the tiles of the plan's first four blocks."""
    return np.concatenate([block.pixels for block in itertools.islice(stream(plan), 4)])


def number_of_colours(pixels: np.ndarray) -> int:
    """Return the number of colours that occur."""
    seen = np.zeros(1 << 24, bool)
    for tile in pixels.reshape(len(pixels), -1, 3):
        seen[tile.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)] = True
    return int(seen.sum())


def exhaust(blocks: Iterable[object]) -> None:
    """Take all blocks, and keep none."""
    for _ in blocks:
        pass


def compress(tiles: np.ndarray) -> None:
    """Code tiles as a store does by default, and keep nothing."""
    for start in range(0, len(tiles), _CHUNK_TILES):
        encode(tiles[start : start + _CHUNK_TILES], CompressionOptions())


def timed(work: Callable[[], object]) -> float:
    """Processor seconds that the work takes."""
    start = processor_seconds()
    work()
    return processor_seconds() - start


def measure(path: Path, options: Preparation, folder: Path, *, openslide: bool) -> dict[str, float]:
    """Processor seconds of each step, in one run."""
    with open_slide(path, backend="jpeg-tiff") as slide:
        plan = plan_slide(slide, options, target=reference_profile(options.stain.method))
        layout = read_layout(path, [level.size for level in slide.levels], name=slide.name)
        level = layout[plan.scaled.level]
        tiles = touched(level, plan, slide.levels[plan.scaled.level].downsample_x)
        pixels = first_pixels(plan)  # afterwards the table knows their colours
        raw = first_pixels(dataclasses.replace(plan, table=ColourTable.identity()))
        repeats = len(plan) / len(pixels)
        seconds = {"raw decode": timed(lambda: raw_decode(path, level, tiles))}
        seconds["measures"] = timed(lambda: quality.measure(pixels)) * repeats
        seconds["compression"] = repeats * timed(lambda: compress(pixels))
        colours = number_of_colours(raw)
        seconds["stain table"] = timed(lambda: plan.table.apply(raw, out=raw)) * repeats
        ns = seconds["stain table"] / repeats / (raw.size // 3) * 1e9
        print(f"stain table: {ns:.2f} ns a pixel, {colours:,} raw colours in {len(raw)} tiles")
    # Freshly opened each time: none may find the tiles that another decoded.
    with open_slide(path, backend="jpeg-tiff") as slide:
        seconds["read, direct"] = timed(lambda: read_tiles(slide, plan))
    with open_slide(path, backend="jpeg-tiff") as slide:
        seconds["mask, stains"] = timed(
            lambda: plan_slide(slide, options, target=reference_profile(options.stain.method))
        )
    with open_slide(path, backend="jpeg-tiff") as slide:
        fresh = again(plan, slide)
        seconds["read, normalise"] = timed(lambda: exhaust(stream(fresh)))
    with open_slide(path, backend="jpeg-tiff") as slide:
        seconds["whole stream"] = timed(lambda: whole_stream(slide, options))
    for step in ("whole stage", "stage, again"):
        seconds[step] = timed(lambda: whole_stage(path, options, folder))
        shutil.rmtree(folder)
    if openslide:
        with open_slide(path, backend="openslide") as slide:
            seconds["read, OpenSlide"] = timed(lambda: read_tiles(slide, plan))
    seconds["tiles"] = len(plan)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--mpp", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also cuCIM, fastslide, and OpenSlide with torchstain and StainTools, if installed",
    )
    parser.add_argument("--no-openslide", action="store_true", help="leave out the slow path")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    print_machine()
    if hasattr(os, "sched_setaffinity"):
        # The store's compressor has threads of its own.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = asked.slide or drawn_slide(folder)
        for mpp in asked.mpp:
            options = Preparation(mpp=mpp, tile=asked.tile, stride=asked.stride)
            runs = [
                measure(path, options, folder / "store", openslide=not asked.no_openslide)
                for _ in range(asked.runs)
            ]
            if asked.peers:
                add_peers(runs, path, options)
            report(runs, f"{path.name}, {asked.tile} px at {mpp:g} µm/px")


def add_peers(runs: list[dict[str, float]], path: Path, options: Preparation) -> None:
    """Measure what is installed of other software, once, and relate it to each run."""
    with open_slide(path) as slide:
        plan = plan_slide(slide, options, target=reference_profile(options.stain.method))
        seconds = peer_seconds(path, plan)
    for row in seconds.keys() & NORMALISERS.keys():
        rate, tiles = len(plan) / seconds[row], min(NORMALISERS[row][2], len(plan))
        print(f"{row}, read by OpenSlide: {rate:.2g} tiles/s, from {tiles} of {len(plan)} tiles")
    for run in runs:
        run.update(seconds)


def report(runs: list[dict[str, float]], title: str) -> None:
    """Print each step's tiles/s and its share of raw decoding."""
    tiles = runs[0].pop("tiles")
    print(f"\n{title}: {tiles:.0f} tiles, median of {len(runs)} runs")
    print(f"{'':18}{'tiles/s':>9}{'of raw':>9}{'range':>15}{'whole stage is':>16}")
    for step in runs[0]:
        rate = tiles / statistics.median(run[step] for run in runs)
        shares = [run["raw decode"] / run[step] for run in runs]
        low, high = min(shares), max(shares)
        times = statistics.median(run[step] / run["whole stage"] for run in runs)
        line = f"{step:18}{rate:9.3g}{statistics.median(shares):9.0%}{low:8.0%} –{high:5.0%}"
        print(f"{line}{times:14.2f} ×")


if __name__ == "__main__":
    main()
