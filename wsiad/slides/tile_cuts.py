"""Rectangles of a level, cut at the edges of the tiles that its file consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wsiad.core.geometry import Size


class Cut(NamedTuple):
    """What a rectangle and a tile of the file have in common.

    Parameters
    ----------
    rectangle : int
        Index of the rectangle.
    asked, own : tuple of slice
        Rows and columns, in the rectangle and in the tile.
    """

    rectangle: int
    asked: tuple[slice, slice]
    own: tuple[slice, slice]

    @property
    def pixels(self) -> int:
        """How many pixels these are."""
        down, across = self.own
        return int((down.stop - down.start) * (across.stop - across.start))


def inside(x: int, y: int, size: Size, level: Size) -> bool:
    """Whether a rectangle lies within a level; all in pixels of it."""
    return 0 <= x <= level.width - size.width and 0 <= y <= level.height - size.height


def cut_by_tile(
    corners: Sequence[tuple[int, int]], size: Size, tile: Size, level: Size
) -> Iterator[tuple[int, int, list[Cut]]]:
    """Cut rectangles of one size, tile by tile of the file.

    Parameters
    ----------
    corners : sequence of (int, int)
        Top-left corners, x and y in pixels of the level.
    size, tile, level : Size
        Of the rectangles, of the file's tiles and of the level, pixels.

    Yields
    ------
    row, column : int
        Of a tile; each comes once, in the order in which the rectangles need them.
    list of Cut
        Its parts that are asked for. Nothing lies outside of the level.
    """
    lefts, tops = {x for x, _ in corners}, {y for _, y in corners}
    across = {x: _pieces(x, size.width, tile.width, level.width) for x in lefts}
    down = {y: _pieces(y, size.height, tile.height, level.height) for y in tops}
    cuts: dict[tuple[int, int], list[Cut]] = {}
    for index, (x, y) in enumerate(corners):
        for row, asked_y, own_y in down[y]:
            for column, asked_x, own_x in across[x]:
                cut = Cut(index, (asked_y, asked_x), (own_y, own_x))
                cuts.setdefault((row, column), []).append(cut)
    for (row, column), parts in cuts.items():
        yield row, column, parts


def _pieces(first: int, length: int, tile: int, end: int) -> list[tuple[int, slice, slice]]:
    """Cut ``length`` pixels from ``first`` at the edges of tiles, along one axis.

    Returns
    -------
    list of (int, slice, slice)
        A tile's index, where its pixels belong among those asked for, and which they
        are; nothing below 0 or from ``end`` on.
    """
    low, high = max(first, 0), min(first + length, end)
    pieces = []
    for index in range(low // tile, -(-high // tile) if high > low else 0):
        start, stop = max(low, index * tile), min(high, (index + 1) * tile)
        own = slice(start - index * tile, stop - index * tile)
        pieces.append((index, slice(start - first, stop - first), own))
    return pieces
