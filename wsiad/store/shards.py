"""Shards, the files of a store's chunks, and the coding of chunks, written and read directly.

A shard (zarr v3's ``sharding_indexed``) holds its chunks one after the other, then an index of
the offset and length of each, and the CRC-32C of the index (zarr v3 specification, "Sharding
codec", index at the end). Shards are written chunk by chunk, so a complete shard is never in
memory, and are read chunk by chunk without an event loop. No file stays open between two calls,
so readers can be pickled and forked at any time.

zarr's own pipeline passes each chunk through an event loop and several copies, which costs
more than the compression. Chunks are therefore coded here, to exactly the bytes that zarr reads
and writes (docs/store-format.md; measured in docs/performance.md).

A lossy chunk is one image with the tiles one below the other. Its codecs have the names and the
form of the package ``imagecodecs-zarr``, so that either package reads them. Importing this
module registers them with zarr, unless another package has done so.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import threading
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, cast

import google_crc32c
import imagecodecs
import numcodecs.zstd
import numpy as np
import numpy.typing as npt
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import ZstdCodec
from zarr.registry import get_codec_class, register_codec

from wsiad.core.files import MOST_FACTS, parse_json, read_text
from wsiad.tiling.preparation import CompressionOptions

Tiles = npt.NDArray[np.uint8]

_JXL_EFFORT = 3
_SEAL_LEVEL = -10
"""Level of zstd around an image, added for its checksum: damaged images decode without error."""


@dataclass(frozen=True)
class ImageCodec(ArrayBytesCodec):  # type: ignore[misc]  # zarr has no types here
    """A zarr codec that stores a chunk of tiles as one image.

    Parameters
    ----------
    level : int
        Quality, 1 to 100.
    """

    level: int

    is_fixed_size: ClassVar[bool] = False
    name: ClassVar[str]

    @abstractmethod
    def encode_image(self, image: Tiles) -> bytes:
        """Encode an image, uint8 (H, W, 3)."""

    @staticmethod
    @abstractmethod
    def decode_image(data: bytes, out: Tiles) -> None:
        """Decode an image into ``out``, uint8 (H, W, 3)."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the codec that an array's metadata describes."""
        return cls(int(data.get("configuration", {}).get("level", 95)))

    def to_dict(self) -> dict[str, Any]:
        """Describe the codec for an array's metadata."""
        return {"name": self.name, "configuration": {"level": self.level}}

    def _encode_sync(self, chunk_array: Any, chunk_spec: Any) -> Any:
        tiles = np.ascontiguousarray(chunk_array.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(self.encode_image(_column(tiles)))

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        out = np.empty(chunk_spec.shape, np.uint8)
        self.decode_image(chunk_bytes.to_bytes(), _column(out))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(out)

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        """Refuse: the encoded size is not known beforehand."""
        raise NotImplementedError


class JpegCodec(ImageCodec):
    """Baseline JPEG without chroma subsampling."""

    name = "imagecodecs_jpeg"

    def encode_image(self, image: Tiles) -> bytes:
        """Encode an image, uint8 (H, W, 3)."""
        return bytes(imagecodecs.jpeg8_encode(image, level=self.level, subsampling="444"))

    @staticmethod
    def decode_image(data: bytes, out: Tiles) -> None:
        """Decode an image into ``out``, uint8 (H, W, 3)."""
        imagecodecs.jpeg8_decode(data, out=out)


class JpegXlCodec(ImageCodec):
    """Lossy JPEG XL."""

    name = "imagecodecs_jpegxl"

    def encode_image(self, image: Tiles) -> bytes:
        """Encode an image, uint8 (H, W, 3)."""
        return bytes(
            imagecodecs.jpegxl_encode(image, level=self.level, effort=_JXL_EFFORT, numthreads=1)
        )

    @staticmethod
    def decode_image(data: bytes, out: Tiles) -> None:
        """Decode an image into ``out``, uint8 (H, W, 3)."""
        imagecodecs.jpegxl_decode(data, numthreads=1, out=out)


_BY_OPTION: dict[str, type[ImageCodec]] = {"jpeg": JpegCodec, "jpeg-xl": JpegXlCodec}
_BY_NAME = {codec.name: codec for codec in _BY_OPTION.values()}

READABLE = frozenset({("bytes",), ("bytes", "zstd")} | {(name, "zstd") for name in _BY_NAME})
"""zarr's names of the codecs that :func:`decode` knows, in the order in which they encode."""

for _name, _codec in _BY_NAME.items():
    try:
        get_codec_class(_name)
    except KeyError:
        register_codec(_name, _codec)


def array_codecs(options: CompressionOptions) -> dict[str, Any]:
    """Return arguments of ``zarr.create_array`` that describe the output of :func:`encode`."""
    match options.codec:
        case "none":
            return {"compressors": None}
        case "zstd":
            return {"compressors": ZstdCodec(level=options.level, checksum=True)}
    return {
        "serializer": _BY_OPTION[options.codec](options.quality),
        "compressors": ZstdCodec(level=_SEAL_LEVEL, checksum=True),
    }


def encode(tiles: Tiles, options: CompressionOptions) -> bytes:
    """Encode a chunk, uint8 (N, S, S, 3), for an array made with :func:`array_codecs`."""
    tiles = np.ascontiguousarray(tiles)
    match options.codec:
        case "none":
            return tiles.tobytes()
        case "zstd":
            return bytes(numcodecs.zstd.compress(tiles.reshape(-1), options.level, True))
    image = _BY_OPTION[options.codec](options.quality).encode_image(_column(tiles))
    return bytes(numcodecs.zstd.compress(image, _SEAL_LEVEL, True))


def decode(data: bytes | memoryview, names: tuple[str, ...], out: Tiles) -> None:
    """Decode a chunk.

    Parameters
    ----------
    data : bytes or memoryview
    names : tuple of str
        Names of the codecs, an element of :data:`READABLE`.
    out : ndarray of uint8, (N, S, S, 3)
        Array to fill; C-contiguous.

    Raises
    ------
    ValueError
        The bytes are damaged, or hold another number of pixels.
    """
    try:
        match names:
            case ("bytes",):
                out.data.cast("B")[:] = data
            case ("bytes", "zstd"):
                found = imagecodecs.zstd_decode(_buffer(data), out=out.data.cast("B"))
                if len(found) != out.nbytes:
                    raise ValueError(f"{len(found)} bytes in place of {out.nbytes}")
            case (image, "zstd"):
                image_bytes = bytes(imagecodecs.zstd_decode(_buffer(data)))
                _BY_NAME[image].decode_image(image_bytes, _column(out))
    except RuntimeError as error:  # what imagecodecs raises derives from it
        raise ValueError(str(error)) from error


def _buffer(data: bytes | memoryview) -> bytes:
    """Return what imagecodecs reads: any buffer, although its types name a few."""
    return cast(bytes, data)


def decoded(data: bytes, tiles: Tiles, options: CompressionOptions) -> Tiles:
    """Return tiles, uint8 (N, S, S, 3), as they are after :func:`encode` and decoding."""
    names = (_BY_OPTION[options.codec].name, "zstd") if options.lossy else ("bytes", "zstd")
    out = np.empty(tiles.shape, np.uint8)
    decode(data, names[:1] if options.codec == "none" else names, out)
    return out


def _column(tiles: Tiles) -> Tiles:
    """Return a view of tiles as one image, one below the other."""
    return tiles.reshape(-1, *tiles.shape[2:])


_MOST_CHUNK_BYTES = 256 << 20
_MOST_CHUNKS = 1 << 16  # of a shard
_NOTHING = 2**64 - 1
"""Value of offset and length for a chunk that a shard does not hold."""


class ShardWriter:
    """Writer of the chunks of an array along its first axis, in their order.

    Parameters
    ----------
    folder : Path
        Folder of the array.
    chunks : int
        Number of chunks in a shard.
    axes : int
        Number of axes of the array; all but the first have one chunk.
    first : int
        Number of the first shard.
    """

    def __init__(self, folder: Path, *, chunks: int, axes: int, first: int = 0) -> None:
        self._folder, self._chunks, self._axes = folder, chunks, axes
        self._shards = first
        self._index: list[tuple[int, int]] = []
        self._file: Any = None

    def append(self, data: bytes) -> None:
        """Append an encoded chunk."""
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
        self._file.write(index + google_crc32c.value(index).to_bytes(4, "little"))
        self._file.close()
        self._file, self._index = None, []
        self._shards += 1

    def link(self, source: Path, shards: int) -> None:
        """Link or copy the next shards from another array's folder, where they remain.

        Raises
        ------
        FileNotFoundError
            A shard is missing.
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


_local = threading.local()
_MOST_KEPT_BYTES = 16 << 20


def _memory(length: int) -> memoryview:
    """Return memory of this thread for bytes that are decoded at once; it is used again.

    New memory costs a page fault every 4 KiB, half as much as reading a chunk into it.
    """
    if length > _MOST_KEPT_BYTES:
        return memoryview(bytearray(length))
    kept: bytearray = getattr(_local, "kept", bytearray())
    if len(kept) < length:
        kept = _local.kept = bytearray(length)
    return memoryview(kept)[:length]


class ShardReader:
    """Reader of the chunks of an array of tiles.

    Parameters
    ----------
    folder : Path
        Folder of the array.
    chunk : int
        Number of tiles in a chunk.
    per_shard : int
        Number of chunks in a shard.
    tile_shape : tuple of int
        Shape of a tile.
    codecs : tuple of str
        Names of the codecs; see :func:`wsiad.store.shards.decode`.
    count : int
        Number of tiles in the array.
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
        """Return the reader of an array, or ``None`` if its layout is not that of wsiad.

        Raises
        ------
        OSError, ValueError
            The array's metadata cannot be read.
        """
        layout = parse_json(read_text(folder / "zarr.json", most=MOST_FACTS))
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
            Index of the chunk in the array.
        out : ndarray of uint8, (chunk, S, S, 3)
            Array to fill; C-contiguous. Beyond the array's end it holds zarr's fill value.

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
                    raise ValueError(f"{path.name} ends within chunk {within}")
                return  # there is nothing to decode
            data = _memory(length)
            if os.preadv(handle, [data], offset) != length:
                raise ValueError(f"{path.name} ends within chunk {within}")
        finally:
            os.close(handle)
        decode(data, self._codecs, out)

    def _index(self, handle: int) -> npt.NDArray[np.uint64]:
        size = 16 * self._per_shard
        start = os.fstat(handle).st_size - size - 4
        data = os.pread(handle, size + 4, max(0, start))
        if start < 0 or google_crc32c.value(data[:size]) != int.from_bytes(data[size:], "little"):
            raise ValueError("the index of a shard is damaged")
        return np.frombuffer(data[:size], "<u8").reshape(-1, 2)


def shard_path(folder: Path, number: int, *, axes: int) -> Path:
    """Return the path of a shard along the first axis (zarr v3, "default" chunk keys)."""
    return folder.joinpath("c", str(number), *("0" for _ in range(axes - 1)))
