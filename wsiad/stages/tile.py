"""``wsiad tile``: slides into a tile store."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from wsiad.cluster.options import ComputeOptions
from wsiad.config import Paths, verb, write_config
from wsiad.errors import StoreMismatchError
from wsiad.files import fingerprint, write_json
from wsiad.provenance import versions
from wsiad.slides.inputs import SlideInput, find_slides
from wsiad.slides.staging import Staging
from wsiad.stages.batch import record_path, run_batch, slides_of_shard, with_staging
from wsiad.stages.division import Divided, PartDone
from wsiad.stages.slide_table import (
    SlideRow,
    SlideTable,
    backend_text,
    backends,
    failures,
)
from wsiad.tiles.options import CompressionOptions, Preparation

if TYPE_CHECKING:
    from wsiad.tiles.parts import Part
    from wsiad.tiles.store import TileStore


class TileConfig(ComputeOptions, Preparation):
    """Slides into a zarr store of stain-normalised tissue tiles."""

    slides: Annotated[Paths, Field(min_length=1)]
    """Slide files, folders of slides, or manifest CSVs (`slide`, `mpp`, `label`, `split`)."""
    out: Path
    """Folder of the store; slides that are whole in it are not tiled again."""
    coords: Path | None = None
    """Folder of HDF5 files as CLAM's or TRIDENT's that say where tiles lie, one a slide; in
    place of the grid and of `min_coverage`."""
    compression: CompressionOptions = CompressionOptions()
    """How the store keeps its pixels."""
    split_tiles: Annotated[int, Field(ge=1)] | None = 65_536
    """Slides of more tiles are tiled in parts of about so many, by as many workers as are free;
    each is kept when it is whole."""
    quiet: bool = False
    """No progress output."""

    @model_validator(mode="after")
    def _coordinates_need_no_stride(self) -> Self:
        if self.coords is not None and self.stride is not None:
            raise ValueError("`coords` say where tiles lie: give no `stride`")
        return self


@dataclass(frozen=True, slots=True)
class TileRow(SlideRow):
    """A slide in a store's ``slides.csv``.

    Parameters
    ----------
    tiles : int
        In the store.
    tissue_share : float or None
        Share of the slide that is tissue, 0 to 1.
    missing : int
        Tiles left out because the slide has no pixels there.
    unusable : int
        Tiles that fail a quality threshold: not in the store, or marked in it.
    unusable_black, unusable_pen, unusable_saturation, unusable_sharpness : int
        Those by the first threshold that they fail.
    """

    tiles: int = 0
    tissue_share: float | None = None
    missing: int = 0
    unusable: int = 0
    unusable_black: int = 0
    unusable_pen: int = 0
    unusable_saturation: int = 0
    unusable_sharpness: int = 0


@dataclass(frozen=True, slots=True)
class TileResult:
    """What tiling made.

    Parameters
    ----------
    store : Path
    rows : tuple of TileRow
        The slides (or imported sources) of this call, in order of their names.
    """

    store: Path
    rows: tuple[TileRow, ...]

    @property
    def failed(self) -> tuple[SlideRow, ...]:
        """Slides that are not in the store although they were asked for."""
        return tuple(failures(self.rows))


@dataclass(frozen=True, slots=True)
class _Task:
    slide: SlideInput
    store: Path
    preparation: Preparation
    target: dict[str, Any]
    earlier: TileRow | None
    coords: Path | None = None
    split_tiles: int | None = None
    staging: Staging | None = None
    part: Part | None = None
    join: bool = False
    spent: float = 0.0

    def after(self, seconds: float) -> Self:
        return replace(self, spent=seconds)


@verb(TileConfig)
def tile(config: TileConfig) -> TileResult:
    """Tile slides into a store.

    A slide that fails is reported and does not stop the others. Slides that are whole
    in the store are skipped, if slide and configuration are the same.

    Raises
    ------
    InputError
        No slides were found, or a manifest is not valid.
    StoreMismatchError
        The store was made with another configuration.
    StainError
        The stain target cannot be used.
    ClusterError
        There is no such cluster or scheduler, or it takes no jobs.
    """
    # Heavy, and of no use to `--help`.
    from wsiad.stages.store_reporting import write_store_report
    from wsiad.tiles.stain_target import stain_target
    from wsiad.tiles.store import TileStore
    from wsiad.tiles.tidying import tidied

    start = time.monotonic()
    inputs = slides_of_shard(find_slides(config.slides), config.shard)
    target = stain_target(config).to_dict()
    store = TileStore.create(config.out, config, target, compression=config.compression)
    write_config(config.out / "config.yaml", config)
    table = SlideTable(config.out / "slides.csv", TileRow)
    tasks = [
        _Task(
            slide,
            config.out,
            config.preparation(),
            target,
            table.get(slide.name),
            config.coords,
            config.split_tiles,
        )
        for slide in inputs
    ]
    with tidied(config.out):
        rows = run_batch(
            _tile_one,
            with_staging(tasks, config, done=lambda task: task.slide.name in store),
            row=TileRow,
            table=table,
            options=config,
            label="tile",
            quiet=config.quiet,
        )
    seconds = time.monotonic() - start
    record = summary(rows, seconds) | ({"shard": config.shard} if config.shard else {})
    write_json(record_path(config.out, config.shard), record)
    write_store_report(config.out)
    return TileResult(config.out, tuple(rows))


def summary(rows: list[TileRow], seconds: float) -> dict[str, Any]:
    """Return what a store's ``run.json`` says of the call that filled it."""
    from wsiad.tissue.guards import QUALITY_REASONS

    tiles = sum(row.tiles for row in rows)
    unusable = {
        reason.word: sum(getattr(row, f"unusable_{reason.word}") for row in rows)
        for reason in QUALITY_REASONS
    }
    return {
        "versions": versions(),
        "seconds": round(seconds, 3),
        "slides": len(rows),
        "failed": len(failures(rows)),
        "tiles": tiles,
        "missing": sum(row.missing for row in rows),
        "unusable": unusable,
        "tiles_per_second": round(tiles / seconds, 1) if seconds else None,
        "backends": backends(rows),
    }


