"""The verdict on a slide without tiles: it has no tissue, or it could not be looked at."""

from __future__ import annotations

from collections.abc import Iterator

from wsiad.slides.slide_table import DAMAGED_THERE, NOT_IN_MASK
from wsiad.tiling.plan import SlidePlan, select
from wsiad.tissue.quality import LeftOut, Reason
from wsiad.tissue.tissue_options import TissueOptions
from wsiad.tissue.unseen import Unseen

_PALE = 0.02
"""Saturation, and its margin above the glass's, that find much of the pale tissue
(``docs/quality.md``)."""


def why_unusable(plan: SlidePlan, left_out: LeftOut, *, noun: str = "tile") -> str:
    """Return why nothing of a slide can be used although it may hold tissue.

    Parameters
    ----------
    plan : SlidePlan
        Plan of a slide of which no tile is used.
    left_out : LeftOut
        The tiles with tissue, all of which are left out.
    noun : str
        Word for a tile: ``"tile"`` or ``"window"``.

    Returns
    -------
    str
        The reason; empty if the complete slide was seen and holds no tissue.
    """
    if len(left_out) or plan.outside:
        return why_left_out(left_out, noun=noun, outside=plan.outside)
    grid = plan.grid
    if not grid.rows or not grid.columns:
        return _too_small(plan, noun)
    if not plan.tissue.mask.size:
        return _no_mask(plan)
    if plan.tissue.mask.any():
        return _too_little(plan, noun)
    return _not_seen(plan)


def why_left_out(left_out: LeftOut, *, noun: str = "tile", outside: int = 0) -> str:
    """Return why none of a slide's tiles with tissue is used."""
    total, missing = len(left_out) + outside, left_out.count(Reason.MISSING) + outside
    damaged = left_out.count(Reason.DAMAGED)
    parts = []
    if missing:
        parts.append(f"pixels are missing in {missing:,} ({_percent(missing / total)})")
    if damaged:
        parts.append(f"{damaged:,} lie in damaged parts of the file ({_percent(damaged / total)})")
    if failed := total - missing - damaged:
        parts.append(f"{failed:,} fail the quality thresholds")
    return f"none of its {total:,} {noun}s with tissue can be used: {', '.join(parts)}"


def damage_note(count: int, share: float, *, noun: str) -> str:
    """Return a note on the damaged parts that were left out of a slide; empty if there are none.

    Parameters
    ----------
    count : int
        Number of tiles or windows that were left out.
    share : float
        Share of the slide in which tissue could not be searched for, 0 to 1.
    noun : str
        Word for them: ``"tiles"`` or ``"windows"``.
    """
    parts = [f"{count:,} {noun}"] if count else []
    parts += (
        [f"{_percent(share)} of the slide, in which tissue was not searched for"] if share else []
    )
    return f"{DAMAGED_THERE}: {' and '.join(parts)}" if parts else ""


def missing_note(share: float) -> str:
    """Return a note on the share (0 to 1) of a slide without pixels in its file; empty if 0."""
    if not share:
        return ""
    return (
        f"{_percent(share)} of the slide has no pixels in the file, and tissue was not searched "
        "for there"
    )


def colourless_note(share: float, options: TissueOptions) -> str:
    """Return a note on what may be tissue beside the mask; empty if there is little.

    Parameters
    ----------
    share : float
        Share of it, 0 to 1; see :func:`wsiad.tissue.unseen.colourless_share`.
    options : TissueOptions
        Options of the mask: the remedy is none of those.
    """
    if not share:
        return ""
    least, margin = options.saturation_min, options.glass_margin
    if max(least, margin) > _PALE:
        least, margin = min(least, _PALE), min(margin, _PALE)
        remedy = f"tile with --tissue-saturation-min {least:g} --tissue-glass-margin {margin:g}"
    else:
        remedy = (
            f"tile with less than --tissue-saturation-min {least:g} --tissue-glass-margin "
            f"{margin:g}, or give the places of tiles with --coords"
        )
    return (
        f"{_percent(share)} {NOT_IN_MASK}: beside tissue it is darker than glass, without the "
        f"colour of a stain. If the overview shows tissue there, {remedy}"
    )


def _too_small(plan: SlidePlan, noun: str) -> str:
    slide, size, bounds = plan.scaled.slide, plan.scaled.size, plan.scaled.slide.bounds
    remedy = "Tile with a smaller --tile" if noun == "tile" else "Train on smaller tiles"
    return (
        f"it is smaller than a {noun}: {bounds.width:.0f} × {bounds.height:.0f} px at "
        f"{_scale(plan)} make {size.width} × {size.height} px at {plan.scaled.mpp:g} µm/px, and a "
        f"{noun} has {plan.grid.tile} × {plan.grid.tile} px. {remedy}, or give "
        f"the right µm/px if that of {slide.spacing_source} is wrong"
    )


def _no_mask(plan: SlidePlan) -> str:
    bounds, mask = plan.scaled.slide.bounds, plan.tissue.placement.scale_x
    return (
        f"it is smaller than a pixel of its tissue mask: {bounds.width:.0f} × "
        f"{bounds.height:.0f} px at {_scale(plan)}, and one is {mask:.4g} px. Give a finer "
        "--tissue-mpp, or the right µm/px if that of the slide is wrong"
    )


def _too_little(plan: SlidePlan, noun: str) -> str:
    share = _percent(plan.tissue.tissue_share)
    if plan.min_coverage is None:
        return f"{share} of it is tissue, and its coordinates or outlines name no {noun}"
    _, _, coverage = select(plan.grid, plan.tissue, min_coverage=0.0)
    largest = float(coverage.max()) if len(coverage) else 0.0
    pen = plan.tissue.pen
    hidden = f"; {_percent(float(pen.mean()))} was taken for pen marks" if pen is not None else ""
    return (
        f"{share} of it is tissue, but no {noun} holds enough: the largest coverage is "
        f"{largest:.2g}, and min_coverage is {plan.min_coverage:g}{hidden}"
    )


def _not_seen(plan: SlidePlan) -> str:
    found = list(_unseen(plan.tissue.unseen))
    if not found:
        return ""
    scattered = plan.tissue.unseen.scattered
    scale = f" (is its µm/px right? {_scale(plan)})" if scattered else ""
    return f"no tissue was found, but not all of it could be seen: {'; '.join(found)}{scale}"


def _unseen(unseen: Unseen) -> Iterator[str]:
    if unseen.missing:
        yield f"{_percent(unseen.missing)} of its pixels are missing in the file"
    if unseen.pen:
        yield f"{_percent(unseen.pen)} was taken for pen marks"
    if unseen.black:
        yield f"{_percent(unseen.black)} is black"
    if unseen.grey:
        yield f"{_percent(unseen.grey)} is darker than glass, without the colour of a stain"
    if unseen.scattered:
        yield (
            f"{_percent(unseen.scattered)} has the colour of tissue, in pieces that are too small"
        )


def _scale(plan: SlidePlan) -> str:
    spacing = plan.scaled.slide.spacing
    return f"{spacing.mean:.4g} µm/px by {plan.scaled.slide.spacing_source}"


def _percent(share: float) -> str:
    """Return a share in per cent; a small share is never 0, and one near all is never 100."""
    if share >= 1:
        return "100 %"
    return f"{min(99.9, 100 * share):.1f} %" if share >= 0.0005 else "less than 0.1 %"
