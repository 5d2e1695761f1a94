"""Stated false-alarm rates against measured ones, on slides that took part in nothing.

    python benchmarks/false_alarms.py --out DIR [--reference 99] [--check 160] [--sharpened 40]

Draws slides as ``wsiad demo --fast`` does (2304 × 1728 px, not tissue: figures show the method),
fits `gaussian` on 4 healthy ones, compares 4 healthy and 8 tumour slides with the reference,
and counts the alarms on the further healthy slides: on sharpened ones, which stand for another
scanner, and on others like the reference. What is whole is not made again by another call.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageFilter

import wsiad
from wsiad.core.geometry import Mpp
from wsiad.synthetic.slides import make_slides, write_pyramid

SIZE_PX, TILE, MPP = (2304, 1728), 96, 0.972
SLIDE_MPP = Mpp(MPP / 2)


def drawn(task: tuple[Path, int, int, int]) -> None:
    """Draw a folder of slides, unless it is there: folder, healthy ones, tumorous ones, seed."""
    folder, healthy, tumorous, seed = task
    if not (folder / "reference.csv").exists():
        make_slides(
            folder, healthy=healthy, tumorous=tumorous, seed=seed, size_px=SIZE_PX, quiet=True
        )


def sharpened(folder: Path, out: Path, count: int) -> None:
    """Write slides of a folder again, sharpened: the same tissue by another scanner."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.tif"))[:count]:
        if not (out / path.name).exists():
            sharp = Image.fromarray(tifffile.imread(path)).filter(
                ImageFilter.UnsharpMask(2, 150, 0)
            )
            write_pyramid(out / path.name, np.asarray(sharp), mpp=SLIDE_MPP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=int, default=99)
    parser.add_argument("--check", type=int, default=160)
    parser.add_argument("--sharpened", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    slides, workers = asked.out / "slides", asked.workers
    tasks = [
        (slides / "check", asked.check, 0, 13),
        (slides / "reference", asked.reference, 0, 12),
        (slides / "tested", 4, 8, 11),
        (slides / "train", 4, 0, 10),
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        list(pool.map(drawn, tasks))
    sharpened(slides / "check", slides / "sharpened", asked.sharpened)
    store, run = asked.out / "store", asked.out / "run"
    wsiad.tile(slides=slides / "train", out=store, mpp=MPP, tile=TILE, workers=workers)
    wsiad.train(store=store, out=run, detector="gaussian", weights="wsiad")
    for name in ("reference", "tested", "check", "sharpened"):
        wsiad.heatmap(
            run=run,
            slides=slides / name,
            out=asked.out / name,
            viewers=[],
            evidence_regions=0,
            workers=workers,
        )
    tested, healthy = asked.out / "tested", asked.out / "reference"
    for name in ("sharpened", "check"):  # what is left in the folder is of the latter
        found = wsiad.significance(results=tested, healthy=healthy, check=asked.out / name)
        print(found.summary)
    print((tested / "significance.csv").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
