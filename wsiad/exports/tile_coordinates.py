"""Write the coordinates of a slide's tiles as HDF5, in the layouts of CLAM and of TRIDENT.

Both tools read a dataset ``coords``, (N, 2) integers: x and y of the tiles' top-left
corners in level-0 pixels. Everything else is in its attributes. The sources are, for CLAM,
``wsi_core/WholeSlideImage.py`` and ``dataset_modules/dataset_h5.py``; for TRIDENT,
``trident/IO.py`` (``coords_to_h5``, ``read_coords``).

Their ``patch_size`` differs: CLAM counts pixels of ``patch_level``, TRIDENT counts pixels at
``target_magnification``. If the store's tiles are pixels of a level, both are the
same number, and one file serves both tools. If tiles were resampled, it does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from wsiad.core.errors import ExportError
from wsiad.core.files import atomic_file

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide

Layout: TypeAlias = Literal["clam", "trident"]

_CHUNK = 4096
_MAGNIFICATION_UM = 10.0
"""By convention, objective magnification is this value divided by µm/px: 40× is 0.25 µm/px."""


def write_coordinates(slide: StoredSlide, path: Path, *, layout: Layout) -> None:
    """Write the coordinates of a stored slide, atomically.

    Parameters
    ----------
    slide : StoredSlide
        Slide whose tiles have known positions.
    path : Path
        HDF5 file to write.
    layout : {"clam", "trident"}
        Tool that decides the meaning of ``patch_size``.

    Raises
    ------
    ExportError
        The tiles have no positions on a slide, or are not square on level 0.
    """
    import h5py

    if not slide.has_geometry:
        raise ExportError(
            "was imported without a slide: its tiles have no coordinates",
            subject=slide.name,
            remedy="Export it as png or jpeg.",
        )
    values = attributes(slide, layout=layout)
    corners = np.rint(slide.column("position")).astype(np.int64).reshape(-1, 2)
    # No lock: it cannot be had on many network file systems, and nobody else knows the file.
    with atomic_file(path) as partial, h5py.File(partial, "w", locking=False) as file:
        coords = file.create_dataset(
            "coords", data=corners, maxshape=(None, 2), chunks=(_CHUNK, 2), track_times=False
        )
        for key, value in values.items():
            coords.attrs[key] = value


def attributes(slide: StoredSlide, *, layout: Layout) -> dict[str, Any]:
    """Return the attributes of ``coords``.

    ``patch_size``, ``overlap`` and ``target_magnification`` refer to the pixels of the layout:
    those of the level that was read (``clam``), or those of the tiles (``trident``). The keys of
    the level are left out of TRIDENT's layout if tiles were resampled, because CLAM would read
    another area with them.

    Raises
    ------
    ExportError
        The tiles are not square on level 0.
    """
    grid, read = slide.grid, slide.facts["read"]
    down_x, down_y = read["level_downsample"]
    width, height = grid.tile * grid.pixels.scale_x, grid.tile * grid.pixels.scale_y
    if round(width) != round(height):
        raise ExportError(
            f"its tiles have {width:.1f} × {height:.1f} level-0 px, but the layout needs squares",
            subject=slide.name,
        )
    # Pixels of the layout's frame per pixel of a tile.
    factor = grid.pixels.scale_x / down_x if layout == "clam" and read["resampled"] else 1.0
    magnification = _MAGNIFICATION_UM / slide.spacing.x
    values: dict[str, Any] = {
        "patch_size": round(grid.tile * factor),
        "patch_size_level0": round(width),
        "level0_magnification": magnification,
        "target_magnification": magnification * factor / grid.pixels.scale_x,
        "overlap": round((grid.tile - grid.stride) * factor),
        "name": slide.name,
        "savetodir": ".",
        "save_path": ".",
        "level0_width": slide.size.width,
        "level0_height": slide.size.height,
    }
    if "coordinates" in slide.facts:
        del values["overlap"]  # not on a lattice: nobody knows
    if layout == "clam" or not read["resampled"]:
        level = (round(slide.size.width / down_x), round(slide.size.height / down_y))
        values |= {
            "patch_level": int(read["level"]),
            "downsample": (float(down_x), float(down_y)),
            "downsampled_level_dim": level,
            "level_dim": level,
        }
    return values
