"""The writer of a slide's group into a store: in a hidden folder that is renamed when complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import zarr

from wsiad._version import __version__
from wsiad.core.errors import SlideReadError
from wsiad.core.files import atomic_file
from wsiad.pictures.overview import EXAMPLES, Overview, overview_jpeg
from wsiad.slides.slide import Slide
from wsiad.slides.slide_files import slide_fingerprint
from wsiad.store.group import TileArray, beside, create_group, write_array, write_attributes
from wsiad.store.tile_store import TileStore
from wsiad.tiling.plan import SlidePlan
from wsiad.tiling.stream import TileBlock, choose_examples, stream
from wsiad.tiling.verdict import why_unusable
from wsiad.tissue.quality import COLUMNS, LeftOut, Reason, count_reasons, judge


def write_slide(
    store: TileStore, plan: SlidePlan, *, fingerprint: str, coordinates: str | None = None
) -> int:
    """Write the tiles of a plan as a slide's group.

    The bytes are a function of slide, preparation and library versions. They hold no times and
    no paths, and do not depend on the order of workers.

    Parameters
    ----------
    store : TileStore
    plan : SlidePlan
    fingerprint : str
        Fingerprint of the slide; see :func:`wsiad.slides.slide_files.slide_fingerprint`.
    coordinates : str, optional
        Fingerprint of the coordinates from which the plan was made.

    Returns
    -------
    int
        Number of tiles written.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded, or changed meanwhile; nothing remains in the store.
    OSError
        The disk is full; nothing remains in the store.
    """
    slide = plan.scaled.slide
    with beside(store, slide.name) as folder:
        group = create_group(folder)
        tiles = TileArray(group, plan.grid.tile, store.compression)
        blocks = write_tiles(tiles, plan)
        tiles.finish()
        write_rest(
            group, store, plan, blocks, compression=tiles.facts(), fingerprint=fingerprint,
            coordinates=coordinates,
        )  # fmt: skip
        return tiles.count


def write_tiles(
    tiles: TileArray, plan: SlidePlan, *, first: int = 0, stop: int | None = None
) -> list[TileBlock]:
    """Write all tiles or a range of them, and return their blocks without pixels."""
    guard = plan.quality if plan.quality.action == "drop" else None
    examples = choose_examples(plan, count=EXAMPLES)
    parts: list[TileBlock] = []
    # Coded and written here, while threads read and normalise: both let the other work.
    with closing(
        stream(
            plan,
            quality=True,
            guard=guard,
            examples=examples,
            first=first,
            stop=stop,
            ahead=True,
        )
    ) as blocks:
        for block in blocks:
            tiles.append(block.pixels)
            # The pixels of a whole slide do not fit in memory; a view of none of them would
            # keep them all.
            parts.append(replace(block, pixels=np.empty((0, 0, 0, 3), np.uint8)))
    plan.scaled.slide.forget()
    return parts


def write_rest(
    group: zarr.Group,
    store: TileStore,
    plan: SlidePlan,
    blocks: Sequence[TileBlock],
    *,
    compression: dict[str, Any],
    fingerprint: str,
    coordinates: str | None,
) -> None:
    """Write everything that a slide has only once, after all of its tiles are written.

    Parameters
    ----------
    group : zarr.Group
    store : TileStore
    plan : SlidePlan
    blocks : sequence of TileBlock
        The blocks written, in order and without pixels: of one task, or of all parts of a slide.
    compression : dict
        Compression of the tiles; see :meth:`TileArray.facts`.
    fingerprint, coordinates : str
        See :func:`write_slide`.

    Raises
    ------
    SlideReadError
        The slide changed since its fingerprint was taken.
    """
    slide = plan.scaled.slide
    columns = _columns(plan, blocks)
    left_out = LeftOut.join(block.left_out for block in blocks).in_order()
    reasons = judge(columns, plan.quality)
    for name, values in columns.items():
        write_array(group, name, values)
    if plan.quality.given and plan.quality.action == "keep":
        write_array(group, "usable", reasons == Reason.USABLE)
    _write_left_out(group, left_out)
    write_array(group, "mask", plan.tissue.mask)
    if plan.tissue.pen is not None:
        write_array(group, "pen_mask", plan.tissue.pen)
    if plan.tissue.damaged is not None:
        write_array(group, "damaged_mask", plan.tissue.damaged)
    count, missing = len(reasons), left_out.count(Reason.MISSING) + plan.outside
    facts = _facts(plan, store, fingerprint=fingerprint, count=count, missing=missing)
    facts["compression"] = compression
    if (damaged := left_out.count(Reason.DAMAGED)) or plan.tissue.damaged is not None:
        facts["damaged"] = {"tiles": damaged, "share": plan.tissue.damaged_share}
    if plan.tissue.missing_share:
        facts["tissue"]["missing_share"] = plan.tissue.missing_share
    if plan.tissue.colourless_share:
        facts["tissue"]["colourless_share"] = plan.tissue.colourless_share
    if plan.quality.given:
        facts["unusable"] = count_reasons(np.concatenate([reasons, left_out.reasons]))
    if not count:
        facts |= _status_without_tiles(plan, left_out)
    if coordinates is not None:
        facts["coordinates"] = {"fingerprint": coordinates}
    write_attributes(group, facts)
    check_unchanged(slide, fingerprint)
    # Before the group is there: a slide that is whole has its overview.
    with atomic_file(store.overview(slide.name)) as partial:
        partial.write_bytes(
            overview_jpeg(
                _overview(plan, columns, reasons=reasons, left_out=left_out, parts=blocks)
            )
        )


def _status_without_tiles(plan: SlidePlan, left_out: LeftOut) -> dict[str, Any]:
    """Return the status of a slide without tiles: no tissue, or it could not be looked at."""
    if reason := why_unusable(plan, left_out):
        return {"status": "unusable", "reason": reason}
    return {"status": "no-tissue", "seen": True}


def check_unchanged(slide: Slide, fingerprint: str) -> None:
    """Check that a slide's files did not change while it was read.

    Raises
    ------
    SlideReadError
        The slide changed or is gone; the pixels that were read may be of two slides.
    """
    slide.check_unchanged()
    if slide_fingerprint(slide.path) != fingerprint:
        raise SlideReadError(
            "changed while it was read; nothing of it was kept",
            subject=slide.name,
            remedy="Wait until it is copied completely, and run again.",
        )


def _write_left_out(group: zarr.Group, left_out: LeftOut) -> None:
    if len(left_out):
        lattice = np.stack([left_out.rows, left_out.columns], axis=1).astype(np.int32)
        write_array(group, "left_out_lattice", lattice)
        write_array(group, "left_out_reason", left_out.reasons)


def _overview(
    plan: SlidePlan,
    columns: dict[str, npt.NDArray[Any]],
    reasons: npt.NDArray[np.uint8],
    left_out: LeftOut,
    parts: Sequence[TileBlock],
) -> Overview:
    lattice, failed = columns["lattice"], reasons != Reason.USABLE
    boxes = plan.grid.boxes(lattice[:, 0], lattice[:, 1])
    return Overview(
        slide=plan.scaled.slide.name,
        thumbnail=plan.tissue.thumbnail,
        mask=plan.tissue.mask,
        pen=plan.tissue.pen,
        placement=plan.tissue.placement,
        spacing=plan.scaled.slide.spacing,
        mpp=plan.scaled.mpp,
        boxes=boxes[~failed],
        left_out=np.concatenate([boxes[failed], plan.grid.boxes(left_out.rows, left_out.columns)]),
        reasons=np.concatenate([reasons[failed], left_out.reasons]),
        examples=[example for part in parts for example in part.examples],
        stain=plan.stain.method,
        fallback=plan.stain.fallback,
        damaged=plan.tissue.damaged,
    )


def _columns(plan: SlidePlan, parts: Sequence[TileBlock]) -> dict[str, npt.NDArray[Any]]:
    rows = np.concatenate([part.rows for part in parts] or [np.empty(0, np.int32)])
    columns = np.concatenate([part.columns for part in parts] or [np.empty(0, np.int32)])
    share = np.concatenate([part.coverage for part in parts] or [np.empty(0, np.float32)])
    table: dict[str, npt.NDArray[Any]] = {
        "position": plan.grid.boxes(rows, columns)[:, :2],
        "lattice": np.stack([rows, columns], axis=1).astype(np.int32),
        "coverage": share,
    }
    for name in COLUMNS:
        values = [part.quality[name] for part in parts if part.quality]
        table[name] = np.concatenate(values or [np.empty(0, np.float32)])
    return table


def _facts(
    plan: SlidePlan, store: TileStore, fingerprint: str, count: int, missing: int
) -> dict[str, Any]:
    slide, grid, reduced_by = plan.scaled.slide, plan.grid, plan.scaled.reduced_by
    level = slide.levels[plan.scaled.level]
    return {
        "status": "ok",
        "tiles": count,
        "tiles_missing": missing,
        "digest": store.digest,
        "slide": slide_facts(slide) | {"fingerprint": fingerprint},
        "grid": {
            "tile_px": grid.tile,
            "stride_px": grid.stride,
            "columns": grid.columns,
            "rows": grid.rows,
            "pixels": [
                grid.pixels.x,
                grid.pixels.y,
                grid.pixels.scale_x,
                grid.pixels.scale_y,
            ],
        },
        "read": {
            "backend": slide.backend,
            "fallback": slide.fallback,
            "level": plan.scaled.level,
            "level_downsample": [level.downsample_x, level.downsample_y],
            "resampled": plan.scaled.resampled or reduced_by > 1,
        }
        | ({"reduced_by": reduced_by} if reduced_by > 1 else {}),
        "tissue": {
            "threshold": plan.tissue.threshold,
            "share": plan.tissue.tissue_share,
            "pen_share": plan.tissue.pen_share,
            "placement": [
                plan.tissue.placement.x,
                plan.tissue.placement.y,
                plan.tissue.placement.scale_x,
                plan.tissue.placement.scale_y,
            ],
        },
        "stain": plan.stain.to_dict(),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries on which the bytes of a group may depend."""
    return {
        "wsiad": __version__,
        "openslide": openslide.__library_version__,
        "zarr": zarr.__version__,
    }


def slide_facts(slide: Slide) -> dict[str, Any]:
    """Describe a slide as JSON values: file name, format, size, bounds and spacing.

    Where slide and user disagree on the spacing, the facts state that too.
    """
    doubt = {"spacing_note": slide.scale_note, "spacing_overridden": slide.scale_overridden}
    return {
        "file": slide.path.name,
        "format": slide.format,
        "size_px": [slide.size.width, slide.size.height],
        "bounds_px": [slide.bounds.x, slide.bounds.y, slide.bounds.width, slide.bounds.height],
        "spacing_um": [slide.spacing.x, slide.spacing.y],
        "spacing_source": slide.spacing_source,
    } | (doubt if slide.scale_note else {})
