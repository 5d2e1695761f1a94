"""Files of chunks: zarr v3's ``sharding_indexed``, written and read directly.

A shard is its chunks one after the other, then an index of offset and length of each and the
index's CRC-32C (zarr v3 specification, "Sharding codec", index at the end). Written chunk by
chunk, so that a shard need not be in memory; read chunk by chunk without an event loop.
No file stays open between two calls: readers may be pickled and forked at will.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wsiad.core.files import parse_json, read_text
from wsiad.store.codecs import READABLE, Tiles, decode

_MOST_CHUNK_BYTES = 256 << 20
_MOST_CHUNKS = 1 << 16  # of a shard
_NOTHING = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold."""


class ShardWriter:
    """Writes the chunks of an array along its first axis, in their order.

    Parameters
    ----------
    folder : Path
        Of the array.
    chunks : int
        Chunks a shard.
    axes : int
        Of the array; all but the first have one chunk.
    first : int
        Number of the first shard.
    """

    def __init__(self, folder: Path, *, chunks: int, axes: int, first: int = 0) -> None:
        self._folder, self._chunks, self._axes = folder, chunks, axes
        self._shards = first
        self._index: list[tuple[int, int]] = []
        self._file: Any = None

    def append(self, data: bytes) -> None:
        """Write one more coded chunk."""
        if self._file is None:
            path = shard_path(self._folder, self._shards, axes=self._axes)
            path.parent.mkdir(parents=True)
            self._file = path.open("wb")
        self._index.append((self._file.tell(), len(data)))
        self._file.write(data)
        if len(self._index) == self._chunks:
            self._finish()

    def _finish(self) -> None:
        missing = [(_NOTHING, _NOTHING)] * (self._chunks - len(self._index))
        index = np.array(self._index + missing, "<u8").tobytes()
        self._file.write(index + crc32c(index).to_bytes(4, "little"))
        self._file.close()
        self._file, self._index = None, []
        self._shards += 1

    def link(self, source: Path, shards: int) -> None:
        """Take the next shards from another array's folder, where they stay as well.

        Raises
        ------
        FileNotFoundError
            One of them is not there.
        """
        if self._file is not None:
            raise ValueError("a shard has been begun")
        for number in range(self._shards, self._shards + shards):
            path = shard_path(self._folder, number, axes=self._axes)
            path.parent.mkdir(parents=True)
            original = shard_path(source, number, axes=self._axes)
            try:
                os.link(original, path)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without hard links, or not between folders
                shutil.copyfile(original, path)
        self._shards += shards

    def close(self) -> None:
        """Write the index of a shard that is not full."""
        if self._file is not None:
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()


class ShardReader:
    """Reads chunks of an array of tiles.

    Parameters
    ----------
    folder : Path
        Of the array.
    chunk : int
        Tiles a chunk.
    per_shard : int
        Chunks a shard.
    tile_shape : tuple of int
        Of a tile.
    codecs : tuple of str
        See :func:`wsiad.store.codecs.decode`.
    count : int
        Tiles in the array.
    """

    def __init__(
        self,
        folder: Path,
        *,
        chunk: int,
        per_shard: int,
        tile_shape: tuple[int, ...],
        codecs: tuple[str, ...],
        count: int,
    ) -> None:
        self.count = count
        self._folder, self._per_shard, self._codecs = folder, per_shard, codecs
        self.shape = (chunk, *tile_shape)
        self._indices: dict[int, npt.NDArray[np.uint64]] = {}

    @classmethod
    def of(cls, folder: Path) -> ShardReader | None:
        """Return the reader of an array, ``None`` if it is not laid out as wsiad does.

        Raises
        ------
        OSError, ValueError
            The array's metadata cannot be read.
        """
        layout = parse_json(read_text(folder / "zarr.json"))
        try:
            (sharding,) = layout["codecs"]
            inner = sharding["configuration"]
            shard = layout["chunk_grid"]["configuration"]["chunk_shape"]
            chunk, *tile_shape = inner["chunk_shape"]
            names = tuple(codec["name"] for codec in inner["codecs"])
            known = (
                layout["data_type"] == "uint8"
                and layout["chunk_grid"]["name"] == "regular"
                and layout["chunk_key_encoding"]
                == {"name": "default", "configuration": {"separator": "/"}}
                and sharding["name"] == "sharding_indexed"
                and inner["index_location"] == "end"
                and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
                and inner["index_codecs"][0]["configuration"] == {"endian": "little"}
                and names in READABLE
                and layout["shape"][1:] == shard[1:] == tile_shape
                and len(tile_shape) == 3
                and all(type(n) is int and n > 0 for n in (chunk, *shard, *tile_shape))
                and type(layout["shape"][0]) is int
                and chunk * math.prod(tile_shape) <= _MOST_CHUNK_BYTES
                and shard[0] // chunk <= _MOST_CHUNKS
                and shard[0] % chunk == 0
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return None
        if not known:
            return None
        return cls(
            folder,
            chunk=chunk,
            per_shard=shard[0] // chunk,
            tile_shape=tuple(tile_shape),
            codecs=names,
            count=layout["shape"][0],
        )

    def read(self, number: int, out: Tiles) -> None:
        """Read a chunk.

        Parameters
        ----------
        number : int
            Of the chunk in the array.
        out : ndarray of uint8, (chunk, S, S, 3)
            Where to; C-contiguous. Beyond the array's end it is filled as zarr fills it.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The chunk is damaged.
        """
        shard, within = divmod(number, self._per_shard)
        path = shard_path(self._folder, shard, axes=len(self.shape))
        handle = os.open(path, os.O_RDONLY)
        try:
            index = self._indices.get(shard)
            if index is None:
                index = self._indices[shard] = self._index(handle)
            offset, length = (int(value) for value in index[within])
            if offset == _NOTHING or offset + length > os.fstat(handle).st_size:
                raise ValueError(f"{path.name} does not hold chunk {within}")
            if self._codecs == ("bytes",) and length == out.nbytes:
                if os.preadv(handle, [out.data.cast("B")], offset) != length:
                    raise ValueError(f"{path.name} ended within chunk {within}")
                return  # there is nothing to decode
            data = os.pread(handle, length, offset)
        finally:
            os.close(handle)
        decode(data, self._codecs, out)

    def _index(self, handle: int) -> npt.NDArray[np.uint64]:
        size = 16 * self._per_shard
        start = os.fstat(handle).st_size - size - 4
        data = os.pread(handle, size + 4, max(0, start))
        if start < 0 or crc32c(data[:size]) != int.from_bytes(data[size:], "little"):
            raise ValueError("the index of a shard is damaged")
        return np.frombuffer(data[:size], "<u8").reshape(-1, 2)


def shard_path(folder: Path, number: int, *, axes: int) -> Path:
    """File of a shard along the first axis (zarr v3, "default" chunk keys)."""
    return folder.joinpath("c", str(number), *("0" for _ in range(axes - 1)))


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, B.4) of a few hundred bytes.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF
