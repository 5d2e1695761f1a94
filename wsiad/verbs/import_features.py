"""``wsiad import-features``: import features of other programs into a store without tiles."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wsiad.compute.batch import run_batch
from wsiad.compute.compute_options import ComputeOptions
from wsiad.core.config import CONFIG, RECORD, Paths, QuietOptions, verb, write_config
from wsiad.core.errors import InputError, StoreMismatchError
from wsiad.core.files import name_problem, write_json
from wsiad.core.labels import Split, own_label
from wsiad.core.terminal import counted
from wsiad.slides.inputs import SlideInput
from wsiad.slides.scale import check_mpp
from wsiad.slides.slide_table import SLIDES_TABLE, SlideTable
from wsiad.store.batch_result import TileResult, tiling_record
from wsiad.store.feature_options import FeatureStorageOptions
from wsiad.store.tile_task import TileRow
from wsiad.tiling.preparation import Preparation, StainOptions

EncoderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]


class ImportFeaturesConfig(QuietOptions, FeatureStorageOptions):
    """Import features that TRIDENT or CLAM computed, to train and score without slides."""

    ORDER = (..., "dtype", "workers", "quiet")

    sources: Annotated[Paths, Field(min_length=1)]
    """HDF5 files with `features` and `coords`, one for each slide, or folders of them."""
    out: Path
    """Folder of the store; slides that are complete in it are not imported again."""
    mpp: Annotated[float, Field(gt=0, le=64)]
    """Scale at which the tiles were seen, µm/px: 0.5 for TRIDENT's `--mag 20`."""
    encoder: EncoderName
    """Name of the network that computed the features. Only features of the same name are ever
    compared; nothing checks that the name is right."""
    tile: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Edge of the tiles at `mpp`, pixels; by default as the files state it (`patch_size`)."""
    slide_mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0, for files that do not state the size of their tiles there, as CLAM's."""
    label: str = ""
    """Label of all slides of this call, such as `normal` or `tumor`."""
    split: Split = ""
    """Split of the slides, by which `wsiad train --split` chooses."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of processes; each imports one slide at a time."""


@verb(ImportFeaturesConfig)
def import_features(config: ImportFeaturesConfig) -> TileResult:
    """Import features into a store without tiles.

    A file that cannot be used is reported and does not stop the others. Slides that are complete in
    the store are skipped if their files are the same.

    Raises
    ------
    InputError
        A source does not exist, no file can be read, or the size of tiles is not stated.
    StoreMismatchError
        The store was made with another scale, size of tiles, encoder or type.
    StoreError
        The store holds features of another size.
    """
    # Heavy, and of no use to `--help`.
    from wsiad.learning.feature_source import imported_identity, kept_identity
    from wsiad.store.feature_import import FeatureImportTask, import_features_one
    from wsiad.store.foreign_features import feature_files
    from wsiad.store.stored_features import FeatureFolder, find_features
    from wsiad.store.tile_store import TileStore, tidied
    from wsiad.tiling.plan import stain_target

    start = time.monotonic()
    if config.slide_mpp is not None:
        check_mpp(config.slide_mpp)
    paths = feature_files(config.sources)
    tile, channels = _seen(config, paths)
    preparation = Preparation(mpp=config.mpp, tile=tile, stain=StainOptions(method="none"))
    target = stain_target(preparation).to_dict()
    store = TileStore.create(config.out, preparation, target, encoder=config.encoder)
    write_config(config.out / CONFIG, config)
    seen = imported_identity(config.encoder, input_px=tile, input_mpp=config.mpp)
    identity = kept_identity(seen, "places", 0)
    if other := [f.dtype for f in find_features(config.out, identity) if f.dtype != config.dtype]:
        raise StoreMismatchError(
            f"holds features as {other[0]}, not {config.dtype}",
            subject=str(config.out),
            remedy=f"Set --dtype {other[0]}, or another --out.",
        )
    folder = FeatureFolder.create(
        config.out,
        identity=identity,
        dtype=config.dtype,
        shape=(1, 1, channels),
        digest=store.digest,
    )
    table = SlideTable(config.out / SLIDES_TABLE, TileRow)
    names = Counter(path.stem for path in paths)
    label = own_label(config.label)
    tasks = [
        FeatureImportTask(
            slide=SlideInput(
                path.stem,
                path,
                label=label,
                split=config.split,
                problem=name_problem(path.stem, count=names[path.stem], noun="file"),
            ),
            store=config.out,
            folder=folder.path,
            slide_mpp=config.slide_mpp,
            earlier=table.get(path.stem),
        )
        for path in paths
    ]
    with tidied(config.out):
        rows = run_batch(
            import_features_one,
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


def _seen(config: ImportFeaturesConfig, paths: list[Path]) -> tuple[int, int]:
    """Return the edge of the tiles and the number of values, of the first file that can be read."""
    from wsiad.store.foreign_features import FeatureFile

    problems = []
    for path in paths:
        try:
            with FeatureFile(path) as file:
                tile, channels = config.tile or file.stated.get("patch_size"), file.channels
        except InputError as error:
            problems.append(str(error))
            continue
        if tile is not None and 8 <= round(tile) <= 4096:
            return round(tile), channels
        problems.append(f"{path}: does not state the size of its tiles")
    raise InputError(
        f"none of {counted(len(paths), 'file')} can be used: {problems[0].rstrip('.')}",
        remedy="Correct that, or set --tile in pixels.",
    )
