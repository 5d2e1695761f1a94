"""The tiling of one slide: its task, its work in a worker process, and its row in the table.

Slides of a store that could not be looked at are listed here, for everyone who uses the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from wsiad.compute.batch import Divided, PartDone, PreparedTask
from wsiad.core.config import Config
from wsiad.core.errors import InputError, SlideOpenError, StoreMismatchError
from wsiad.core.files import fingerprint
from wsiad.core.terminal import counted
from wsiad.slides.scale import SAME_SCALE
from wsiad.slides.slide_files import away_problem, slide_files, slide_fingerprint
from wsiad.slides.slide_table import (
    FAILED,
    FILE_AWAY,
    SLIDES_TABLE,
    UNUSABLE,
    SlideRow,
    backend_text,
    first_reasons,
    read_table,
)

if TYPE_CHECKING:
    from wsiad.slides.inputs import SlideInput
    from wsiad.stain.profile import StainProfile
    from wsiad.store.parts import Part
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_store import TileStore
    from wsiad.tiling.plan import SlidePlan


class StoreOptions(Config):
    """A store whose tiles are used."""

    store: Path
    """Tile store that `wsiad tile` or `wsiad import-tiles` made."""


@dataclass(frozen=True, slots=True)
class TileRow(SlideRow):
    """A slide in a store's ``slides.csv``.

    Parameters
    ----------
    tiles : int
        Number of tiles in the store.
    tissue_share : float or None
        Share of the slide that is tissue, 0 to 1.
    missing : int
        Number of tiles left out because the slide has no pixels there.
    damaged : int
        Number of tiles left out because their part of the file is damaged.
    unusable : int
        Number of tiles that fail a quality threshold: left out of the store, or marked in it.
    unusable_black, unusable_pen, unusable_saturation, unusable_sharpness : int
        The unusable tiles, counted by the first threshold that they fail.
    """

    tiles: int = 0
    tissue_share: float | None = None
    missing: int = 0
    unusable: int = 0
    unusable_black: int = 0
    unusable_pen: int = 0
    unusable_saturation: int = 0
    unusable_sharpness: int = 0
    damaged: int = 0

    @classmethod
    def of(
        cls, slide: SlideInput, stored: StoredSlide, *, notes: Iterable[str], **values: Any
    ) -> Self:
        """Return the row of a slide that a store holds.

        Parameters
        ----------
        slide : SlideInput
            The slide as it was asked for.
        stored : StoredSlide
            The slide in the store.
        notes : iterable of str
            Its notes; empty ones are left out.
        **values
            Further fields of the row.
        """
        return cls(
            slide.name,
            stored.status,
            "; ".join(note for note in notes if note),
            tiles=len(stored),
            mpp_x=float(stored.spacing.x),
            mpp_y=float(stored.spacing.y),
            width=stored.size.width,
            height=stored.size.height,
            tissue_share=float(stored.facts["tissue"]["share"]),
            label=slide.label,
            split=slide.split,
            file=str(slide.path.absolute()),
            **values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TileTask(PreparedTask):
    """A slide to tile, as it is sent to a worker process.

    Parameters
    ----------
    store : Path
    earlier : TileRow or None
        Row of the slide from an earlier call.
    coords : Path, optional
        Folder of files with the positions of tiles.
    split_tiles : int, optional
        Slides with more tiles are tiled in parts of about this many.
    pieces : int
        Number of parts into which a slide is divided, if it is large enough, so that all workers
        are busy.
    part : Part, optional
        The only part to tile.
    joined : tuple of Part
        The parts to join to the slide, when all of them are written.
    stain : StainProfile, optional
        The slide's own stains, if they have been estimated.
    """

    store: Path
    earlier: TileRow | None
    coords: Path | None = None
    split_tiles: int | None = None
    pieces: int = 1
    part: Part | None = None
    joined: tuple[Part, ...] = ()
    stain: StainProfile | None = None


_ANOTHER = "made from another"

_kept: dict[tuple[object, ...], SlidePlan] = {}
"""The plan of the slide of which this process divided or wrote a part, for its next part. It has
the 64 MB of its colour table."""


def tile_one(task: TileTask) -> TileRow | Divided[TileTask] | PartDone:
    """Tile a slide or a part, or join its parts; skip a slide that is complete in the store.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px does not allow the requested one.
    StoreMismatchError
        The store has the slide from another file, at another µm/px, or from other coordinates.
    """
    return _stored(task) or _tiled(task)


def stored_slide(task: TileTask) -> TileRow | None:
    """Return the row of a slide that is complete in the store; ``None`` for a part's task."""
    return None if task.part else _stored(task)


