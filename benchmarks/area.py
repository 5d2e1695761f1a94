"""What averaging over areas costs, beside OpenCV's ``INTER_AREA`` on the same pixels.

    python benchmarks/area.py [--steps 1.03 2.06 3.7] [--rounds 15]

Drawn noise is averaged to 128 × 1,024 pixels by steps of so many source pixels, by
``wsiad.slides.area_mean`` and by ``cv2.resize`` in turn; the result is processor time a pixel of
the output, median (range). OpenCV's areas begin at the corner of the image alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from machine import print_machine

from wsiad.slides.area_mean import area_mean, area_weights

_HEIGHT, _WIDTH = 128, 1024


def ns_a_pixel(work: Callable[[], object]) -> float:
    """Processor nanoseconds of the work for a pixel of the output."""
    start = time.process_time_ns()
    work()
    return (time.process_time_ns() - start) / (_HEIGHT * _WIDTH)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=float, nargs="+", default=[1.03, 2.06, 3.7])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    print_machine()
    for step in asked.steps:
        height, width = (round(edge * step) for edge in (_HEIGHT, _WIDTH))
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        rows = area_weights(0, height / _HEIGHT, _HEIGHT, height)
        columns = area_weights(0, width / _WIDTH, _WIDTH, width)
        mean = partial(area_mean, image, rows, columns)
        peer = partial(cv2.resize, image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
        most = int(np.abs(mean() - peer().astype(int)).max())  # pays for the first calls
        own, other = [], []
        for _ in range(asked.rounds):
            own.append(ns_a_pixel(mean))
            other.append(ns_a_pixel(peer))
        ratios = [b / a for a, b in zip(own, other, strict=True)]
        print(
            f"step {step:g}: {spread(own)} ns a pixel, OpenCV {spread(other)}: "
            f"{spread(ratios)} times as long; they differ by {most} grey levels at most"
        )


if __name__ == "__main__":
    main()
