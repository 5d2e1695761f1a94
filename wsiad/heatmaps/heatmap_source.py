"""Where a slide's windows come from: the slide itself, or a store of its tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Box, PixelMap, Size
from wsiad.core.tiling import Grid
from wsiad.core.units import Mpp, Spacing
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.heatmaps.windows import (
    IntArray,
    Pixels,
    WindowBatch,
    from_plan,
    from_store,
    read_planned,
    read_stored,
    store_grid,
)
from wsiad.learning.detector import InputSpec
from wsiad.slides.slide import Slide
from wsiad.slides.slide_files import slide_fingerprint
from wsiad.stain.profile import StainProfile
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_store import TileStore
from wsiad.tiling.left_out import LeftOut
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.verdict import why_left_out, why_unusable


@dataclass(frozen=True, slots=True)
class WindowSource:
    """What both ways of reading a slide's windows have to say of it.

    The identity is what the results depend on, as it was before anything was read; the
    slide is ``None`` where windows come from a store, which does not change. Some windows,
    by their rows and columns on the grid, can be read again, to the very same pixels. Where no
    window is scored, it can be asked why the slide could not be looked at, by the windows that
    are left out; it says nothing where there is no tissue.
    """

    batches: Iterator[WindowBatch]
    grid: Grid
    size: Size
    bounds: Box
    spacing: Spacing
    thumbnail: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    pen: npt.NDArray[np.bool_] | None
    placement: PixelMap
    mpp: Mpp
    stain: str
    stain_fallback: str | None
    backend: str
    identity: dict[str, Any]
    again: Callable[[IntArray, IntArray], Iterator[Pixels]]
    why_unusable: Callable[[LeftOut], str]
    slide: Slide | None = None
    damaged: npt.NDArray[np.bool_] | None = None
    scale_note: str = ""
    missing_share: float = 0.0


def identity_of(task: SlideTask) -> dict[str, Any]:
    """Return what a slide's results depend on, as JSON values."""
    return {
        "digest": task.digest,
        "fingerprint": _fingerprint(task),
        "manifest_mpp": task.slide.mpp,
    }


def _fingerprint(task: SlideTask) -> str:
    if task.from_store:
        return TileStore(task.slide.path).slide(task.slide.name).fingerprint
    return slide_fingerprint(task.slide.path)


def slide_windows(task: SlideTask, slide: Slide, spec: InputSpec) -> WindowSource:
    """Plan the windows of an open slide.

    Raises
    ------
    SlideError
        It cannot be decoded, or its µm/px does not fit the run.
    """
    identity = identity_of(task)
    plan = plan_slide(
        slide,
        task.preparation,
        target=StainProfile.from_dict(task.target),
        tile=spec.size,
        stride=task.options.stride or spec.size,
    )
    return WindowSource(
        from_plan(plan),
        plan.grid,
        slide.size,
        slide.bounds,
        slide.spacing,
        plan.tissue.thumbnail,
        plan.tissue.mask,
        plan.tissue.pen,
        plan.tissue.placement,
        plan.scaled.mpp,
        plan.stain.method,
        plan.stain.fallback,
        slide.read_by,
        identity,
        again=functools.partial(read_planned, plan),
        why_unusable=functools.partial(why_unusable, plan, noun="window"),
        slide=slide,
        damaged=plan.tissue.damaged,
        scale_note=slide.scale_note,
        missing_share=plan.tissue.missing_share,
    )


def stored_windows(task: SlideTask, spec: InputSpec) -> WindowSource:
    """Take the windows of a slide out of a store.

    Raises
    ------
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    slide = TileStore(task.slide.path).slide(task.slide.name)
    grid = store_grid(slide, spec, task.options.stride)
    thresholds = task.preparation.quality
    mask = slide.column("mask")
    # A store keeps no thumbnail: tissue is drawn in grey instead.
    thumbnail = np.where(mask[..., None], np.uint8(200), np.uint8(244)).repeat(3, axis=2)
    return WindowSource(
        from_store(slide, grid, thresholds=thresholds),
        grid,
        slide.size,
        slide.bounds,
        slide.spacing,
        thumbnail,
        mask,
        slide.column("pen_mask") if slide.has("pen_mask") else None,
        PixelMap(*slide.facts["tissue"]["placement"]),
        spec.mpp,
        slide.facts["stain"]["method"],
        slide.facts["stain"].get("fallback"),
        "store",
        identity_of(task),
        again=functools.partial(read_stored, slide, grid, thresholds=thresholds),
        why_unusable=functools.partial(_why_stored, slide),
        damaged=slide.column("damaged_mask") if "damaged_mask" in slide.group else None,
        scale_note=slide.facts["slide"].get("spacing_note", ""),
        missing_share=slide.facts["tissue"].get("missing_share", 0.0),
    )


def _why_stored(slide: StoredSlide, left_out: LeftOut) -> str:
    """Say why no window of a stored slide is scored; empty where it holds no tissue."""
    return slide.reason or (why_left_out(left_out, noun="window") if len(left_out) else "")
