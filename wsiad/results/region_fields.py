"""Draw fields of view around the strongest regions, as through a microscope.

Each is a square of the slide in its own colours, wide enough to show the surroundings of the
region. The region is outlined in black on white, which is visible on any ground and without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image

from wsiad.core.files import atomic_file, write_json
from wsiad.core.geometry import Box, PixelMap, Size
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import Heatmap
from wsiad.results.file_names import FIELD_PICTURES, FIELDS
from wsiad.results.overlay import outline_polygon
from wsiad.slides.slide import Slide

RGB = npt.NDArray[np.uint8]

STRONGEST = 5
"""Maximum number of regions of a slide that are shown."""

_FIELD_UM = (300.0, 1500.0)
_AROUND = 1.6
_PX = 320
_PAPER = 244


def write_fields(
    folder: Path,
    slide: Slide,
    regions: Sequence[Region],
    *,
    heatmap: Heatmap,
    percentiles: Sequence[float],
) -> None:
    """Write the fields around the strongest regions, and ``regions.json`` about them.

    Parameters
    ----------
    folder : Path
        Folder of the slide's results.
    slide : Slide
        Open slide.
    regions : sequence of Region
        Regions, strongest first; the first five are shown.
    heatmap : Heatmap
        Heatmap with these regions.
    percentiles : sequence of float
        Percentile of each region's highest score, 0 to 100.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded at a field.
    """
    entries = []
    shown = zip(regions[:STRONGEST], percentiles, strict=False)
    for rank, (region, percentile) in enumerate(shown, start=1):
        picture, placement = read_field(slide, field_around(region, heatmap))
        field = placement.box(Size(picture.shape[1], picture.shape[0]))
        across_um = field.width * heatmap.spacing.x
        bar_um = _bar_um(across_um)
        outline_polygon(picture, region.polygon, placement)
        _draw_bar(picture, bar_um / (placement.scale_x * heatmap.spacing.x))
        image = Path(FIELD_PICTURES) / f"{rank:03d}.jpg"
        with atomic_file(folder / image) as partial:
            Image.fromarray(picture).save(partial, quality=82)
        entries.append(
            {
                "rank": rank,
                "image": image.as_posix(),
                **asdict(field),
                "across_um": across_um,
                "bar_um": bar_um,
                "max_score": region.max_score,
                "mean_score": region.mean_score,
                "percentile": percentile,
                "area_um2": region.area,
            }
        )
    write_json(folder / FIELDS, {"format": 1, "regions": entries})


def field_around(region: Region, heatmap: Heatmap) -> Box:
    """Return the field of view of a region.

    Parameters
    ----------
    region : Region
        Region to show.
    heatmap : Heatmap
        Heatmap with this region.

    Returns
    -------
    Box
        Field in level-0 pixels, a square in µm on the slide. It is around the complete region if
        that fits into 1.5 mm, else around its strongest point.
    """
    spacing, size = heatmap.spacing, heatmap.slide_size
    left, top, right, bottom = region.polygon.bounds
    extent = _AROUND * max((right - left) * spacing.x, (bottom - top) * spacing.y)
    edge = min(max(extent, _FIELD_UM[0]), _FIELD_UM[1])
    middle = ((left + right) / 2, (top + bottom) / 2)
    if extent > _FIELD_UM[1]:
        middle = _strongest(region, heatmap)
    x, width = _interval(middle[0], edge / spacing.x, size.width)
    y, height = _interval(middle[1], edge / spacing.y, size.height)
    return Box(x, y, width, height)


def _interval(middle: float, length: float, limit: int) -> tuple[float, float]:
    """Return start and length of an interval around a point, moved and cut to 0 to ``limit``."""
    length = min(length, limit)
    return min(max(middle - length / 2, 0.0), limit - length), length


def _strongest(region: Region, heatmap: Heatmap) -> tuple[float, float]:
    """Return the centre of the region's heatmap pixel with the highest score, level-0 pixels."""
    left, top, right, bottom = region.polygon.bounds
    first = heatmap.placement.from_level0(left, top)
    last = heatmap.placement.from_level0(right, bottom)
    columns = slice(max(0, math.floor(first[0])), math.ceil(last[0]))
    rows = slice(max(0, math.floor(first[1])), math.ceil(last[1]))
    down, right_of = np.nonzero(heatmap.scores[rows, columns] == np.float32(region.max_score))
    for row, column in zip(down.tolist(), right_of.tolist(), strict=True):
        place = heatmap.placement.to_level0(columns.start + column + 0.5, rows.start + row + 0.5)
        if region.polygon.contains(shapely.Point(place)):  # not a neighbour in the same box
            return place
    point = region.polygon.representative_point()  # its outline was simplified
    return point.x, point.y


def read_field(slide: Slide, box: Box, *, pixels: int = _PX) -> tuple[RGB, PixelMap]:
    """Read a rectangle of a slide as a small picture.

    Parameters
    ----------
    slide : Slide
        Open slide.
    box : Box
        Rectangle on the slide, level-0 pixels.
    pixels : int
        Longest edge of the picture; shorter where the slide has fewer pixels.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB picture; light as paper where the slide has no pixels.
    PixelMap
        Map from pixels of the picture to level-0 pixels.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded in the rectangle.
    """
    wanted = max(box.width, box.height) / pixels
    number = max(
        (i for i, level in enumerate(slide.levels) if level.downsample_x <= max(wanted, 1)),
        key=lambda i: slide.levels[i].downsample_x,
    )
    level = slide.levels[number]
    x, y = math.floor(box.x / level.downsample_x), math.floor(box.y / level.downsample_y)
    size = Size(
        max(1, min(math.ceil(box.right / level.downsample_x), level.size.width) - x),
        max(1, min(math.ceil(box.bottom / level.downsample_y), level.size.height) - y),
    )
    region = slide.read_level(number, x, y, size)
    picture = region.rgb.copy()
    if region.valid is not None:
        picture[~region.valid] = _PAPER
    factor = min(1.0, pixels / max(size.width, size.height))
    shown = (max(1, round(size.width * factor)), max(1, round(size.height * factor)))
    picture = np.asarray(cv2.resize(picture, shown, interpolation=cv2.INTER_AREA), np.uint8)
    return picture, PixelMap(
        x * level.downsample_x,
        y * level.downsample_y,
        size.width * level.downsample_x / shown[0],
        size.height * level.downsample_y / shown[1],
    )


def _bar_um(field_um: float) -> float:
    """Return the longest of 1, 2, 5, 10, … µm that is not longer than a quarter of a field."""
    power = 10.0 ** math.floor(math.log10(field_um / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= field_um / 4)


def _draw_bar(picture: RGB, length_px: float) -> None:
    bottom, left = picture.shape[0] - 10, 10
    right = left + max(1, round(length_px))
    cv2.rectangle(picture, (left - 2, bottom - 6), (right + 1, bottom + 1), (255, 255, 255), -1)
    cv2.rectangle(picture, (left, bottom - 4), (right - 1, bottom - 1), (0, 0, 0), -1)
