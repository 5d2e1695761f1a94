"""Writing a slide's group into a store: beside it, and renamed when whole."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import zarr
from zarr.codecs import ZstdCodec

from wsiad._version import __version__
from wsiad.slides.slide import Slide
from wsiad.tiles.plan import SlidePlan
from wsiad.tiles.store import GROUPS, TileStore
from wsiad.tiles.stream import TileBlock, stream
from wsiad.tissue.quality import COLUMNS

_CHUNK_BYTES = 3 * 2**20
"""About 16 tiles of 256 px: measured, reads of whole chunks are several times faster
than of single tiles, and larger chunks only cost memory."""
_CHUNKS_PER_SHARD = 16


def write_slide(store: TileStore, plan: SlidePlan, *, fingerprint: str) -> int:
    """Write the tiles of a plan as a slide's group.

    The bytes are a function of slide, preparation and library versions: no times, no
    paths, no order of workers.

    Parameters
    ----------
    store : TileStore
    plan : SlidePlan
    fingerprint : str
        Of the slide's file; see :func:`wsiad.files.fingerprint`.

    Returns
    -------
    int
        Tiles written.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded; nothing is left in the store.
    OSError
        The disk is full; nothing is left in the store.
    """
    slide = plan.scaled.slide
    with _beside(store, slide.name) as folder:
        group = zarr.create_group(folder)
        tiles = _TileArray(group, len(plan), plan.grid.tile)
        columns, missing = _write_tiles(tiles, plan)
        for name, values in columns.items():
            _write_array(group, name, values)
        _write_array(group, "mask", plan.tissue.mask)
        group.attrs.put({"wsiad": _facts(plan, store, fingerprint, tiles.count, missing)})
        return tiles.count


def _write_tiles(tiles: _TileArray, plan: SlidePlan) -> tuple[dict[str, npt.NDArray[Any]], int]:
    parts: list[TileBlock] = []
    for block in stream(plan, quality=True):
        tiles.append(block.pixels)
        # Only the columns are kept: the pixels of a whole slide do not fit in memory.
        parts.append(
            TileBlock(
                block.pixels[:0],
                block.rows,
                block.columns,
                block.coverage,
                block.quality,
                block.missing,
            )
        )
    tiles.finish()
    rows = np.concatenate([part.rows for part in parts] or [np.empty(0, np.int32)])
    columns = np.concatenate([part.columns for part in parts] or [np.empty(0, np.int32)])
    share = np.concatenate([part.coverage for part in parts] or [np.empty(0, np.float32)])
    table: dict[str, npt.NDArray[Any]] = {
        "position": plan.grid.boxes(rows, columns)[:, :2],
        "lattice": np.stack([rows, columns], axis=1).astype(np.int32),
        "coverage": share,
    }
    for name in COLUMNS:
        values = [part.quality[name] for part in parts if part.quality]
        table[name] = np.concatenate(values or [np.empty(0, np.float32)])
    return table, sum(part.missing for part in parts)


def _facts(
    plan: SlidePlan, store: TileStore, fingerprint: str, count: int, missing: int
) -> dict[str, Any]:
    slide, grid = plan.scaled.slide, plan.grid
    level = slide.levels[plan.scaled.level]
    return {
        "status": "ok" if count else "no-tissue",
        "tiles": count,
        "tiles_missing": missing,
        "digest": store.digest,
        "slide": slide_facts(slide) | {"fingerprint": fingerprint},
        "grid": {
            "tile_px": grid.tile,
            "stride_px": grid.stride,
            "columns": grid.columns,
            "rows": grid.rows,
            "pixels": [
                grid.pixels.x,
                grid.pixels.y,
                grid.pixels.scale_x,
                grid.pixels.scale_y,
            ],
        },
        "read": {
            "level": plan.scaled.level,
            "level_downsample": [level.downsample_x, level.downsample_y],
            "resampled": plan.scaled.resampled,
        },
        "tissue": {
            "threshold": plan.tissue.threshold,
            "share": plan.tissue.tissue_share,
            "pen_share": plan.tissue.pen_share,
            "placement": [
                plan.tissue.placement.x,
                plan.tissue.placement.y,
                plan.tissue.placement.scale_x,
                plan.tissue.placement.scale_y,
            ],
        },
        "stain": plan.stain.to_dict(),
        "versions": {
            "wsiad": __version__,
            "openslide": openslide.__library_version__,
            "zarr": zarr.__version__,
        },
    }


def slide_facts(slide: Slide) -> dict[str, Any]:
    """Describe a slide as JSON values: file name, format, size, bounds and spacing."""
    return {
        "file": slide.path.name,
        "format": slide.format,
        "size_px": [slide.size.width, slide.size.height],
        "bounds_px": [slide.bounds.x, slide.bounds.y, slide.bounds.width, slide.bounds.height],
        "spacing_um": [slide.spacing.x, slide.spacing.y],
        "spacing_source": slide.spacing_source,
    }


class _TileArray:
    """The array of tiles, written one whole shard at a time."""

    def __init__(self, group: zarr.Group, expected: int, tile: int) -> None:
        tile_bytes = tile * tile * 3
        chunk = max(1, min(1024, 2 ** round(np.log2(max(1.0, _CHUNK_BYTES / tile_bytes)))))
        self._shard = chunk * _CHUNKS_PER_SHARD
        self._array = group.create_array(
            "tiles",
            shape=(expected, tile, tile, 3),
            chunks=(chunk, tile, tile, 3),
            shards=(self._shard, tile, tile, 3),
            dtype="uint8",
            compressors=ZstdCodec(level=1),
            dimension_names=("tile", "y", "x", "channel"),
        )
        self._buffer = np.empty((self._shard, tile, tile, 3), np.uint8)
        self._filled = 0
        self._written = 0

    @property
    def count(self) -> int:
        """Tiles given so far."""
        return self._written + self._filled

    def append(self, tiles: npt.NDArray[np.uint8]) -> None:
        while len(tiles):
            room = min(len(tiles), self._shard - self._filled)
            self._buffer[self._filled : self._filled + room] = tiles[:room]
            self._filled += room
            tiles = tiles[room:]
            if self._filled == self._shard:
                self._flush()

    def _flush(self) -> None:
        end = self._written + self._filled
        if self._filled:
            self._array[self._written : end] = self._buffer[: self._filled]
        self._written, self._filled = end, 0

    def finish(self) -> None:
        self._flush()
        if self._written != self._array.shape[0]:
            self._array.resize((self._written, *self._array.shape[1:]))


def _write_array(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(1, min(length, 65_536)) for length in values.shape),
        dtype=values.dtype,
        compressors=ZstdCodec(level=1),
    )
    if values.size:
        array[...] = values


@contextmanager
def _beside(store: TileStore, name: str) -> Iterator[Path]:
    """Yield a folder that becomes the slide's group when whole.

    Its name holds host and process: what a dead process of this host left is cleared
    away, what another live one is writing is not touched.
    """
    groups = store.path / GROUPS
    host = socket.gethostname()
    for stale in groups.glob(f".{name}.{host}.*.partial"):
        process = stale.name.removesuffix(".partial").rsplit(".", 1)[1]
        if not process.isdigit() or not _alive(int(process)):
            shutil.rmtree(stale, ignore_errors=True)
    folder = groups / f".{name}.{host}.{os.getpid()}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
        try:
            folder.rename(store.folder(name))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or name not in store:
                raise
            # Another run finished the same slide with the same preparation first.
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
