"""The levels of a pyramid: how many level-0 pixels a pixel of each level covers.

Pyramids halve and drop odd edges. Some writers fill up the last tiles of a level and count the
filling as pixels. The ratio of widths is then not the downsample by which the level was made, and
differs from that of the heights. The picture on such a level shows the true downsample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Size
from wsiad.slides.slide import Level, true_downsample

LOOKED_AT_PX = 4096 * 4096
"""Size above which a level is not examined; with so many tiles its size alone is enough."""

_SMALL_PX = 1024 * 1024
"""Levels up to this size can be filled up to ``_MOST_FILLED`` times their content along an
axis; larger ones by ``_FILLED_PX``, or by two tiles if these are more."""
_MOST_FILLED = 16
_FILLED_PX = 512
_MOST_TRIED = 1024
_ALIKE = 0.7
"""Correlation from which a level counts as a picture of the level before it."""

Picture = npt.NDArray[np.uint8]


def find_levels(
    sizes: Sequence[Size],
    *,
    reported: Sequence[float],
    tiles: Sequence[Size | None],
    picture: Callable[[int], Picture | None],
) -> tuple[Level, ...]:
    """Find the true downsample of each level.

    Parameters
    ----------
    sizes : sequence of Size
        Sizes of all levels, pixels; level 0 first.
    reported : sequence of float
        Downsamples as the file or its reader states them. They are used where they are integers
        that explain both lengths.
    tiles : sequence of Size or None
        Size of each level's tiles, pixels; ``None`` for a level without tiles.
    picture : callable
        Function that returns a complete level in grey, uint8 (H, W), or ``None`` if it cannot be
        read. It is only called for levels that may have been filled up, and for those before
        them.

    Returns
    -------
    tuple of Level

    Notes
    -----
    A level was filled up if the ratios of its widths and heights differ by more than rounding
    explains; it may have been if it ends with its last tiles. Every integer that explains its
    size is then tested on the pictures: level ``n - 1`` is scaled to the content that level
    ``n`` would have, and correlated with it. If its size is that of level 0 divided by a power
    of two, only other powers of two are tested, and none if no other is possible. Most pyramids
    whose levels end with complete tiles are of this kind. If there is nothing to see, a power of
    two is preferred, then the smallest integer.
    """
    seen: dict[int, Picture | None] = {}

    def look(number: int) -> Picture | None:
        if number not in seen:
            small = sizes[number].width * sizes[number].height <= LOOKED_AT_PX
            seen[number] = picture(number) if small else None
        return seen[number]

    levels = [Level(sizes[0], 1.0, 1.0)]
    for number, (size, ratio, tile) in enumerate(zip(sizes, reported, tiles, strict=True)):
        if number == 0:
            continue
        plain = Level(
            size,
            _explained(sizes[0].width, size.width, ratio),
            _explained(sizes[0].height, size.height, ratio),
        )
        levels.append(_unfilled(plain, levels, tile, look) or plain)
    return tuple(levels)


def _explained(level0: int, level: int, reported: float) -> float:
    """Return level-0 pixels per level pixel: the reported integer if it explains the lengths."""
    if float(reported).is_integer() and abs(level0 / reported - level) < 1:
        return float(reported)
    return true_downsample(level0, level)


def _unfilled(
    plain: Level,
    before: Sequence[Level],
    tile: Size | None,
    look: Callable[[int], Picture | None],
) -> Level | None:
    """Return a level without its filling; ``None`` if it has none."""
    whole, size = before[0].size, plain.size
    alike = _ratios_agree(whole, size)
    tiled = tile is not None and _ends_with_tiles(size, tile)
    if alike and not tiled:
        return None
    # A level 0 that ends with its tiles may be filled up itself: it holds less than it says.
    spare = tile if tile is not None and _ends_with_tiles(whole, tile) else Size(0, 0)
    least = before[-1].downsample_x
    usual = _candidates(whole, size, spare=spare, filling=tile, least=least)
    small = size.width * size.height <= _SMALL_PX
    edges = (tile.width, tile.height) if tile else (0, 0)
    # Nobody fills a level up so that it is by a power of two that of level 0 by chance.
    regular = alike and _is_power(plain.downsample_x)
    more = None if small else tile if regular else _most_filled(edges)
    tried = _candidates(whole, size, spare=spare, filling=more, least=least)
    if alike:
        tried.insert(0, plain.downsample_x)
        if regular:
            tried = [value for value in tried if _is_power(value)]
        if set(tried) == {plain.downsample_x}:
            return None
    shown, finer = look(len(before)), look(len(before) - 1)
    if shown is not None and finer is not None:
        found = _most_alike(shown, _within(finer, before[-1], whole), whole, tried)
        if found is not None:
            return None if alike and found == tried[0] else Level(size, found, found)
    whole_numbers = [value for value in usual if value.is_integer()]
    if (alike and plain.downsample_x.is_integer()) or not tiled or not whole_numbers:
        return None
    return Level(size, whole_numbers[0], whole_numbers[0])


def _most_filled(edges: Sequence[int]) -> Size:
    width, height = (max(_FILLED_PX, 2 * edge) for edge in edges)
    return Size(width, height)


def _ends_with_tiles(size: Size, tile: Size) -> bool:
    return size.width % tile.width == 0 and size.height % tile.height == 0


def _ratios_agree(whole: Size, size: Size) -> bool:
    """Tell whether one downsample explains width and height, each to a pixel of the level."""
    least = max(whole.width / (size.width + 1), whole.height / (size.height + 1))
    most = min(whole.width / max(size.width - 1, 0.5), whole.height / max(size.height - 1, 0.5))
    return least <= most


def _candidates(
    whole: Size, size: Size, *, spare: Size, filling: Size | None, least: float
) -> list[float]:
    """Return downsamples that would leave room in a level for its filling; simple ones first.

    Parameters
    ----------
    whole, size : Size
        Sizes of level 0 and of the level, pixels.
    spare : Size
        Maximum filling of level 0, pixels.
    filling : Size or None
        Maximum filling of the level, pixels; ``None`` for most of the level.
    least : float
        Downsample of the level before.
    """
    most = float("inf")
    fill = filling or size
    axes = (
        (whole.width, size.width, spare.width, fill.width),
        (whole.height, size.height, spare.height, fill.height),
    )
    for length, filled, unsure, most_filled in axes:
        held = max(filled - most_filled, filled / _MOST_FILLED, 1)
        least, most = max(least, (length - unsure) / (filled + 1)), min(most, length / held)
    integers = [float(value) for value in range(int(np.ceil(least)), int(most) + 1)]
    simple = sorted(integers[:_MOST_TRIED], key=lambda value: (not _is_power(value), value))
    halves = [value + 0.5 for value in range(int(least), min(8, int(most) + 1))]
    ratio = max(whole.width / size.width, whole.height / size.height)
    return [value for value in (*simple, *halves, ratio) if least <= value <= most]


def _is_power(value: float) -> bool:
    return float(np.log2(value)).is_integer()


def _within(picture: Picture, level: Level, whole: Size) -> Picture:
    """Return the part of a level's picture that shows level 0, without the filling."""
    width = round(whole.width / level.downsample_x)
    height = round(whole.height / level.downsample_y)
    return picture[:height, :width]


