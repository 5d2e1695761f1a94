"""Put the strangest windows of results on one sheet, at most a few of each slide.

    python examples/strangest_windows.py results/ --out windows.png

Windows are read from the slides as they were scanned, at about the scale at which they were scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import openslide
import pandas as pd
from PIL import Image

import wsiad

mpl.use("Agg")
from matplotlib import pyplot as plt

SHOWN_PX = 160


def strangest(results: Path, *, count: int = 24, per_slide: int = 4) -> pd.DataFrame:
    """Return the windows with the highest scores; windows of a slide do not overlap."""
    chosen = []
    for slide in wsiad.Results(results):
        if not slide.is_scored:
            continue
        windows = pd.DataFrame(slide.windows()).sort_values("score", ascending=False)
        mine: list[pd.Series] = []
        for _, window in windows.iterrows():
            apart = [
                abs(window.x - other.x) >= window.width or abs(window.y - other.y) >= window.height
                for other in mine
            ]
            if all(apart):
                mine.append(window)
            if len(mine) == per_slide:
                break
        chosen.append(pd.DataFrame(mine).assign(slide=slide.name, file=slide.row.file))
    return pd.concat(chosen).sort_values("score", ascending=False).head(count)


def pixels(window: pd.Series) -> Image.Image:
    """Read a window of its slide."""
    with openslide.OpenSlide(window.file) as slide:
        level = slide.get_best_level_for_downsample(window.width / SHOWN_PX)
        factor = slide.level_downsamples[level]
        size = round(window.width / factor), round(window.height / factor)
        image = slide.read_region((round(window.x), round(window.y)), level, size)
        return image.convert("RGB").resize((SHOWN_PX, SHOWN_PX))


def draw(results: Path, out: Path, *, count: int = 24) -> pd.DataFrame:
    """Draw the sheet into a picture, and return the windows."""
    windows = strangest(results, count=count)
    columns = 6
    rows = -(-len(windows) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(9, 1.8 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (_, window) in zip(axes.flat, windows.iterrows(), strict=False):
        axis.imshow(pixels(window))
        axis.set_title(f"{window.slide}\n{window.score:.3g}", fontsize=8)
    figure.savefig(out, dpi=100)
    plt.close(figure)
    return windows


def main() -> None:
    """Draw the results of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results folder")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("windows.png"))
    options = parser.parse_args()
    draw(options.results, options.out, count=options.count)


if __name__ == "__main__":
    main()
