"""``wsiad export-tiles``: write a store's tiles as image files, or their coordinates as HDF5."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from wsiad.core.config import QuietOptions, verb
from wsiad.core.errors import InputError, WsiadError
from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import Progress, counted
from wsiad.slides.slide_table import (
    FAILED,
    SLIDES_TABLE,
    UNUSABLE,
    SlideRow,
    failures,
    read_table,
)
from wsiad.store.tile_task import StoreOptions, TileRow, no_tiles

if TYPE_CHECKING:
    from wsiad.exports.exported_tiles import TileFileRow
    from wsiad.exports.tile_images import TileFile
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_store import TileStore


class ExportTilesConfig(QuietOptions, StoreOptions):
    """Write the tiles of a store, or their coordinates, for other programs."""

    ORDER = ("store", ..., "quiet")

    out: Path
    """Folder to write to; slides that are complete in it are not written again."""
    format: Literal["png", "jpeg", "clam", "trident"] = "png"
    """Image files (`png`, `jpeg`), or one HDF5 of coordinates per slide (`clam`, `trident`); see
    docs/interchange.md."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of `jpeg`, 1 to 100."""


@dataclass(frozen=True, slots=True)
class ExportTilesResult:
    """Result of exporting tiles.

    Parameters
    ----------
    out : Path
        Folder of the export.
    slides : tuple of str
        Names of the exported slides, including those of earlier calls.
    failed : tuple of SlideRow
        Slides that were not tiled, or cannot be exported in this format, with the reason.
    unusable : tuple of SlideRow
        Slides that could not be looked at, with the reason; they have no files.
    summary : str
        Summary for the terminal.
    """

    out: Path
    slides: tuple[str, ...]
    failed: tuple[SlideRow, ...]
    unusable: tuple[SlideRow, ...]
    summary: str


@verb(ExportTilesConfig)
def export_tiles(config: ExportTilesConfig) -> ExportTilesResult:
    """Export the tiles of a store.

    Raises
    ------
    StoreError
        The store does not exist or is damaged.
    InputError
        The store is empty, or the folder contains another export or something else.
    """
    from wsiad.exports.exported_tiles import (
        claim,
        holds_images,
        keep,
        left_behind,
        table_rows,
        write_table,
    )
    from wsiad.store.tile_store import TileStore

    store = TileStore(config.store)
    rows = read_table(store.path / SLIDES_TABLE, TileRow)
    labels = {row.slide: row.label for row in rows}
    names = store.names()
    if not any(slide.reason or len(slide) for slide in store):
        raise no_tiles(store)
    facts = _facts(config, store)
    earlier = claim(config.out, facts)
    done = {name: mark for name, mark in earlier.items() if name in {*names}}
    table: list[TileFileRow] = []
    exported, unusable, tiles = list[str](), list[SlideRow](), 0
    failed: list[SlideRow] = [
        replace(row, reason=f"was not tiled: {row.reason}") for row in failures(rows)
    ]
    with Progress("export", total=len(names), unit="slide", quiet=config.quiet) as progress:
        for slide in store:
            if slide.reason:
                # A file without tiles would say that there is nothing on the slide.
                unusable.append(SlideRow(slide.name, UNUSABLE, slide.reason))
                done.pop(slide.name, None)
                progress.update(note=slide.name)
                continue
            try:
                files = _export(config, slide, whole=done.get(slide.name) == slide.fingerprint)
            except WsiadError as error:
                raise_if_ended()
                reason = str(error).removeprefix(f"{slide.name}: ")
                failed.append(SlideRow(slide.name, FAILED, reason))
            else:
                done[slide.name] = slide.fingerprint
                keep(config.out, facts, done)
                table.extend(table_rows(slide.name, files, label=labels.get(slide.name, "")))
                exported.append(slide.name)
                tiles += len(slide)
            progress.update(note=slide.name)
    if done.keys() != earlier.keys():
        keep(config.out, facts, done)
    images = holds_images(config.format)
    if images:
        write_table(config.out, table)
    left_out = [*(earlier.keys() - done.keys()), *(row.slide for row in (*failed, *unusable))]
    stale = left_behind(config.out, {*left_out} - done.keys(), suffix="" if images else ".h5")
    what = "" if images else "coordinates of "
    said = (
        f"{config.out}: {what}{counted(tiles, 'tile')} of {counted(len(exported), 'slide')} as "
        f"{config.format}"
    )
    return ExportTilesResult(
        out=config.out,
        slides=tuple(exported),
        failed=tuple(failed),
        unusable=tuple(unusable),
        summary="\n".join([*stale, said]),
    )


def _export(config: ExportTilesConfig, slide: StoredSlide, *, whole: bool) -> list[TileFile]:
    from wsiad.exports.exported_tiles import EXPORT, TABLE
    from wsiad.exports.tile_coordinates import write_coordinates
    from wsiad.exports.tile_images import tile_files, write_tile_images

    if config.format == "clam" or config.format == "trident":
        write_coordinates(slide, config.out / f"{slide.name}.h5", layout=config.format)
        return []
    if slide.name.partition("/")[0] in (EXPORT, TABLE):
        raise InputError(
            "has the name of a file of the export",
            subject=slide.name,
            remedy="Rename the slide and tile it again.",
        )
    folder = config.out / slide.name
    if whole and folder.is_dir():
        files = tile_files(slide, config.format)
        if {file.file for file in files} <= {path.name for path in folder.iterdir()}:
            return files
    return write_tile_images(slide, folder, kind=config.format, quality=config.quality)


def _facts(config: ExportTilesConfig, store: TileStore) -> dict[str, Any]:
    quality, mpp = config.quality if config.format == "jpeg" else None, store.preparation.mpp
    return {"format": config.format, "quality": quality, "mpp": mpp, "store": store.digest}
