"""Slides with a striped place, and a store and a run of the healthy ones among them."""

from __future__ import annotations

import numpy as np

import wsiad
from support.builders import stained, write_tiff

MPP, EDGE = 0.5, 32
OPTIONS = {"layers": ["features.3"], "places": 4}


def write_slide(path, seed, *, strange=False):
    """Write a slide of 12 × 12 tiles; of a strange one 4 × 4, from (4, 4) on, are striped."""
    pixels = stained(EDGE * 12, EDGE * 12, seed=seed)
    if strange:
        at = slice(EDGE * 4, EDGE * 8)
        pixels[at, at, :] = np.clip(
            pixels[at, at].astype(int) - 50 * (np.arange(EDGE * 4) % 8 < 3)[:, None], 0, 255
        )
    path.parent.mkdir(exist_ok=True)
    write_tiff(path, pixels, mpp=MPP)


def fit_knn(root, slides):
    """Tile healthy slides into ``root/store``, and train ``knn`` on it into ``root/run``."""
    wsiad.tile(
        slides=[slides],
        out=root / "store",
        mpp=MPP,
        tile=EDGE,
        tissue={"min_area_um2": 0, "smooth_um": 0, "remove_pen": False},
        min_coverage=0.01,
        stain={"method": "none"},
        quiet=True,
    )
    wsiad.train(
        store=root / "store",
        out=root / "run",
        detector="knn",
        options=OPTIONS,
        weights="random",
        quiet=True,
    )