def _stored(task: TileTask) -> TileRow | None:
    """Return the row of a slide that is complete in the store already."""
    from wsiad.store.tile_store import TileStore

    store = TileStore(task.store)
    name = task.slide.name
    if name not in store:
        return None
    stored = store.slide(name)
    note = _away(task, stored)
    if not note and (problem := _changed(task.slide.path, stored.fingerprint)):
        raise StoreMismatchError(
            f"is in the store, {problem}",
            subject=name,
            remedy=f"Rename the slide, or delete {store.folder(name)} to tile it again.",
        )
    if problem := _other_scale(task, stored):
        raise StoreMismatchError(
            f"is in the store at {stored.spacing.x:g} µm/px, but {problem}",
            subject=name,
            remedy=f"Correct the manifest, or delete {store.folder(name)} to tile it again.",
        )
    if (stored.facts.get("coordinates") or {}).get("fingerprint") != coordinates_of(task)[1]:
        raise StoreMismatchError(
            "is in the store, tiled from other coordinates or without any",
            subject=name,
            remedy=f"Pass the same --coords, or delete {store.folder(name)} to tile it again.",
        )
    if "damaged" in stored.facts and task.preparation.damaged_tiles == "fail":
        raise StoreMismatchError(
            "is in the store without its damaged parts, which --damaged-tiles skip left out",
            subject=name,
            remedy=f"Pass that option again, or delete {store.folder(name)} to tile a better copy.",
        )
    seconds = task.earlier.seconds if task.earlier else 0.0
    return _row(task, store, seconds, note=note)


def _other_scale(task: TileTask, stored: StoredSlide) -> str:
    """Say how the scale of a stored slide differs from the one stated now; empty if it does not."""
    source = stored.facts["slide"]["spacing_source"]
    overridden = stored.facts["slide"].get("spacing_overridden", False)
    given = task.preparation.slide_mpp if task.slide.mpp is None else task.slide.mpp
    if source == "manifest" and task.slide.mpp != stored.spacing.x:
        return f"the manifest now states {task.slide.mpp or 'none'}"
    if overridden and not task.override_mpp:
        return "that replaced the slide's own, which should be used now"
    if task.override_mpp and given is not None:
        same = abs(given / stored.spacing.mean - 1) <= SAME_SCALE
        return "" if same else f"{given:g} should now replace the slide's own"
    return ""


def looked_for(slide: SlideInput, store: TileStore) -> SlideInput:
    """Return a slide of which only the file of its link is away as one whose file is away."""
    try:
        dangling = slide.path.is_symlink() and not slide.path.exists()
    except OSError:  # a name that the file system does not take
        return slide
    return replace(slide, problem="") if dangling and slide.name in store else slide


def _away(task: TileTask, stored: StoredSlide) -> str:
    """Return a note that the file of a stored slide is away; empty if it is there.

    Its tiles are used as long as nothing says that its name stands for another slide by now.

    Raises
    ------
    SlideOpenError
        The file is away, and has another name than that of the tiles, or another slide was there
        when it was last seen: nobody can tell whose label is stated now.
    """
    path, was, earlier = task.slide.path, stored.facts["slide"].get("file"), task.earlier
    if path.exists() and slide_fingerprint(path) == stored.fingerprint:
        return ""
    if (away := away_problem(path)) is None:
        return ""
    replaced = earlier and earlier.status == FAILED and _ANOTHER in earlier.reason
    if path.name == was and not replaced:
        return f"{away[0]}; {FILE_AWAY}"
    other = f"{_ANOTHER} file than was last there, and " if replaced else "but "
    named = "" if path.name == was else f"; or state the name {was!r}, by which it was tiled"
    raise SlideOpenError(
        f"is in the store, {other}{away[0]}",
        subject=task.slide.name,
        remedy=f"{away[1].removesuffix('.')}{named}. Then run the same command again; until then "
        "nothing uses its tiles.",
    )


def _changed(path: Path, stored: str) -> str:
    """Say how a slide differs from the one that was stored; empty if it does not."""
    if slide_fingerprint(path) == stored:
        return ""
    if len(slide_files(path)) > 1:
        if fingerprint(path) == stored:
            return (
                "made by wsiad 0.1, which identified a slide of many files by the first one: "
                "the others may have changed since"
            )
        return f"{_ANOTHER} slide of this name: a file of it was changed, added or removed"
    return f"{_ANOTHER} file of this name"


def coordinates_of(task: TileTask) -> tuple[Path | None, str | None]:
    """Return the file of the positions of the slide's tiles, and its fingerprint."""
    from wsiad.tiling.plan import find_coordinates

    if task.coords is None:
        return None, None
    path = find_coordinates(task.coords, task.slide.name)
    return path, fingerprint(path)


