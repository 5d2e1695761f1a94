#!/usr/bin/env python3
"""The tiles of the Deep Perceptual Autoencoder's protocol: at most 50 a slide, drawn by seed.

    pipelines/camelyon16/draw.py out/

As Shvetsova et al. (2021) cut CAMELYON16: a fixed grid of 192 px at 0.972 µm/px from the slide's
corner (768 px of level 0 at 0.243 µm/px), tiles that are tissue throughout, in tumour slides those
that lie within the outlines throughout, at most 50 of a slide. Reads out/lists; writes
out/coordinates/<list>/ for `wsiad tile --coords`, out/lists/tiles_<list>.csv with the slides that
have any, and out/stain_target.png where the slide of their stain target is there.

Where this departs from theirs: tissue is `wsiad`'s mask in place of a threshold on a thumbnail; the
grid is one of µm on every scanner; outlines are polygons, not pixels of 62 µm; the draw
has a seed. Their own lists of tiles are not part of this.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image
from shapely.geometry.base import BaseGeometry

from wsiad.annotations import read_annotations
from wsiad.core.errors import WsiadError
from wsiad.core.files import atomic_file, write_text
from wsiad.core.geometry import Grid, Mpp, Size
from wsiad.core.terminal import Progress
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.tiling.plan import select
from wsiad.tissue.mask import find_tissue
from wsiad.tissue.tissue_options import TissueOptions

PARTS = ("train", "tune", "test")
TILE_PX, TILE_MPP, MOST = 192, 0.972, 50
WHOLE = 0.999

TARGET = "normal_056"
TARGET_X, TARGET_Y, TARGET_PX = 23808, 120832, 2816
"""Region of level 0 whose stains the authors gave to all tiles: their preprocessing code."""

NO_TUMOUR_TILES = frozenset({"test_114"})


def within(boxes: npt.NDArray[np.float64], area: BaseGeometry) -> npt.NDArray[np.bool_]:
    """Say which boxes, ``x, y, width, height`` (N, 4), lie within an area throughout."""
    shapely.prepare(area)
    x, y = boxes[:, 0], boxes[:, 1]
    found: npt.NDArray[np.bool_] = shapely.covers(
        area, shapely.box(x, y, x + boxes[:, 2], y + boxes[:, 3])
    )
    return found


def drawn(name: str, count: int, *, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw at most so many of ``count``, in their order; the slide's name decides with the seed."""
    if count <= most:
        return np.arange(count)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.choice(count, most, replace=False))


def draw_slide(path: Path, outlines: Path | None, to: Path, *, most: int, seed: int) -> int:
    """Write the coordinates of a slide's tiles; return how many there are.

    Raises
    ------
    SlideError
        The slide cannot be read, or is coarser than 0.972 µm/px.
    AnnotationError
        Its outlines are not valid.
    """
    name = path.stem.lower()
    with open_slide(path, name=name) as slide:
        scaled = ScaledSlide(slide, Mpp(TILE_MPP))
        grid = Grid.cover(scaled.size, tile=TILE_PX, stride=TILE_PX, pixels=scaled.pixels)
        rows, columns, _ = select(grid, find_tissue(slide, TissueOptions()), min_coverage=WHOLE)
        boxes = grid.boxes(rows, columns)
        if outlines is not None:
            boxes = boxes[within(boxes, read_annotations(outlines).tumour())]
        boxes = boxes[drawn(name, len(boxes), most=most, seed=seed)]
        edge = round(TILE_PX * scaled.pixels.scale_x)
    with atomic_file(to) as partial, h5py.File(partial, "w", locking=False) as file:
        corners = np.rint(boxes[:, :2]).astype(np.int64)
        coords = file.create_dataset("coords", data=corners, track_times=False)
        coords.attrs["patch_size_level0"] = edge
    return len(boxes)


def stain_target(path: Path, to: Path) -> bool:
    """Write the authors' stain target, if the slide reaches as far."""
    with open_slide(path) as slide:
        region = slide.read_level(0, TARGET_X, TARGET_Y, Size(TARGET_PX, TARGET_PX))
    if region.valid is not None:
        return False
    with atomic_file(to) as partial:
        Image.fromarray(region.rgb).save(partial, format="png")
    return True


def _drawn(task: tuple[Path, Path | None, Path, int, int]) -> tuple[str, str]:
    path, outlines, to, most, seed = task
    try:
        draw_slide(path, outlines, to, most=most, seed=seed)
    except (WsiadError, OSError) as error:
        return path.stem, str(error)
    return path.stem, ""


def tasks(
    out: Path, part: str, *, most: int, seed: int
) -> list[tuple[Path, Path | None, Path, int, int]]:
    """List what is to be drawn of one of the lists: what is there already is kept."""
    found = []
    with (out / "lists" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path = Path(row["slide"])
            outlines = out / "annotations" / f"{path.stem}.xml" if row["label"] == "tumor" else None
            to = out / "coordinates" / part / f"{path.stem}.h5"
            if not to.exists() and path.stem.lower() not in NO_TUMOUR_TILES:
                found.append((path, outlines, to, most, seed))
    return found


def draw(out: Path, *, most: int = MOST, seed: int = 0, workers: int = 1) -> list[str]:
    """Draw the tiles of all lists; return what failed, a line each."""
    failed = []
    todo = [task for part in PARTS for task in tasks(out, part, most=most, seed=seed)]
    with ExitStack() as stack:
        mapped = map
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))
            mapped = stack.enter_context(pool).map
        progress = stack.enter_context(Progress("draw tiles", total=len(todo), unit="slide"))
        for name, problem in mapped(_drawn, todo):
            if problem:
                failed.append(f"{name}: {problem}")
            progress.update()
    for task in todo:
        if task[0].stem.lower() == TARGET and not (out / "stain_target.png").exists():
            stain_target(task[0], out / "stain_target.png")
    return failed


def list_drawn(out: Path, part: str) -> tuple[int, int]:
    """List the slides of which tiles were drawn; return how many slides and tiles these are."""
    with (out / "lists" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept, tiles = [("slide", "label", "split")], 0
    for row in rows:
        path = out / "coordinates" / part / f"{Path(row['slide']).stem}.h5"
        if not path.exists():
            continue
        with h5py.File(path, "r", locking=False) as file:
            count = len(file["coords"])
        if count:
            kept.append((row["slide"], row["label"], row["split"]))
            tiles += count
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    write_text(out / "lists" / f"tiles_{part}.csv", text.getvalue())
    return len(kept) - 1, tiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="where dataset.py wrote its lists")
    parser.add_argument("--most", type=int, default=MOST, help="tiles of a slide")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    failed = draw(asked.out, most=asked.most, seed=asked.seed, workers=asked.workers)
    for part in PARTS:
        slides, tiles = list_drawn(asked.out, part)
        print(f"{part}: {tiles} tiles of {slides} slides")
    for line in failed:
        print(f"draw.py: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
