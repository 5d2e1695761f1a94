"""Coordinates of tiles that CLAM, TRIDENT or wsiad wrote, read for a slide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.slides.scaled import ScaledSlide
from wsiad.store.hdf5 import dataset, open_hdf5, reading

_MOST = 50_000_000
_ATTRIBUTES = ("patch_size_level0", "patch_size", "patch_level", "custom_downsample")
_TOLERANCE = 0.01
"""Relative difference of a patch's edge and a tile's up to which they are the same."""


def find_coordinates(folder: Path, name: str) -> Path:
    """Return a slide's file: ``<name>.h5`` or ``<name>_patches.h5``, also in ``patches/``.

    Raises
    ------
    InputError
        There is none.
    """
    for part in (folder, folder / "patches"):
        for file in (f"{name}.h5", f"{name}_patches.h5"):
            if (part / file).is_file():
                return part / file
    raise InputError(
        f"has no coordinates: neither {name}.h5 nor {name}_patches.h5 is in {folder}",
        subject=name,
        remedy="Name the file as the slide, or leave the slide out.",
    )


def read_corners(path: Path, scaled: ScaledSlide, *, tile: int) -> npt.NDArray[np.float64]:
    """Read the top-left corners of patches, and check that a tile covers one.

    Parameters
    ----------
    path : Path
        HDF5 with ``coords``; see docs/interchange.md for its attributes.
    scaled : ScaledSlide
        The slide at the tiles' scale.
    tile : int
        Edge of the tiles, pixels at that scale.

    Returns
    -------
    ndarray of float64, (N, 2)
        x, y in level-0 pixels.

    Raises
    ------
    InputError
        It is no such file, or its patches are larger or smaller than the tiles.
    """
    with reading(path), open_hdf5(path) as file:
        coords = dataset(file, "coords", path=path)
        shape = tuple(coords.shape or ())
        if len(shape) != 2 or shape[1] != 2 or shape[0] > _MOST or coords.dtype.kind not in "iu":
            raise InputError(
                f"its `coords` is {coords.dtype} {shape}, not integers (N, 2)", subject=str(path)
            )
        attributes = {name: coords.attrs[name] for name in _ATTRIBUTES if name in coords.attrs}
        corners = np.asarray(coords[...], dtype=np.float64)
    try:
        edge = _edge(attributes, scaled)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"its `coords` say no patch size ({error})",
            subject=str(path),
            remedy="It needs `patch_size_level0`, or `patch_size` and `patch_level`.",
        ) from error
    covered = tile * scaled.pixels.scale_x
    if not abs(edge - covered) <= max(1.0, _TOLERANCE * covered):
        mpp = edge * scaled.slide.spacing.x / tile
        raise InputError(
            f"its patches have {edge:g} level-0 px, and the tiles cover {covered:g}",
            subject=str(path),
            remedy=f"Give --mpp {mpp:.4g}, or --tile {round(edge / scaled.pixels.scale_x)}.",
        )
    return corners


def _edge(attributes: dict[str, Any], scaled: ScaledSlide) -> float:
    """Edge of the patches, level-0 pixels."""
    if "patch_size_level0" in attributes:
        edge = float(attributes["patch_size_level0"])
    else:
        level = int(attributes["patch_level"])
        if level < 0:
            raise ValueError(f"patch_level is {level}")
        down = scaled.slide.levels[level].downsample_x
        further = float(attributes.get("custom_downsample", 1))
        edge = float(attributes["patch_size"]) * down * further
    if not (math.isfinite(edge) and edge > 0):
        raise ValueError(f"the patch size is {edge}")
    return edge
