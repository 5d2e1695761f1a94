"""Drawing on pictures for people: boxes, hatched areas, a scale bar and text."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from wsiad.core.geometry import PixelMap
from wsiad.tissue.quality import Reason

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]

INK: Colour = (29, 36, 48)
MUTED: Colour = (90, 100, 116)
OUTLINE: Colour = (0, 110, 60)
"""Colour of the tissue's outline."""
KEPT: Colour = (24, 66, 140)
"""Colour of the tiles that are used."""

# Colours of Okabe and Ito, which differ for all kinds of colour vision; the hatches say
# the same without any colour.
COLOURS: dict[Reason, Colour] = {
    Reason.MISSING: (60, 60, 60),
    Reason.BLACK: (0, 0, 0),
    Reason.PEN: (190, 70, 0),
    Reason.SATURATION: (0, 130, 100),
    Reason.SHARPNESS: (0, 100, 170),
    Reason.DAMAGED: (150, 60, 110),
}
_PERIOD = 8
_JPEG_QUALITIES = (85, 75, 60, 45, 30)


def pixel_edges(boxes: npt.NDArray[np.float64], placement: PixelMap) -> npt.NDArray[np.int64]:
    """Round boxes to the pixels of a picture; none vanishes, and neighbours still touch.

    Parameters
    ----------
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height``, level-0 pixels.
    placement : PixelMap
        Map from the picture's pixels to level-0 pixels.

    Returns
    -------
    ndarray of int64, (N, 4)
        Columns ``left, top, right, bottom``; right and bottom are excluded.
    """
    left, top = placement.from_level0(boxes[:, 0], boxes[:, 1])
    right, bottom = placement.from_level0(boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3])
    edges = np.floor(np.stack([left, top, right, bottom], axis=1) + 0.5).astype(np.int64)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
    return edges


def covered(edges: npt.NDArray[np.int64], shape: tuple[int, int]) -> Mask:
    """Return the pixels (H, W) in any box; the cost hardly grows with the number of boxes.

    Parameters
    ----------
    edges : ndarray of int64, (N, 4)
        Edges as :func:`pixel_edges` returns them; parts outside of the picture are cut off.
    shape : (int, int)
        Height and width of the picture, pixels.
    """
    height, width = shape
    if not len(edges):
        return np.zeros(shape, bool)
    # Each box adds 1 from its corner on and takes it back beyond its edges: the sums
    # from the top left on count the boxes over each pixel.
    steps = np.zeros((height + 1) * (width + 1), np.int32)
    left, right = edges[:, 0].clip(0, width), edges[:, 2].clip(0, width)
    top, bottom = edges[:, 1].clip(0, height), edges[:, 3].clip(0, height)
    for y, x, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(steps, y * (width + 1) + x, np.int32(sign))
    counts = steps.reshape(height + 1, width + 1)[:-1, :-1]
    return np.asarray(counts.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32) > 0)


def borders(edges: npt.NDArray[np.int64], shape: tuple[int, int]) -> Mask:
    """Return the pixels (H, W) along the inner rim of each box."""
    sides = [edges.copy() for _ in range(4)]
    sides[0][:, 3] = edges[:, 1] + 1
    sides[1][:, 1] = edges[:, 3] - 1
    sides[2][:, 2] = edges[:, 0] + 1
    sides[3][:, 0] = edges[:, 2] - 1
    return covered(np.concatenate(sides), shape)


def blend(picture: RGB, where: Mask, colour: Colour, share: float) -> None:
    """Mix a colour into the pixels of a mask."""
    values = np.arange(256)[:, None] * (1 - share) + np.array(colour) * share
    table = np.rint(values).astype(np.uint8)
    picture[where] = table[picture[where], np.arange(3)]


