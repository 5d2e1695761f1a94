"""The import of features that other programs computed: a slide with positions and without tiles.

A slide of the store then has the places of its tiles and their features. Heatmaps need neither the
slide nor the network; what needs pixels is refused.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from wsiad.compute.batch import BatchTask
from wsiad.core.errors import InputError, StoreMismatchError
from wsiad.core.files import fingerprint
from wsiad.core.geometry import PixelMap
from wsiad.core.ownership import discard
from wsiad.core.terminal import counted
from wsiad.stain.profile import StainProfile
from wsiad.store.foreign_features import (
    FeatureFile,
    Layout,
    check_lattice,
    lay_out,
    mask_of,
    tile_edge,
)
from wsiad.store.group import beside, create_group, write_array, write_attributes
from wsiad.store.stored_features import FeatureFolder
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureImportTask(BatchTask):
    """A file of features to import, as it is sent to a worker; its slide names slide and file.

    Parameters
    ----------
    store, folder : Path
        Store, and folder of its features.
    slide_mpp : float or None
        µm/px of level 0, for files that do not state the size of tiles there.
    earlier : TileRow or None
        Row of the slide from an earlier call.
    """

    store: Path
    folder: Path
    slide_mpp: float | None
    earlier: TileRow | None


def import_features_one(task: FeatureImportTask) -> TileRow:
    """Import the features of a slide, unless they are complete in the store already.

    Raises
    ------
    StoreMismatchError
        The store has a slide of this name from another file.
    InputError
        The file does not hold features of tiles of the store's size.
    StoreError
        A feature does not fit the type.
    """
    start = time.monotonic()
    store, folder = TileStore(task.store), FeatureFolder.open(task.folder)
    name, path = task.slide.name, task.slide.path
    source = fingerprint(path)
    if name in store:
        stored = store.slide(name)
        if stored.fingerprint != source:
            raise StoreMismatchError(
                "is in the store, made from another file of this name",
                subject=name,
                remedy=f"Rename the file, or delete {store.folder(name)} to import it again.",
            )
        if folder.holds(stored):
            return _row(task, store, task.earlier.seconds if task.earlier else 0.0)
        discard(store.folder(name))
    with FeatureFile(path) as file:
        _write(store, folder, file, task=task, source=source)
    return _row(task, store, time.monotonic() - start)


def _write(
    store: TileStore, folder: FeatureFolder, file: FeatureFile, *, task: FeatureImportTask,
    source: str,
) -> None:  # fmt: skip
    """Write the features first, then the slide: it is there when all of it is."""
    tile, mpp, name = store.preparation.tile, float(store.preparation.mpp), task.slide.name
    stated = file.stated.get("patch_size")
    if stated is not None and round(stated) != tile and "patch_size_level0" in file.stated:
        raise InputError(
            f"its tiles have {stated:g} px, and those of the store {tile} px",
            subject=str(file.path),
            remedy="Import it into a store of its own.",
        )
    if (file.channels,) != folder.shape[-1:]:
        raise InputError(
            f"has {counted(file.channels, 'value')} for a tile, and the store {folder.shape[-1]}",
            subject=str(file.path),
            remedy="Import the features of another encoder into a store of their own.",
        )
    edge = tile_edge(file.stated, tile=tile, mpp=mpp, slide_mpp=task.slide_mpp)
    layout = lay_out(file.corners, tile=tile, edge=edge)
    check_lattice(layout, file.path)
    mask, placement = mask_of(layout, mpp=mpp)
    facts = _facts(store, file, layout=layout, edge=edge, source=source, placement=placement)
    facts = json.loads(json.dumps(facts))
    slide = StoredSlide(
        name=name, group=zarr.create_group(MemoryStore()), facts=facts,
        folder=store.folder(name), reader=None,
    )  # fmt: skip
    folder.write(slide, file.blocks(layout.indices))
    with beside(store, name) as partial:
        group = create_group(partial)
        rows, columns = layout.lattice[:, 0], layout.lattice[:, 1]
        write_array(group, "position", layout.grid.boxes(rows, columns)[:, :2])
        write_array(group, "lattice", layout.lattice)
        write_array(group, "coverage", np.ones(len(rows), np.float32))
        write_array(group, "mask", mask)
        write_attributes(group, facts)


def _facts(
    store: TileStore,
    file: FeatureFile,
    *,
    layout: Layout,
    edge: float,
    source: str,
    placement: PixelMap,
) -> dict[str, Any]:
    grid, spacing = layout.grid, float(store.preparation.mpp) * store.preparation.tile / edge
    reach = np.ceil(file.corners.max(axis=0) + edge)
    names = ("level0_width", "level0_height")
    size = [int(max(1.0, end, file.stated.get(n, 0))) for n, end in zip(names, reach, strict=True)]
    area = len(layout.indices) * (edge * grid.stride / grid.tile) ** 2
    return {
        "status": "ok",
        "tiles": len(layout.indices),
        "tiles_missing": 0,
        "pixels": False,
        "digest": store.digest,
        "slide": {
            "file": file.path.name,
            "format": "features",
            "size_px": size,
            "bounds_px": [0, 0, *size],
            "spacing_um": [spacing, spacing],
            "spacing_source": "features",
            "fingerprint": source,
        },
        "grid": {
            "tile_px": grid.tile,
            "stride_px": grid.stride,
            "columns": grid.columns,
            "rows": grid.rows,
            "pixels": [grid.pixels.x, grid.pixels.y, grid.pixels.scale_x, grid.pixels.scale_y],
        },
        "read": {
            "backend": "features",
            "fallback": "",
            "level": 0,
            "level_downsample": [1.0, 1.0],
            "resampled": True,
        },
        "tissue": {
            "threshold": None,
            "share": min(1.0, area / (size[0] * size[1])),
            "pen_share": 0.0,
            "placement": [placement.x, placement.y, placement.scale_x, placement.scale_y],
        },
        "stain": StainProfile("none").to_dict(),
        "import": {"moved_px": layout.moved_px, "doubled": layout.doubled},
    }


def _row(task: FeatureImportTask, store: TileStore, seconds: float) -> TileRow:
    stored = store.slide(task.slide.name)
    found = stored.facts["import"]
    notes = [
        f"tiles are on no lattice, and were moved by up to {found['moved_px']:.0f} level-0 px"
        if found["moved_px"]
        else "",
        f"{counted(found['doubled'], 'tile')} left out: others have their places"
        if found["doubled"]
        else "",
    ]
    return TileRow.of(task.slide, stored, notes=notes, seconds=seconds)
