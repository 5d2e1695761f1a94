"""``wsiad embed``: compute the features of a store's tiles once, and keep them beside the tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.compute.batch import run_batch
from wsiad.compute.compute_options import ComputeOptions, Shard, WorkerOptions, take_shard
from wsiad.core.config import CONFIG, QuietOptions, verb, write_config
from wsiad.core.files import check_folder
from wsiad.core.terminal import counted
from wsiad.learning.devices import DeviceOptions
from wsiad.runs.embedding_options import EmbeddingOptions
from wsiad.slides.slide_table import FAILED, SLIDES_TABLE, SlideRow, SlideTable, failures
from wsiad.store.feature_options import SizeOptions
from wsiad.store.tile_task import StoreOptions, no_tiles, unseen_lines, unseen_slides

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsiad.runs.embedding_task import FeatureRow, Planned


class EmbedConfig(
    QuietOptions, DeviceOptions, WorkerOptions, SizeOptions, EmbeddingOptions, StoreOptions
):
    """Compute the features of a store's tiles once; methods on frozen features read them."""

    ORDER = (
        *("store", "preset", "detector", "options", "weights", "dtype", "orientations", "max_gib"),
        *("h5", "workers", "cluster", "scheduler", "retries", "shard", "seed", ..., "device"),
        *("quiet", "about"),
    )

    h5: Path | None = None
    """Folder to which the features are also written as HDF5 files, `<slide>.h5`, as TRIDENT and
    CLAM keep them. A tile must have one vector (`--option places=1`)."""
    shard: Shard | None = None
    """Part of the slides to embed, `i/n`, counted from 1. Shards can run at the same time."""

    @property
    def partial(self) -> bool:
        """True where this call is for a part of the slides, and others are for the rest."""
        return self.shard is not None


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """Result of computing features.

    Parameters
    ----------
    folders : tuple of Path
        Folders of the features, one for each network, layers and orientation.
    rows : tuple of FeatureRow
        Slides of this call for each folder, in order of their names.
    summary : str
        Summary for the terminal.
    not_exported : tuple of SlideRow
        Slides whose features are stored, but have no HDF5 file.
    """

    folders: tuple[Path, ...]
    rows: tuple[FeatureRow, ...]
    summary: str
    not_exported: tuple[SlideRow, ...] = ()

    @property
    def failed(self) -> tuple[SlideRow, ...]:
        """Slides whose features are not stored, or not exported."""
        return (*failures(self.rows), *self.not_exported)

    @property
    def following(self) -> str | None:
        """Command in place of the verb's own: empty if no tile has features, else ``None``."""
        return None if any(row.tiles for row in self.rows) else ""


@verb(EmbedConfig)
def embed(config: EmbedConfig) -> EmbedResult:
    """Compute the features of all tiles of a store, and keep them beside the tiles.

    The method and its options decide the features, as in ``wsiad train``. Slides whose features
    are complete are not computed again.

    Raises
    ------
    StoreError
        The store does not exist or is damaged.
    DetectorError
        The method is unknown, has no features to keep, or reads smaller windows than tiles.
    WeightsError
        The weights are not on this machine.
    ConfigError
        The features would take too much space.
    InputError
        No slide has tiles, and some failed or could not be looked at.
    ExportError
        HDF5 files are requested of features with several vectors for each tile.
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs.
    """
    # torch takes seconds to import, which `--help` must not.
    from wsiad.runs.embedding_task import (
        FeatureRow,
        embed_one,
        plan_embedding,
        stored_features_row,
    )
    from wsiad.store.tile_store import TileStore

    if config.h5 is not None:
        check_folder(config.h5, option="--h5", tried=True)
    store = TileStore(config.store)
    unseen = unseen_slides(store)
    if unseen and not any(map(len, store)):  # a store without tissue was seen, and has no features
        raise no_tiles(store)
    options = config.part(EmbeddingOptions)
    planned = plan_embedding(config.store, options, device=config.device, max_gib=config.max_gib)
    compute = ComputeOptions(
        workers=config.workers,
        cluster=config.cluster,
        scheduler=config.scheduler,
        retries=config.retries,
    )
    if config.h5 is not None:
        from wsiad.exports.feature_files import check_one_vector

        for one in planned:
            check_one_vector(one.folder)
    rows: list[FeatureRow] = []
    for number, one in enumerate(planned, 1):
        folder = one.folder.path
        write_config(folder / CONFIG, config)
        rows += run_batch(
            embed_one,
            one.tasks(options, device=config.device, shard=config.shard),
            row=FeatureRow,
            table=SlideTable(folder / SLIDES_TABLE, FeatureRow),
            options=compute,
            label="embed" if len(planned) == 1 else f"embed {number}/{len(planned)}",
            quiet=config.quiet,
            stored=stored_features_row,
        )
    folders = tuple(one.folder.path for one in planned)
    lacking = _exported(config, planned, {row.slide for row in failures(rows)})
    said = [*unseen_lines(unseen, str(config.store)), *_left_behind(config, planned, unseen)]
    summary = "\n".join([*said, _summary(config, folders, rows)])
    return EmbedResult(folders, tuple(rows), summary, lacking)


def _exported(
    config: EmbedConfig, planned: list[Planned], failed: set[str]
) -> tuple[SlideRow, ...]:
    """Write the HDF5 files of the features of upright tiles; return the slides without one."""
    if config.h5 is None:
        return ()
    from wsiad.exports.feature_files import write_feature_files

    lacking = []
    for one, out in _outs(config.h5, planned):
        slides = [s for s in take_shard(one.slides, config.shard) if s.name not in failed]
        for name, why in write_feature_files(slides, one.folder, out):
            lacking += [SlideRow(name, FAILED, why)] if why else []
    return tuple(lacking)


def _left_behind(config: EmbedConfig, planned: list[Planned], unseen: Iterable[str]) -> list[str]:
    """Return lines on HDF5 files of earlier calls, of slides that have no features now."""
    if config.h5 is None:
        return []
    from wsiad.exports.exported_tiles import left_behind

    outs = _outs(config.h5, planned)
    return [line for _, out in outs for line in left_behind(out, unseen, suffix=".h5")]


def _outs(h5: Path, planned: list[Planned]) -> list[tuple[Planned, Path]]:
    """Return the features of upright tiles, which are exported, each with its folder."""
    upright = [one for one in planned if one.folder.identity["orientation"] == 0]
    return [(one, h5 / one.folder.path.name if len(upright) > 1 else h5) for one in upright]


def _summary(config: EmbedConfig, folders: tuple[Path, ...], rows: list[FeatureRow]) -> str:
    tiles = sum(row.tiles for row in rows)
    slides = len({row.slide for row in rows})
    stored = "\n".join(f"  {folder}" for folder in folders)
    files = "" if config.h5 is None else f"\nHDF5 files of them in {config.h5}"
    return (
        f"{config.store}: features of {counted(tiles, 'tile')} of "
        f"{counted(slides, 'slide')}, in\n{stored}{files}"
    )
