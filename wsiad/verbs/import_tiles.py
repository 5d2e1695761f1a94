"""``wsiad import-tiles``: import tiles of other programs into a store without geometry."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from wsiad.compute.batch import run_batch
from wsiad.compute.compute_options import ComputeOptions
from wsiad.core.config import CONFIG, RECORD, Paths, QuietOptions, verb, write_config
from wsiad.core.errors import InputError, StoreMismatchError
from wsiad.core.files import name_problem, write_json
from wsiad.core.labels import Split, own_label
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import SLIDES_TABLE, SlideTable
from wsiad.stain.profile import StainMethod
from wsiad.store.batch_result import TileResult, tiling_record
from wsiad.store.import_task import ImportTask, Part, import_one, tile_images
from wsiad.store.tile_task import TileRow
from wsiad.tiling.preparation import (
    CompressionOptions,
    PictureOptions,
    Preparation,
    StainOptions,
)


class ImportStainOptions(StainOptions):
    """Stain options of an import; off by default, because a source may mix slides and stains."""

    method: StainMethod = "none"
    """Method, fitted once per source; use it only if each source has the tiles of one slide."""


class ImportTilesConfig(QuietOptions, PictureOptions):
    """Import tiles from folders, tars and HDF5 files into a store without slide geometry."""

    ORDER = (
        *("sources", "out", "mpp", "tile", "label", "labels", "split", "grey_values", "resize"),
        *("crop", "clahe", ..., "quiet"),
    )

    sources: Annotated[Paths, Field(min_length=1)]
    """Folders of PNG, JPEG or TIFF tiles, folders that `wsiad export-tiles` wrote, tars of such
    tiles, or HDF5 files like PCam's."""
    out: Path
    """Folder of the store; sources that are complete in it are not imported again."""
    mpp: Annotated[float, Field(gt=0, le=64)]
    """Scale of the tiles as they are stored, µm/px, which their files do not state."""
    tile: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Edge of the tiles, pixels; by default that of the first tile. No tile is resized, unless
    `resize` or `crop` says so."""
    label: str = ""
    """Label of all sources of this call, such as `normal` or `tumor`."""
    labels: Paths = ()
    """HDF5 files with `y` (0 normal, 1 tumour), one for each source, in the same order. A
    source becomes two groups, `<name>-normal` and `<name>-tumor`."""
    split: Split = ""
    """Split of the tiles, by which `wsiad train --split` chooses."""
    stain: ImportStainOptions = ImportStainOptions()
    """Options of stain normalisation."""
    prepared_like: Path | None = None
    """Run whose stains the tiles have already, as those that `wsiad suggest` or `wsiad
    export-tiles` wrote. Their pixels are stored unchanged, and the store states the stains of
    the run."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of processes; each imports one source at a time."""
    compression: CompressionOptions = CompressionOptions()
    """Options of the compression of pixels in the store."""

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.labels and len(self.labels) != len(self.sources):
            raise ValueError(f"{len(self.labels)} `labels` for {len(self.sources)} `sources`")
        if self.labels and self.label:
            raise ValueError("set either `label` or `labels`, not both")
        if self.prepared_like is not None and self.stain.method != "none":
            raise ValueError("tiles that are `prepared_like` a run have stains: no `stain.method`")
        if self.prepared_like is not None and self.pictures():
            raise ValueError("tiles that are `prepared_like` a run are ready: no picture options")
        return self

    def preparation(self, tile: int) -> tuple[Preparation, dict[str, Any]]:
        """Return the options that decide the pixels, as a store records them, and the stains.

        Raises
        ------
        RunError
            The run that the tiles are prepared like is missing or damaged.
        StoreMismatchError
            The scale of that run is another.
        StainError
            The stain target cannot be used.
        """
        if self.prepared_like is None:
            from wsiad.tiling.plan import stain_target

            stain = StainOptions(**self.stain.model_dump())
            preparation = Preparation(
                mpp=self.mpp, tile=tile, stain=stain, pictures=self.pictures()
            )
            return preparation, stain_target(preparation).to_dict()
        from wsiad.runs.compatibility import run_preparation

        like, target = run_preparation(self.prepared_like)
        if like.mpp != self.mpp:
            raise StoreMismatchError(
                f"its tiles have {like.mpp:g} µm/px, and --mpp is {self.mpp:g}",
                subject=str(self.prepared_like),
                remedy="Pass the scale of the tiles, or the run whose stains they have.",
            )
        preparation = Preparation(mpp=self.mpp, tile=tile, stain=like.stain, pictures=like.pictures)
        return preparation, target


