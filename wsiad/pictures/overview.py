"""The overview of a slide: one picture that shows what is used of it, what is not, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from wsiad.core.geometry import Mpp, PixelMap, Spacing
from wsiad.core.terminal import counted
from wsiad.pictures.drawing import (
    COLOURS,
    INK,
    KEPT,
    MUTED,
    OUTLINE,
    RGB,
    Mask,
    as_jpeg,
    blend,
    borders,
    covered,
    font,
    hatch,
    outline,
    pixel_edges,
    scale_bar,
    shortened,
    wrapped,
)
from wsiad.tiling.stream import Example
from wsiad.tissue.quality import Reason, Reasons

EXAMPLES = 12
"""Number of tiles that are kept, from which the tiles that are shown are chosen."""
MAX_BYTES = 300_000
"""Maximum size of the picture's file in bytes."""

_SLIDE_PX = (880, 760)
_LARGEST_SCALE = 8
_PANEL_PX, _MARGIN, _HEAD_PX, _LINE_PX = 316, 16, 58, 22
_TILE_PX = 140
_SMALLEST_GRID_PX = 5
_MEANING = {
    Reason.MISSING: "no pixels in the file",
    Reason.BLACK: "black (max_black)",
    Reason.PEN: "pen (max_pen)",
    Reason.SATURATION: "pale (min_saturation)",
    Reason.SHARPNESS: "blurred (min_sharpness)",
    Reason.DAMAGED: "damaged in the file",
}


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """The content of an overview.

    Parameters
    ----------
    slide : str
        Name of the slide, with any characters.
    thumbnail : ndarray of uint8, (H, W, 3)
    mask : ndarray of bool, (H, W)
        Tissue on the thumbnail.
    pen : ndarray of bool, (H, W), or None
        Pen marks that are left out of the tissue.
    placement : PixelMap
        Map from thumbnail pixels to level-0 pixels.
    spacing : Spacing
        Size of a level-0 pixel, µm.
    mpp : Mpp
        Scale of the tiles, µm/px.
    boxes : ndarray of float64, (N, 4)
        Tiles that are used: ``x, y, width, height``, level-0 pixels.
    left_out : ndarray of float64, (M, 4)
        Tiles that are not used, in the same form.
    reasons : ndarray of uint8, (M,)
        Reason for each tile that is not used; :class:`wsiad.tissue.quality.Reason`.
    examples : sequence of Example
        Tiles to show, at most `EXAMPLES`.
    stain : str
        Method of the stain normalisation.
    fallback : str or None
        Reason why the stains of the reference were used; ``None`` if they were not.
    noun : str
        Word for a tile: ``"tile"`` or ``"window"``.
    damaged : ndarray of bool, (H, W), or None
        True where the thumbnail could not be read, so that tissue may have been overlooked.
    """

    slide: str
    thumbnail: RGB
    mask: Mask
    pen: Mask | None
    placement: PixelMap
    spacing: Spacing
    mpp: Mpp
    boxes: npt.NDArray[np.float64]
    left_out: npt.NDArray[np.float64]
    reasons: Reasons
    examples: Sequence[Example] = ()
    stain: str = "none"
    fallback: str | None = None
    noun: str = "tile"
    damaged: Mask | None = None


def overview_jpeg(overview: Overview) -> bytes:
    """Draw an overview as a JPEG file of at most `MAX_BYTES`.

    The bytes are a function of the content and of the versions of the libraries.
    """
    return as_jpeg(draw(overview), limit=MAX_BYTES)


def draw(overview: Overview) -> RGB:
    """Draw an overview, uint8 (H, W, 3): the slide on the left, the legend on the right."""
    slide, _ = slide_picture(overview)
    panel = _panel(overview, height=len(slide))
    width = max(slide.shape[1], 300) + _PANEL_PX + 3 * _MARGIN
    height = _HEAD_PX + max(slide.shape[0], len(panel)) + _MARGIN
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[_HEAD_PX : _HEAD_PX + len(slide), _MARGIN : _MARGIN + slide.shape[1]] = slide
    canvas[_HEAD_PX : _HEAD_PX + len(panel), width - _PANEL_PX - _MARGIN : width - _MARGIN] = panel
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    room = width - 2 * _MARGIN
    pen.text((_MARGIN, 8), shortened(overview.slide, 20, room), fill=INK, font=font(20))
    pen.text((_MARGIN, 34), shortened(_headline(overview), 14, room), fill=MUTED, font=font(14))
    return np.array(image)


