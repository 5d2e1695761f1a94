"""Tiles without a slide, written into a store: a group without geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import PIL
import zarr

from wsiad._version import __version__
from wsiad.core.errors import InputError
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram
from wsiad.stain.fit import fit_stains
from wsiad.stain.profile import StainProfile
from wsiad.store.foreign_tiles import Tile, TileImages
from wsiad.store.group import TileArray, beside, create_group, write_array
from wsiad.store.tile_store import TileStore
from wsiad.tiling.preparation import StainOptions
from wsiad.tissue.artefacts import without_ink
from wsiad.tissue.quality import COLUMNS, measure

_BLOCK_BYTES = 8 * 2**20


def write_tiles(
    store: TileStore, name: str, source: TileImages, *, tile: int, fingerprint: str
) -> int:
    """Write the tiles of a source as a group of a store.

    Memory bound: a chunk of the store (about 3 MB) and some blocks of 8 MB.

    Parameters
    ----------
    store : TileStore
        Its preparation says how stains are made alike.
    name : str
        Of the group.
    source : TileImages
    tile : int
        Edge of the tiles, pixels.
    fingerprint : str
        Of the source.

    Returns
    -------
    int
        Tiles written.

    Raises
    ------
    InputError
        The source holds no tile, or something that is not one; nothing is left in the
        store.
    OSError
        The disk is full; nothing is left in the store.
    """
    stain = estimate(source, store.preparation.stain, tile=tile)
    table = ColourTable.between(stain, StainProfile.from_dict(store.target))
    with beside(store, name) as folder:
        group = create_group(folder)
        tiles = TileArray(group, tile, store.compression)
        names: list[bytes] = []
        quality: list[dict[str, npt.NDArray[np.float32]]] = []
        for block in _blocks(source.tiles(tile=tile), tile):
            pixels = np.stack([each for _, each in block])
            quality.append(measure(pixels))
            tiles.append(table.apply(pixels))
            names.extend(each.encode() for each, _ in block)
        tiles.finish()
        if not tiles.count:
            raise InputError("holds no tiles", subject=str(source.path))
        for column in COLUMNS:
            write_array(group, column, np.concatenate([part[column] for part in quality]))
        if any(names):
            write_array(group, "source_name", _padded(names))
        facts = _facts(store, source, tile, tiles.count, stain, fingerprint)
        group.attrs.put({"wsiad": facts | {"compression": tiles.facts()}})
        return tiles.count


def estimate(source: TileImages, options: StainOptions, *, tile: int) -> StainProfile:
    """Estimate the stains of a source from tiles spread over it, as a slide's are.

    Raises
    ------
    InputError
        Something in the source is not a tile.
    """
    if options.method == "none":
        return StainProfile("none")
    histogram = ColourHistogram()
    wanted = max(1, options.sample_px // tile**2)
    every = max(1, math.ceil(source.count() / wanted))
    patches = [pixels for _, pixels in source.tiles(tile=tile, every=every)]
    for pixels, usable in zip(patches, without_ink(patches), strict=True):
        histogram.add(pixels, usable)
    return fit_stains(histogram, method=options.method)


def _blocks(tiles: Iterator[tuple[str, Tile]], tile: int) -> Iterator[list[tuple[str, Tile]]]:
    size = max(1, _BLOCK_BYTES // (tile * tile * 3))
    while block := list(itertools.islice(tiles, size)):
        yield block


def _padded(names: list[bytes]) -> npt.NDArray[np.uint8]:
    """Names as rows of UTF-8, filled up with zeros: any zarr v3 reader has uint8."""
    rows = np.zeros((len(names), max(map(len, names))), np.uint8)
    for row, name in zip(rows, names, strict=True):
        row[: len(name)] = np.frombuffer(name, np.uint8)
    return rows


def _facts(
    store: TileStore,
    source: TileImages,
    tile: int,
    count: int,
    stain: StainProfile,
    fingerprint: str,
) -> dict[str, Any]:
    return {
        "status": "ok",
        "tiles": count,
        "tiles_missing": 0,
        "digest": store.digest,
        "slide": {
            "geometry": False,
            "file": source.path.resolve().name,
            "format": source.format,
            "fingerprint": fingerprint,
        },
        "grid": {"tile_px": tile},
        "stain": stain.to_dict(),
        "versions": {
            "wsiad": __version__,
            "h5py": h5py.__version__,
            "pillow": PIL.__version__,
            "zarr": zarr.__version__,
        },
    }
