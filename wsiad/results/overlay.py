"""Draw the pictures of results: the slide with its tissue outlined and with its heatmap over it.

The legend shows the colour scale of a run: how rare each colour is among healthy windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw

from wsiad.core.errors import InputError
from wsiad.core.files import atomic_file
from wsiad.core.geometry import PixelMap
from wsiad.core.images import save_png
from wsiad.heatmaps.score_map import Heatmap
from wsiad.pictures.colour_scale import ColourScale
from wsiad.pictures.drawing import INK, apart, font, text_width
from wsiad.pictures.overview import Overview, hatch_left_out

RGB = npt.NDArray[np.uint8]

_LONGEST_PX = 1600
_LEAST_PX, _LARGEST_FACTOR = 1000, 8
_THUMBNAIL_PX = (240, 180)
_SPOT_PX = 9
_LINE_SHARE, _TEXT_SHARE = 500, 1000  # of a picture's longest edge: pages show it reduced
_BAND_ROWS = 128
_SUBPIXEL_BITS = 4
_NUMBERED = 5
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_OUTLINE = (0, 110, 60)


def enlarged(overview: Overview) -> Overview:
    """Return an overview whose thumbnail is large enough to draw on, even for a small slide.

    The thumbnail has the scale of the tissue mask, about 8 µm per pixel. On the thumbnail of a
    slide of a millimetre, outlines and numbers would cover what they point at. It is enlarged by
    a whole number, so that edges of the heatmap stay where they are.

    Parameters
    ----------
    overview : Overview
        Overview of the slide.

    Returns
    -------
    Overview
        Enlarged overview; the same object if the longest edge has more than 500 px.
    """
    height, width = overview.mask.shape
    factor = min(_LARGEST_FACTOR, _LEAST_PX // max(1, height, width))
    if factor < 2 or not min(height, width):
        return overview
    size, at = (width * factor, height * factor), overview.placement
    return replace(
        overview,
        thumbnail=cv2.resize(overview.thumbnail, size, interpolation=cv2.INTER_CUBIC),
        mask=_mask_enlarged(overview.mask, size),
        pen=None if overview.pen is None else _mask_enlarged(overview.pen, size),
        placement=PixelMap(at.x, at.y, at.scale_x / factor, at.scale_y / factor),
    )


def _mask_enlarged(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Enlarge a mask with a smooth edge."""
    large: npt.NDArray[np.bool_] = (
        cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
    )
    return large


def outline(thumbnail: RGB, mask: npt.NDArray[np.bool_]) -> RGB:
    """Draw the outline of a mask onto a thumbnail of the same size.

    Parameters
    ----------
    thumbnail : ndarray of uint8, (H, W, 3)
        RGB thumbnail of the slide.
    mask : ndarray of bool, (H, W)
        Mask to outline.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        Copy of the thumbnail with the outline.
    """
    picture = thumbnail.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(max(mask.shape) / 800))
    cv2.drawContours(picture, contours, -1, _OUTLINE, width)
    return picture


