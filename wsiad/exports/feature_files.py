"""Write stored features of a slide as HDF5, in the layout that TRIDENT and CLAM share.

Both keep a file for each slide with the datasets ``features``, float32 (N, D), and ``coords``,
integers (N, 2): x and y of the tiles' top-left corners in level-0 pixels. TRIDENT states the tiles
in the attributes of ``coords`` (``trident/wsi_objects/WSI.py``), CLAM states nothing
(``extract_features_fp.py``) and ignores them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsiad.core.errors import ExportError, WsiadError
from wsiad.core.files import atomic_file
from wsiad.core.signals import raise_if_ended
from wsiad.exports.tile_coordinates import attributes

if TYPE_CHECKING:
    from wsiad.store.stored_features import FeatureFolder
    from wsiad.store.stored_slide import StoredSlide

_BLOCK = 4096


def write_features(slide: StoredSlide, folder: FeatureFolder, path: Path) -> None:
    """Write the features of a stored slide and the coordinates of its tiles, atomically.

    Parameters
    ----------
    slide : StoredSlide
        Slide whose tiles have known positions.
    folder : FeatureFolder
        Features with one vector for each tile.
    path : Path
        HDF5 file to write.

    Raises
    ------
    ExportError
        A tile has several vectors, or the tiles have no positions, or are not square on level 0.
    StoreError
        The slide or its features are damaged, or the features are not complete.
    """
    import h5py

    check_one_vector(folder)
    if not slide.has_geometry:
        raise ExportError(
            "was imported without a slide: its tiles have no coordinates",
            subject=slide.name,
            remedy="Embed a store of slides.",
        )
    features, values = folder.slide(slide), attributes(slide, layout="trident")
    corners = np.rint(slide.column("position")).astype(np.int64).reshape(-1, 2)
    count, width = len(slide), int(np.prod(folder.shape))
    # No lock: it cannot be had on many network file systems, and nobody else knows the file.
    with atomic_file(path) as partial, h5py.File(partial, "w", locking=False) as file:
        block = (min(_BLOCK, max(1, count)), width)
        data = file.create_dataset(
            "features", (count, width), "float32", maxshape=(None, width), chunks=block,
            track_times=False,
        )  # fmt: skip
        data.attrs["name"], data.attrs["savetodir"] = slide.name, "."
        for start in range(0, count, _BLOCK):
            part = np.arange(start, min(start + _BLOCK, count))
            data[start : start + len(part)] = features.take(part).reshape(len(part), width)
        coords = file.create_dataset(
            "coords", data=corners, maxshape=(None, 2), chunks=(block[0], 2), track_times=False
        )
        for key, value in values.items():
            coords.attrs[key] = value


def check_one_vector(folder: FeatureFolder) -> None:
    """Check that the features of a tile are one vector, as other programs expect.

    Raises
    ------
    ExportError
        A tile has several places.
    """
    if len(folder.shape) == 3 and folder.shape[0] > 1:
        places, _, channels = folder.shape
        raise ExportError(
            f"a tile has {places} × {places} vectors of {channels} values, and these files have "
            "one",
            subject=str(folder.path),
            remedy="Set --option places=1.",
        )


def write_feature_files(
    slides: list[StoredSlide], folder: FeatureFolder, out: Path
) -> Iterator[tuple[str, str]]:
    """Write a file ``<slide>.h5`` for each slide; yield its name, and why it has no file.

    Raises
    ------
    ExportError
        A tile has several vectors.
    """
    check_one_vector(folder)
    for slide in slides:
        why = ""
        try:
            write_features(slide, folder, out / f"{slide.name}.h5")
        except WsiadError as error:
            raise_if_ended()
            why = str(error).removeprefix(f"{slide.name}: ")
        yield slide.name, why
