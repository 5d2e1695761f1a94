"""OME-Zarr: the heatmap for napari and other readers of OME-NGFF 0.5 (zarr v3).

Source: OME-NGFF 0.5, https://ngff.openmicroscopy.org/0.5/. Levels have ``scale`` and
``translation`` in µm. The specification does not say which point of a pixel its
position is; here it is the centre, as napari draws it, and (0, 0) is the centre of the
slide's top-left level-0 pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_folder
from wsiad.exports.ome import pyramid_sizes, reduce_by
from wsiad.heatmaps.score_map import Heatmap

_VERSION = "0.5"
_CHUNK = 512


def write_ome_zarr(heatmap: Heatmap, path: Path) -> None:
    """Write a heatmap as a multiscale image of float32; unscored pixels are NaN.

    Parameters
    ----------
    heatmap : Heatmap
    path : Path
        Folder whose name ends in ``.ome.zarr``; written whole or not at all. Equal
        heatmaps give equal files.

    Raises
    ------
    ExportError
        The name has another ending: readers go by it.
    """
    if not path.name.lower().endswith(".ome.zarr"):
        raise ExportError("an OME-Zarr's name ends in .ome.zarr", subject=path.name)
    sizes = pyramid_sizes(heatmap.scores.shape)
    with atomic_folder(path) as folder:
        group = zarr.create_group(folder, zarr_format=3, attributes=metadata(heatmap, len(sizes)))
        scores = heatmap.scores
        for level in range(len(sizes)):
            array = group.create_array(
                str(level),
                shape=scores.shape,
                dtype=np.float32,
                chunks=tuple(min(_CHUNK, edge) for edge in scores.shape),
                fill_value=np.float32(np.nan),
                dimension_names=("y", "x"),
            )
            array[:] = scores
            if level + 1 < len(sizes):
                scores = reduce_by(scores, 2)


def metadata(heatmap: Heatmap, levels: int) -> dict[str, Any]:
    """Return the attributes of the group, as OME-NGFF 0.5 has them, and ``wsiad``'s own.

    Parameters
    ----------
    heatmap : Heatmap
    levels : int
        Of the pyramid; each has half the resolution of the one before.
    """
    place = heatmap.placement
    return {
        "ome": {
            "version": _VERSION,
            "multiscales": [
                {
                    "name": f"{heatmap.slide} anomaly score",
                    "axes": [
                        {"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"
                    ],
                    "datasets": [_dataset(heatmap, level) for level in range(levels)],
                    "type": "mean",
                    "metadata": {"description": "blocks of 2 × 2, unscored pixels left aside"},
                }
            ],
        },
        "wsiad": {
            "slide": heatmap.slide,
            "level0_x": place.x,
            "level0_y": place.y,
            "level0_px_per_pixel_x": place.scale_x,
            "level0_px_per_pixel_y": place.scale_y,
            "level0_um_per_px_x": heatmap.spacing.x,
            "level0_um_per_px_y": heatmap.spacing.y,
            "unscored": "NaN",
        },
    }


def _dataset(heatmap: Heatmap, level: int) -> dict[str, Any]:
    place, spacing = heatmap.placement, heatmap.spacing
    pixel = (place.scale_y * 2**level, place.scale_x * 2**level)  # level-0 px
    centre = (place.y + (pixel[0] - 1) / 2, place.x + (pixel[1] - 1) / 2)
    scale = [pixel[0] * spacing.y, pixel[1] * spacing.x]
    translation = [centre[0] * spacing.y, centre[1] * spacing.x]
    return {
        "path": str(level),
        "coordinateTransformations": [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": translation},
        ],
    }
