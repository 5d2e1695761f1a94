"""Check that the tiles of a store, or a stride, fit a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.errors import ConfigError, InputError, RunError, StoreMismatchError
from wsiad.core.files import MOST_FACTS, read_json
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import FAILED, SLIDES_TABLE, UNUSABLE, read_table
from wsiad.stain.profile import StainProfile
from wsiad.store.tile_task import TileRow
from wsiad.tiling.preparation import PictureOptions, Preparation
from wsiad.tissue.tissue_options import QualityOptions

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_store import TileStore

PREPARATION = "preparation.json"
"""File in a run folder: the preparation of its tiles, which heatmaps repeat."""

NO_GEOMETRY = (
    "are imported tiles without known positions on a slide. Score them with `wsiad score-tiles`."
)
"""Reason why a group of tiles without positions has no heatmap."""


def run_preparation(run: Path) -> tuple[Preparation, dict[str, Any]]:
    """Read the preparation of a run's tiles, and the stain profile they were normalised to.

    Raises
    ------
    RunError
        The file is missing or damaged.
    """
    path = run / PREPARATION
    remedy = "Train the detector again."
    values = read_json(
        path, RunError, keys=["preparation", "stain_target"], remedy=remedy, most=MOST_FACTS
    )
    try:
        preparation = Preparation.model_validate(values["preparation"])
        StainProfile.from_dict(values["stain_target"])  # to be sure that it can be
    except (ValueError, KeyError, TypeError) as error:
        words = " ".join(str(error).split())[:200]
        raise RunError(f"is damaged: {words}", subject=str(path), remedy=remedy) from error
    return preparation, dict(values["stain_target"])


def preparation_of(store: TileStore, thresholds: QualityOptions) -> dict[str, Any]:
    """Return the preparation and the choice of a store's tiles, as JSON values."""
    preparation = store.preparation.model_copy(update={"quality": thresholds})
    return {
        "preparation": preparation.as_json(),
        "stain_target": store.target,
        "digest": store.digest,
    }


def check_prepared_alike(
    store: TileStore, preparation: Preparation, target: dict[str, Any], *, keys: Sequence[str]
) -> None:
    """Check that the pixels of a store have the same meaning as those of a run.

    Size, step and coverage of tiles may differ, and the crop of pictures.

    Parameters
    ----------
    store : TileStore
        Store to check.
    preparation, target : Preparation, dict
        Preparation and stain profile of the run; see :func:`run_preparation`.
    keys : sequence of str
        Parts of the preparation that must be equal, of ``"mpp"``, ``"tissue"``,
        ``"stain"`` and ``"decode"``.

    Raises
    ------
    StoreMismatchError
        A part differs, or how pictures were prepared; the error names the first.
    """
    made = [one.pictures or PictureOptions() for one in (store.preparation, preparation)]
    for name in ("grey_values", "resize", "clahe"):
        there, here = (getattr(one, name) for one in made)
        if there != here:
            raise StoreMismatchError(
                f"its pictures were prepared with another --{name.replace('_', '-')} than the "
                f"run's ({there} in the store, {here} in the run)",
                subject=str(store.path),
                remedy="Import them with the options of wsiad import-tiles as for the run.",
            )
    for key in keys:
        there, here = getattr(store.preparation, key), getattr(preparation, key)
        if key == "stain":
            there, here = (there.method, store.target), (here.method, target)
        if there != here:
            shown = "" if key == "stain" else f" ({there} in the store, {here} in the run)"
            raise StoreMismatchError(
                f"its tiles were prepared with another {key} than the run's{shown}",
                subject=str(store.path),
                remedy="Pass the slides themselves, or tile them as for the run.",
            )


