"""Tiles of stored slides as a source that detectors draw from, and the features kept of them.

The tiles are read when the first of them is wanted: not at all where their features are enough.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import TilePx
from wsiad.store.dataset import (
    ArrayTiles,
    Chunks,
    Indices,
    Order,
    Tiles,
    batches,
    every_tile,
    shuffled,
    window_of,
)
from wsiad.store.stored_features import (
    FeatureFolder,
    SlideFeatures,
    Vectors,
    feature_folders,
    find_features,
)
from wsiad.store.stored_slide import StoredSlide

logger = logging.getLogger(__name__)

BUFFER_BYTES = 2**31


class StoreTiles:
    """Tiles of stored slides: in memory if they fit, otherwise read chunk by chunk.

    Nothing is read before the first tiles are wanted.

    Parameters
    ----------
    parts : sequence of (StoredSlide, ndarray of int64)
        Slides, each with the indices of its wanted tiles; at least one.
    buffer_bytes : int
        Maximum size of the tiles held in memory.
    """

    def __init__(
        self,
        parts: Sequence[tuple[StoredSlide, npt.NDArray[np.int64]]],
        *,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._parts = [(slide, np.unique(wanted)) for slide, wanted in parts]
        self._chunked = ChunkedTiles(self._parts, buffer_bytes=buffer_bytes)
        self._fit = len(self._chunked) * self._chunked.tile_bytes <= buffer_bytes
        self._read: ArrayTiles | None = None

    @property
    def tile(self) -> TilePx:
        """Edge of the tiles, pixels."""
        return self._chunked.tile

    def __len__(self) -> int:
        return len(self._chunked)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the slides, and of which of their tiles these are."""
        digest = hashlib.sha256()
        for slide, wanted in self._parts:
            digest.update(json.dumps([slide.name, slide.fingerprint, len(slide)]).encode())
            digest.update(wanted.astype("<i8").tobytes())
        return f"sha256:{digest.hexdigest()}"

    def slide_counts(self) -> dict[str, int]:
        """Return the number of tiles of each slide, in the order of :meth:`ordered`."""
        return {slide.name: len(wanted) for slide, wanted in self._parts}

    def ordered(self, batch: int) -> Iterator[Tiles]:
        """Yield every tile once, slide by slide, in batches of at most ``batch``.

        Raises
        ------
        StoreError
            A chunk is damaged or missing.
        """
        return self._pixels().ordered(batch)

    def shuffled(self, batch: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Tiles]:
        """Yield full batches, from batch ``start`` of an order that seed and epoch decide.

        Raises
        ------
        StoreError
            A chunk is damaged or missing.
        """
        return self._pixels().shuffled(batch, seed=seed, epoch=epoch, start=start)

    def shuffled_positions(self, *, seed: int, epoch: int) -> Indices:
        """Return the order of :meth:`shuffled`, as positions in that of :meth:`ordered`."""
        if self._fit:
            return np.random.default_rng([seed, epoch]).permutation(len(self))
        return self._chunked.shuffled_positions(seed=seed, epoch=epoch)

    def features(self, identity: Mapping[str, Any]) -> StoreFeatures | None:
        """Return the stored features of an identity; ``None`` unless every slide has them.

        Parameters
        ----------
        identity : mapping
            All on which the features depend, as JSON values.

        Raises
        ------
        StoreError
            A folder of features is damaged.
        """
        chosen: dict[Path, FeatureFolder] = {}
        for store in {slide.store for slide, _ in self._parts}:
            mine = [slide for slide, _ in self._parts if slide.store == store]
            folders = find_features(store, identity)
            whole = (folder for folder in folders if all(map(folder.holds, mine)))
            if (folder := next(whole, None)) is None:
                return None
            chosen[store] = folder
        return StoreFeatures(
            [(chosen[slide.store], slide, wanted) for slide, wanted in self._parts]
        )

    def why_no_features(self, identity: Mapping[str, Any]) -> str:
        """Return why the stores have features, but not all of an identity; empty without any."""
        for slide, _ in self._parts:
            folders = find_features(slide.store, identity)
            if not folders:
                return _other_options(slide, identity)
            if not any(folder.holds(slide) for folder in folders):
                return f"slides of {slide.store} have no features yet: run `wsiad embed` again"
        return ""

    def _pixels(self) -> ArrayTiles | ChunkedTiles:
        if not self._fit:
            return self._chunked
        if self._read is None:
            tiles = np.empty((len(self), self.tile, self.tile, 3), np.uint8)
            filled = 0
            for batch in self._chunked.ordered(4096):
                tiles[filled : filled + len(batch)] = batch
                filled += len(batch)
            self._read = ArrayTiles(tiles)
        return self._read


