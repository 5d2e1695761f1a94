"""The most memory that ``wsiad tile`` and ``wsiad heatmap`` take on a huge slide.

    python benchmarks/memory.py --run runs/gaussian [--edge 80000] [--mpp 0.5] [--tile 256]

Writes JPEG-tiled pyramids of ``edge`` × ``edge`` px at 0.243 µm/px, of which all
(``tissue``) is tissue, or every other field of a chess board with tiles between them that
are missing (``sparse``) or white (``white``). The slides' tiles repeat, so that they take
little room. Each verb runs on each slide as a process of its own, with the direct path
and with OpenSlide, and its peak resident memory is compared with the limit. ``--run`` is
a run that ``wsiad train`` made; without one, heatmaps are left out.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

LIMIT_MB = 1000
MPP = 0.243
TILE = 512
POOL = 16
LEVELS = 6
CELL = TILE << (LEVELS - 1)
"""Level-0 px of a tile of the smallest level: what is tissue there is tissue in each."""
_POLL_SECONDS = 0.05


def encoded(rgb: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(rgb, level=80, outcolorspace="YCBCR", subsampling="420")


def tissue_tiles() -> list[bytes]:
    """Draw some tiles of smooth, stained structure."""
    rng = np.random.default_rng(0)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
    tiles = []
    for _ in range(POOL):
        amounts = np.zeros((TILE, TILE, 2), np.float32)
        for size in (4, 16, 64):
            part = rng.gamma(1.5, 0.25, (TILE // size, TILE // size, 2)).astype(np.float32)
            amounts += cv2.resize(part, (TILE, TILE), interpolation=cv2.INTER_CUBIC)
        tiles.append(encoded(np.rint(255 * np.exp(-amounts.clip(0) @ stains)).astype(np.uint8)))
    return tiles


def write_slide(path: Path, *, edge: int, whole: bool, white: bool) -> None:
    """Write a pyramid in which each distinct tile is held once a level."""
    pool = [encoded(np.full((TILE, TILE, 3), 243, np.uint8)), *tissue_tiles()]
    sizes = [edge >> level for level in range(LEVELS)]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, size in enumerate(sizes):
            count = (-(-size // TILE)) ** 2
            # First the pool, then tiles without data: where each tile lies is set below.
            held = (pool[index] if index < len(pool) else b"" for index in range(count))
            tiff.write(
                held,
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=int(level > 0),
                resolution=(1e4 / MPP,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for level, page in enumerate(tiff.pages):
            held = min(len(pool), len(page.dataoffsets))
            place_tiles(page, level, held, whole=whole, white=white)


def place_tiles(
    page: tifffile.TiffPage, level: int, pool: int, *, whole: bool, white: bool
) -> None:
    """Let each of a level's tiles be one of its first, of which the very first is white."""
    across = -(-page.imagewidth // TILE)
    cell = np.arange(across) // (CELL // TILE >> level)
    is_tissue = ((cell[:, None] + cell) % 2 == 0).ravel() | whole
    chosen = np.where(is_tissue, 1 + np.arange(across**2) % (pool - 1), 0)
    counts = np.asarray(page.databytecounts)[chosen]
    offsets = np.asarray(page.dataoffsets)[chosen]
    if not white:
        counts[~is_tissue] = offsets[~is_tissue] = 0
    page.tags["TileByteCounts"].overwrite(counts.tolist())
    page.tags["TileOffsets"].overwrite(offsets.tolist())


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command; its peak resident memory in MB, and its seconds."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    highest = 0
    while True:
        try:
            # The kernel's own high-water mark: a poll misses nothing but the very end ...
            status = Path(f"/proc/{process.pid}/status").read_text()
            highest = max([highest, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status))])
        except OSError:
            pass
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(_POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    # ... which this has; but it also has what this process held when it started the other.
    kilobytes = max(highest, usage.ru_maxrss if sys.platform == "linux" else 0)
    return kilobytes * 1024 / 1e6, time.monotonic() - start


def verb_of(backend: str, *arguments: object) -> list[str]:
    """Return the command of a verb, with one of the two ways of reading."""
    begin = [sys.executable, __file__, "--verb", backend] if backend == "openslide" else []
    begin = begin or [sys.executable, "-m", "wsiad"]
    return [*begin, *map(str, arguments), "--quiet"]


def run_verb(arguments: list[str]) -> None:
    """Run a verb with OpenSlide alone: no format is left to the direct path."""
    from wsiad import cli
    from wsiad.slides import tiff as jpeg_tiff_backend

    jpeg_tiff_backend.FORMATS = frozenset()
    sys.exit(cli.main(arguments))


def measure(folder: Path, asked: argparse.Namespace) -> bool:
    """Measure all cases; whether all are within the limit."""
    within = True
    print(f"{'slide':8}{'verb':9}{'backend':11}{'tiles':>8}{'seconds':>9}{'peak, MB':>10}")
    for kind in asked.kinds:
        slide = folder / f"{kind}.tif"
        write_slide(slide, edge=asked.edge, whole=kind == "tissue", white=kind == "white")
        for backend in asked.backends:
            for verb in ("tile", "heatmap"):
                out = folder / f"{kind}-{backend}-{verb}"
                common = [slide, "--out", out]
                if verb == "tile":
                    command = [verb, *common, "--mpp", asked.mpp, "--tile", asked.tile]
                elif asked.run:
                    command = [verb, asked.run, *common, "--device", "cpu"]
                else:
                    continue
                peak, seconds = peak_of(verb_of(backend, *command))
                tiles = tiles_of(out, backend)
                print(
                    f"{kind:8}{verb:9}{backend:11}{tiles:8}{seconds:9.0f}{peak:10.0f}", flush=True
                )
                within = within and peak <= LIMIT_MB
    return within


def tiles_of(out: Path, backend: str) -> int:
    """Tiles of the slide in a store or in results, read by the backend that was asked for."""
    with (out / "slides.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    if row["status"] != "ok" or row["backend"].split(":")[0] != backend:
        sys.exit(f"{out}: {row['status']}, {row['reason']}, read by {row['backend']}")
    return int(row["tiles"])


def main() -> None:
    if sys.argv[1:2] == ["--verb"]:
        run_verb(sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder for the heatmaps")
    parser.add_argument("--edge", type=int, default=80_000, help="px of level 0")
    parser.add_argument("--mpp", type=float, default=0.5, help="scale of the tiles, µm/px")
    parser.add_argument("--tile", type=int, default=256, help="edge of the tiles, px")
    parser.add_argument(
        "--kinds", nargs="+", choices=["tissue", "sparse", "white"], default=["tissue", "sparse"]
    )
    parser.add_argument(
        "--backends", nargs="+", choices=["jpeg-tiff", "openslide"],
        default=["jpeg-tiff", "openslide"],
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="for slides and results; else a temporary one")
    asked = parser.parse_args()
    print(f"{asked.edge} × {asked.edge} px at {MPP} µm/px; tiles of {asked.tile} px at {asked.mpp}")
    if asked.folder:
        asked.folder.mkdir(parents=True, exist_ok=True)
        within = measure(asked.folder, asked)
    else:
        with tempfile.TemporaryDirectory() as folder:
            within = measure(Path(folder), asked)
    print(f"{'within' if within else 'OVER'} the limit of {LIMIT_MB} MB")
    sys.exit(not within)


if __name__ == "__main__":
    main()