def slide_picture(overview: Overview) -> tuple[RGB, PixelMap]:
    """Draw the slide with its tissue, its tiles and the areas that are left out.

    Returns
    -------
    picture : ndarray of uint8, (H, W, 3)
    placement : PixelMap
        Map from its pixels to level-0 pixels.
    """
    picture, mask, pen, placement = _scaled(overview)
    shape = (picture.shape[0], picture.shape[1])
    hatch_left_out(picture, overview, placement, pen)
    kept = pixel_edges(overview.boxes, placement)
    if len(kept):
        used = covered(kept, shape)
        lines = np.zeros(shape, np.uint8)
        outline_of = cv2.morphologyEx(
            used.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
        lines |= outline_of & used
        if np.median(kept[:, 2] - kept[:, 0]) >= _SMALLEST_GRID_PX:
            lines |= borders(kept, shape)
        blend(picture, lines.astype(bool), KEPT, 0.6)
    outline(picture, mask, width=2)
    um_per_px = placement.scale_x * overview.spacing.x
    return scale_bar(picture, um_per_px=um_per_px), placement


def hatch_left_out(picture: RGB, overview: Overview, placement: PixelMap, pen: Mask | None) -> None:
    """Hatch the areas of a slide that are not used, on a picture of it.

    Parameters
    ----------
    picture : ndarray of uint8, (H, W, 3)
        Picture, which is changed in place.
    overview : Overview
    placement : PixelMap
        Map from the picture's pixels to level-0 pixels.
    pen : ndarray of bool, (H, W), or None
        Pen marks, in the picture's pixels.
    """
    shape = (picture.shape[0], picture.shape[1])
    for reason, area in left_out_areas(overview, shape, placement, pen):
        hatch(picture, area, reason)


def left_out_areas(
    overview: Overview, shape: tuple[int, int], placement: PixelMap, pen: Mask | None
) -> Iterator[tuple[Reason, Mask]]:
    """Yield the area (H, W) that is not used for each reason that occurs.

    Where tiles overlap, an area that another tile shows counts as used. Pen marks that are left
    out of the tissue and tiles left out for their pen are one area.
    """
    unused = ~covered(pixel_edges(overview.boxes, placement), shape)
    for reason in COLOURS:
        chosen = overview.reasons == reason
        area = covered(pixel_edges(overview.left_out[chosen], placement), shape)
        if reason == Reason.PEN and pen is not None:
            area |= pen
        if reason == Reason.DAMAGED and overview.damaged is not None:
            area |= _resized(overview.damaged, (shape[1], shape[0]))
        area &= unused
        if area.any():
            yield reason, area


def _scaled(overview: Overview) -> tuple[RGB, Mask, Mask | None, PixelMap]:
    """Return the thumbnail and its masks in the size of the picture."""
    height, width = overview.mask.shape
    if not width or not height:
        nothing = np.full((1, 1, 3), 255, np.uint8)
        return nothing, np.zeros((1, 1), bool), None, overview.placement
    factor = min(_SLIDE_PX[0] / width, _SLIDE_PX[1] / height, _LARGEST_SCALE)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(overview.thumbnail, size, interpolation=how), np.uint8)
    place = overview.placement
    placement = replace(
        place, scale_x=place.scale_x * width / size[0], scale_y=place.scale_y * height / size[1]
    )
    pen = None if overview.pen is None else _resized(overview.pen, size)
    return picture, _resized(overview.mask, size), pen, placement


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0


def _headline(overview: Overview) -> str:
    tiles, noun = len(overview.boxes), overview.noun
    share = overview.mask.mean() if overview.mask.size else 0.0
    missing = int(np.count_nonzero(overview.reasons == Reason.MISSING))
    damaged = int(np.count_nonzero(overview.reasons == Reason.DAMAGED))
    failed = len(overview.reasons) - missing - damaged
    parts = [
        f"{overview.mpp:g} µm/px (level 0: {overview.spacing.mean:.4g})",
        f"tissue {100 * share:.1f} %",
        f"{counted(tiles, noun, ',')} used",
    ]
    if failed:
        parts.append(f"{failed:,} left out by quality")
    if missing:
        parts.append(f"{missing:,} without pixels")
    if damaged:
        parts.append(f"{damaged:,} DAMAGED")
    if overview.fallback:
        parts.append("STAIN FALLBACK")
    return "  ·  ".join(parts)


