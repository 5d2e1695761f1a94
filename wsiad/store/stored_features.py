"""Features of a store's tiles, written beside them once and read by every method that needs them.

A folder holds the features of one identity: the network and its weights, the layers, the places,
all that was done to the pixels before, and the type of the numbers (docs/store-format.md). It has
one array for each slide, in the order of the slide's tiles. Features of other tiles, weights or
options are in other folders, so that they are never mixed. A slide is complete or absent.

Identities are JSON values that the methods state; nothing here depends on what they mean.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, get_args

import numcodecs.zstd
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from wsiad.core.errors import StoreError, WsiadError
from wsiad.core.files import atomic_folder, new_file, write_json
from wsiad.core.ownership import clear_leftovers, discard
from wsiad.core.terminal import counted
from wsiad.store.feature_options import Dtype
from wsiad.store.group import create_group, describe_array, write_attributes
from wsiad.store.group_facts import array_shape, group_facts, open_group
from wsiad.store.shards import ShardWriter
from wsiad.store.stored_slide import StoredSlide

FEATURES: Final = "features"
"""Folder of a store that holds the features of its tiles."""

_FORMAT, _VERSION = "wsiad-features", 1
_GROUPS = "features.zarr"
_ARRAY = "vectors"
_ON_DISK = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
_MOST_FLOAT16 = 65_504.0
_CHUNK_BYTES = 4 << 20
_MOST_CHUNK_TILES = 4096
_CHUNKS_PER_SHARD = 16
_LEVEL = 1
_MOST_VALUES = 1 << 24
"""Maximum number of values of a tile, so that a damaged folder claims no memory."""

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def tiles_digest(slide: StoredSlide) -> str:
    """Return a digest of a slide's tiles: of all that its group states about them."""
    content = json.dumps([slide.name, slide.facts], sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class FeatureFolder:
    """The features of one identity in a store.

    Parameters
    ----------
    path : Path
        The folder.
    identity : dict
        All on which the features depend, as JSON values.
    dtype : str
        Type of the stored numbers.
    shape : tuple of int
        Shape of the features of a tile: (m, m, C) for places, else (D,).
    digest : str
        Digest of the store's preparation.
    """

    path: Path
    identity: dict[str, Any]
    dtype: Dtype
    shape: tuple[int, ...]
    digest: str

    @classmethod
    def create(
        cls,
        store: Path,
        *,
        identity: Mapping[str, Any],
        dtype: Dtype,
        shape: tuple[int, ...],
        digest: str,
    ) -> Self:
        """Create the folder of an identity in a store, or open it.

        Parameters
        ----------
        store : Path
            Folder of the store.
        identity : mapping
            All on which the features depend, as JSON values.
        dtype : str
            Type of the stored numbers.
        shape : tuple of int
            Shape of the features of a tile.
        digest : str
            Digest of the store's preparation.

        Raises
        ------
        StoreError
            A folder of this name is damaged, or of a store that was here before.
        """
        stated = json.loads(json.dumps(identity))
        path = store / FEATURES / _folder_name(stated, dtype)
        facts = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": stated,
            "dtype": dtype,
            "shape": list(shape),
            "digest": digest,
        }
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"wsiad": facts}}
        with (
            contextlib.suppress(FileExistsError),
            new_file(path / _GROUPS / "zarr.json") as partial,
        ):
            write_json(partial, group)
        found = cls.open(path)
        if (found.identity, found.shape, found.digest) != (stated, tuple(shape), digest):
            raise StoreError(
                "holds features of another store, or of other options",
                subject=str(path),
                remedy="Delete that folder, and run the command again.",
            )
        return found

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder of an identity.

        Raises
        ------
        StoreError
            The folder holds no features, or is damaged.
        """
        facts = group_facts(path / _GROUPS)
        try:
            made_by = (facts["format"], facts["version"])
            identity, dtype, shape = facts["identity"], facts["dtype"], facts["shape"]
            sound = (
                made_by == (_FORMAT, _VERSION)
                and isinstance(identity, dict)
                and dtype in get_args(Dtype)
                and len(shape) in (1, 3)
                and all(type(length) is int and length > 0 for length in shape)
                and math.prod(shape) <= _MOST_VALUES
            )
            if sound:
                digest = str(facts["digest"])
                return cls(
                    path=path, identity=identity, dtype=dtype, shape=tuple(shape), digest=digest
                )
            fault = f"{made_by[0]} {made_by[1]}, {dtype} {shape}"
        except (KeyError, TypeError, ValueError) as error:
            fault = " ".join(str(error).split())
        raise StoreError(
            f"does not state its features ({fault[:200]})",
            subject=str(path),
            remedy="Delete that folder, and run `wsiad embed` again.",
        )

    @property
    def tile_bytes(self) -> int:
        """Bytes of the features of a tile, before compression."""
        return math.prod(self.shape) * np.dtype(_ON_DISK[self.dtype]).itemsize

    def group(self, name: str) -> Path:
        """Return the folder of a slide's features."""
        return self.path / _GROUPS / name

    def holds(self, slide: StoredSlide) -> bool:
        """Tell whether the features of exactly these tiles of a slide are complete.

        Raises
        ------
        StoreError
            The facts of the slide's features are damaged.
        """
        folder = self.group(slide.name)
        if not (folder / "zarr.json").exists():
            return False
        return bool(group_facts(folder).get("tiles_digest") == tiles_digest(slide))

    def write(self, slide: StoredSlide, features: Iterable[Vectors]) -> int:
        """Write the features of a slide's tiles; of two processes the first one's stay.

        Parameters
        ----------
        slide : StoredSlide
            The slide.
        features : iterable of ndarray of float32, (N, ...)
            Features of the tiles in their order, in batches.

        Returns
        -------
        int
            Bytes of the features, before compression.

        Raises
        ------
        StoreError
            A value is not finite or does not fit the type, or the number of tiles differs.
        """
        target = self.group(slide.name)
        if (target / "zarr.json").exists() and not self.holds(slide):
            discard(target)  # of tiles that are no longer there
        clear_leftovers(target.parent, of=target.name)
        try:
            with atomic_folder(target, replace=False) as folder:
                group = create_group(folder)
                count = self._write_array(group, slide, features)
                if count != len(slide):
                    raise StoreError(
                        f"{counted(count, 'feature')} for {counted(len(slide), 'tile')}",
                        subject=slide.name,
                    )
                write_attributes(group, {"tiles": count, "tiles_digest": tiles_digest(slide)})
        except FileExistsError:
            if not self.holds(slide):
                raise
        return len(slide) * self.tile_bytes

    def _write_array(
        self, group: zarr.Group, slide: StoredSlide, features: Iterable[Vectors]
    ) -> int:
        chunk = self._chunk_tiles()
        kind = np.dtype(_ON_DISK[self.dtype])
        count = 0
        path = Path(group.store.root) / group.path / _ARRAY
        axes = 1 + len(self.shape)
        with ShardWriter(path, chunks=_CHUNKS_PER_SHARD, axes=axes) as writer:
            for part in _rechunked(self._coded(features, slide.name), chunk, self.shape, kind):
                count += len(part)
                whole = part
                if len(part) < chunk:  # zarr codes chunks whole
                    whole = np.zeros((chunk, *self.shape), kind)
                    whole[: len(part)] = part
                flat = np.ascontiguousarray(whole).reshape(-1)
                writer.append(bytes(numcodecs.zstd.compress(flat, _LEVEL, True)))
        describe_array(
            group,
            _ARRAY,
            shape=(count, *self.shape),
            chunks=(chunk, *self.shape),
            shards=(chunk * _CHUNKS_PER_SHARD, *self.shape),
            dtype=str(kind),
            compressors=ZstdCodec(level=_LEVEL, checksum=True),
        )
        return count

    def _coded(self, features: Iterable[Vectors], name: str) -> Iterator[npt.NDArray[Any]]:
        for part in features:
            if part.shape[1:] != self.shape:
                raise StoreError(
                    f"its features have the shape {part.shape[1:]}, not {self.shape}", subject=name
                )
            yield _to_disk(np.asarray(part, np.float32), self.dtype, name)

    def _chunk_tiles(self) -> int:
        size = 2 ** round(math.log2(max(1.0, _CHUNK_BYTES / self.tile_bytes)))
        return int(min(_MOST_CHUNK_TILES, size))

    def slide(self, slide: StoredSlide) -> SlideFeatures:
        """Open the features of a slide.

        Raises
        ------
        StoreError
            The slide has no features here, or they are damaged.
        """
        folder = self.group(slide.name)
        try:
            if not self.holds(slide):
                raise StoreError("holds no features of these tiles")
            group = open_group(folder)
            shape = array_shape(group, _ARRAY, folder=folder, kind=_ON_DISK[self.dtype])
            if shape != (len(slide), *self.shape):
                raise StoreError(f"has features of {shape}, not {(len(slide), *self.shape)}")
        except WsiadError as error:
            raise _broken(folder, error.problem) from error
        return SlideFeatures(folder, group[_ARRAY], self.dtype)


