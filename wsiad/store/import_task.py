"""The import of tiles: the task for one source, its work in a worker process, and its row.

A source is a folder, a tar or an HDF5 file of tiles that other software cut. A source with
labels becomes two groups, one of normal and one of tumour tiles.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsiad.compute.batch import BatchTask
from wsiad.core.errors import InputError, StoreMismatchError
from wsiad.core.files import fingerprint
from wsiad.store.tile_task import TileRow

if TYPE_CHECKING:
    from wsiad.store.foreign_tiles import TileImages
    from wsiad.store.tile_store import TileStore
    from wsiad.tiling.preparation import PictureOptions

Part = Literal["", "normal", "tumor"]
"""Tiles of a labelled source that a group holds; empty for all tiles of one without labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportTask(BatchTask):
    """A group of tiles to import, as it is sent to a worker; its slide names group and source.

    Parameters
    ----------
    store : Path
    tile : int
        Edge of the tiles, pixels.
    labels : Path or None
        HDF5 file that states which tiles of the source show tumour.
    part : str
        Tiles that the group holds: all, the normal ones or those with tumour.
    earlier : TileRow or None
        Row of the group from an earlier call.
    normalised : bool
        True where the tiles have the store's stains already.
    pictures : PictureOptions or None
        Preparation of pictures that are not tiles yet.
    """

    store: Path
    tile: int
    labels: Path | None
    part: Part
    earlier: TileRow | None
    normalised: bool = False
    pictures: PictureOptions | None = None


def import_one(task: ImportTask) -> TileRow:
    """Import a group, unless it is complete in the store already.

    Raises
    ------
    StoreMismatchError
        The store has a group of this name from another source.
    InputError
        The source holds something other than tiles of the requested size.
    """
    # Heavy, and of no use to `--help`.
    from wsiad.store.foreign_tiles import write_tiles
    from wsiad.store.tile_store import TileStore

    start = time.monotonic()
    store, name = TileStore(task.store), task.slide.name
    source = _fingerprint(task)
    if name in store:
        if store.slide(name).fingerprint != source:
            raise StoreMismatchError(
                "is in the store, made from another source of this name",
                subject=name,
                remedy=f"Rename the source, or delete {store.folder(name)} to import it again.",
            )
        return _row(task, store, task.earlier.seconds if task.earlier else 0.0)
    images = tile_images(task.slide.path, task.labels, task.part, pictures=task.pictures)
    write_tiles(store, name, images, tile=task.tile, fingerprint=source, normalised=task.normalised)
    return _row(task, store, time.monotonic() - start)


def tile_images(
    path: Path,
    labels: Path | None = None,
    part: Part = "",
    *,
    pictures: PictureOptions | None = None,
) -> TileImages:
    """Open a source of tiles, or the part of it that its labels select.

    Raises
    ------
    InputError
        The source does not exist or has an unknown format, its labels cannot be read, or it is
        an HDF5 file, whose tiles are ready, and pictures are to be prepared.
    """
    from wsiad.core.hdf5 import read_labels
    from wsiad.store.foreign_tiles import FolderTiles, PcamTiles, TarTiles, source_format

    match source_format(path):
        case "folder":
            return FolderTiles(path, pictures=pictures)
        case "tar":
            return TarTiles(path, pictures=pictures)
    if pictures is not None:
        raise InputError(
            "holds tiles as they are to be stored: only pictures in folders and tars are prepared",
            subject=str(path),
            remedy="Leave out --grey-values, --resize, --crop and --clahe.",
        )
    if labels is None:
        return PcamTiles(path)
    tumour = read_labels(labels)
    return PcamTiles(path, tumour if part == "tumor" else ~tumour)


def _fingerprint(task: ImportTask) -> str:
    """Return a fingerprint of the source, and of its labels if they select its tiles."""
    source = fingerprint(task.slide.path)
    if task.labels is None:
        return source
    text = f"{source} {fingerprint(task.labels)} {task.part}"
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _row(task: ImportTask, store: TileStore, seconds: float) -> TileRow:
    stored = store.slide(task.slide.name)
    fallback = stored.facts["stain"].get("fallback")
    return TileRow(
        task.slide.name,
        stored.status,
        f"stains of the reference were used: {fallback}" if fallback else "",
        seconds,
        tiles=len(stored),
        label=task.slide.label,
        split=task.slide.split,
        file=str(task.slide.path),
    )
