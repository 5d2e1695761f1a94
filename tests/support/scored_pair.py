"""Two small slides that are drawn, tiled and scored, for the code of documents and examples."""

import csv

import wsiad
from wsiad.core.geometry import Mpp
from wsiad.synthetic.slides import make_slides


def score_pair(folder):
    """Write a store, a run and results of slide a, which is healthy, and b, which is not."""
    drawn = make_slides(
        folder / "drawn", healthy=1, tumorous=1, size_px=(700, 600), mpp=Mpp(0.972), quiet=True
    )
    with (folder / "slides.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["slide", "name", "label"])
        table.writerows(zip([s.path for s in drawn], "ab", ["normal", "tumor"], strict=True))
    wsiad.tile(slides=folder / "slides.csv", out=folder / "store", mpp=0.972, tile=32, quiet=True)
    run = folder / "runs/colour"
    wsiad.train(
        store=folder / "store",
        out=run,
        detector="gaussian",
        options={"backbone": "pixels"},
        quiet=True,
    )
    wsiad.heatmap(
        run=run,
        slides=folder / "slides.csv",
        out=folder / "results",
        region_quantile=0.9,  # so that there are some
        quiet=True,
    )