class SlideFeatures:
    """Features of a slide's tiles, open for reading.

    Parameters
    ----------
    folder : Path
        Folder of the slide's features, for errors.
    array : zarr.Array
        The stored features.
    dtype : str
        Type of the stored numbers.
    """

    def __init__(self, folder: Path, array: Any, dtype: Dtype) -> None:
        self._folder, self._array, self._dtype = folder, array, dtype
        self._chunk = int(array.chunks[0])
        # A sequence of batches reads each chunk once.
        self._read = functools.lru_cache(maxsize=2)(self._read_chunk)

    def take(self, indices: Indices) -> Vectors:
        """Read the features of tiles by their indices, float32 (N, ...).

        Raises
        ------
        StoreError
            A chunk is damaged.
        """
        out = np.empty((len(indices), *self._array.shape[1:]), np.float32)
        numbers = indices // self._chunk
        for number in np.unique(numbers).tolist():
            here = numbers == number
            out[here] = self._read(number)[indices[here] % self._chunk]
        return out

    def _read_chunk(self, number: int) -> Vectors:
        first = number * self._chunk
        try:
            found = np.asarray(self._array[first : first + self._chunk])
        except Exception as error:  # what zarr and its codecs make of damage has no end
            raise _broken(self._folder, " ".join(str(error).split())[:200]) from error
        return _from_disk(found, self._dtype)