def _other_options(slide: StoredSlide, identity: Mapping[str, Any]) -> str:
    """Return the keys in which the most similar stored features differ; empty without any."""
    differing = [
        [key for key in {**identity, **there} if there.get(key) != identity.get(key)]
        for there in (folder.identity for folder in feature_folders(slide.store))
    ]
    if not differing:
        return ""
    fewest = min(differing, key=lambda keys: len(keys))
    return f"the stored features are of other options ({', '.join(sorted(fewest))})"


class StoreFeatures:
    """Features of the tiles of a :class:`StoreTiles`, by their positions in its order.

    Parameters
    ----------
    parts : sequence of (FeatureFolder, StoredSlide, ndarray of int64)
        Folder of the features, and sorted indices of the wanted tiles, for each slide. One slide
        is open at a time.
    """

    def __init__(self, parts: Sequence[tuple[FeatureFolder, StoredSlide, Indices]]) -> None:
        self._parts = parts
        self._first = np.cumsum([0, *(len(wanted) for _, _, wanted in parts)])
        self._opened: tuple[int, SlideFeatures] | None = None

    def __len__(self) -> int:
        return int(self._first[-1])

    def take(self, positions: Indices) -> Vectors:
        """Read the features of the tiles at these positions, float32 (N, ...).

        Raises
        ------
        StoreError
            A chunk is damaged.
        """
        owner = np.searchsorted(self._first, positions, side="right") - 1
        parts = []
        for slide in np.unique(owner).tolist():
            here = np.flatnonzero(owner == slide)
            within = self._parts[slide][2][positions[here] - self._first[slide]]
            parts.append((here, self._slide(slide).take(within)))
        if not parts:
            return self._slide(0).take(positions)
        out = np.empty((len(positions), *parts[0][1].shape[1:]), np.float32)
        for here, found in parts:
            out[here] = found
        return out

    def _slide(self, number: int) -> SlideFeatures:
        if self._opened is None or self._opened[0] != number:
            folder, slide, _ = self._parts[number]
            self._opened = number, folder.slide(slide)
        return self._opened[1]


class ChunkedTiles:
    """Tiles of stored slides that are read chunk by chunk; see :class:`StoreTiles`."""

    def __init__(
        self,
        parts: Sequence[tuple[StoredSlide, npt.NDArray[np.int64]]],
        *,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        if not parts:
            raise ValueError("a source needs at least one slide")
        self._slides = [slide for slide, _ in parts]
        self._tile = self._slides[0].tile
        self.tile_bytes = self._tile**2 * 3
        sizes = [slide.chunk for slide in self._slides]
        self._chunks = Chunks.of([wanted for _, wanted in parts], sizes=sizes)
        self._shape = (max(sizes), self._tile, self._tile, 3)
        self._window = window_of(buffer_bytes, max(sizes) * self.tile_bytes)
        self._spare: list[Tiles] = []

    @property
    def tile(self) -> TilePx:
        """Edge of the tiles, pixels."""
        return self._tile

    def __len__(self) -> int:
        return self._chunks.tiles

    def _read(self, chunk: int, out: Tiles) -> None:
        slide = self._slides[self._chunks.slide[chunk]]
        slide.read_chunk(int(self._chunks.number[chunk]), out[: slide.chunk])

    def ordered(self, batch: int) -> Iterator[Tiles]:
        """Yield every tile once, slide by slide, in batches of at most ``batch``."""
        for chunk in range(len(self._chunks)):
            tiles = np.empty(self._shape, np.uint8)
            self._read(chunk, tiles)
            wanted = self._chunks.tiles_of(chunk)
            tiles = tiles[wanted] if len(wanted) < len(tiles) else tiles
            for start in range(0, len(tiles), batch):
                yield tiles[start : start + batch]

    def shuffled(self, batch: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Tiles]:
        """Yield full batches, from batch ``start`` of an order that seed and epoch decide.

        The tiles left over at the end of an epoch are dropped. If there are fewer tiles than a
        batch holds, they are repeated to fill one.
        """
        chosen = self._order(seed, epoch)
        full = len(chosen) // batch * batch
        for tiles, _ in batches(
            chosen,
            self._read,
            chunk_shape=self._shape,
            batch=batch,
            start=start * batch,
            stop=full or None,
            spare=self._spare,
        ):
            yield tiles if full else np.resize(tiles, (batch, *tiles.shape[1:]))

    def _order(self, seed: int, epoch: int) -> Order:
        visits = every_tile(self._chunks)
        return shuffled(visits, window=self._window, seed=seed, epoch=epoch)

    def shuffled_positions(self, *, seed: int, epoch: int) -> Indices:
        """Return the order of :meth:`shuffled`, as positions in that of :meth:`ordered`."""
        order, chunks, size = self._order(seed, epoch), self._chunks, self._shape[0]
        chunk = np.repeat(np.arange(len(chunks)), np.diff(chunks.first))
        keys = chunk * size + chunks.offset  # ascending
        return np.searchsorted(keys, order.chunk[order.visit] * size + order.offset)