def _tile_one(task: _Task) -> TileRow | Divided[_Task] | PartDone:
    return _stored(task) or _tiled(task)


def _stored(task: _Task) -> TileRow | None:
    """Row of a slide that is whole in the store already."""
    from wsiad.tiles.store import TileStore

    store = TileStore(task.store)
    name = task.slide.name
    if name not in store:
        return None
    stored = store.slide(name)
    if not task.slide.path.exists() or fingerprint(task.slide.path) != stored.fingerprint:
        raise StoreMismatchError(
            "is in the store, made from another file of this name",
            subject=name,
            remedy=f"Rename the slide, or delete {store.folder(name)} to tile it again.",
        )
    if stored.facts["slide"]["spacing_source"] == "manifest" and task.slide.mpp != stored.spacing.x:
        raise StoreMismatchError(
            f"is in the store at {stored.spacing.x:g} µm/px, and the manifest now states "
            f"{task.slide.mpp or 'none'}",
            subject=name,
            remedy=f"Mend the manifest, or delete {store.folder(name)} to tile it again.",
        )
    if (stored.facts.get("coordinates") or {}).get("fingerprint") != _coordinates(task)[1]:
        raise StoreMismatchError(
            "is in the store, tiled by other coordinates or by none",
            subject=name,
            remedy=f"Give the same --coords, or delete {store.folder(name)} to tile it again.",
        )
    seconds = task.earlier.seconds if task.earlier else 0.0
    return _row(task, store, seconds)


def _coordinates(task: _Task) -> tuple[Path | None, str | None]:
    """File that says where the slide's tiles lie, and its fingerprint."""
    from wsiad.tiles.coordinates import find_coordinates

    if task.coords is None:
        return None, None
    path = find_coordinates(task.coords, task.slide.name)
    return path, fingerprint(path)


def _tiled(task: _Task) -> TileRow | Divided[_Task] | PartDone:
    from wsiad.slides.opening import open_slide
    from wsiad.slides.staging import staged
    from wsiad.stain.profile import StainProfile
    from wsiad.tiles.parts import SlideParts, split
    from wsiad.tiles.plan import plan_slide
    from wsiad.tiles.store import TileStore
    from wsiad.tiles.writer import write_slide

    start = time.monotonic()
    store = TileStore(task.store)
    path, coordinates = _coordinates(task)
    with (
        staged(task.slide.path, task.staging, name=task.slide.name) as local,
        open_slide(
            local,
            name=task.slide.name,
            manifest_mpp=task.slide.mpp,
            fallback_mpp=task.preparation.slide_mpp,
        ) as slide,
    ):
        whole = fingerprint(task.slide.path)
        target = StainProfile.from_dict(task.target)
        plan = plan_slide(slide, task.preparation, target=target, coordinates=path)
        pieces = split(len(plan), tile=plan.grid.tile, most=task.split_tiles)
        parts = SlideParts(store, plan, pieces, whole, coordinates)
        if len(pieces) == 1:
            write_slide(store, plan, fingerprint=whole, coordinates=coordinates)
        elif task.part is not None:
            parts.write(task.part)
            return PartDone(task.slide.name, time.monotonic() - start)
        elif task.join:
            parts.join()
        else:
            missing = tuple(replace(task, part=part) for part in parts.missing())
            return Divided(missing, replace(task, join=True), time.monotonic() - start)
    return _row(task, store, task.spent + time.monotonic() - start)


def _row(task: _Task, store: TileStore, seconds: float) -> TileRow:
    from wsiad.tissue.guards import in_words

    stored = store.slide(task.slide.name)
    fallback = stored.facts["stain"].get("fallback")
    missing = stored.facts["tiles_missing"]
    unusable = stored.facts.get("unusable", {})
    kept = "stored, marked unusable" if "usable" in stored.group else "not stored"
    notes = [
        f"stains of the reference were used: {fallback}" if fallback else "",
        f"{missing} tiles left out: the slide has no pixels there" if missing else "",
        f"tiles that fail the thresholds, {kept}: {why}" if (why := in_words(unusable)) else "",
    ]
    return TileRow(
        task.slide.name,
        stored.status,
        "; ".join(note for note in notes if note),
        seconds,
        tiles=len(stored),
        mpp_x=float(stored.spacing.x),
        mpp_y=float(stored.spacing.y),
        width=stored.size.width,
        height=stored.size.height,
        tissue_share=float(stored.facts["tissue"]["share"]),
        missing=missing,
        unusable=sum(unusable.values()),
        **{f"unusable_{reason}": count for reason, count in unusable.items()},
        label=task.slide.label,
        split=task.slide.split,
        file=str(task.slide.path),
        backend=backend_text(stored.facts["read"]),
    )
