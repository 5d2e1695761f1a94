"""How the time of steps grows with their work: ratios of two sizes, in one process.

    python benchmarks/scaling.py

Each line is a ratio of the processor's time of a larger to that of a smaller input, the
least of three each, in turn. Below or near the ratio of the work is as it should be:
a step that looks at every pair of places shows its square.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import print_machine
from scipy import ndimage

from wsiad.core.geometry import Mpp, PixelMap, Spacing
from wsiad.evaluation.matching import evaluation_mask
from wsiad.heatmaps.peaks import find_peaks
from wsiad.heatmaps.stitch import Stitcher
from wsiad.pictures.overview import Overview, slide_picture

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.builders import make_heatmap

LEVEL5_UM = 7.78
GRID = PixelMap(0, 0, 4, 4)


def main() -> None:
    print_machine()
    print("step: time of the larger input / of the smaller | ratio of the work")
    said("overview, 102,400 tiles / 10 tiles", overview(320), overview(0), 10_240)
    said("stitching, 200,000 windows / 20,000", stitching(200_000), stitching(20_000), 10)
    said("peaks, 4 million pixels / 1 million", peaks(2000), peaks(1000), 4)
    said("regions of a mask / its distance transform", mask_regions, distances, 1)


def said(name: str, larger: Callable[[], None], smaller: Callable[[], None], work: float) -> None:
    """Measure both in turn and print the ratio."""
    seconds: list[list[float]] = [[], []]
    for _ in range(3):
        for which, step in enumerate((larger, smaller)):
            start = time.process_time()
            step()
            seconds[which].append(time.process_time() - start)
    print(f"{name}: {min(seconds[0]) / min(seconds[1]):.2g} | {work}")


def overview(edge: int) -> Callable[[], None]:
    """Draw a slide with ``edge × edge`` tiles, or with ten for none."""
    x, y = np.meshgrid(np.arange(edge or 5) * 20.0, np.arange(edge or 2) * 15.0)
    boxes = np.stack([x.ravel(), y.ravel(), np.full(x.size, 20.0), np.full(x.size, 15.0)], axis=1)
    mask = np.zeros((150, 200), bool)
    mask[30:120, 40:160] = True
    shown = Overview(
        slide="a",
        thumbnail=np.full((150, 200, 3), 240, np.uint8),
        mask=mask,
        pen=None,
        placement=PixelMap(0, 0, 32, 32),
        spacing=Spacing(Mpp(0.25), Mpp(0.25)),
        mpp=Mpp(0.5),
        boxes=boxes,
        left_out=np.empty((0, 4)),
        reasons=np.empty(0, np.uint8),
    )
    return lambda: slide_picture(shown) and None


def stitching(windows: int) -> Callable[[], None]:
    """Stitch windows in disorder, 256 at once, on the same canvas."""
    rng = np.random.default_rng(0)
    places = rng.permutation(1_000_000)[:windows]
    scores = rng.random((windows, 1, 1), np.float32)

    def step() -> None:
        stitcher = Stitcher(1000, 1000, stride=48, window=96, grid=GRID)
        for i in range(0, windows, 256):
            part = places[i : i + 256]
            stitcher.add(part // 1000, part % 1000, scores[i : i + 256])

    return step


def peaks(edge: int) -> Callable[[], None]:
    """Find the peaks of a heatmap of noise."""
    heatmap = make_heatmap(
        np.random.default_rng(0).random((edge, edge), np.float32),
        PixelMap(0, 0, 128, 128),
        spacing=Spacing(Mpp(0.25), Mpp(0.25)),
    )
    return lambda: find_peaks(heatmap, threshold=0) and None


def tumour() -> np.ndarray:
    """Mask of level 5 of 200,000 pixels to a side, nearly empty."""
    mask = np.zeros((6250, 6250), dtype=bool)
    mask[3000:3100, 3000:3100] = True
    return mask


def mask_regions() -> None:
    evaluation_mask(tumour(), pixel_um=LEVEL5_UM)


def distances() -> None:
    ndimage.distance_transform_edt(~tumour())


if __name__ == "__main__":
    main()