def hatch(picture: RGB, where: Mask, reason: Reason) -> None:
    """Draw an area as one that is not used, in the colour and the hatch of its reason."""
    if not where.any():
        return
    blend(picture, where, (255, 255, 255), 0.5)
    inner = cv2.erode(where.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    height, width = where.shape
    one = _pattern(reason)
    repeats = (-(-height // len(one)), -(-width // len(one)))
    lines = np.tile(one, repeats)[:height, :width]
    picture[where & (lines | ~inner)] = COLOURS[reason]


@functools.cache
def _pattern(reason: Reason) -> Mask:
    """Return the hatch of a reason over a single period."""
    y, x = np.mgrid[:_PERIOD, :_PERIOD]
    rising, falling = (x + y) % _PERIOD == 0, (x - y) % _PERIOD == 0
    half = _PERIOD // 2
    patterns = {
        Reason.MISSING: rising | falling,
        Reason.BLACK: y % half < 2,
        Reason.PEN: rising,
        Reason.SATURATION: (x % half < 2) & (y % half < 2) & ((x < half) == (y < half)),
        Reason.SHARPNESS: x == half,
        Reason.DAMAGED: falling,
    }
    return np.asarray(patterns[reason], bool)


def outline(picture: RGB, mask: Mask, *, width: int = 1, colour: Colour = OUTLINE) -> None:
    """Draw the outline of a mask (H, W) that has the picture's size."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, width)


def nice_length(at_most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, … that is at most ``at_most``."""
    power = 10.0 ** np.floor(np.log10(at_most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= at_most * (1 + 1e-9)))


def scale_bar(picture: RGB, *, um_per_px: float) -> RGB:
    """Draw a scale bar into the lower left corner of a picture.

    Parameters
    ----------
    picture : ndarray of uint8, (H, W, 3)
    um_per_px : float
        Size of a pixel along the rows, µm.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        The picture with the bar, or unchanged if there is no room for it.
    """
    height, width = picture.shape[:2]
    if width < 60 or height < 44:
        return picture
    length = nice_length(width * um_per_px / 4)
    bar = max(1, round(length / um_per_px))
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    box = max(bar, text_width(label, 14)) + 16
    corner = picture[height - 42 : height - 6, 6 : 6 + box]
    corner[:] = np.rint(corner * 0.15 + 255 * 0.85).astype(np.uint8)
    picture[height - 16 : height - 12, 14 : 14 + bar] = INK
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((14, height - 40), label, fill=INK, font=font(14))
    return np.array(image)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans, ``size`` pixels high.

    The fonts of the system differ from machine to machine, and Pillow's own lacks even µ.
    """
    # Found, not imported: that would take as long as everything else that draws.
    folder = Path(str(getattr(importlib.util.find_spec("matplotlib"), "origin", ""))).parent
    path = folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def text_width(text: str, size: int) -> int:
    """Return the width of a line of text, pixels."""
    left, _, right, _ = font(size).getbbox(text)
    return int(np.ceil(right - left))


def apart(spans: Sequence[tuple[float, float]], *, gap: float) -> list[bool]:
    """Tell which of some labels in a row can be drawn so that none touches another.

    The first and the last are drawn rather than those between; the last only if it has room.

    Parameters
    ----------
    spans : sequence of (float, float)
        Left and right end of each label, from left to right, pixels.
    gap : float
        Least distance between two labels, pixels.

    Examples
    --------
    >>> apart([(0, 40), (30, 70), (80, 120), (110, 150)], gap=4)
    [True, False, False, True]
    """
    kept = [False] * len(spans)
    end, limit = float("-inf"), spans[-1][0] - gap if spans else 0.0
    for index, (left, right) in enumerate(spans):
        last = index == len(spans) - 1
        if left >= end + gap and (index == 0 or last or right <= limit):
            kept[index], end = True, right
    return kept


def shortened(text: str, size: int, width: int) -> str:
    """Cut a text to at most ``width`` pixels, and mark the cut with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = text_width(text[:middle] + "…", size) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low] + "…"


def wrapped(text: str, size: int, width: int, *, lines: int) -> Sequence[str]:
    """Break a text into lines of at most ``width`` pixels; the last line can be cut."""
    out: list[str] = []
    words = text.split()
    while words and len(out) < lines - 1:
        count = 1
        while count < len(words) and text_width(" ".join(words[: count + 1]), size) <= width:
            count += 1
        out.append(shortened(" ".join(words[:count]), size, width))
        words = words[count:]
    return [*out, shortened(" ".join(words), size, width)] if words else out


def as_jpeg(picture: RGB, *, limit: int) -> bytes:
    """Encode a picture as a JPEG of at most ``limit`` bytes, in the best quality that fits."""
    bgr = picture[..., ::-1]
    while True:
        for quality in _JPEG_QUALITIES:
            flags = [
                *(cv2.IMWRITE_JPEG_QUALITY, quality),
                *(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
                *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
            ]
            _, data = cv2.imencode(".jpg", bgr, flags)
            if len(data) <= limit:
                return data.tobytes()
        half = (max(1, bgr.shape[1] // 2), max(1, bgr.shape[0] // 2))
        bgr = np.asarray(cv2.resize(bgr, half, interpolation=cv2.INTER_AREA), np.uint8)
