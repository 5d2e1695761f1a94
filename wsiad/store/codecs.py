"""Chunks of tiles as bytes and back: what a store's codecs do.

zarr's own pipeline passes each chunk through an event loop and several copies, which costs
more than the compression. A store's chunks are therefore coded here, to the very bytes that
zarr reads and writes (docs/store-format.md; measured in docs/performance.md).

A lossy chunk is one image, the tiles one below the other. Its codecs have the names and the
form of the package ``imagecodecs-zarr``, so that either package reads them; importing this
module registers them with zarr where nothing else has.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import imagecodecs
import numcodecs.zstd
import numpy as np
import numpy.typing as npt
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import ZstdCodec
from zarr.registry import get_codec_class, register_codec

from wsiad.tiling.preparation import CompressionOptions

Tiles = npt.NDArray[np.uint8]

_JXL_EFFORT = 3
_SEAL_LEVEL = -10
"""zstd of what is compressed already, for its checksum: damaged images decode to something."""


@dataclass(frozen=True)
class ImageCodec(ArrayBytesCodec):  # type: ignore[misc]  # zarr has no types here
    """A chunk of tiles as one image, for zarr.

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
        """Code an image, uint8 (H, W, 3)."""

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
        """Not known beforehand."""
        raise NotImplementedError


class JpegCodec(ImageCodec):
    """Baseline JPEG without chroma subsampling."""

    name = "imagecodecs_jpeg"

    def encode_image(self, image: Tiles) -> bytes:
        """Code an image, uint8 (H, W, 3)."""
        return bytes(imagecodecs.jpeg8_encode(image, level=self.level, subsampling="444"))

    @staticmethod
    def decode_image(data: bytes, out: Tiles) -> None:
        """Decode an image into ``out``, uint8 (H, W, 3)."""
        imagecodecs.jpeg8_decode(data, out=out)


class JpegXlCodec(ImageCodec):
    """JPEG XL in its lossy form."""

    name = "imagecodecs_jpegxl"

    def encode_image(self, image: Tiles) -> bytes:
        """Code an image, uint8 (H, W, 3)."""
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
"""zarr's names of the codecs that :func:`decode` knows, in the order of writing."""

for _name, _codec in _BY_NAME.items():
    try:
        get_codec_class(_name)
    except KeyError:
        register_codec(_name, _codec)


def array_codecs(options: CompressionOptions) -> dict[str, Any]:
    """Arguments of ``zarr.create_array`` that describe what :func:`encode` makes."""
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
    """Code a chunk, uint8 (N, S, S, 3), as an array made with :func:`array_codecs` keeps it."""
    tiles = np.ascontiguousarray(tiles)
    match options.codec:
        case "none":
            return tiles.tobytes()
        case "zstd":
            return bytes(numcodecs.zstd.compress(tiles.reshape(-1), options.level, True))
    image = _BY_OPTION[options.codec](options.quality).encode_image(_column(tiles))
    return bytes(numcodecs.zstd.compress(image, _SEAL_LEVEL, True))


def decode(data: bytes, names: tuple[str, ...], out: Tiles) -> None:
    """Decode a chunk.

    Parameters
    ----------
    data : bytes
    names : tuple of str
        Of :data:`READABLE`.
    out : ndarray of uint8, (N, S, S, 3)
        Where to; C-contiguous.

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
                found = imagecodecs.zstd_decode(data, out=out.data.cast("B"))
                if len(found) != out.nbytes:
                    raise ValueError(f"{len(found)} bytes in place of {out.nbytes}")
            case (image, "zstd"):
                _BY_NAME[image].decode_image(bytes(imagecodecs.zstd_decode(data)), _column(out))
    except RuntimeError as error:  # what imagecodecs raises derives from it
        raise ValueError(str(error)) from error


def decoded(data: bytes, tiles: Tiles, options: CompressionOptions) -> Tiles:
    """Return what became of tiles, uint8 (N, S, S, 3), that :func:`encode` coded."""
    names = (_BY_OPTION[options.codec].name, "zstd") if options.lossy else ("bytes", "zstd")
    out = np.empty(tiles.shape, np.uint8)
    decode(data, names[:1] if options.codec == "none" else names, out)
    return out


def _column(tiles: Tiles) -> Tiles:
    """Tiles one below the other as one image, a view of them."""
    return tiles.reshape(-1, *tiles.shape[2:])
