"""``wsiad export-tiles``: write a store's tiles as image files, or their coordinates as HDF5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from wsiad.core.config import QuietOptions, differences, verb
from wsiad.core.csv_file import table_text
from wsiad.core.errors import InputError, WsiadError
from wsiad.core.files import read_json, write_json, write_text
from wsiad.core.ownership import refuse_foreign
from wsiad.core.signals import raise_if_ended
from wsiad.core.terminal import Progress
from wsiad.slides.slide_table import FAILED, SLIDES_TABLE, UNUSABLE, SlideRow, read_table
from wsiad.store.tile_task import StoreOptions, TileRow

if TYPE_CHECKING:
    from wsiad.exports.tile_images import TileFile
    from wsiad.store.stored_slide import StoredSlide

EXPORT, TABLE = "export.json", "tiles.csv"

COLUMNS = ("slide", "file", "index", "x", "y", "width", "height", "label")


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
        Slides that cannot be exported in this format, with the reason.
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
    from wsiad.store.tile_store import TileStore

    store = TileStore(config.store)
    labels = {row.slide: row.label for row in read_table(store.path / SLIDES_TABLE, TileRow)}
    names = store.names()
    if not names:
        raise InputError("holds no slides", subject=str(config.store))
    done = _claim(config, store.digest)
    table: list[list[object]] = []
    exported, failed, unusable, tiles = [], [], [], 0
    with Progress("export", total=len(names), unit="slide", quiet=config.quiet) as progress:
        for slide in store:
            if slide.reason:
                # A file without tiles would say that there is nothing on the slide.
                unusable.append(SlideRow(slide.name, UNUSABLE, slide.reason))
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
                write_json(config.out / EXPORT, _facts(config, store.digest, done))
                table.extend(_rows(slide.name, files, labels.get(slide.name, "")))
                exported.append(slide.name)
                tiles += len(slide)
            progress.update(note=slide.name)
    if config.format in ("png", "jpeg"):
        write_text(config.out / TABLE, table_text(COLUMNS, table))
    what = "tiles" if config.format in ("png", "jpeg") else "coordinates of tiles"
    summary = f"{config.out}: {tiles} {what} of {len(exported)} slides as {config.format}"
    return ExportTilesResult(
        out=config.out,
        slides=tuple(exported),
        failed=tuple(failed),
        unusable=tuple(unusable),
        summary=summary,
    )


def _export(config: ExportTilesConfig, slide: StoredSlide, *, whole: bool) -> list[TileFile]:
    from wsiad.exports.tile_coordinates import write_coordinates
    from wsiad.exports.tile_images import tile_files, write_tile_images

    if config.format == "clam" or config.format == "trident":
        write_coordinates(slide, config.out / f"{slide.name}.h5", layout=config.format)
        return []
    folder = config.out / slide.name
    if whole and folder.is_dir():
        return tile_files(slide, config.format)
    return write_tile_images(slide, folder, kind=config.format, quality=config.quality)


def _rows(slide: str, files: list[TileFile], label: str) -> Iterator[list[object]]:
    for tile in files:
        box = [f"{value:.9g}" for value in tile.box] if tile.box else [""] * 4
        yield [slide, f"{slide}/{tile.file}", tile.index, *box, label]


def _facts(config: ExportTilesConfig, digest: str, slides: dict[str, str]) -> dict[str, Any]:
    quality = config.quality if config.format == "jpeg" else None
    return {"format": config.format, "quality": quality, "store": digest, "slides": slides}


def _claim(config: ExportTilesConfig, digest: str) -> dict[str, str]:
    """Return the slides that an equal export has completed; refuse any other folder."""
    path = config.out / EXPORT
    if not path.exists():
        refuse_foreign(config.out, InputError, what="an export", marks=[EXPORT])
        # Before the first slide, so that an export that was cut off can go on.
        write_json(path, _facts(config, digest, {}))
        return {}
    facts = read_json(path, InputError)
    known = facts.get("slides")
    slides = {name: str(value) for name, value in known.items()} if isinstance(known, dict) else {}
    now = _facts(config, digest, slides)
    if told := differences(facts, now):
        raise InputError(
            f"holds an export of another store, or with other options: {', '.join(told)}",
            subject=str(config.out),
            remedy="Set another --out, or delete this one.",
        )
    return slides