def feature_folders(store: Path) -> list[FeatureFolder]:
    """Return the folders of features in a store, in order of their names.

    Raises
    ------
    StoreError
        One of them is damaged.
    """
    base = store / FEATURES
    names = sorted(path.name for path in base.iterdir()) if base.is_dir() else []
    return [
        FeatureFolder.open(base / name)
        for name in names
        if not name.startswith(".") and (base / name / _GROUPS / "zarr.json").exists()
    ]


def find_features(store: Path, identity: Mapping[str, Any]) -> list[FeatureFolder]:
    """Return the folders of an identity in a store, one for each type, the most exact first.

    Raises
    ------
    StoreError
        A folder of features is damaged.
    """
    stated = json.loads(json.dumps(identity))
    exact = list(get_args(Dtype))
    found = [folder for folder in feature_folders(store) if folder.identity == stated]
    return sorted(found, key=lambda folder: exact.index(folder.dtype))


def _to_disk(values: Vectors, dtype: Dtype, name: str) -> npt.NDArray[Any]:
    if not np.isfinite(values).all():
        raise StoreError(
            "its features are not finite",
            subject=name,
            remedy="Use other weights, or compute in float32: these are damaged, or overflow.",
        )
    if dtype == "float32":
        return values
    if dtype == "float16":
        largest = float(np.abs(values).max(initial=0))
        if largest > _MOST_FLOAT16:
            raise StoreError(
                f"has a feature of {largest:g}, and float16 ends at {_MOST_FLOAT16:g}",
                subject=name,
                remedy="Set --dtype bfloat16 or float32.",
            )
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return rounded.astype(np.uint16)


def _from_disk(values: npt.NDArray[Any], dtype: Dtype) -> Vectors:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(values, np.float32)


def _rechunked(
    parts: Iterable[npt.NDArray[Any]], chunk: int, shape: tuple[int, ...], kind: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """Yield parts in pieces of ``chunk`` rows, and a last one with the rest."""
    buffer, filled = np.empty((chunk, *shape), kind), 0
    for part in parts:
        start = 0
        while start < len(part):
            taken = min(chunk - filled, len(part) - start)
            buffer[filled : filled + taken] = part[start : start + taken]
            filled, start = filled + taken, start + taken
            if filled == chunk:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _broken(folder: Path, why: str) -> StoreError:
    return StoreError(
        f"its features cannot be read: {why}",
        subject=str(folder),
        remedy="Delete that folder, and run `wsiad embed` again.",
    )


def _folder_name(identity: Mapping[str, Any], dtype: str) -> str:
    """Return the name of an identity's folder: what a reader looks for, then a digest of all."""
    content = json.dumps([identity, dtype], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    sha, layers = identity.get("weights_sha256") or "", identity.get("layers") or []
    parts = [
        str(identity.get("backbone") or ""),
        str(sha).removeprefix("sha256:")[:8],
        "+".join(str(layer) for layer in layers),
        str(identity.get("statistics") or ""),
        f"{identity.get('input_px')}px",
        dtype,
    ]
    words = "-".join(re.sub(r"[^A-Za-z0-9_.+]", "_", part)[:40] for part in parts if part)
    return f"{words.lstrip('.')}-{digest}"
