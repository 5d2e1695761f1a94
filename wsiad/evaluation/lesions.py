"""Ground truth of one slide: its tumour as a mask, read from outlines or from a mask image."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from shapely.geometry.base import BaseGeometry

from wsiad.annotations import (
    BOUNDS,
    LEVEL_0,
    Annotations,
    ClassMap,
    Origin,
    read_annotations,
)
from wsiad.annotations import SUFFIXES as OUTLINE_SUFFIXES
from wsiad.core.errors import AnnotationError, EvaluationError
from wsiad.core.geometry import Mpp, Size
from wsiad.evaluation.cohort import Case
from wsiad.evaluation.matching import (
    MERGE_UM,
    SCRIPT_MPP,
    EvaluationMask,
    ProtocolName,
    evaluation_mask,
    mask_downsample,
    protocol_mpp,
)
from wsiad.evaluation.placement import place
from wsiad.evaluation.truth import (
    MASK_SUFFIXES,
    MAX_MASK_PX,
    Mask,
    find_truth,
    rasterise,
    read_mask,
)

logger = logging.getLogger(__name__)

_FINEST_MPP = Mpp(0.05)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Facts about the reading of a slide's outlines, and doubts about them.

    Parameters
    ----------
    ignored : Mapping of str to int
        Number of annotations that were ignored, by reason.
    classes : frozenset of str
        Classes and groups in the file; ``""`` stands for none.
    counted_from : str
        Origin of the file's positions, in words; ``""`` without a file.
    doubts : tuple of str
        One sentence for each thing that the user should check.
    """

    ignored: Mapping[str, int] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()
    counted_from: str = ""
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class OutlineOptions:
    """Options of reading outlines.

    Parameters
    ----------
    classes : ClassMap
        Meaning of classes and groups.
    origin : str
        Origin of positions in files that do not state it.
    """

    classes: ClassMap = field(default_factory=ClassMap)
    origin: Origin = "auto"


@dataclass(frozen=True, slots=True, eq=False)
class SlideTruth:
    """Tumour of one slide, as a mask and, if known, as outlines.

    Parameters
    ----------
    mask : ndarray of bool, (H, W), or None
        Tumour pixels; ``None`` for a normal slide.
    downsample : int
        Level-0 pixels per mask pixel.
    limit : Size or None
        Size of the slide, level-0 pixels, if known; no detection can be beyond it.
    mpp : Mpp or None
        µm per level-0 pixel, if known.
    tumour : geometry or None
        Tumour area in level-0 pixels, where there are outlines.
    reading : Reading
        Facts about the reading of the outlines.
    """

    mask: Mask | None
    downsample: int
    limit: Size | None
    mpp: Mpp | None
    tumour: BaseGeometry | None = None
    reading: Reading = field(default_factory=Reading)

    @property
    def is_unmarked(self) -> bool:
        """True where the slide holds tumour, but none is marked.

        Outlines decide where there are any: a thin outline may lie between the mask's pixels.
        """
        if self.mask is None:
            return False
        return self.tumour.is_empty if self.tumour is not None else not self.mask.any()

    def protocol_mpp(
        self, protocol: ProtocolName, given: float | None, slide: str | None = None
    ) -> tuple[Mpp, str]:
        """Return the µm per level-0 pixel that a protocol uses for the slide, and its source.

        Raises
        ------
        EvaluationError
            There is tumour on the slide, and neither the user nor the slide states a spacing.
        """
        if self.mask is None and given is None and self.mpp is None:
            return SCRIPT_MPP, "none is needed without tumour"
        return protocol_mpp(protocol, given=given, known=self.mpp, slide=slide)

    def regions(self, mpp: Mpp) -> EvaluationMask | None:
        """Return the tumour regions of the slide at `mpp`; ``None`` for a normal slide."""
        if self.mask is None:
            return None
        return evaluation_mask(self.mask, pixel_um=mpp * self.downsample)


def load_truth(
    case: Case,
    *,
    annotations: Path | None,
    masks: Path | None,
    downsample: int | None,
    given_mpp: float | None = None,
    outlines: OutlineOptions | None = None,
) -> SlideTruth:
    """Read the ground truth of a slide.

    Parameters
    ----------
    case : Case
        The slide.
    annotations, masks : Path or None
        Folder of annotation files, or of mask images; at most one of them.
    downsample : int or None
        Level-0 pixels per mask pixel; by default that of CAMELYON16, see
        :func:`~wsiad.evaluation.matching.mask_downsample`.
    given_mpp : float, optional
        µm per level-0 pixel that the user sets for all slides.
    outlines : OutlineOptions, optional
        Options of reading annotation files.

    Raises
    ------
    EvaluationError
        A tumour slide has no file, or a mask is not valid or belongs to another slide.
    AnnotationError
        An annotation file is not valid, belongs to another slide, or marks tumour on a
        normal slide.
    """
    scored = case.scored
    if masks is not None:
        step = downsample or mask_downsample(None)
        return _from_mask(case, _find(case, masks, MASK_SUFFIXES), step)
    step = downsample or mask_downsample(Mpp(given_mpp) if given_mpp else scored.mpp)
    path = _find(case, annotations, OUTLINE_SUFFIXES) if annotations is not None else None
    if path is None:
        return SlideTruth(None, step, scored.size, scored.mpp)
    options = outlines or OutlineOptions()
    # Of a slide without a score nobody wrote down the bounds; nothing on it can be hit.
    origin = options.origin if case.has_score or scored.bounds else "auto"
    drawn = read_annotations(path, classes=options.classes, origin=origin, bounds=scored.bounds)
    tumour = drawn.tumour()
    _check_label(case, has_tumour=not tumour.is_empty)
    reading = Reading(drawn.ignored, drawn.classes, drawn.counted_from)
    if not case.tumour:
        return SlideTruth(
            mask=None,
            downsample=step,
            limit=scored.size,
            mpp=scored.mpp,
            tumour=None,
            reading=reading,
        )
    size = _mask_size(case, drawn, step)
    mask = rasterise(drawn, size, scale=step)
    if doubt := _doubt(case, drawn, tumour=tumour, mask=mask, step=step):
        logger.warning("%s", doubt)
        reading = replace(reading, doubts=(doubt,))
    return SlideTruth(
        mask=mask,
        downsample=step,
        limit=scored.size,
        mpp=scored.mpp,
        tumour=tumour,
        reading=reading,
    )


