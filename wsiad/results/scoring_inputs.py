"""What ``wsiad heatmap`` is given to score: slides, or those of a store; a task for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsiad.core.errors import InputError
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.results.file_names import RESERVED
from wsiad.runs.preparation import store_slides
from wsiad.slides.folder_kinds import SLIDES, other_kinds_named
from wsiad.slides.inputs import SlideInput, find_slides
from wsiad.tiling.preparation import Preparation

if TYPE_CHECKING:
    from wsiad.verbs.heatmap import HeatmapConfig


def heatmap_inputs(
    config: HeatmapConfig, preparation: Preparation, target: dict[str, Any]
) -> tuple[list[SlideInput], bool]:
    """List what is to be scored, and whether it comes from a store.

    Raises
    ------
    InputError
        No slides were found, or a store is given together with others or to be staged.
    StoreError
        The store is damaged or was prepared otherwise than the run's.
    """
    from wsiad.store.tile_store import is_store

    if not any(is_store(path) for path in config.slides):
        remedy = "Give slide files, folders of them, a manifest, or a store."
        with other_kinds_named(
            config.slides, SLIDES, InputError, remedy=remedy, beside=[config.run]
        ):
            return _named_apart(find_slides(config.slides)), False
    if len(config.slides) > 1:
        raise InputError("give one store, or slides, not both")
    if config.stage_dir is not None:
        raise InputError(
            "is a store, which is not copied to a local disk",
            subject=str(config.slides[0]),
            remedy="Leave out --stage-dir, or give the slides themselves.",
        )
    return _named_apart(store_slides(config.slides[0], preparation, target)), True


def _named_apart(slides: list[SlideInput]) -> list[SlideInput]:
    """State the problem of slides whose results would lie where others do."""
    problem = "has the name of another folder of the results. Rename it."
    return [
        replace(slide, problem=slide.problem or problem)
        if slide.name.partition("/")[0] in RESERVED
        else slide
        for slide in slides
    ]


def slide_task(
    slide: SlideInput,
    config: HeatmapConfig,
    *,
    from_store: bool,
    preparation: Preparation,
    target: dict[str, Any],
    digest: str,
    derived: dict[str, Any],
) -> SlideTask:
    """Return the task of one slide; see :class:`~wsiad.heatmaps.heatmap_task.SlideTask`."""
    changes: dict[str, Any] = {}
    if config.slide_mpp is not None:
        changes["slide_mpp"] = config.slide_mpp
    if config.allow_upsampling is not None:
        changes["allow_upsampling"] = config.allow_upsampling
    return SlideTask(
        slide=slide,
        from_store=from_store,
        results=config.out,
        run=config.run,
        options=config.options(),
        preparation=preparation.model_copy(update=changes),
        target=target,
        digest=digest,
        derived=derived,
        batch=config.batch,
        device=config.device,
        override_mpp=config.override_mpp,
    )
