"""Write the scores of a heatmap as OME-TIFF and as OME-Zarr.

OME-TIFF is for programs that calculate with scores. OME-Zarr is for napari and other readers of
OME-NGFF 0.5 (zarr v3), https://ngff.openmicroscopy.org/0.5/. Its levels have ``scale`` and
``translation`` in µm. The specification does not state which point of a pixel its position is.
Here it is the centre, as napari draws it, and (0, 0) is the centre of the slide's top-left level-0
pixel.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file, atomic_folder
from wsiad.exports.export_format import ExportFormat, Findings
from wsiad.heatmaps.score_map import Heatmap

_NAMESPACE = uuid.UUID("b0c0a7d2-5a0f-5f6c-9d53-6a3f0d1c7e01")
_TILE = 256
_MICRONS_PER_CM = 1e4
_SMIN_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE = 340, 341  # TIFF 6.0, section 19
_TIFF_FLOAT = 11


def write_ome_tiff(heatmap: Heatmap, path: Path) -> None:
    """Write a heatmap as a tiled, pyramidal OME-TIFF of float32.

    The full resolution is the first image; its pyramid is in SubIFDs. Pixels are
    deflated without a predictor, because not every reader knows predictors for floats. The
    OME-XML has the physical pixel size and, as JSON in the image's description, the position of
    the heatmap on the slide. Unscored pixels are NaN.

    Each level states the lowest and the highest score of the full resolution as the tags
    SMinSampleValue and SMaxSampleValue, so that a reader which chooses its contrast by them
    needs no pass over the pixels, and does not change it from level to level.

    Writing a level needs memory for the next level too, which is a quarter of its size.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap to write.
    path : Path
        File to write, whose name ends in ``.ome.tif`` or ``.ome.tiff``; written atomically. Equal
        heatmaps give equal files.

    Raises
    ------
    ExportError
        The name has another ending, by which readers would not recognise the format.
    """
    import tifffile

    if not path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        raise ExportError("an OME-TIFF's name ends in .ome.tif or .ome.tiff", subject=path.name)
    sizes = pyramid_sizes(heatmap.scores.shape)
    width_um, height_um = heatmap.pixel_um
    known = heatmap.scores[np.isfinite(heatmap.scores)]
    ends = sample_range(float(known.min()), float(known.max())) if known.size else []
    with atomic_file(path) as partial, tifffile.TiffWriter(partial, ome=True) as tiff:
        scores = heatmap.scores
        for level in range(len(sizes)):
            scale = 2**level
            tiff.write(
                scores,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="minisblack",
                resolutionunit="CENTIMETER",
                resolution=(
                    _MICRONS_PER_CM / (width_um * scale),
                    _MICRONS_PER_CM / (height_um * scale),
                ),
                subifds=len(sizes) - 1 if level == 0 else None,
                subfiletype=0 if level == 0 else 1,
                metadata=_metadata(heatmap) if level == 0 else None,
                extratags=ends,
            )
            if level + 1 < len(sizes):
                scores = reduce_by(scores, 2)


def sample_range(low: float, high: float) -> list[tuple[int, int, int, float, bool]]:
    """Return the TIFF tags SMinSampleValue and SMaxSampleValue of an image of floats.

    Parameters
    ----------
    low, high : float
        Ends of the range by which a reader may choose its contrast.

    Returns
    -------
    list of tuple
        Extra tags as tifffile's writer takes them.
    """
    ends = {_SMIN_SAMPLE_VALUE: low, _SMAX_SAMPLE_VALUE: high}
    return [(tag, _TIFF_FLOAT, 1, value, False) for tag, value in ends.items()]


def pyramid_sizes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return heights and widths of the levels: halved and rounded up until one tile holds all."""
    height, width = shape
    sizes = [(height, width)]
    while max(height, width) > _TILE:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def reduce_by(scores: npt.NDArray[np.float32], factor: int) -> npt.NDArray[np.float32]:
    """Average blocks of pixels, ignoring NaN.

    Parameters
    ----------
    scores : ndarray of float32, (H, W)
        Scores; NaN where there is no score.
    factor : int
        Edge of the blocks, pixels.

    Returns
    -------
    ndarray of float32, (ceil(H / factor), ceil(W / factor))
        Mean of the scores in each block; NaN only for blocks without any score. Blocks at the
        right and at the bottom may have fewer pixels.
    """
    height, width = scores.shape
    reduced = np.full((-(-height // factor), -(-width // factor)), np.nan, np.float32)
    starts = np.arange(0, width, factor)
    for row, line in enumerate(reduced):
        block = scores[row * factor : (row + 1) * factor]
        scored = ~np.isnan(block)
        counts = np.add.reduceat(scored.sum(axis=0), starts)
        sums = np.add.reduceat(np.where(scored, block, 0).sum(axis=0, dtype=np.float64), starts)
        np.divide(sums, counts, out=line, where=counts > 0, casting="same_kind")
    return reduced


def _metadata(heatmap: Heatmap) -> dict[str, object]:
    width_um, height_um = heatmap.pixel_um
    placement = {
        "slide": heatmap.slide,
        "level0_x": heatmap.placement.x,
        "level0_y": heatmap.placement.y,
        "level0_px_per_pixel_x": heatmap.placement.scale_x,
        "level0_px_per_pixel_y": heatmap.placement.scale_y,
        "unscored": "NaN",
    }
    # By default the identifier is random, and no two files would be equal.
    content = hashlib.sha256(json.dumps(placement).encode())
    content.update(np.ascontiguousarray(heatmap.scores).data)
    return {
        "axes": "YX",
        "UUID": str(uuid.uuid5(_NAMESPACE, content.hexdigest())),
        "Name": f"{heatmap.slide} anomaly score",
        "Description": json.dumps(placement),
        "PhysicalSizeX": width_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": height_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": "anomaly score"},
    }


_VERSION = "0.5"
_CHUNK = 512


def write_ome_zarr(heatmap: Heatmap, path: Path) -> None:
    """Write a heatmap as a multiscale image of float32; unscored pixels are NaN.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap to write.
    path : Path
        Folder to write, whose name ends in ``.ome.zarr``; written atomically. Equal heatmaps
        give equal files.

    Raises
    ------
    ExportError
        The name has another ending, by which readers would not recognise the format.
    """
    import zarr

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
    """Return the attributes of the group: those of OME-NGFF 0.5, and those of wsiad.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap to write.
    levels : int
        Number of levels of the pyramid; each has half the resolution of the one before.
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


class OmeZarr(ExportFormat):
    """Format of OME-Zarr: the heatmap for napari and other readers of OME-NGFF."""

    name = "ome-zarr"
    summary = "napari and other readers of OME-NGFF 0.5: the heatmap"

    def files(self, slide: str) -> tuple[str, ...]:
        """Return the name of the folder of the heatmap."""
        del slide
        return ("heatmap.ome.zarr",)

    def write(self, folder: Path, findings: Findings) -> None:
        """Write the heatmap."""
        write_ome_zarr(findings.heatmap, folder / self.files(findings.heatmap.slide)[0])