def _doubt(
    case: Case, drawn: Annotations, tumour: BaseGeometry, mask: Mask, step: int
) -> str | None:
    """Return a sentence if outlines lie beyond the slide or where nothing was scored."""
    scored = case.scored
    windows = scored.read_windows()
    if scored.status == "no-tissue":  # seen, and nothing to score was found
        windows = np.zeros(0, [(name, float) for name in ("x", "y", "width", "height")])
    placed = place(tumour, mask, step=step, size=scored.size, windows=windows)
    if not placed.doubtful:
        return None
    text = f"{case.slide}: {placed}"
    if not any(scored.bounds or ()):
        return text
    assert scored.bounds is not None
    other, name, flag = (
        (scored.bounds, BOUNDS, "bounds") if drawn.origin == (0, 0) else ((0, 0), LEVEL_0, "level0")
    )
    moved = drawn.moved_to(other, name)
    mask = rasterise(moved, Size(mask.shape[1], mask.shape[0]), scale=step)
    instead = place(moved.tumour(), mask, step=step, size=scored.size, windows=windows)
    return (
        f"{text} (outlines count from {drawn.counted_from}; if from {name}: {instead}; "
        f"see --annotation-origin {flag})"
    )


def _find(case: Case, folder: Path, suffixes: tuple[str, ...]) -> Path | None:
    path = find_truth(folder, case.slide, suffixes=suffixes)
    if path is None and case.tumour:
        raise EvaluationError(
            f"holds tumour by the reference, but {folder} has no file that says where",
            subject=case.slide,
            remedy=f"Add {case.slide}{suffixes[0]}, or name the slide in `exclude_from_froc`.",
        )
    return path


def _check_label(case: Case, *, has_tumour: bool) -> None:
    if has_tumour and not case.tumour:
        raise AnnotationError(
            "is normal by the reference, but its ground truth marks tumour",
            subject=case.slide,
            remedy="Correct one of them, or exclude the slide.",
        )


def _from_mask(case: Case, path: Path | None, step: int) -> SlideTruth:
    scored = case.scored
    if path is None:
        return SlideTruth(None, step, scored.size, scored.mpp)
    read = read_mask(path, downsample=step)
    height, width = read.pixels.shape
    covered = Size(width * step, height * step)
    if scored.size is not None and not _fits(covered, scored.size, step):
        raise EvaluationError(
            f"its mask of {width} × {height} pixels, {step} level-0 pixels each, does not fit "
            f"the slide of {scored.size.width} × {scored.size.height}",
            subject=case.slide,
            remedy="Pass the slide's own mask, or set --mask-downsample.",
        )
    _check_label(case, has_tumour=bool(read.pixels.any()))
    mask = read.pixels if case.tumour else None
    return SlideTruth(mask, step, scored.size or covered, scored.mpp or read.mpp)


def _fits(covered: Size, slide: Size, step: int) -> bool:
    """Tell whether a mask covers a slide, to within the pixel that rounding may take away."""
    return abs(covered.width - slide.width) <= step and abs(covered.height - slide.height) <= step


def _mask_size(case: Case, drawn: Annotations, step: int) -> Size:
    """Return the size of the mask to draw, from the slide or, if unknown, from the outlines.

    Raises
    ------
    AnnotationError
        An outline lies completely beyond the slide.
    """
    size = case.scored.size
    if size is None:
        corners = [outline.shell.max(axis=0) for outline in drawn.outlines]
        width, height = np.ceil(np.max([[0, 0], *corners], axis=0) / step).astype(int).tolist()
        # Room for tumour to be widened in.
        room = math.ceil(MERGE_UM / (2 * _FINEST_MPP * step)) + 1
        return _checked_size(case, width + room, height + room)
    for outline in drawn.outlines:
        low, high = outline.shell.min(axis=0), outline.shell.max(axis=0)
        if (low >= (size.width, size.height)).any() or (high <= 0).any():
            raise AnnotationError(
                f"{outline.name} ({outline.group or 'no group'}) lies beyond the slide of "
                f"{size.width} × {size.height} pixels",
                subject=case.slide,
                remedy="Check that outlines are in level-0 pixels of the same slide; they were "
                f"counted from {drawn.counted_from} (see --annotation-origin).",
            )
    return _checked_size(case, math.ceil(size.width / step), math.ceil(size.height / step))


def _checked_size(case: Case, width: int, height: int) -> Size:
    if width * height > MAX_MASK_PX:
        raise AnnotationError(
            f"needs a mask of {width} × {height} pixels",
            subject=case.slide,
            remedy="Check that outlines are in level-0 pixels, or set a larger --mask-downsample.",
        )
    return Size(width, height)