def _panel(overview: Overview, *, height: int) -> RGB:
    """Draw the legend, notes on the stain, and two or more tiles, as many as fit in the height."""
    notes = _stain_notes(overview)
    entries = _legend(overview)
    top = len(entries) * _LINE_PX + 14
    tiles_top = top + len(notes) * 18 + 28
    shown = _spread(overview.examples, min(4, max(2, (height - tiles_top) // (_TILE_PX + 6))))
    height = tiles_top + len(shown) * (_TILE_PX + 6) if shown else tiles_top
    panel = np.full((height, _PANEL_PX, 3), 255, np.uint8)
    for number, (swatch, _) in enumerate(entries):
        at = number * _LINE_PX
        panel[at + 2 : at + 18, :34] = swatch
    for number, example in enumerate(shown):
        at = tiles_top + number * (_TILE_PX + 6)
        panel[at : at + _TILE_PX, :_TILE_PX] = _sized(example.before)
        panel[at : at + _TILE_PX, _TILE_PX + 12 : 2 * _TILE_PX + 12] = _sized(example.after)
    image = Image.fromarray(panel)
    pen = ImageDraw.Draw(image)
    for number, (_, text) in enumerate(entries):
        line = shortened(text, 14, _PANEL_PX - 44)
        pen.text((44, number * _LINE_PX + 1), line, fill=INK, font=font(14))
    for number, text in enumerate(notes):
        pen.text((0, top + number * 18), text, fill=INK, font=font(14))
    if shown:
        pen.text((0, tiles_top - 20), "as scanned", fill=MUTED, font=font(13))
        pen.text((_TILE_PX + 12, tiles_top - 20), "normalised", fill=MUTED, font=font(13))
    return np.array(image)


def _legend(overview: Overview) -> list[tuple[RGB, str]]:
    """Return the swatches of the legend and their meaning, with counts."""
    noun = overview.noun

    def swatch() -> RGB:
        return np.full((16, 34, 3), 236, np.uint8)

    tissue, kept = swatch(), swatch()
    tissue[:2] = tissue[-2:] = tissue[:, :2] = tissue[:, -2:] = OUTLINE
    kept[0] = kept[-1] = kept[:, 0] = kept[:, -1] = kept[:, 16] = KEPT
    entries = [(tissue, "tissue"), (kept, f"{noun}s used: {len(overview.boxes):,}")]
    for reason in COLOURS:
        count = int(np.count_nonzero(overview.reasons == reason))
        if count:
            hatched = swatch()
            hatch(hatched, np.ones((16, 34), bool), reason)
            entries.append((hatched, f"{_MEANING[reason]}: {counted(count, noun, ',')}"))
    if overview.damaged is not None and not (overview.reasons == Reason.DAMAGED).any():
        hatched = swatch()
        hatch(hatched, np.ones((16, 34), bool), Reason.DAMAGED)
        entries.append((hatched, "damaged in the file, not seen"))
    if overview.pen is not None and overview.pen.any():
        hatched = swatch()
        hatch(hatched, np.ones((16, 34), bool), Reason.PEN)
        area = overview.pen.sum() * overview.placement.scale_x * overview.spacing.x
        area *= overview.placement.scale_y * overview.spacing.y / 1e6
        entries.append((hatched, f"pen marks, not tissue: {area:.2g} mm²"))
    return entries


def _stain_notes(overview: Overview) -> Sequence[str]:
    if overview.stain == "none":
        return ["stain: not normalised"]
    text = f"stain: {overview.stain}"
    if overview.fallback:
        text = f"{text}, with the stains of the reference: {overview.fallback}"
    return wrapped(text, 14, _PANEL_PX, lines=4)


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Choose the examples to show, spread evenly over all of them."""
    ordered = sorted(examples, key=lambda example: example.index)
    if len(ordered) <= count:
        return ordered
    return [ordered[at] for at in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


def _sized(tile: RGB) -> RGB:
    how = cv2.INTER_AREA if len(tile) > _TILE_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(tile, (_TILE_PX, _TILE_PX), interpolation=how), np.uint8)
