"""Where the tumour of a slide is: outlines or a mask image brought to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from shapely.geometry.base import BaseGeometry

from wsiad.annotations import SUFFIXES as OUTLINE_SUFFIXES
from wsiad.annotations import Annotations, read_annotations
from wsiad.errors import AnnotationError, EvaluationError
from wsiad.evaluation.cohort import Case
from wsiad.evaluation.protocols import ProtocolName
from wsiad.evaluation.raster import Mask, rasterise
from wsiad.evaluation.regions import MERGE_UM, EvaluationMask, evaluation_mask
from wsiad.evaluation.scale import mask_downsample, protocol_mpp
from wsiad.evaluation.truth import MASK_SUFFIXES, MAX_MASK_PX, find_truth, read_mask
from wsiad.geometry import Size
from wsiad.units import Mpp

_FINEST_MPP = Mpp(0.05)


@dataclass(frozen=True, slots=True, eq=False)
class SlideTruth:
    """Where the tumour of one slide is.

    Parameters
    ----------
    mask : ndarray of bool, (H, W), or None
        Tumour pixels; ``None`` for a normal slide.
    downsample : int
        Level-0 pixels per mask pixel.
    limit : Size or None
        Level-0 pixels beyond which no detection can lie, if known.
    mpp : Mpp or None
        µm per level-0 pixel, if known.
    tumour : geometry or None
        Tumour area in level-0 pixels, where outlines are given.
    ignored : Mapping of str to int
        Annotations left aside, by reason.
    """

    mask: Mask | None
    downsample: int
    limit: Size | None
    mpp: Mpp | None
    tumour: BaseGeometry | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)

    def protocol_mpp(self, protocol: ProtocolName, given: float | None) -> tuple[Mpp, str]:
        """µm per level-0 pixel that a protocol takes for the slide, and where it is from."""
        return protocol_mpp(protocol, given=given, known=self.mpp)

    def regions(self, mpp: Mpp) -> EvaluationMask | None:
        """Return the regions of the slide at a scale; ``None`` for a normal slide."""
        if self.mask is None:
            return None
        return evaluation_mask(self.mask, pixel_um=mpp * self.downsample)


def load_truth(
    case: Case, *, annotations: Path | None, masks: Path | None, downsample: int | None
) -> SlideTruth:
    """Read the ground truth of a slide.

    Parameters
    ----------
    case : Case
        The slide.
    annotations, masks : Path or None
        Folder of annotation files, or of mask images; at most one of them.
    downsample : int or None
        Level-0 pixels per mask pixel; by default as CAMELYON16's, see
        :func:`~wsiad.evaluation.scale.mask_downsample`.

    Raises
    ------
    EvaluationError
        A tumour slide has no file, or a mask is not valid or not of this slide.
    AnnotationError
        An annotation file is not valid, is not of this slide, or marks tumour on a
        normal one.
    """
    scored = case.scored
    if masks is not None:
        step = downsample or mask_downsample(None)
        return _from_mask(case, _find(case, masks, MASK_SUFFIXES), step)
    step = downsample or mask_downsample(scored.mpp)
    path = _find(case, annotations, OUTLINE_SUFFIXES) if annotations is not None else None
    if path is None:
        return SlideTruth(None, step, scored.size, scored.mpp)
    drawn = read_annotations(path)
    tumour = drawn.tumour()
    _check_label(case, has_tumour=not tumour.is_empty)
    if not case.tumour:
        return SlideTruth(None, step, scored.size, scored.mpp, None, drawn.ignored)
    size = _mask_size(case, drawn, step)
    mask = rasterise(drawn, size, scale=step)
    return SlideTruth(mask, step, scored.size, scored.mpp, tumour, drawn.ignored)


def _find(case: Case, folder: Path, suffixes: tuple[str, ...]) -> Path | None:
    path = find_truth(folder, case.slide, suffixes=suffixes)
    if path is None and case.tumour:
        raise EvaluationError(
            f"holds tumour by the reference, but {folder} says nothing of where",
            subject=case.slide,
            remedy=f"Add {case.slide}{suffixes[0]}, or name it in `exclude_from_froc`.",
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
            remedy="Give the slide's own mask, or --mask-downsample.",
        )
    _check_label(case, has_tumour=bool(read.pixels.any()))
    mask = read.pixels if case.tumour else None
    return SlideTruth(mask, step, scored.size or covered, scored.mpp or read.mpp)


def _fits(covered: Size, slide: Size, step: int) -> bool:
    """Whether a mask covers a slide to within the pixel that its level may round off."""
    return abs(covered.width - slide.width) <= step and abs(covered.height - slide.height) <= step


def _mask_size(case: Case, drawn: Annotations, step: int) -> Size:
    """Size of the mask to draw: the slide's, or what the outlines need where that is unknown.

    Raises
    ------
    AnnotationError
        An outline lies wholly beyond the slide.
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
                remedy="Outlines are in level-0 pixels of the same slide.",
            )
    return _checked_size(case, math.ceil(size.width / step), math.ceil(size.height / step))


def _checked_size(case: Case, width: int, height: int) -> Size:
    if width * height > MAX_MASK_PX:
        raise AnnotationError(
            f"needs a mask of {width} × {height} pixels",
            subject=case.slide,
            remedy="Outlines are in level-0 pixels; if they are, give a larger --mask-downsample.",
        )
    return Size(width, height)