def store_slides(path: Path, preparation: Preparation, target: dict[str, Any]) -> list[SlideInput]:
    """List the slides of a store; slides that cannot be scored have a problem.

    Raises
    ------
    StoreMismatchError
        The tiles were prepared differently from those of the run.
    InputError
        The store contains no slides, or only tiles without known positions.
    """
    from wsiad.store.tile_store import TileStore

    store = TileStore(path)
    check_prepared_alike(store, preparation, target, keys=("mpp", "tissue", "stain", "decode"))
    rows = {row.slide: row for row in read_table(path / SLIDES_TABLE, TileRow)}
    slides = []
    for name in store.names():
        row = rows.get(name)
        label, split = (row.label, row.split) if row else ("", "")
        problem = "" if store.slide(name).has_geometry else NO_GEOMETRY
        slides.append(SlideInput(name, path, label=label, split=split, problem=problem))
    listed = {slide.name for slide in slides}
    for row in rows.values():
        if row.status in (FAILED, UNUSABLE) and row.slide not in listed:
            unusable = row.status == UNUSABLE
            problem = row.reason if unusable else f"was not tiled: {row.reason}"
            slides.append(SlideInput(row.slide, path, problem=problem, unusable=unusable))
    if not slides:
        raise InputError("holds no slides", subject=str(path))
    if all(slide.problem == NO_GEOMETRY for slide in slides):
        raise InputError(
            "holds only imported tiles without known positions on a slide",
            subject=str(path),
            remedy="Score them with `wsiad score-tiles`, or pass the slides themselves.",
        )
    return slides


def check_no_gaps(stride: int, *, window_px: int) -> None:
    """Check that a heatmap's stride, pixels, is no larger than the windows.

    Raises
    ------
    InputError
        It is larger: there would be gaps between the windows of every slide.
    """
    if stride > window_px:
        raise InputError(
            f"{stride} px is more than the {window_px} px of a window: tissue between windows "
            "would not be looked at",
            subject="stride",
            remedy=f"Set --stride to {window_px} or less.",
        )


def check_divides(stride: int, path: Path, slides: Sequence[SlideInput]) -> None:
    """Check that a heatmap's stride, pixels, divides the step of some stored slide's tiles.

    Raises
    ------
    InputError
        It divides that of none, so that no slide could be scored; the error names one that does.
    """
    from wsiad.store.tile_store import TileStore

    store = TileStore(path)
    stored = (store.slide(slide.name) for slide in slides if not slide.problem)
    steps = {int(one.grid.stride) for one in stored if "coordinates" not in one.facts}
    if steps and all(step % stride for step in steps):
        common = math.gcd(*steps)
        near = next(divisor for divisor in range(stride, 0, -1) if not common % divisor)
        raise InputError(
            f"{stride} px does not divide the {' or '.join(map(str, sorted(steps)))} px from tile "
            f"to tile of {path}",
            subject="stride",
            remedy=f"Set --stride to {near} or another divisor, or pass the slides themselves.",
        )


def check_stops_by_nothing(detector: str, *, keeps: str) -> None:
    """Check that a method needs no held-out tiles, because all tiles are fitted on.

    Raises
    ------
    ConfigError
        It keeps the weights of the lowest held-out loss.
    """
    if keeps != "last":
        raise ConfigError(
            f"all tiles are fitted on, and {detector} keeps the weights of the lowest loss of "
            "held-out tiles",
            subject="calibration",
            remedy="Set --option keep=last and --option max_steps=N, or leave out --calibration.",
        )


def check_apart(
    others: Sequence[StoredSlide], fitted: Sequence[StoredSlide], *, subject: str
) -> None:
    """Check that slides to calibrate with are not fitted on.

    Raises
    ------
    InputError
        A slide is among both; the error names it.
    """
    marks = {slide.fingerprint: slide.name for slide in fitted}
    if again := next((slide for slide in others if slide.fingerprint in marks), None):
        raise InputError(
            f"the slide {again.name} is fitted on too, as {marks[again.fingerprint]}",
            subject=subject,
            remedy="Calibrate with other slides.",
        )