def overlay(
    thumbnail: RGB,
    placement: PixelMap,
    heatmap: Heatmap,
    scale: ColourScale,
    *,
    elsewhere: RGB | None = None,
) -> RGB:
    """Draw a heatmap over a thumbnail; a pixel shows the heatmap pixel under its centre.

    Parameters
    ----------
    thumbnail : ndarray of uint8, (H, W, 3)
        RGB thumbnail of the slide.
    placement : PixelMap
        Map from thumbnail pixels to level-0 pixels.
    heatmap : Heatmap
        Heatmap of the slide.
    scale : ColourScale
        Colour scale of the heatmap.
    elsewhere : ndarray of uint8, (H, W, 3), optional
        Picture to show where the heatmap has no score; by default the grey thumbnail.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        Grey thumbnail with the heatmap in colours.
    """
    height, width = thumbnail.shape[:2]
    columns, rows = (np.arange(n, dtype=np.float64) + 0.5 for n in (width, height))
    x, y = placement.to_level0(columns, rows)
    column, row = (np.floor(v).astype(np.int64) for v in heatmap.placement.from_level0(x, y))
    inside_x = (column >= 0) & (column < heatmap.size.width)
    inside_y = (row >= 0) & (row < heatmap.size.height)
    # Grey first: the colours of the stain and of the heatmap must not be confused.
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)
    picture = np.empty_like(thumbnail)
    # In bands of rows: as floats, a large slide takes hundreds of megabytes.
    for top in range(0, height, _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        shown = np.repeat((128 + grey[band].astype(np.float32) / 2)[..., None], 3, axis=2)
        there = np.ix_(row[band][inside_y[band]], column[inside_x])
        rgba = scale.rgba(heatmap.scores[there]).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        where = np.ix_(np.flatnonzero(inside_y[band]), np.flatnonzero(inside_x))
        shown[where] = shown[where] * (1 - alpha) + rgba[..., :3] * alpha
        picture[band] = np.rint(shown)
        if elsewhere is not None:
            bare = np.ones(shown.shape[:2], bool)
            bare[where] = alpha[..., 0] == 0
            picture[band][bare] = elsewhere[band][bare]
    return picture


def outline_polygon(
    picture: RGB, polygon: shapely.Polygon, placement: PixelMap, *, width: int = 1
) -> None:
    """Outline a polygon in black on white, which is visible on any ground and without colour.

    Parameters
    ----------
    picture : ndarray of uint8, (H, W, 3)
        Picture to draw on, changed in place.
    polygon : shapely.Polygon
        Polygon in level-0 pixels.
    placement : PixelMap
        Map from pixels of the picture to level-0 pixels.
    width : int
        Width of the black line, pixels.
    """
    rings = []
    for ring in (polygon.exterior, *polygon.interiors):
        x, y = shapely.get_coordinates(ring).T
        columns, rows = placement.from_level0(x, y)
        # OpenCV counts from pixel centres, in fractions of a pixel.
        points = (np.stack([columns, rows], axis=1) - 0.5) * 2**_SUBPIXEL_BITS
        rings.append(np.rint(points).astype(np.int32))
    for colour, thickness in ((_WHITE, 3 * width), (_BLACK, width)):
        cv2.polylines(
            picture, rings, True, colour, thickness, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS
        )


def outline_regions(picture: RGB, polygons: Sequence[shapely.Polygon], placement: PixelMap) -> None:
    """Outline regions on an overlay, and number the five strongest.

    The bright end of the colours is as light as empty glass. Without colour, for example on paper
    or for a colour-blind eye, the outlines show where it is.

    Parameters
    ----------
    picture : ndarray of uint8, (H, W, 3)
        Picture to draw on, changed in place.
    polygons : sequence of shapely.Polygon
        Outlines of the regions in level-0 pixels, strongest first.
    placement : PixelMap
        Map from pixels of the picture to level-0 pixels.
    """
    longest = max(picture.shape)
    width = max(1, round(longest / _LINE_SHARE))
    for polygon in polygons:
        outline_polygon(picture, polygon, placement, width=width)
    for number, polygon in reversed(list(enumerate(polygons[:_NUMBERED], start=1))):
        # At the corner that is farthest to the upper left; the box around it may begin far away.
        corners = shapely.get_coordinates(polygon.exterior)
        left, top = corners[corners.sum(axis=1).argmin()]
        _write_number(picture, number, placement.from_level0(left, top), longest / _TEXT_SHARE)


def _write_number(picture: RGB, number: int, at: tuple[float, float], scale: float) -> None:
    """Write a number so that it ends at a position, or as close to it as the picture allows."""
    size, font = max(0.6, 0.9 * scale), cv2.FONT_HERSHEY_SIMPLEX
    width = max(1, round(2 * scale))
    (across, up), _ = cv2.getTextSize(str(number), font, size, width)
    corner = (max(width, round(at[0] - across - width)), max(up + width, round(at[1])))
    for colour, thickness in ((_WHITE, 3 * width), (_BLACK, width)):
        cv2.putText(picture, str(number), corner, font, size, colour, thickness, cv2.LINE_AA)


def hatch_unscored(picture: RGB, overview: Overview) -> None:
    """Hatch the parts of a slide that were left out, by reason, on an overlay of the slide.

    Parameters
    ----------
    picture : ndarray of uint8, (H, W, 3)
        Picture with the size of the overview's thumbnail, changed in place.
    overview : Overview
        Overview of the slide.
    """
    hatch_left_out(picture, overview, overview.placement, overview.pen)


def reduced(picture: RGB, placement: PixelMap) -> tuple[RGB, PixelMap]:
    """Return a picture of at most 1600 px on its longest edge, and its map to level-0 pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((_LONGEST_PX, _LONGEST_PX), Image.Resampling.BOX)
    small = np.asarray(image)
    down, across = picture.shape[0] / small.shape[0], picture.shape[1] / small.shape[1]
    scaled = PixelMap(
        placement.x, placement.y, placement.scale_x * across, placement.scale_y * down
    )
    return small, scaled


def write_picture(path: Path, picture: RGB) -> None:
    """Write a picture as PNG, at most 1600 px on its longest edge."""
    image = Image.fromarray(picture)
    image.thumbnail((_LONGEST_PX, _LONGEST_PX), Image.Resampling.BOX)
    with atomic_file(path) as partial:
        save_png(np.asarray(image), partial)


def read_picture(path: Path) -> RGB:
    """Read a picture that :func:`write_picture` wrote.

    Raises
    ------
    InputError
        The picture is missing or damaged, or the file is not such a picture.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            sound = max(image.size) <= _LONGEST_PX and image.mode == "RGB"
            found = np.array(image) if sound else None
            problem = f"it has {image.width} x {image.height} px of {image.mode}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        found, problem = None, str(error)
    if found is None:
        raise InputError(
            f"is damaged or cannot be read: {problem}",
            subject=str(path),
            remedy="Delete the slide's folder and run wsiad heatmap again.",
        )
    return found


def write_thumbnail(
    path: Path, picture: RGB, *, spots: Sequence[tuple[float, float, float, float]] = ()
) -> None:
    """Write a picture as a JPEG of at most 240 × 180 px, for a list of many slides.

    Parameters
    ----------
    path : Path
        File to write, atomically.
    picture : ndarray of uint8, (H, W, 3)
        RGB picture of the slide.
    spots : sequence of tuple of float
        Left, top, right and bottom of the places to frame, pixels of the picture. A frame has at
        least 9 px, because what it frames may be less than one.
    """
    image = Image.fromarray(picture)
    image.thumbnail(_THUMBNAIL_PX, Image.Resampling.BOX)
    small = np.array(image)
    scale = small.shape[1] / picture.shape[1], small.shape[0] / picture.shape[0]
    for left, top, right, bottom in spots:
        middle = (left + right) / 2 * scale[0], (top + bottom) / 2 * scale[1]
        half = (
            max((right - left) * scale[0], _SPOT_PX) / 2,
            max((bottom - top) * scale[1], _SPOT_PX) / 2,
        )
        low, high = (
            (round(middle[0] + sign * half[0]), round(middle[1] + sign * half[1]))
            for sign in (-1, 1)
        )
        cv2.rectangle(small, low, high, _WHITE, 3)
        cv2.rectangle(small, low, high, _BLACK, 1)
    with atomic_file(path) as partial:
        Image.fromarray(small).save(partial, quality=80)


_LEGEND_PX = (720, 180)
_BAR = (30, 28, 690, 124)  # left, top, right, bottom
_SMALL_PX, _LARGE_PX, _LINE_PX = 15, 17, 21
_LABEL_GAP_PX = 4
_TITLE = "healthy windows with a lower score, and the score; the same for all slides"


def _score(value: float) -> str:
    """Return a score with a true minus."""
    return f"{value:.4g}".replace("-", "−")


def _span(x: float, text: str, *, width: int) -> tuple[float, float]:
    """Return where a label around `x` begins and ends, moved into a picture of this width."""
    half = text_width(text, _LARGE_PX) / 2
    middle = min(max(x, half + _LABEL_GAP_PX), width - half - _LABEL_GAP_PX)
    return middle - half, middle + half


def write_legend(path: Path, scale: ColourScale) -> None:
    """Draw a colour scale with the percentiles and scores of its knots, as PNG.

    The upper half shows the colours as they are. The lower half shows them over white, where the
    colours of healthy tissue are faint.
    """
    left, top, right, bottom = _BAR
    places = np.linspace(left, right - 1, len(scale.knots))
    colours = scale.rgba(np.interp(np.arange(left, right), places, scale.knots))
    opaque, share = colours[:, :3], colours[:, 3:] / 255
    over_white = np.rint(share * opaque + (1 - share) * 255).astype(np.uint8)
    image = Image.new("RGB", _LEGEND_PX, _WHITE)
    bar = np.repeat(np.stack([opaque, over_white]), (bottom - top) // 2, axis=0)
    image.paste(Image.fromarray(bar), (left, top))
    pen = ImageDraw.Draw(image)
    pen.rectangle((left - 1, top - 1, right, bottom), outline=INK)
    pen.text((image.width / 2, top / 2), _TITLE, INK, font(_SMALL_PX), anchor="mm")
    for x in places:
        pen.line((x, bottom, x, bottom + 5), INK)
    steps = scale.legend()["steps"]
    shares = [(x, step["percentile"]) for x, step in zip(places, steps, strict=True)]
    labels = [
        [(x, f"{share:g} %") for x, share in shares if share is not None],
        [(x, _score(step["score"])) for x, step in zip(places, steps, strict=True)],
    ]
    for line, row in enumerate(labels):
        y = bottom + 8 + line * _LINE_PX
        spans = [_span(x, text, width=image.width) for x, text in row]
        for (_, text), (start, end), drawn in zip(
            row, spans, apart(spans, gap=_LABEL_GAP_PX), strict=True
        ):
            if drawn:
                pen.text(((start + end) / 2, y), text, INK, font(_LARGE_PX), anchor="ma")
    write_picture(path, np.asarray(image))
