"""A group of a store while it is written: beside it, tile by tile, renamed when whole."""

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
import zarr
from zarr.codecs import ZstdCodec

from wsiad.tiles.store import GROUPS, TileStore

_CHUNK_BYTES = 3 * 2**20
"""About 16 tiles of 256 px: measured, reads of whole chunks are several times faster
than of single tiles, and larger chunks only cost memory."""
_CHUNKS_PER_SHARD = 16


class TileArray:
    """The array of tiles of a group, written one whole shard at a time.

    Parameters
    ----------
    group : zarr.Group
        New, without an array of that name.
    expected : int
        Tiles that will come; fewer or more may.
    tile : int
        Edge of the tiles, pixels.
    """

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
            # Else zarr compares each chunk with its fill value, at the price of compressing it.
            config={"write_empty_chunks": True},
        )
        self._buffer = np.empty((self._shard, tile, tile, 3), np.uint8)
        self._filled = 0
        self._written = 0

    @property
    def count(self) -> int:
        """Tiles given so far."""
        return self._written + self._filled

    def append(self, tiles: npt.NDArray[np.uint8]) -> None:
        """Add tiles, uint8 (N, tile, tile, 3)."""
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
            if end > self._array.shape[0]:
                self._array.resize((end, *self._array.shape[1:]))
            self._array[self._written : end] = self._buffer[: self._filled]
        self._written, self._filled = end, 0

    def finish(self) -> None:
        """Write what is left, and let the array be as long as there are tiles."""
        self._flush()
        if self._written != self._array.shape[0]:
            self._array.resize((self._written, *self._array.shape[1:]))


def write_array(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """Write a column of a group whole."""
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
def beside(store: TileStore, name: str) -> Iterator[Path]:
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
