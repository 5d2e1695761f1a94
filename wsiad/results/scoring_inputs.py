"""The slides that ``wsiad heatmap`` scores, given as such or as a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsiad.core.errors import InputError
from wsiad.results.file_names import RESERVED
from wsiad.runs.preparation import store_slides
from wsiad.slides.folder_kinds import SLIDES, other_kinds_named
from wsiad.slides.inputs import SlideInput, find_slides
from wsiad.tiling.preparation import Preparation


def heatmap_inputs(
    paths: Sequence[Path],
    *,
    run: Path,
    preparation: Preparation,
    target: dict[str, Any],
    staged: bool,
) -> tuple[list[SlideInput], bool]:
    """List what is to be scored, and whether it comes from a store.

    Parameters
    ----------
    paths : sequence of Path
        Slide files, folders of them or manifests; or one store.
    run : Path
        Run folder, for errors: it may be among the paths by mistake.
    preparation : Preparation
        Preparation of the run.
    target : dict
        Stain profile that slides are given, as JSON values.
    staged : bool
        Whether slides are to be copied to a local disk first.

    Raises
    ------
    InputError
        No slides were found, or a store is given together with others or to be staged.
    StoreError
        The store is damaged or was prepared otherwise than the run's.
    """
    from wsiad.store.tile_store import is_store

    if not any(is_store(path) for path in paths):
        remedy = "Give slide files, folders of them, a manifest, or a store."
        with other_kinds_named(paths, SLIDES, InputError, remedy=remedy, beside=[run]):
            return _named_apart(find_slides(paths)), False
    if len(paths) > 1:
        raise InputError("give one store, or slides, not both")
    if staged:
        raise InputError(
            "is a store, which is not copied to a local disk",
            subject=str(paths[0]),
            remedy="Leave out --stage-dir, or give the slides themselves.",
        )
    return _named_apart(store_slides(paths[0], preparation, target)), True


def _named_apart(slides: list[SlideInput]) -> list[SlideInput]:
    """State the problem of slides whose results would lie where others do."""
    problem = "has the name of another folder of the results. Rename it."
    return [
        replace(slide, problem=slide.problem or problem)
        if slide.name.partition("/")[0] in RESERVED
        else slide
        for slide in slides
    ]
