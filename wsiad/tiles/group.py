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

from wsiad.tiles.codecs import array_codecs, decoded, encode
from wsiad.tiles.options import CompressionOptions
from wsiad.tiles.pixel_error import PixelError
from wsiad.tiles.shards import ShardWriter
from wsiad.tiles.store import GROUPS, TileStore

_CHUNK_BYTES = 3 * 2**20
"""About 16 tiles of 256 px: measured, larger chunks are not faster, and smaller ones cost
more of what a chunk costs whatever its size (docs/performance.md)."""
_CHUNKS_PER_SHARD = 16


class TileArray:
    """The array of tiles of a group, written chunk by chunk.

    Memory bound: one chunk, about 3 MB, and what its coding takes.

    Parameters
    ----------
    group : zarr.Group
        New, in a folder, without an array of that name.
    tile : int
        Edge of the tiles, pixels.
    compression : CompressionOptions
    """

    def __init__(self, group: zarr.Group, tile: int, compression: CompressionOptions) -> None:
        tile_bytes = tile * tile * 3
        chunk = max(1, min(1024, 2 ** round(np.log2(max(1.0, _CHUNK_BYTES / tile_bytes)))))
        self._group, self._compression = group, compression
        self._error = PixelError() if compression.lossy else None
        self._writer = ShardWriter(
            Path(group.store.root) / group.path / "tiles", chunks=_CHUNKS_PER_SHARD, axes=4
        )
        self._buffer = np.zeros((chunk, tile, tile, 3), np.uint8)
        self._filled = 0
        self._written = 0

    @property
    def count(self) -> int:
        """Tiles given so far."""
        return self._written + self._filled

    def append(self, tiles: npt.NDArray[np.uint8]) -> None:
        """Add tiles, uint8 (N, tile, tile, 3)."""
        chunk = len(self._buffer)
        while len(tiles):
            if not self._filled and len(tiles) >= chunk:
                self._write(tiles[:chunk], chunk)
                tiles = tiles[chunk:]
                continue
            room = min(len(tiles), chunk - self._filled)
            self._buffer[self._filled : self._filled + room] = tiles[:room]
            self._filled += room
            tiles = tiles[room:]
            if self._filled == chunk:
                self._flush()

    def _flush(self) -> None:
        self._buffer[self._filled :] = 0  # zarr's fill value: chunks are coded whole
        count, self._filled = self._filled, 0
        self._write(self._buffer, count)

    def _write(self, tiles: npt.NDArray[np.uint8], count: int) -> None:
        data = encode(tiles, self._compression)
        self._writer.append(data)
        if self._error is not None:
            self._error.add(tiles[:count], decoded(data, tiles, self._compression)[:count])
        self._written += count

    def finish(self) -> None:
        """Write what is left, and the array's metadata."""
        if self._filled:
            self._flush()
        self._writer.close()
        chunk, *tile = self._buffer.shape
        self._group.create_array(
            "tiles",
            shape=(self._written, *tile),
            chunks=(chunk, *tile),
            shards=(chunk * _CHUNKS_PER_SHARD, *tile),
            dtype="uint8",
            dimension_names=("tile", "y", "x", "channel"),
            **array_codecs(self._compression),
        )

    def facts(self) -> dict[str, Any]:
        """How the tiles are kept, and the error of it if there is one, as JSON values."""
        facts = self._compression.facts()
        return facts if self._error is None else facts | {"error": self._error.values()}


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
