"""A slide's group while it is written: in a hidden folder, tile by tile, renamed when complete.

Where a codec is lossy, the writer also measures how much it changes the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from wsiad.core.files import atomic_folder
from wsiad.core.ownership import clear_leftovers
from wsiad.core.signals import postponed
from wsiad.store.shards import ShardWriter, array_codecs, decoded, encode
from wsiad.store.tile_store import TileStore
from wsiad.tiling.preparation import CompressionOptions


class PixelError:
    """The difference between pixels before and after coding, over any number of tiles."""

    def __init__(self) -> None:
        # Counts of the absolute differences 0 to 255: exact, whatever the number of tiles.
        self._counts = np.zeros(256, np.int64)
        self._tiles = 0

    def add(self, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> None:
        """Add tiles before and after coding, uint8 arrays of the same shape."""
        difference = np.maximum(before, after) - np.minimum(before, after)
        self._counts += np.bincount(difference.ravel(), minlength=256)
        self._tiles += len(before)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of tiles, and of absolute differences 0 to 255, int64 (257,)."""
        return np.concatenate([[self._tiles], self._counts])

    def add_counts(self, counts: npt.NDArray[np.int64]) -> None:
        """Add what was counted of other tiles; see :attr:`counts`."""
        self._tiles += int(counts[0])
        self._counts += counts[1:]

    def values(self) -> dict[str, Any]:
        """Return the error as JSON values.

        Returns
        -------
        dict
            ``max_abs`` and ``mean_abs`` in grey levels of 0 to 255 over all channels, and
            ``psnr_db``, 10 · log10(255² / mean squared error). ``psnr_db`` is ``None`` if nothing
            differs, and all are ``None`` if no tile was added. ``tiles`` is their number.
        """
        total = int(self._counts.sum())
        if not total:
            return {"max_abs": None, "mean_abs": None, "psnr_db": None, "tiles": 0}
        levels = np.arange(256)
        mean_square = float(self._counts @ levels**2) / total
        return {
            "max_abs": int(levels[self._counts > 0].max()),
            "mean_abs": round(float(self._counts @ levels) / total, 4),
            "psnr_db": round(10 * math.log10(255**2 / mean_square), 2) if mean_square else None,
            "tiles": self._tiles,
        }


_CHUNK_BYTES = 3 * 2**20
"""About 16 tiles of 256 px. As measured, larger chunks are not faster; smaller ones cost more,
because every chunk has a fixed cost (docs/performance.md)."""
_CHUNKS_PER_SHARD = 16

_MEASURED_FIRST, _MEASURED_EVERY = 8, 8
"""The error of lossy coding is measured on so many chunks, and on each so-many-th one after them:
decoding takes longer than coding."""


