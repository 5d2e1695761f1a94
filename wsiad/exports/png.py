"""Write the heatmap as a PNG picture, with a JSON file that states its position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file, write_json
from wsiad.core.geometry import Box, Size
from wsiad.core.images import save_png
from wsiad.exports.ome import reduce_by
from wsiad.heatmaps.score_map import Heatmap
from wsiad.pictures.colour_scale import ColourScale

MAX_EDGE = 8192
"""Maximum edge of a picture, pixels, which graphics cards and viewers accept."""


def write_png(
    heatmap: Heatmap, path: Path, *, scale: ColourScale, max_edge: int = MAX_EDGE
) -> None:
    """Write a heatmap as an RGBA picture, and its position on the slide as JSON.

    A heatmap with an edge longer than ``max_edge`` is averaged over square blocks of
    pixels. Blocks at the right and at the bottom may reach beyond the heatmap; the
    rectangle in the JSON is always exactly what the complete picture covers.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap to write.
    path : Path
        File to write, whose name ends in ``.png``; the JSON has the same name with ``.json``.
        Both are put in place when both are complete.
    scale : ColourScale
        Colour scale; opacity is 0 for unscored pixels.
    max_edge : int
        Maximum edge of the picture, pixels.

    Raises
    ------
    ExportError
        The name does not end in ``.png``.
    """
    if path.suffix.lower() != ".png":
        raise ExportError("a picture's name ends in .png", subject=path.name)
    factor = max(1, -(-max(heatmap.scores.shape) // max_edge))
    scores = reduce_by(heatmap.scores, factor) if factor > 1 else heatmap.scores
    size = Size(scores.shape[1], scores.shape[0])
    with atomic_file(path) as picture, atomic_file(path.with_suffix(".json")) as sidecar:
        save_png(scale.rgba(scores), picture)
        write_json(sidecar, describe(heatmap, path.name, size=size, factor=factor, scale=scale))


def describe(
    heatmap: Heatmap, image: str, *, size: Size, factor: int, scale: ColourScale
) -> dict[str, Any]:
    """Return the JSON values that describe a picture of a heatmap.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap in the picture.
    image : str
        Name of the picture's file.
    size : Size
        Size of the picture, pixels.
    factor : int
        Heatmap pixels along the edge of a pixel of the picture.
    scale : ColourScale
        Colour scale of the picture.
    """
    covered = heatmap.placement.box(Size(size.width * factor, size.height * factor))
    bounds = heatmap.bounds
    in_qupath = Box(covered.x - bounds.x, covered.y - bounds.y, covered.width, covered.height)
    return {
        "slide": heatmap.slide,
        "image": image,
        "image_size": {"width": size.width, "height": size.height},
        "heatmap_pixels_per_image_pixel": factor,
        "level0_rectangle": _rectangle(covered),
        "qupath_rectangle": _rectangle(in_qupath),
        "slide_size": {"width": heatmap.slide_size.width, "height": heatmap.slide_size.height},
        "bounds": _rectangle(bounds),
        "level0_um_per_px": {"x": heatmap.spacing.x, "y": heatmap.spacing.y},
        "colour_scale": scale.legend(),
        "unscored": "opacity 0",
    }


def _rectangle(box: Box) -> dict[str, float]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
