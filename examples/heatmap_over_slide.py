"""Draw the heatmap of a slide over its thumbnail, with the outlines of the strongest regions.

    python examples/heatmap_over_slide.py results/ tumor_001 --out heatmap.png

Where nothing was scored nothing is drawn: it is not "healthy".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import openslide

import wsiad

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(results: Path, name: str, out: Path, *, regions: int = 5) -> None:
    """Draw a slide of a results folder into a picture."""
    slide = wsiad.Results(results).slide(name)
    heatmap = slide.heatmap()
    with openslide.OpenSlide(slide.row.file) as opened:
        thumbnail = opened.get_thumbnail((1600, 1600))
        width, height = opened.dimensions
    figure, axes = plt.subplots(figsize=(9, 9 * height / width + 0.5), layout="constrained")
    axes.imshow(thumbnail, extent=(0, width, height, 0))
    box = heatmap.box  # level-0 pixels, as is everything else here
    image = axes.imshow(
        np.ma.masked_invalid(heatmap.scores),
        extent=(box.x, box.x + box.width, box.y + box.height, box.y),
        cmap="inferno",
        alpha=0.5,
        vmin=np.nanmedian(heatmap.scores),  # what is usual on this slide is dark
    )
    for region in slide.regions()[:regions]:
        for polygon in getattr(region.polygon, "geoms", [region.polygon]):
            axes.plot(*polygon.exterior.xy, color="cyan", linewidth=1.2)
    axes.set(xlim=(0, width), ylim=(height, 0), title=f"{name}: score {slide.score():.3g}")
    axes.set_axis_off()
    figure.colorbar(image, label="anomaly score", shrink=0.8, extend="min")
    figure.savefig(out, dpi=100)
    plt.close(figure)


def main() -> None:
    """Draw the slide of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results folder")
    parser.add_argument("slide", help="name of a slide in its slides.csv")
    parser.add_argument("--out", type=Path, default=Path("heatmap.png"))
    options = parser.parse_args()
    draw(options.results, options.slide, options.out)


if __name__ == "__main__":
    main()
