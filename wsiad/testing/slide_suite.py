"""The conformance suite of slides, which every slide backend passes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Size
from wsiad.slides.slide import Region, Slide

_WINDOW = 192  # px of a level that are read at once
_MOST_FINER = 2_048  # px of the finer level that are read for it
_MOST_ROUNDING = 1.5  # grey levels: OpenSlide places the pixels of some levels between others
_CELLS = 6  # a side, whose mean colours are compared


def check_slide(slide: Slide, *, tolerance: float = 6.0) -> None:
    """Check that an open slide behaves as every slide of wsiad.

    The checks are: the slide's description of itself; levels are from the finest to the
    coarsest, and each shows the same as the finer one; a rectangle has the same pixels
    whatever it is read with, exactly if the slide declares so (:attr:`Slide.reads_tiles`); areas
    beyond the edge are not valid. At most a few megapixels are read.

    Parameters
    ----------
    slide : Slide
        Slide, which is left open.
    tolerance : float
        Maximum difference of the mean colour of an area between a level and the finer one,
        grey levels of 0 to 255, in 19 of 20 areas.

    Raises
    ------
    AssertionError
        A check fails.
    """
    _check_description(slide)
    for level in range(len(slide.levels)):
        _check_reads(slide, level)
        _check_edges(slide, level)
    for level in range(1, len(slide.levels)):
        _check_level(slide, level, tolerance)
    slide.check_unchanged()


def _check_description(slide: Slide) -> None:
    assert isinstance(slide, Slide), f"{type(slide).__name__} does not derive from wsiad's Slide"
    for name in ("name", "format", "backend", "spacing_source"):
        found = getattr(slide, name, None)
        assert isinstance(found, str) and found, f"{name} is {found!r}, not a text"  # noqa: PT018
    assert isinstance(slide.path, Path), f"path is {slide.path!r}, not a Path"
    assert slide.levels, "there are no levels"
    for axis, value in zip("xy", (slide.spacing.x, slide.spacing.y), strict=True):
        right = math.isfinite(value) and value > 0
        assert right, f"the spacing along {axis} is {value}, not µm per pixel"
    first = slide.levels[0]
    assert (first.downsample_x, first.downsample_y) == (1, 1), "the downsample of level 0 is not 1"
    for number, level in enumerate(slide.levels):
        width, height = level.size.width, level.size.height
        assert min(width, height) > 0, f"level {number} is {width} × {height} px"
        for edge, whole, ratio in (
            (width, slide.size.width, level.downsample_x),
            (height, slide.size.height, level.downsample_y),
        ):
            near = abs(whole / ratio - edge) <= 1 + 1e-6
            assert near, f"level {number} is of {edge} px, and {whole} px are {ratio} times as many"
    ratios = [level.downsample_x for level in slide.levels]
    rising = all(fine < coarse for fine, coarse in itertools.pairwise(ratios))
    assert rising, f"the levels are not from the finest to the coarsest: {ratios}"
    box, size = slide.bounds, slide.size
    within = box.x >= 0 and box.y >= 0 and box.width > 0 and box.height > 0
    within &= box.right <= size.width + 1 and box.bottom <= size.height + 1
    assert within, f"the bounds {box} are not within {size}"


def _corners(size: Size, edge: int) -> list[tuple[int, int]]:
    """Return top-left corners of windows: at both ends and in the middle of a level."""
    across, down = max(size.width - edge, 0), max(size.height - edge, 0)
    return sorted({(0, 0), (across // 2, down // 2), (across, down)})


def _valid(region: Region) -> npt.NDArray[np.bool_]:
    return np.ones(region.rgb.shape[:2], bool) if region.valid is None else region.valid


def _read(slide: Slide, level: int, x: int, y: int, size: Size) -> Region:
    """Read a rectangle and check its shapes and data types."""
    region = slide.read_level(level, x, y, size)
    shape = (size.height, size.width)
    where = f"level {level}, {size.width} × {size.height} px at {x}, {y}"
    right = region.rgb.dtype == np.uint8 and region.rgb.shape == (*shape, 3)
    assert right, f"{where}: pixels are {region.rgb.dtype} {region.rgb.shape}"
    if region.valid is not None:
        right = region.valid.dtype == np.bool_ and region.valid.shape == shape
        assert right, f"{where}: valid is {region.valid.dtype} {region.valid.shape}"
    return region


def _check_same(found: Region, expected: Region, what: str, *, exact: bool) -> None:
    valid = _valid(expected)
    assert np.array_equal(_valid(found), valid), f"{what}: other pixels are valid"
    difference = np.abs(found.rgb[valid].astype(np.int16) - expected.rgb[valid])
    if not exact and difference.size and difference.mean() <= _MOST_ROUNDING:
        return
    assert not difference.any(), f"{what}: pixels differ, by {difference.max()} grey levels"


def _part(region: Region, rows: slice, columns: slice) -> Region:
    valid = None if region.valid is None else region.valid[rows, columns]
    return Region(region.rgb[rows, columns], valid)


def _check_reads(slide: Slide, level: int) -> None:
    """Check that pixels do not depend on the rectangle with which they are read."""
    size = slide.levels[level].size
    edge = min(_WINDOW, size.width, size.height)
    odd = max(1, edge // 3 | 1)
    for x, y in _corners(size, edge):
        whole = _read(slide, level, x=x, y=y, size=Size(edge, edge))
        again = _read(slide, level, x=x, y=y, size=Size(edge, edge))
        _check_same(again, whole, f"level {level} at {x}, {y}, read twice", exact=True)
        rest = edge - odd
        parts = [(0, 0, odd, odd)]
        if rest:
            parts += [(odd, 0, rest, edge), (0, odd, odd, rest)]
        for left, top, width, height in parts:
            part = _read(slide, level, x=x + left, y=y + top, size=Size(width, height))
            expected = _part(whole, slice(top, top + height), slice(left, left + width))
            what = f"level {level} at {x + left}, {y + top}, read in parts"
            _check_same(part, expected, what, exact=slide.reads_tiles)
        if rest:
            corners = np.array([(x, y), (x + rest, y + rest)] if rest >= odd else [(x, y)])
            out = np.zeros((len(corners), odd, odd, 3), np.uint8)
            valid = slide.read_tiles(level, corners.astype(np.int64), out)
            for (left, top), tile, is_whole in zip(corners.tolist(), out, valid, strict=True):
                one = _read(slide, level, x=left, y=top, size=Size(odd, odd))
                assert bool(is_whole) == bool(_valid(one).all()), (
                    f"level {level} at {left}, {top}: read_tiles and read_level disagree on "
                    "whether all pixels are valid"
                )
                if is_whole:
                    what = f"level {level} at {left}, {top}, read_tiles"
                    _check_same(Region(tile), one, what, exact=True)


def _check_edges(slide: Slide, level: int) -> None:
    """Check that areas beyond a level are not valid, and areas within are unchanged."""
    size = slide.levels[level].size
    out = 9
    edge = min(64, size.width, size.height)
    last = (size.width - edge, size.height - edge)
    for x, y, dx, dy in ((0, 0, out, out), (*last, 0, 0)):
        inside = _read(slide, level, x=x, y=y, size=Size(edge, edge))
        beyond = _read(slide, level, x=x - dx, y=y - dy, size=Size(edge + out, edge + out))
        within = (slice(dy, dy + edge), slice(dx, dx + edge))
        what = f"level {level} at {x - dx}, {y - dy}, over the edge"
        _check_same(_part(beyond, *within), inside, what, exact=slide.reads_tiles)
        outside = _valid(beyond).copy()
        outside[within] = False
        assert not outside.any(), f"{what}: pixels beyond the level are valid"
    far = _read(slide, level, x=size.width + 5, y=size.height + 5, size=Size(8, 8))
    assert not _valid(far).any(), f"level {level}: pixels beyond the level are valid"


def _check_level(slide: Slide, level: int, tolerance: float) -> None:
    """Compare mean colours of areas with those of the finer level."""
    fine, coarse = slide.levels[level - 1], slide.levels[level]
    ratio = (coarse.downsample_x / fine.downsample_x, coarse.downsample_y / fine.downsample_y)
    edge = min(_WINDOW, int(_MOST_FINER / max(ratio)))
    edge = min(edge, coarse.size.width, coarse.size.height)
    if edge < _CELLS:
        return  # so few pixels have no areas
    differences = []
    for x, y in _corners(coarse.size, edge):
        found = _means(slide, level, (x, y, edge, edge))
        at = (x * ratio[0], y * ratio[1], edge * ratio[0], edge * ratio[1])
        expected = _means(slide, level - 1, at)
        differences.append(np.abs(found - expected).max(axis=2).ravel())
    every = np.concatenate(differences)
    every = every[np.isfinite(every)]
    if not len(every):
        return  # nothing is valid in both
    worst = float(np.quantile(every, 0.95))
    assert worst <= tolerance, (
        f"level {level} differs from level {level - 1} by {worst:.1f} grey levels on the mean of "
        "an area"
    )


def _means(
    slide: Slide, level: int, box: tuple[float, float, float, float]
) -> npt.NDArray[np.float64]:
    """Return the mean colour of equal areas of a rectangle; NaN where one is not fully valid."""
    x, y, width, height = box
    left, top = round(x), round(y)
    region = _read(slide, level, x=left, y=top, size=Size(round(width), round(height)))
    valid = _valid(region)
    rows = np.linspace(0, valid.shape[0], _CELLS + 1).round().astype(int)
    columns = np.linspace(0, valid.shape[1], _CELLS + 1).round().astype(int)
    found = np.full((_CELLS, _CELLS, 3), np.nan)
    for row in range(_CELLS):
        for column in range(_CELLS):
            area = (slice(*rows[row : row + 2]), slice(*columns[column : column + 2]))
            if valid[area].all():
                found[row, column] = region.rgb[area].reshape(-1, 3).mean(axis=0)
    return found