@verb(ImportTilesConfig)
def import_tiles(config: ImportTilesConfig) -> TileResult:
    """Import tiles into a store.

    A source with anything other than tiles of one size is reported, leaves nothing in the
    store and does not stop the others. Sources that are complete in the store are skipped
    if they are the same.

    Raises
    ------
    InputError
        A source does not exist or is of an unknown kind, or the size of tiles cannot be found.
    StoreMismatchError
        The store was made with another configuration, or the run that the tiles are prepared
        like has another scale.
    RunError
        That run is missing or damaged.
    StainError
        The stain target cannot be used.
    """
    # Heavy, and of no use to `--help`.
    from wsiad.store.tile_store import TileStore, tidied

    start = time.monotonic()
    groups = _groups(config)
    tile = config.tile or _tile_of(config, [slide.path for slide, *_ in groups])
    preparation, target = config.preparation(tile)
    TileStore.create(config.out, preparation, target, compression=config.compression)
    write_config(config.out / CONFIG, config)
    table = SlideTable(config.out / SLIDES_TABLE, TileRow)
    tasks = [
        ImportTask(
            slide=slide,
            store=config.out,
            tile=tile,
            labels=labels,
            part=part,
            earlier=table.get(slide.name),
            normalised=config.prepared_like is not None,
            pictures=config.pictures(),
        )
        for slide, labels, part in groups
    ]
    with tidied(config.out):
        rows = run_batch(
            import_one,
            tasks,
            row=TileRow,
            table=table,
            options=ComputeOptions(workers=config.workers),
            label="import",
            quiet=config.quiet,
        )
    new = table.changed(rows)
    if new or not (config.out / RECORD).exists():
        record = tiling_record(rows, time.monotonic() - start, new=new)
        write_json(config.out / RECORD, record)
    return TileResult(config.out, rows=tuple(rows))


def _groups(config: ImportTilesConfig) -> list[tuple[SlideInput, Path | None, Part]]:
    """List the groups that the sources become; clashing or unsafe names become problems."""
    from wsiad.core.hdf5 import read_labels
    from wsiad.exports.exported_tiles import exported_slides
    from wsiad.store.foreign_tiles import source_format, source_name

    found: list[tuple[SlideInput, Path | None, Part]] = []
    label, split = own_label(config.label), config.split
    # Of pictures that are resized, it is the scale afterwards.
    mpp = config.mpp if config.resize is None else None
    for number, path in enumerate(config.sources):
        kind, name = source_format(path), source_name(path)
        if not config.labels:
            slides = exported_slides(path, label=label, mpp=mpp) if kind == "folder" else None
            if slides is None:
                slides = [SlideInput(name, path, label=label)]
            found += [(replace(slide, split=split), None, "") for slide in slides]
            continue
        if kind != "hdf5":
            raise InputError("only HDF5 sources accept `labels`", subject=str(path))
        labels = config.labels[number]
        tumour = read_labels(labels)
        parts: list[Part] = ["normal"] if not tumour.all() else []
        parts += ["tumor"] if tumour.any() else []
        found += [
            (SlideInput(f"{name}-{part}", path, label=part, split=split), labels, part)
            for part in parts
        ]
    names = Counter(slide.name for slide, *_ in found)

    def checked(slide: SlideInput) -> SlideInput:
        bad = name_problem(slide.name, count=names[slide.name], noun="source")
        return replace(slide, problem=slide.problem or bad)

    return [(checked(slide), labels, part) for slide, labels, part in found]


def _tile_of(config: ImportTilesConfig, sources: Iterable[Path]) -> int:
    """Return the edge of the tiles: that of an existing store, else that of the first tile."""
    from wsiad.store.tile_store import TileStore, is_store

    if is_store(config.out):
        store = TileStore(config.out)
        return store.preparation.tile
    problems = []
    for path in sources:
        try:
            for _, pixels in tile_images(path, pictures=config.pictures()).tiles():
                return len(pixels)
            problems.append(f"{path}: holds no tiles")
        except InputError as error:
            problems.append(str(error))
    raise InputError(
        f"the size of tiles cannot be found: {problems[0].rstrip('.')}",
        remedy="Correct that and import again.",
    )