class TileArray:
    """The array of tiles of a group, written chunk by chunk.

    Memory bound: one chunk, about 3 MB, and the memory for coding it.

    Parameters
    ----------
    group : zarr.Group
        New group in a folder, without an array ``tiles``.
    tile : int
        Edge of the tiles, pixels.
    compression : CompressionOptions
    first : int
        Index of the first tile that will be added, the beginning of a shard. The tiles before
        it are written elsewhere.

    Attributes
    ----------
    shard : int
        Number of tiles in a shard.
    error : PixelError or None
        Error of lossy coding, measured on a sample; ``None`` if every pixel is kept.
    """

    def __init__(
        self,
        group: zarr.Group,
        tile: int,
        compression: CompressionOptions,
        *,
        first: int = 0,
    ) -> None:
        chunk, self.shard = chunk_tiles(tile), shard_tiles(tile)
        self._group, self._compression = group, compression
        self.error = PixelError() if compression.lossy else None
        self._writer = ShardWriter(
            Path(group.store.root) / group.path / "tiles",
            chunks=_CHUNKS_PER_SHARD,
            axes=4,
            first=first // self.shard,
        )
        self._buffer = np.zeros((chunk, tile, tile, 3), np.uint8)
        self._filled = 0
        self._written = first

    @property
    def count(self) -> int:
        """Number of tiles added so far, including those before the first."""
        return self._written + self._filled

    def link(self, source: Path, tiles: int) -> None:
        """Take the next tiles from the shards of another array, unchanged.

        Parameters
        ----------
        source : Path
            Folder of an array that has these tiles at the same indices and in the same coding.
        tiles : int
            Number of tiles: complete shards, or all up to the array's end.
        """
        self._writer.link(source, -(-tiles // self.shard))
        self._written += tiles

    def append(self, tiles: npt.NDArray[np.uint8]) -> None:
        """Append tiles, uint8 (N, tile, tile, 3)."""
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
        number = self._written // len(self._buffer)
        if self.error is not None and (number < _MEASURED_FIRST or number % _MEASURED_EVERY == 0):
            self.error.add(tiles[:count], decoded(data, tiles, self._compression)[:count])
        self._written += count

    @postponed()
    def finish(self) -> None:
        """Write the remaining tiles and the array's metadata."""
        if self._filled:
            self._flush()
        self._writer.close()
        chunk, *tile = self._buffer.shape
        _write_array(
            self._group,
            "tiles",
            None,
            shape=(self._written, *tile),
            chunks=(chunk, *tile),
            shards=(chunk * _CHUNKS_PER_SHARD, *tile),
            dtype="uint8",
            dimension_names=("tile", "y", "x", "channel"),
            **array_codecs(self._compression),
        )

    def facts(self) -> dict[str, Any]:
        """Return the compression, and its error on a sample if it is lossy, as JSON values."""
        facts = self._compression.facts()
        return facts if self.error is None else facts | {"error": self.error.values()}


def chunk_tiles(tile: int) -> int:
    """Return the number of tiles in a chunk; ``tile`` is their edge in pixels."""
    chunk = 2 ** round(np.log2(max(1.0, _CHUNK_BYTES / (tile * tile * 3))))
    return int(max(1, min(1024, chunk)))


def shard_tiles(tile: int) -> int:
    """Return the number of tiles in a shard, which is one file of the store."""
    return chunk_tiles(tile) * _CHUNKS_PER_SHARD


@postponed()
def create_group(folder: Path) -> zarr.Group:
    """Create a group in an empty folder."""
    return zarr.create_group(folder)


@postponed()
def write_attributes(group: zarr.Group, facts: dict[str, Any]) -> None:
    """Write a group's attributes: JSON values under the key ``wsiad``."""
    group.attrs.put({"wsiad": facts})


@postponed()
def write_array(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """Write a complete column of a group."""
    _write_array(
        group,
        name,
        values,
        shape=values.shape,
        chunks=tuple(max(1, min(length, 65_536)) for length in values.shape),
        dtype=values.dtype,
        compressors=ZstdCodec(level=1),
    )


@postponed()
def describe_array(group: zarr.Group, name: str, **layout: Any) -> None:
    """Write the metadata of an array whose shards are written directly."""
    _write_array(group, name, None, **layout)


def _write_array(
    group: zarr.Group, name: str, values: npt.NDArray[Any] | None, **layout: Any
) -> None:
    """Write an array of a group on a disk, its values included if there are any.

    zarr makes it in memory, and its files are written one after the other: zarr itself writes
    several at a time in threads, and after an error of one, the others could put files back
    into a folder that is being removed.
    """
    files: dict[str, Any] = {}
    array = zarr.create_group(MemoryStore(files)).create_array(name, **layout)
    if values is not None and values.size:
        array[...] = values
    folder = Path(group.store.root) / group.path
    for key, content in files.items():
        if key.startswith(f"{name}/"):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.to_bytes())


@contextmanager
def beside(store: TileStore, name: str) -> Iterator[Path]:
    """Yield a folder that becomes the slide's group when it is complete.

    Leftovers of a dead process for the same slide are removed; files that another live process
    is writing are not touched. If two processes complete the slide, the first result stays.
    """
    group = store.folder(name)
    clear_leftovers(group.parent, of=group.name)
    try:
        with atomic_folder(store.folder(name), replace=False) as folder:
            yield folder
    except FileExistsError:
        if name not in store:
            raise
        # Another run finished the same slide with the same preparation first.