def _tiled(task: TileTask) -> TileRow | Divided[TileTask] | PartDone:
    from wsiad.stain.profile import StainProfile
    from wsiad.store.parts import SlideParts, split
    from wsiad.store.tile_store import TileStore
    from wsiad.store.writer import write_slide
    from wsiad.tiling.plan import plan_slide

    start = time.monotonic()
    store = TileStore(task.store)
    if store.digest != task.preparation.digest(task.target, compression=store.compression):
        raise StoreMismatchError(
            "the store was replaced meanwhile by one with another configuration",
            subject=task.slide.name,
            remedy="Use another --out.",
        )
    path, coordinates = coordinates_of(task)
    with task.opened() as slide:
        whole = slide_fingerprint(task.slide.path)
        target = StainProfile.from_dict(task.target)
        same = (whole, coordinates, store.digest, slide.name, slide.spacing, slide.backend)
        like = _kept.pop(same, None) if task.stain is not None else None
        _kept.clear()
        plan = plan_slide(
            slide, task.preparation, target=target, coordinates=path, stain=task.stain, like=like
        )
        pieces = task.joined or split(
            len(plan), tile=plan.grid.tile, most=task.split_tiles, pieces=task.pieces
        )
        parts = SlideParts(
            store=store, plan=plan, parts=pieces, fingerprint=whole, coordinates=coordinates
        )
        if task.part is not None:
            parts.write(task.part)
            _keep(same, plan)
            return PartDone(task.slide.name, time.monotonic() - start)
        if task.joined:
            parts.join()
        elif len((parts := parts.resumed()).parts) > 1:
            shared = replace(task, stain=plan.stain)
            missing = tuple(replace(shared, part=part) for part in parts.missing())
            last = replace(shared, joined=parts.parts)
            _keep(same, plan)
            return Divided(missing, last, time.monotonic() - start)
        else:
            write_slide(store, plan, fingerprint=whole, coordinates=coordinates)
    return _row(task, store, task.spent + time.monotonic() - start)


def _keep(same: tuple[object, ...], plan: SlidePlan) -> None:
    """Keep a plan for the next task of its slide, without decoded pixels."""
    slide = plan.scaled.slide
    slide.forget()
    if not slide.skip_damaged:  # what was found damaged belongs to the open slide
        _kept[same] = plan


def _row(task: TileTask, store: TileStore, seconds: float, *, note: str = "") -> TileRow:
    from wsiad.tiling.verdict import colourless_note, damage_note, missing_note
    from wsiad.tissue.quality import in_words

    stored = store.slide(task.slide.name)
    fallback = stored.facts["stain"].get("fallback")
    missing = stored.facts["tiles_missing"]
    unusable = stored.facts.get("unusable", {})
    damaged = stored.facts.get("damaged", {"tiles": 0, "share": 0.0})
    kept = "stored, marked unusable" if "usable" in stored.group else "not stored"
    notes = [
        note,
        stored.facts["slide"].get("spacing_note", ""),
        stored.reason,
        f"stains of the reference were used: {fallback}" if fallback and not stored.reason else "",
        f"{counted(missing, 'tile')} left out: the slide has no pixels there"
        if missing and len(stored)
        else "",
        missing_note(stored.facts["tissue"].get("missing_share", 0.0)) if len(stored) else "",
        colourless_note(
            stored.facts["tissue"].get("colourless_share", 0.0), store.preparation.tissue
        ),
        damage_note(damaged["tiles"], damaged["share"], noun="tiles"),
        f"tiles that fail the thresholds, {kept}: {why}" if (why := in_words(unusable)) else "",
    ]
    return TileRow.of(
        task.slide,
        stored,
        notes=notes,
        seconds=seconds,
        missing=missing,
        damaged=damaged["tiles"],
        unusable=sum(unusable.values()),
        **{f"unusable_{reason}": count for reason, count in unusable.items()},
        backend=backend_text(stored.facts["read"]),
    )


_LISTED = 8


def unseen_slides(store: TileStore) -> dict[str, str]:
    """Map the slides of a store that failed or are unusable to status and reason.

    Raises
    ------
    InputError
        The store's table is damaged.
    """
    found = {slide.name: f"{UNUSABLE}: {slide.reason}" for slide in store if slide.reason}
    for row in read_table(store.path / SLIDES_TABLE, TileRow):
        # The others that are unusable have a group, which says why.
        if row.status == FAILED or (row.status == UNUSABLE and row.slide not in store):
            found[row.slide] = f"{row.status}: {row.reason}"
    return dict(sorted(found.items()))


def no_tiles(store: TileStore) -> InputError:
    """Return the error that no slide of a store has tiles, with the first reasons."""
    reasons = unseen_slides(store) or {slide.name: "no tissue" for slide in store}
    if not reasons:
        return InputError("is empty", subject=str(store.path), remedy="Tile slides into it.")
    return InputError(
        f"holds no tiles ({first_reasons(reasons)})",
        subject=str(store.path),
        remedy=f"Tile slides with tissue; its {SLIDES_TABLE} says why these have no tiles.",
    )


def unseen_lines(found: Mapping[str, str], store: str) -> list[str]:
    """Return lines that list slides that could not be looked at, with reasons; none if empty."""
    if not found:
        return []
    lines = [f"{len(found)} of the slides of {store} failed or could not be looked at:"]
    lines += [f"  {name}: {why}" for name, why in list(found.items())[:_LISTED]]
    if (more := len(found) - _LISTED) > 0:
        lines.append(f"  and {more} more, see {store}/slides.csv")
    return lines
