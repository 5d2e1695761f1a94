"""Compute the features of a store's tiles once, for all methods that read them.

The method and its options decide which features these are; nothing is fitted. A slide is a task,
and several processes can work on one store.
"""

from __future__ import annotations

import functools
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.compute.batch import BatchTask
from wsiad.compute.compute_options import take_shard
from wsiad.core.ahead import read_ahead
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, StoreError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.core.terminal import counted
from wsiad.detectors import registry
from wsiad.learning.detector import FitContext, InputSpec
from wsiad.learning.devices import choose_device
from wsiad.learning.feature_source import ComputesFeatures, ReadsFeatures
from wsiad.runs.embedding_options import EmbeddingOptions
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import SlideRow
from wsiad.store.feature_options import Dtype
from wsiad.store.stored_features import FeatureFolder, find_features
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_store import TileStore

_READ_TILES = 256
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class FeatureRow(SlideRow):
    """A slide in the table of a folder of features.

    Parameters
    ----------
    tiles : int
        Number of tiles whose features are stored.
    """

    tiles: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTask(BatchTask):
    """The features of a slide to compute, as they are sent to a worker.

    Parameters
    ----------
    folder : Path
        Folder of the features.
    options : EmbeddingOptions
        Options that decide the features.
    device : str
        Name of the device.
    """

    folder: Path
    options: EmbeddingOptions
    device: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Features of a store that are to be computed.

    Parameters
    ----------
    folder : FeatureFolder
        Folder of the features.
    slides : tuple of StoredSlide
        All slides with tiles.
    """

    folder: FeatureFolder
    slides: tuple[StoredSlide, ...]

    def tasks(
        self, options: EmbeddingOptions, *, device: str, shard: str | None
    ) -> list[EmbeddingTask]:
        """Return a task for each slide, beginning at any of them.

        Several calls at a time therefore meet late, and each skips what the others have done.
        """
        mine = take_shard(self.slides, shard)
        first = secrets.randbelow(max(1, len(mine)))
        return [
            EmbeddingTask(
                slide=SlideInput(slide.name, slide.store),
                folder=self.folder.path,
                options=options,
                device=device,
            )
            for slide in mine[first:] + mine[:first]
        ]


def plan_embedding(
    path: Path, options: EmbeddingOptions, *, device: str, max_gib: float
) -> list[Planned]:
    """Load the networks, check the space that their features take, and create the folders.

    Parameters
    ----------
    path : Path
        Folder of the store.
    options : EmbeddingOptions
        Options that decide the features.
    device : str
        Name of the device.
    max_gib : float
        Maximum size of the features, GiB.

    Raises
    ------
    StoreError
        The store, or a folder of features, is missing or damaged, or the store has no tiles.
    DetectorError
        The method reads no features of complete tiles, or the tiles are too small for it.
    WeightsError
        The weights are not on this machine.
    ConfigError
        The features would take more space than the limit, or than the disk has.
    """
    store = TileStore(path)
    if store.encoder:
        raise StoreError(
            f"holds features of {store.encoder} without tiles: there is nothing to compute",
            subject=str(path),
            remedy="Train on it as it is, or tile the slides.",
        )
    slides = tuple(slide for slide in store if len(slide))
    found: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {}
    for encoder, identity in _encoders(path, options, device):
        blank = np.zeros((1, store.preparation.tile, store.preparation.tile, 3), np.uint8)
        found[json.dumps(identity)] = identity, encoder.encode(blank, identity).shape[1:]
    tiles = sum(map(len, slides))
    item = 4 if options.dtype == "float32" else 2
    total = sum(tiles * int(np.prod(shape)) * item for _, shape in found.values())
    what = f"features of {counted(tiles, 'tile')} take {total} bytes ({total / _GIB:.1f} GiB)"
    if total > max_gib * _GIB:
        raise ConfigError(
            f"{what}, more than the {max_gib:g} GiB of max_gib",
            subject=str(path),
            remedy="Set fewer places or layers, --dtype float16, or a larger --max-gib.",
        )
    missing = sum(
        len(slide) * int(np.prod(shape)) * item
        for identity, shape in found.values()
        for slide in _lacking(path, slides, identity, options.dtype)
    )
    if missing > (free := shutil.disk_usage(path).free):
        raise ConfigError(
            f"{what}, and the disk has {free} bytes left",
            subject=str(path),
            remedy="Make room, or set fewer places or layers.",
        )
    return [
        Planned(
            FeatureFolder.create(
                path,
                identity=identity,
                dtype=options.dtype,
                shape=shape,
                digest=store.digest,
            ),
            slides,
        )
        for identity, shape in found.values()
    ]


def _lacking(
    path: Path, slides: tuple[StoredSlide, ...], identity: dict[str, Any], dtype: Dtype
) -> list[StoredSlide]:
    """Return the slides whose features are not stored yet."""
    there = [folder for folder in find_features(path, identity) if folder.dtype == dtype]
    return [slide for slide in slides if not any(folder.holds(slide) for folder in there)]


@functools.lru_cache(maxsize=1)
def _loaded(
    path: Path, options: str, device: str
) -> tuple[tuple[ComputesFeatures, dict[str, Any]], ...]:
    """Load the networks once per process; options are JSON."""
    chosen = EmbeddingOptions.model_validate_json(options)
    store = TileStore(path)
    cls = registry.load(chosen.detector)
    own = build(cls.Options, chosen.options, source=f"options of {chosen.detector}")
    if not hasattr(cls, "opened"):
        raise _nothing_to_keep(chosen.detector)
    tile = store.preparation.tile
    mpp = float(store.preparation.mpp)
    size = cls.input_size(own, tile_px=tile, mpp=mpp)
    if size != tile:
        raise DetectorError(
            f"features are kept of complete tiles of {tile} px, not of windows of {size} px",
            subject=chosen.detector,
            remedy=f"Leave out input_px, or tile with --tile {size}.",
        )
    detector = cls(own, InputSpec(TilePx(size), Mpp(mpp)))
    context = FitContext(
        seed=chosen.seed,
        device=choose_device(device),
        folder=path,
        weights=chosen.weights,
        quiet=True,
    )
    encoders = detector.opened(context) if isinstance(detector, ReadsFeatures) else ()
    if not encoders:
        raise _nothing_to_keep(chosen.detector)
    count = chosen.orientations
    return tuple((one, kept) for one in encoders for kept in one.kept(orientations=count))


def _nothing_to_keep(detector: str) -> DetectorError:
    return DetectorError(
        "has no frozen features of tiles that could be kept",
        subject=detector,
        remedy="Choose a method on frozen features, for example knn; "
        "see docs/families/frozen-features.md.",
    )


def _encoders(
    path: Path, options: EmbeddingOptions, device: str
) -> tuple[tuple[ComputesFeatures, dict[str, Any]], ...]:
    return _loaded(path, options.model_dump_json(), device)


def stored_features_row(task: EmbeddingTask) -> FeatureRow | None:
    """Return the row of a slide whose features are complete; ``None`` if they are not.

    Raises
    ------
    StoreError
        The slide, or its features, are damaged.
    """
    folder = FeatureFolder.open(task.folder)
    slide = TileStore(task.slide.path).slide(task.slide.name)
    return FeatureRow(slide.name, "ok", tiles=len(slide)) if folder.holds(slide) else None


def embed_one(task: EmbeddingTask) -> FeatureRow:
    """Compute the features of a slide, unless they are complete already.

    Raises
    ------
    StoreError
        The slide is damaged, or a feature is not finite or does not fit the type.
    DetectorError
        The folder is of other options.
    """
    start = time.monotonic()
    if (there := stored_features_row(task)) is not None:
        return there
    folder = FeatureFolder.open(task.folder)
    store = TileStore(task.slide.path)
    slide = store.slide(task.slide.name)
    for encoder, identity in _encoders(task.slide.path, task.options, task.device):
        if json.loads(json.dumps(identity)) == folder.identity:
            folder.write(slide, _features(slide, encoder, identity))
            seconds = round(time.monotonic() - start, 3)
            return FeatureRow(slide.name, "ok", seconds=seconds, tiles=len(slide))
    raise DetectorError(
        "the options are not those of this folder of features any more",
        subject=str(task.folder),
        remedy="Run the command again.",
    )


def _features(
    slide: StoredSlide, encoder: ComputesFeatures, identity: dict[str, Any]
) -> Iterator[npt.NDArray[np.float32]]:
    block = -(-_READ_TILES // slide.chunk) * slide.chunk
    blocks = (slide.tiles(start, start + block) for start in range(0, len(slide), block))
    limit = 2 * block * 3 * slide.tile**2  # one block waits while another one is used
    with closing(read_ahead(blocks, size=lambda tiles: tiles.nbytes, limit=limit)) as ahead:
        for tiles in ahead:
            yield encoder.encode(tiles, identity)