def _most_alike(
    shown: Picture, finer: Picture, whole: Size, tried: Sequence[float]
) -> float | None:
    """Find the downsample at which a finer picture is most similar to the given one.

    Returns
    -------
    float or None
        The first in order of those that are as good as the best; ``None`` if there is nothing to
        see, or another picture.
    """
    alike = np.full(len(tried), -1.0)
    for index, value in enumerate(tried):
        width = max(1, min(round(whole.width / value), finer.shape[1]))
        height = max(1, min(round(whole.height / value), finer.shape[0]))
        small = cv2.resize(finer, (width, height), interpolation=cv2.INTER_AREA)
        part = shown[:height, :width]
        alike[index] = _correlation(small[: part.shape[0], : part.shape[1]], part)
    best = float(alike.max(initial=-1.0))
    if best < _ALIKE:
        return None
    good = 1 - alike <= 1.05 * (1 - best) + 5e-4
    return tried[int(good.argmax())]


def _correlation(one: Picture, other: Picture) -> float:
    """Correlate two pictures; -1 if one of them is blank."""
    first, second = (picture.astype(np.float32).ravel() for picture in (one, other))
    first -= first.mean()
    second -= second.mean()
    powers = float(first @ first), float(second @ second)
    if min(powers) < first.size:  # a standard deviation below 1
        return -1.0
    return float(first @ second) / float(np.sqrt(powers[0] * powers[1]))
