"""``wsiad tile``: cut slides into a tile store."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from wsiad.compute.batch import run_batch, with_staging
from wsiad.compute.compute_options import (
    ComputeOptions,
    PreviewOptions,
    first_slides,
    slides_of_call,
    write_call_record,
)
from wsiad.compute.tasks import workers_of
from wsiad.core.config import CONFIG, Paths, QuietOptions, verb, write_config
from wsiad.core.errors import InputError
from wsiad.slides.folder_kinds import SLIDES, check_coordinates_folder, other_kinds_named
from wsiad.slides.inputs import find_slides
from wsiad.slides.scale import check_mpp
from wsiad.slides.slide_table import (
    SLIDES_TABLE,
    SlideTable,
)
from wsiad.store.batch_result import TileResult, tiling_record
from wsiad.store.tile_task import (
    TileRow,
    TileTask,
    looked_for,
    stored_slide,
    tile_one,
)
from wsiad.tiling.preparation import CompressionOptions, TilingOptions

if TYPE_CHECKING:
    from wsiad.slides.inputs import SlideInput
    from wsiad.store.slide_preview import Preview


class TileConfig(QuietOptions, PreviewOptions, ComputeOptions, TilingOptions):
    """Cut slides into a zarr store of stain-normalised tissue tiles."""

    ORDER = (..., *PreviewOptions.model_fields, "quiet")

    slides: Annotated[Paths, Field(min_length=1)]
    """Slide files, folders of slides, or manifest CSVs (`slide`, `name`, `mpp`,
    `label`, `split`; docs/manifest.md)."""
    out: Path
    """Folder of the store; slides that are complete in it are not tiled again."""
    coords: Path | None = None
    """Folder of files that choose the tiles, one per slide. HDF5 files with coordinates, like those
    of CLAM or TRIDENT, replace the grid and `min_coverage`. Outlines (ASAP's XML, GeoJSON) keep
    the tiles whose centre is in a tumour."""
    override_mpp: bool = False
    """Use the µm/px of the manifest, or else of `slide_mpp`, also for slides that state others."""
    compression: CompressionOptions = CompressionOptions()
    """Options of the compression of pixels in the store."""
    split_tiles: Annotated[int, Field(ge=1)] | None = 65_536
    """Maximum number of tiles that are cut in one piece. Slides with more tiles are divided into
    parts of about this size, which free workers do; each part is kept when it is complete. Where
    few slides would leave workers idle, smaller ones are divided too, unless this is `null` or
    `stage_dir` is set, to which each part would copy the slide."""

    @field_validator("slide_mpp")
    @classmethod
    def _is_a_scale_of_slides(cls, value: float | None) -> float | None:
        return None if value is None else check_mpp(value)

    @model_validator(mode="after")
    def _coordinates_need_no_stride(self) -> Self:
        if self.coords is not None and self.stride is not None:
            raise ValueError("`coords` states the positions of tiles: leave out `stride`")
        return self


@verb(TileConfig)
def tile(config: TileConfig) -> TileResult:
    """Tile slides into a store.

    A slide that fails is reported and does not stop the others. Slides that are complete
    in the store are skipped if slide and configuration are the same. With ``dry_run`` the slides
    are looked at, and nothing is written.

    Raises
    ------
    InputError
        No slides were found, a name is not that of one, a manifest is not valid, or ``coords`` is
        not a folder of coordinates or outlines.
    StoreMismatchError
        The store was made with another configuration.
    StainError
        The stain target cannot be used.
    ClusterError
        The cluster or scheduler does not exist or accepts no jobs.
    """
    # Heavy, and of no use to `--help`.
    from wsiad.core.ahead import usable_cores
    from wsiad.report.store_report import write_store_report
    from wsiad.store.parts import pieces_of_slide
    from wsiad.store.tile_store import TileStore, tidied
    from wsiad.tiling.plan import stain_target

    start = time.monotonic()
    remedy = "Pass slide files, folders of them, or a manifest."
    with other_kinds_named(config.slides, SLIDES, InputError, remedy=remedy):
        found = first_slides(find_slides(config.slides), config.limit)
    if config.coords is not None:
        check_coordinates_folder(config.coords)
    inputs = slides_of_call(found, config)
    preparation = config.preparation()
    target = stain_target(preparation).to_dict()
    if config.dry_run:
        return TileResult(config.out, rows=(), preview=_preview(config, inputs, target))
    store = TileStore.create(config.out, preparation, target, compression=config.compression)
    write_config(config.out / CONFIG, config)
    inputs = [looked_for(slide, store) for slide in inputs]
    table = SlideTable(config.out / SLIDES_TABLE, TileRow)
    todo = sum(slide.name not in store and not slide.problem for slide in inputs)
    here = config.cluster is None and config.scheduler is None
    pieces = pieces_of_slide(todo, workers_of(config), cores=usable_cores() if here else None)
    tasks = [
        TileTask(
            slide=slide,
            store=config.out,
            preparation=config.preparation(),
            target=target,
            earlier=table.get(slide.name),
            coords=config.coords,
            split_tiles=config.split_tiles,
            pieces=1 if config.stage_dir else pieces,
            override_mpp=config.override_mpp,
        )
        for slide in inputs
    ]
    with tidied(config.out):
        rows = run_batch(
            tile_one,
            with_staging(tasks, config, done=lambda task: task.slide.name in store),
            row=TileRow,
            table=table,
            options=config,
            label="tile",
            quiet=config.quiet,
            stored=stored_slide,
        )
    seconds = time.monotonic() - start
    if not config.only or not {slide.name for slide in found} - table.names():
        write_store_report(config.out)
    new = table.changed(rows)
    record = tiling_record(rows, seconds, new=new)
    write_call_record(config.out, config, rows, record, worked=bool(new))
    return TileResult(config.out, rows=tuple(rows))


def _preview(config: TileConfig, inputs: Sequence[SlideInput], target: dict[str, Any]) -> Preview:
    """Look at the slides."""
    from wsiad.store.slide_preview import look_to_tile, preview_slides
    from wsiad.store.tile_store import TileStore

    preparation = config.preparation()
    store = TileStore.made_alike(config.out, preparation, target, config.compression)
    table = SlideTable(config.out / SLIDES_TABLE, TileRow)
    tasks = [
        TileTask(
            slide=looked_for(slide, store) if store else slide,
            store=config.out,
            preparation=preparation,
            target=target,
            earlier=table.get(slide.name),
            coords=config.coords,
            override_mpp=config.override_mpp,
        )
        for slide in inputs
    ]
    return preview_slides(
        tasks,
        done=lambda task: store is not None and stored_slide(task) is not None,
        look=functools.partial(
            look_to_tile, compression=store.compression if store else config.compression
        ),
        noun="tile",
        workers=workers_of(config),
        out=config.out,
        as_json=config.as_json,
        quiet=config.quiet,
    )
