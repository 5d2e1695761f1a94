"""Results of `wsiad heatmap`, made and read."""

import json

import tifffile

import wsiad
from wsiad.core.geometry import PixelMap


def score(run, slides, out, **values):
    return wsiad.heatmap(run=run, slides=slides, out=out, quiet=True, **values)


def read_heatmap(folder):
    """Scores, and the map to level 0 that the file itself states."""
    with tifffile.TiffFile(folder / "heatmap.ome.tif") as tiff:
        scores = tiff.series[0].asarray()
    facts = json.loads((folder / "heatmap.json").read_text())
    box = facts["level0_rectangle"]
    height, width = scores.shape
    return scores, PixelMap(box["x"], box["y"], box["width"] / width, box["height"] / height)
